"""How right networks are on the scored split, and what each of their LAPs says alone."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench import benchmark as definition
from lapbench.digest import plain
from lapbench.pipeline import other_tasks
from lapbench.pipeline.answering import Answers, read_answers, read_mlps
from lapbench.pipeline.job import Job, Subject
from lapbench.report import Estimate, ModelSummary
from lapbench.report.results import LapSummary
from lapbench.report.statistics import bootstrap_means, in_range
from lapbench.score.predictivity import correctness, stand_alone

Scores: TypeAlias = npt.NDArray[np.float64]
_MANY = 10
"""Classes from which on the five best answers are looked at."""


def measures_by_image(job: Job, model: definition.Model) -> dict[str, Scores]:
    """Return what every image adds to the measures of a network, by name, (seeds, images) each.

    accuracy and its kin: see `lapbench.score.predictivity.correctness`. predictivity_1, faithfulness_1 and so
    on: whether the LAP of that number, standing alone, names the true class, and whether that of its network;
    mlp_predictivity_1 and so on: the same as a network reads it in the LAP's concept features.
    accuracy_soft, accuracy_hard: by either output of BLA; agreement_hard: whether both say the same;
    selected: how many positions decide, and size_varies: whether that is another number than of most images.
    top_5_accuracy, of 10 classes and more: whether the true class is one of the five that are answered first.
    Of other tasks those of `lapbench.pipeline.other_tasks.correctness`. Empty where a network was not asked.
    """
    labels, n_classes = job.considered("score").labels, len(job.dataset.classes)
    subjects = [Subject(model, seed, job.weights(model, seed)) for seed in model.seeds]
    found = [read_answers(job, subject, "score") for subject in subjects]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return {}
    if job.dataset.task != "classification":
        return other_tasks.correctness(job, known)
    said = np.stack([one["logits"].argmax(axis=1) for one in known])
    tables = correctness(said, labels, n_classes)
    if n_classes >= _MANY:
        tables["top_5_accuracy"] = _among_five(known, "logits", labels)
    if "hard" in known[0]:
        tables |= _both_ways(known, labels, n_classes)
    for number, layer in enumerate(_stand_alone(job, model, known), start=1):
        tables[f"predictivity_{number}"] = (layer == labels).astype(np.float64)
        tables[f"faithfulness_{number}"] = (layer == said).astype(np.float64)
    read = [mlps for subject in subjects if (mlps := read_mlps(job, subject)) is not None]
    if len(read) == len(subjects):
        truth, network = (np.stack([m[name].argmax(axis=2) for m in read]) for name in ("truth", "network"))
        for layer in range(truth.shape[2]):
            tables[f"mlp_predictivity_{layer + 1}"] = (truth[:, :, layer] == labels).astype(np.float64)
            tables[f"mlp_faithfulness_{layer + 1}"] = (network[:, :, layer] == said).astype(np.float64)
    return tables


def summarise(job: Job, model: definition.Model) -> ModelSummary:
    """Return how right a model is on the scored split, over its seeds; unknown before it is asked."""
    protocol, tables = job.benchmark.protocol, measures_by_image(job, model)
    intervals = bootstrap_means(
        list(tables.values()), confidence=protocol.confidence, resamples=protocol.resamples
    )
    within = in_range(dict(zip(tables, intervals, strict=True)))
    found = {name: Estimate.of(one) for name, one in within.items() if one.n}
    networks = [Subject(model, seed, job.weights(model, seed)).identity() for seed in model.seeds]
    return ModelSummary(
        name=model.name,
        task=job.dataset.task,
        accuracy=found["accuracy"].mean if "accuracy" in found else None,
        balanced_accuracy=found["balanced_accuracy"].mean if "accuracy" in found else None,
        measures={name: one for name, one in found.items() if not name[-1].isdigit()},
        laps=_laps(found, ""),
        laps_read=_laps(found, "mlp_"),
        classes=len(job.dataset.classes),
        n=len(other_tasks.measured(job)),
        seeds=model.seeds if model.recipe else (),
        provenance={"networks": plain(networks)},
    )


def _laps(found: Mapping[str, Estimate], kind: str) -> tuple[LapSummary, ...]:
    """What a model's LAPs say alone or, of kind "mlp_", as a network reads them."""
    n_laps = sum(name.startswith(f"{kind}predictivity_") for name in found)
    return tuple(
        LapSummary(
            predictivity=found[f"{kind}predictivity_{number}"],
            faithfulness=found[f"{kind}faithfulness_{number}"],
        )
        for number in range(1, n_laps + 1)
    )


def _both_ways(known: list[Answers], labels: npt.NDArray[np.int64], n_classes: int) -> dict[str, Scores]:
    """What every image adds to the measures of the soft and the hard output of BLA, (seeds, images) each."""
    said = {way: np.stack([one[way].argmax(axis=1) for one in known]) for way in ("soft", "hard")}
    tables = {f"accuracy_{way}": (answer == labels).astype(np.float64) for way, answer in said.items()}
    tables["agreement_hard"] = (said["soft"] == said["hard"]).astype(np.float64)
    sizes = np.stack([one["selected"] for one in known]).astype(np.float64)
    usual = np.array([[np.bincount(line.astype(np.int64)).argmax()] for line in sizes])
    tables |= {"selected": sizes, "size_varies": (sizes != usual).astype(np.float64)}
    if n_classes >= _MANY:
        tables |= {f"top_5_accuracy_{way}": _among_five(known, way, labels) for way in said}
    return tables


def _among_five(known: list[Answers], way: str, labels: npt.NDArray[np.int64]) -> Scores:
    """Whether fewer than five classes are answered before the true one, (seeds, images)."""
    logits = np.stack([one[way] for one in known])
    true = np.take_along_axis(logits, np.broadcast_to(labels, logits.shape[:2])[..., None], axis=2)
    among: Scores = ((logits > true).sum(axis=2) < 5).astype(np.float64)
    return among


def _stand_alone(job: Job, model: definition.Model, known: list[Answers]) -> npt.NDArray[np.int64]:
    """The classes that LAPs name alone, (L, seeds, images); L = 0 where there is none that can."""
    none = np.empty((0, len(known), 0), np.int64)
    classes = job.dataset.classes
    concepts = model.plug.of(classes).concepts if model.plug else ()
    if not concepts:  # no LAP, or a relative of it, which has no heads
        return none
    heads = [tuple(map(classes.index, c.classes)) for c in concepts]
    said = [stand_alone(one["peaks"], one["sums"], heads, len(job.dataset.classes)) for one in known]
    named = [classes for classes in said if classes is not None]
    return np.stack(named).transpose(2, 0, 1) if named else none
