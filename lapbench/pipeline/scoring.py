"""Stage 3: fit the global thresholds, score the maps, and store the rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.benchmark import NO_NETWORK
from lapbench.digest import plain
from lapbench.errors import StoreError
from lapbench.pipeline import measures
from lapbench.pipeline.answering import read_logits
from lapbench.pipeline.inquiry import Inquiry, inquire, network_of
from lapbench.pipeline.job import Block, Job, Purpose, RowSource, Source
from lapbench.pipeline.rows import ScoredRow, missing_rows, read_row, write_row
from lapbench.pipeline.samples import Samples
from lapbench.report.results import (
    CompletenessError,
    Counts,
    Estimate,
    ImageScores,
    Row,
    SeedResult,
    Selection,
)
from lapbench.report.statistics import Interval, bootstrap_means, bootstrap_ratio, in_range
from lapbench.score import (
    BoxSweep,
    Localisation,
    ThresholdFit,
    fit_threshold,
    localise,
    normalise,
    sweep_boxes,
)
from lapbench.score import ImageScores as Selected
from lapbench.score.pixels import without_ignored
from lapbench.store import Shard
from lapbench.types import FloatArray, MaskArray

Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What one seed of a row gave: its threshold, the scores of its images, and its diagnostics.

    boxes, inquiry: where the protocol asks for them. resolution: rows and columns of the raw maps.
    """

    source: Source
    fit: ThresholdFit
    scores: Localisation
    boxes: BoxSweep | None
    inquiry: Inquiry | None
    completeness_error: Scores | None
    resolution: tuple[int, int]


def score(job: Job) -> list[str]:
    """Score every row whose maps are all there and that is not scored yet; return why others cannot be."""
    samples, reasons = Samples(job), []
    rows = missing_rows(job)
    for number, row in enumerate(rows):
        job.workspace.progress(number, len(rows), "score")
        if reason := missing_maps(job, row):
            reasons.append(f"{row.explainer.row}: {reason}")
        else:
            write_row(job, row, tuple(_score(job, row, samples)))
    if rows:
        job.workspace.progress(len(rows), len(rows), "score")
    return reasons


def scored_rows(job: Job, row: RowSource) -> tuple[ScoredRow, ...]:
    """Return the scored rows of an explainer on a model; where it has none, rows that say why."""
    stored = read_row(job, row)
    if stored is not None:
        return stored
    reason = missing_maps(job, row) or "its maps are not scored yet: run `lapbench score`"
    return tuple(_failed(job, row, selection, reason) for selection in selections(job, row))


def selections(job: Job, row: RowSource) -> list[Selection]:
    """The selections that make sense for an explainer."""
    native = row.sources[0].spec.native_threshold is not None
    return [s for s in job.benchmark.protocol.selections if s != "native" or native]


def missing_maps(job: Job, row: RowSource) -> str:
    """Say why a row cannot be scored, or nothing."""
    if not job.blocks("score"):
        return f"no image of the split {job.considered('score').name!r} has a truth to be scored against"
    for source in row.sources:
        for purpose in _PURPOSES:
            split = job.considered(purpose).name
            paths = [job.store.path(*job.map_key(source, block)) for block in job.blocks(purpose)]
            if not all(path.is_file() for path in paths):
                failure = job.failure_path(source)
                why = f"no maps of {source.text} on {split}: run `lapbench explain` first"
                return failure.read_text(encoding="utf-8") if failure.is_file() else why
    return ""


_PURPOSES: tuple[Purpose, ...] = ("fit", "score")


def _score(job: Job, row: RowSource, samples: Samples) -> Iterator[ScoredRow]:
    """Score an explainer on every seed of a model, and give a row for every selection."""
    kept = _kept(job, row)
    outcomes = [_outcome(job, source, samples, kept) for source in row.sources]
    ids = tuple(sample for block in job.blocks("score") for sample in samples.ids(block))
    for selection in selections(job, row):
        tables = {
            "iou": np.stack([outcome.scores.iou[selection].iou for outcome in outcomes]),
            "pointing_game": np.stack([outcome.scores.pointing for outcome in outcomes]),
            "energy": np.stack([outcome.scores.energy for outcome in outcomes]),
            **measures.by_image(selection, [outcome.scores for outcome in outcomes]),
            **measures.of_boxes([outcome.boxes for outcome in outcomes if outcome.boxes]),
            **measures.of_networks([outcome.inquiry for outcome in outcomes if outcome.inquiry]),
        }
        yield ScoredRow(
            row=_row(job, row, selection, outcomes, tables),
            images=ImageScores(
                benchmark=job.benchmark.name,
                benchmark_version=job.benchmark.version,
                model=row.model.name if row.model else NO_NETWORK,
                explainer=row.explainer.row,
                selection=selection,
                randomised=row.randomised,
                seeds=_seeds(row),
                ids=tuple(np.asarray(ids)[kept].tolist()),
                scores={name: tuple(map(tuple, table.tolist())) for name, table in tables.items()},
            ),
        )


def _outcome(job: Job, source: Source, samples: Samples, kept: MaskArray) -> Outcome:
    """Fit the threshold of one source on the fitting split, and score its maps on the scored split.

    kept: (n,) which images with truth count.
    """
    protocol, spec = job.benchmark.protocol, source.spec

    fit = _fit(job, source, samples)
    network = network_of(job, source)
    parts, boxes, asked, errors, resolution, start = [], [], [], [], (0, 0), 0
    for block, shard in _shards(job, source, "score"):
        counted = kept[start : (start := start + len(block.indices))]
        masks, raw, ignored = samples.masks(block)[counted], shard.maps[counted], samples.ignored(block)
        resolution = (shard.maps.shape[1], shard.maps.shape[2])
        parts.append(
            localise(
                raw,
                masks,
                selections=protocol.selections,
                threshold=fit.threshold,
                orientation=fit.orientation,
                native_threshold=spec.native_threshold,
                mode=spec.upsample,
                sign=protocol.sign,
                order=protocol.order,
                tolerance=protocol.pointing_tolerance * max(job.benchmark.data.image_size),
                ignore=None if ignored is None else ignored[counted],
            )
        )
        maps = _normalised(job, source, raw, masks) if protocol.box_accuracy or network else raw
        if protocol.box_accuracy:
            truth = [own for own, counts in zip(samples.boxes(block), counted, strict=True) if counts]
            boxes.append(sweep_boxes(maps, truth))
        if network:
            asked.append(inquire(job, source, network, samples, block, shard, maps, counted))
        errors += [shard.diagnostics[name] for name in ("completeness_error",) if name in shard.diagnostics]
    return Outcome(
        source=source,
        fit=fit,
        scores=Localisation.join(parts),
        boxes=BoxSweep.join(boxes) if boxes else None,
        inquiry=Inquiry.join(asked) if asked else None,
        completeness_error=np.concatenate(errors) if errors else None,
        resolution=resolution,
    )


def _fit(job: Job, source: Source, samples: Samples) -> ThresholdFit:
    """Fit the threshold of one source on the fitting split."""

    def normalised() -> Iterator[tuple[FloatArray, MaskArray]]:
        for block, shard in _shards(job, source, "fit"):
            masks = samples.masks(block)
            normal = _normalised(job, source, shard.maps, masks)
            yield from without_ignored(normal, masks, samples.ignored(block))

    protocol = job.benchmark.protocol
    return fit_threshold(
        normalised(),
        method=protocol.threshold_fit,
        orientation=protocol.orientation,
        images=protocol.fit_images,
    )


def _normalised(job: Job, source: Source, maps: FloatArray, masks: MaskArray) -> FloatArray:
    """Bring the maps of a source to the size of their masks, and divide them by their maxima."""
    protocol, size = job.benchmark.protocol, (masks.shape[1], masks.shape[2])
    return normalise(maps, size, mode=source.spec.upsample, sign=protocol.sign, order=protocol.order)


def _shards(job: Job, source: Source, purpose: Purpose) -> Iterator[tuple[Block, Shard]]:
    """Give the maps of a source, shard by shard. Errors: StoreError where one has gone meanwhile."""
    for block in job.blocks(purpose):
        shard = job.store.read(*job.map_key(source, block))
        if shard is None:
            raise StoreError(
                f"maps of {source.text} have gone from {job.store.root} while they were scored: run again"
            )
        yield block, shard


def _kept(job: Job, row: RowSource) -> MaskArray:
    """Which images with truth count, (n,): all, or those classified rightly with every seed."""
    blocks = job.blocks("score")
    kept = np.ones(len(job.considered("score")), bool)
    if job.benchmark.protocol.score_images == "correct-positives":
        labels = job.considered("score").labels
        for subject in (source.subject for source in row.sources if source.subject):
            # random weights are compared on the images that the trained network gets right
            logits = read_logits(job, replace(subject, randomised=False), "score")
            if logits is None:
                raise StoreError(f"no predictions of {subject.text}: run `lapbench explain` first")
            kept &= logits.argmax(axis=1) == labels
    return kept[[index for block in blocks for index in block.indices]]


def _row(
    job: Job,
    row: RowSource,
    selection: Selection,
    outcomes: Sequence[Outcome],
    tables: dict[str, Scores],
) -> Row:
    """Make one row of the leaderboard from the outcomes of its seeds."""
    spec, fits = row.sources[0].spec, [outcome.fit for outcome in outcomes]
    selected = [outcome.scores.iou[selection] for outcome in outcomes]
    scores = [outcome.scores for outcome in outcomes]
    found = _intervals(job, selected, tables)
    iou, n = found["iou"], tables["iou"].shape[1]
    n_failed = int(np.isnan(tables["iou"]).any(axis=0).sum())
    no_threshold = next((fit.reason for fit in fits if fit.reason), "") if selection == "threshold" else ""
    fitted = float(np.mean([fit.threshold for fit in fits]))
    reason = ""
    if no_threshold:
        reason = f"no threshold: {no_threshold}"
    elif not n:
        reason = "no image of the scored split counts: none has truth, or none is classified rightly"
    elif n_failed:
        reason = f"{n_failed} of {n} maps hold NaN or infinity"
    return Row(
        model=row.model.name if row.model else NO_NETWORK,
        explainer=row.explainer.row,
        selection=selection,
        mean=iou.mean,
        ci_low=iou.low,
        ci_high=iou.high,
        n=iou.n,
        n_failed=n_failed,
        threshold={"threshold": fitted, "native": spec.native_threshold, "top-k": None}[selection],
        complete=not reason,
        reason=reason,
        provenance=_provenance(job, row, outcomes),
        control=spec.control,
        randomised=row.randomised,
        orientation=min((fit.orientation for fit in fits), default=None)
        if selection == "threshold"
        else None,
        fitted_threshold=fitted if selection == "native" else None,
        counts=Counts(
            n_nan=0 if no_threshold else sum(int(s.failed.sum()) for s in selected),
            n_flat=sum(int(s.flat.sum()) for s in selected),
            n_empty=sum(int(((s.selected == 0) & ~s.failed).sum()) for s in selected),
        ),
        tied_fraction=_mean(np.concatenate([s.tied for s in selected])) if selection == "top-k" else None,
        pointing_game=Estimate.of(found.pop("pointing_game")),
        energy=Estimate.of(found.pop("energy")),
        measures={
            **{name: Estimate.of(interval) for name, interval in found.items() if name != "iou"},
            **{name: Estimate(mean=mean) for name, mean in measures.of_all_images(scores).items()},
        },
        curves={
            **measures.curves(selection, scores, tables["iou"], math.prod(job.benchmark.data.image_size)),
            **measures.faithfulness_curves(
                [o.inquiry.curves for o in outcomes if o.inquiry and o.inquiry.curves]
            ),
        },
        completeness_error=_completeness(job, outcomes),
        cells_per_object=_cells_per_object(job, outcomes[0].resolution),
        seeds=tuple(
            SeedResult(
                seed=seed, mean=_json(one.mean(job.benchmark.protocol.averaging)), threshold=fit.threshold
            )
            for seed, one, fit in zip(_seeds(row), selected, fits, strict=True)
        ),
    )


def _intervals(job: Job, selected: Sequence[Selected], tables: dict[str, Scores]) -> dict[str, Interval]:
    """The means of all scores by image with their intervals, by name."""
    protocol = job.benchmark.protocol
    confidence, resamples = protocol.confidence, protocol.resamples
    intervals = bootstrap_means(list(tables.values()), confidence=confidence, resamples=resamples)
    found = dict(zip(tables, intervals, strict=True))
    if protocol.averaging == "pooled":
        scored = ~np.any([s.failed for s in selected], axis=0)
        pooled = (
            np.stack([getattr(s, part)[scored] for s in selected]) for part in ("intersection", "union")
        )
        found["iou"] = bootstrap_ratio(*pooled, confidence=confidence, resamples=resamples)
    return in_range(found)


def _cells_per_object(job: Job, resolution: tuple[int, int]) -> float | None:
    """The side of the median object in pixels of the raw map; None where maps are as fine as the images."""
    height, width = job.benchmark.data.image_size
    side = job.median_object_side
    if side is None or resolution[0] * resolution[1] >= height * width:
        return None
    return round(side * math.sqrt(resolution[0] * resolution[1]), 3)


def _completeness(job: Job, outcomes: Sequence[Outcome]) -> CompletenessError | None:
    errors = [o.completeness_error for o in outcomes if o.completeness_error is not None]
    if not errors:
        return None
    values = np.concatenate(errors)
    bound = job.benchmark.protocol.completeness_bound
    return CompletenessError(median=float(np.median(values)), max=float(values.max()), bound=bound)


def _provenance(job: Job, row: RowSource, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that can change the row's numbers."""
    spec = row.sources[0].spec
    record: dict[str, Any] = plain(
        {
            "digest": job.row_digest(row),
            "maps": [source.identity() for source in row.sources],
            "upsample": {
                "mode": spec.upsample,
                "align_corners": False,
                "to": list(job.benchmark.data.image_size),
            },
            "fits": [{name: _json(value) for name, value in asdict(o.fit).items()} for o in outcomes],
        }
    )
    return record


def _failed(job: Job, row: RowSource, selection: Selection, reason: str) -> ScoredRow:
    """A row without numbers."""
    n = sum(len(block.indices) for block in job.blocks("score"))
    spec = row.sources[0].spec
    model = row.model.name if row.model else NO_NETWORK
    return ScoredRow(
        row=Row(
            model=model, explainer=row.explainer.row, selection=selection, n_failed=n, complete=False,
            reason=reason, control=spec.control, randomised=row.randomised,
        ),
        images=None,
    )  # fmt: skip


def _seeds(row: RowSource) -> tuple[int, ...]:
    return tuple(source.subject.seed if source.subject else 0 for source in row.sources)


def _mean(values: Scores) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
