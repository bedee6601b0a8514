"""How well networks classify the scored split, and what each of their LAPs says alone."""

from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench import benchmark as definition
from lapbench.digest import plain
from lapbench.pipeline.explaining import read_answers
from lapbench.pipeline.job import Job, Subject
from lapbench.report import Estimate, ModelSummary
from lapbench.report.results import LapSummary
from lapbench.report.statistics import bootstrap_means
from lapbench.score.predictivity import correctness, stand_alone

Scores: TypeAlias = npt.NDArray[np.float64]


def classification(job: Job, model: definition.Model) -> dict[str, Scores]:
    """Return what every image adds to the measures of a network, by name, (seeds, images) each.

    accuracy and its kin: see `lapbench.score.predictivity.correctness`. predictivity_1, faithfulness_1 and so
    on: whether the LAP of that number, standing alone, names the true class, and whether that of its network.
    Empty where a network was not asked yet.
    """
    labels, n_classes = job.considered("score").labels, len(job.dataset.classes)
    found = [read_answers(job, Subject(model, s, job.weights(model, s)), "score") for s in model.seeds]
    known = [answers for answers in found if answers is not None]
    if len(known) < len(found):
        return {}
    said = np.stack([answers["logits"].argmax(axis=1) for answers in known])
    tables = correctness(said, labels, n_classes)
    for number, layer in enumerate(_stand_alone(job, model, known), start=1):
        tables[f"predictivity_{number}"] = (layer == labels).astype(np.float64)
        tables[f"faithfulness_{number}"] = (layer == said).astype(np.float64)
    return tables


def summarise(job: Job, model: definition.Model) -> ModelSummary:
    """Return how well a model classifies the scored split, over its seeds; unknown before it is asked."""
    protocol, tables = job.benchmark.protocol, classification(job, model)
    intervals = bootstrap_means(
        list(tables.values()), confidence=protocol.confidence, resamples=protocol.resamples
    )
    # Student's t, of few trainings, may leave the range of the measures
    within = [replace(one, low=max(one.low, 0.0), high=min(one.high, 1.0)) for one in intervals]
    found = {name: Estimate.of(one) for name, one in zip(tables, within, strict=True) if one.n}
    networks = [Subject(model, seed, job.weights(model, seed)).identity() for seed in model.seeds]
    n_laps = sum(name.startswith("predictivity") for name in found)
    return ModelSummary(
        name=model.name,
        accuracy=found["accuracy"].mean if found else None,
        balanced_accuracy=found["balanced_accuracy"].mean if found else None,
        measures={name: one for name, one in found.items() if not name[-1].isdigit()},
        laps=tuple(
            LapSummary(predictivity=found[f"predictivity_{n}"], faithfulness=found[f"faithfulness_{n}"])
            for n in range(1, n_laps + 1)
        ),
        classes=len(job.dataset.classes),
        n=len(job.considered("score")),
        seeds=model.seeds if model.recipe else (),
        provenance={"networks": plain(networks)},
    )


def _stand_alone(
    job: Job, model: definition.Model, answers: list[dict[str, npt.NDArray[np.float32]]]
) -> npt.NDArray[np.int64]:
    """The classes that LAPs name alone, (L, seeds, images); L = 0 where there is none that can."""
    none = np.empty((0, len(answers), 0), np.int64)
    if model.plug is None or not model.plug.concepts:
        return none
    index = job.dataset.classes.index
    heads = [tuple(index(name) for name in concept.classes) for concept in model.plug.concepts]
    said = [stand_alone(one["peaks"], one["sums"], heads, len(job.dataset.classes)) for one in answers]
    known = [classes for classes in said if classes is not None]
    return np.stack(known).transpose(2, 0, 1) if known else none
