"""The pictures of a report, drawn once: they are kept in the cache, named by everything they show."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor, nn

from lapbench import benchmark as definition
from lapbench.digest import digest_of
from lapbench.errors import StoreError
from lapbench.executor import MOST, in_batches
from lapbench.explain import explain
from lapbench.models.predict import predict
from lapbench.pipeline.answering import read_answers
from lapbench.pipeline.job import Block, Job, RowSource, Subject, slug
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.other_tasks import in_words
from lapbench.registry import explainers
from lapbench.report.figures import TRUE, MapColumn, draw_maps, draw_ranking
from lapbench.report.results import Leaderboard, Row, Selection, write_file
from lapbench.score import normalise, predict_mask, upsample
from lapbench.train.hardware import resolve_device
from lapbench.train.images import normalise as normalise_images
from lapbench.types import FloatArray, MaskArray, Sample

PICTURES_VERSION = 6
"""Raised when a change of the code may change a picture."""
IMAGES = 6
"""The first images with truth of the scored split are shown, whatever their scores."""
LIKELIEST = 3
"""Classes of which the heads' maps are drawn."""


def draw_pictures(job: Job, leaderboard: Leaderboard) -> list[Path]:
    """Draw the ranking, and for each model a grid of images and maps; return the files.

    ``maps.png`` shows the first model of the definition, ``maps-<model>.png`` each further one.
    """
    drawn = []
    if any(row.rank is not None for row in leaderboard.rows):
        what = leaderboard.model_dump(mode="json", exclude={"provenance"})
        drawn.append(_kept(job, "ranking.png", what, lambda path: draw_ranking(path, leaderboard)))
    for model in job.benchmark.models:
        rows = [r for r in job.rows() if r.model is model and not r.randomised and job.row_path(r).is_file()]
        name = "maps.png" if model is job.benchmark.models[0] else f"maps-{slug(model.name)}.png"
        if rows and not _keeping(job, name, _shown(job, rows, leaderboard.title)).is_file():
            rows = _with_maps(job, name, rows)
        if rows:
            draw = partial(_draw_maps, job, model, rows, leaderboard)
            drawn.append(_kept(job, name, _shown(job, rows, leaderboard.title), draw))
    return drawn


def draw_figures(
    job: Job, leaderboard: Leaderboard, *, images: int, form: Literal["pdf", "svg", "png"]
) -> list[Path]:
    """Draw the grid of images and maps of every model anew, with as many images as wanted; return the files.

    The first images with truth are shown, up to a shard of them. A model with a concept head for every class
    gets a second file, ``<model>-classes``: the heads' maps of the classes that it holds most probable.
    """
    drawn = []
    for model in job.benchmark.models:
        rows = [r for r in job.rows() if r.model is model and not r.randomised and job.row_path(r).is_file()]
        path = job.workspace.out / "figures" / f"{slug(model.name)}.{form}"
        if rows := _with_maps(job, path.name, rows):
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw_maps(job, model, rows, leaderboard, path, images=images)
            drawn.append(path)
            if _has_head_of_each_class(model, job.dataset.classes):
                beside = path.with_name(f"{slug(model.name)}-classes.{form}")
                _draw_classes(job, model, beside, title=f"{leaderboard.title}: {model.name}", images=images)
                drawn.append(beside)
    return drawn


def _shown(job: Job, rows: list[RowSource], title: str) -> list[str]:
    """What a grid of maps shows."""
    return [title, *(job.row_digest(row) for row in rows)]


def _keeping(job: Job, name: str, what: object) -> Path:
    """Where a picture is kept in the cache."""
    return job.workspace.cache / "pictures" / f"{digest_of([what, name, PICTURES_VERSION])[:16]}.png"


def _kept(job: Job, name: str, what: object, draw: Callable[[Path], None]) -> Path:
    """Put a picture into the report: the one in the cache, or else a new one."""
    kept = _keeping(job, name, what)
    if not kept.is_file():
        draw(kept)
    path = job.workspace.out / name
    write_file(path, kept.read_bytes())
    return path


def _with_maps(job: Job, name: str, rows: list[RowSource]) -> list[RowSource]:
    """Return the rows whose maps are still there; those of a scored row may have been removed since."""
    block = job.blocks("score")[0]
    there = [row for row in rows if job.store.read(*job.map_key(row.sources[0], block)) is not None]
    if gone := [row.explainer.row for row in rows if row not in there]:
        job.workspace.notify(
            f"{name} is without {', '.join(gone)}: the maps have gone from the cache; to make them again, "
            f"remove {job.workspace.cache / 'rows'}"
        )
    return there


def _draw_maps(
    job: Job,
    model: definition.Model,
    rows: list[RowSource],
    leaderboard: Leaderboard,
    path: Path,
    images: int = IMAGES,
) -> None:
    """Draw the maps of every explainer on the first seed of a model."""
    block = job.blocks("score")[0]
    split = job.dataset[block.split]
    samples = [split[i] for i in block.indices[:images]]
    found = {(row.model, row.explainer, row.selection): row for row in leaderboard.rows if not row.randomised}
    columns = []
    for row in rows:
        selection: Selection = "native" if row.sources[0].spec.native_threshold is not None else "threshold"
        scored = found.get((model.name, row.explainer.row, selection))
        columns.append(_column(job, row, block, samples, scored))
    said = _predictions(job, model, block.indices[:images])
    draw_maps(path, samples, columns, title=f"{leaderboard.title}: {model.name}", predictions=said)


def _predictions(job: Job, model: definition.Model, indices: Sequence[int]) -> list[str]:
    """What the first seed's network says of images: the class, and how probable it holds it.

    Of other tasks as `lapbench.pipeline.other_tasks.in_words`.
    """
    seed = model.seeds[0]
    answers = read_answers(job, Subject(model, seed, job.weights(model, seed)), "score")
    if answers is None:
        return []
    if job.dataset.task != "classification":
        return in_words(job, answers, indices)
    probabilities = softmax(answers["logits"][list(indices)].astype(np.float64), axis=1)
    return [f"{job.dataset.classes[line.argmax()]} {line.max():.2f}" for line in probabilities]


def _has_head_of_each_class(model: definition.Model, classes: Sequence[str]) -> bool:
    """Whether every class, of three or more, has a concept head of its own, which explainers take for it."""
    if model.plug is None or len(classes) < LIKELIEST:
        return False
    heads = [concept.classes for concept in model.plug.of(classes).concepts]
    return all(next((head for head in heads if name in head), ()) == (name,) for name in classes)


def _draw_classes(job: Job, model: definition.Model, path: Path, *, title: str, images: int) -> None:
    """Draw, for the first seed, the heads' maps of the classes that the network holds most probable.

    Maps are those of `lap_all`; no threshold is applied, and all are drawn from 0 to 1.
    """
    seed, block, names = model.seeds[0], job.blocks("score")[0], job.dataset.classes
    samples = [job.dataset[block.split][i] for i in block.indices[:images]]
    device = resolve_device(job.workspace.device)
    pixels = torch.from_numpy(np.stack([sample.image for sample in samples])).to(device)
    inputs = normalise_images(pixels, job.benchmark.data)
    network = load_network(job, Subject(model, seed, job.weights(model, seed)))
    probabilities = predict(network, inputs, batch_size=MOST["cpu"]).double().softmax(dim=1).cpu()
    likeliest = probabilities.argsort(dim=1, descending=True, stable=True)[:, :LIKELIEST]
    columns = []
    for place, classes in zip(("most probable class", "second", "third"), likeliest.T, strict=True):
        captions = [
            f"{TRUE} " * (int(c) == sample.label) + f"{names[c]} {line[c]:.2f}"
            for c, line, sample in zip(classes, probabilities, samples, strict=True)
        ]
        maps = _head_maps(network, inputs, classes.to(device))
        columns.append(MapColumn(title=place, maps=maps, captions=captions, absolute=True))
    truth = [f"{TRUE} {names[sample.label]}" for sample in samples]
    draw_maps(path, samples, columns, title=title, predictions=truth)


def _head_maps(network: nn.Module, images: Tensor, classes: Tensor) -> FloatArray:
    """The maps of `lap_all` of one class an image, at the images' size, (n, H, W)."""
    spec = explainers.get("lap_all")
    parts = in_batches(
        lambda start, stop: explain(spec, network, images[start:stop], classes[start:stop]).values.cpu(),
        len(images),
        most=MOST[images.device.type],
    )
    return upsample(torch.cat(parts).numpy(), (images.shape[2], images.shape[3]), spec.upsample)


def _column(job: Job, row: RowSource, block: Block, samples: list[Sample], scored: Row | None) -> MapColumn:
    """One explainer's maps of the samples, with the masks they predict."""
    source, protocol = row.sources[0], job.benchmark.protocol
    spec, shard = source.spec, job.store.read(*job.map_key(source, block))
    size = samples[0].mask.shape
    if shard is None:
        raise StoreError(
            f"maps of {source.text} have gone from {job.store.root} while they were drawn: run again"
        )
    maps = shard.maps[: len(samples)]
    shown = upsample(maps, size, spec.upsample)
    masks: MaskArray | None = None
    if spec.native_threshold is not None:
        masks = predict_mask(shown, spec.native_threshold)
    elif scored and scored.seeds and scored.seeds[0].threshold is not None:
        normal = normalise(maps, size, mode=spec.upsample, sign=protocol.sign, order=protocol.order)
        masks = predict_mask(normal, scored.seeds[0].threshold, scored.orientation or 1)
    iou = None if masks is None else [_iou(mask, sample) for mask, sample in zip(masks, samples, strict=True)]
    return MapColumn(
        title=row.explainer.row,
        maps=shown,
        masks=masks,
        iou=iou,
        absolute=spec.native_threshold is not None,
        signed=spec.signed,
    )


def _iou(predicted: MaskArray, sample: Sample) -> float:
    counted = predicted if sample.ignore is None else predicted & ~sample.ignore
    return float((counted & sample.mask).sum() / max(1, (counted | sample.mask).sum()))
