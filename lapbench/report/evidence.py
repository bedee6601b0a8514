"""What a report says, held to the scores by image that it rests on, as far as they decide it."""

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.report.results import Estimate, ImageScores, Leaderboard, ModelSummary, Row, RowKey
from lapbench.report.statistics import Interval, bootstrap_mean, bootstrap_means, in_range

Scores: TypeAlias = npt.NDArray[np.float64]

ENDS = 0.1
"""An end of an interval may lie so much of its width away: another SciPy may draw other samples."""
_MOST = 9999
_TOGETHER = 500  # scores resampled at once: 40 MB


def contradictions(board: Leaderboard, images: Mapping[RowKey, ImageScores]) -> list[str]:
    """Say what a leaderboard states that the scores by image do not bear out, and what contradicts itself.

    images: of every row that has them, by `Row.key`. No answers of networks stand beside a leaderboard; of
    one training, the interval of what every image adds 0 or 1 to follows from how many add 1.
    """
    tables = {row.key: _tables(board, images, row.key) for row in board.rows if row.key in images}
    intervals = _intervals(board, tables)
    found = []
    for row in board.rows:
        name = f"{row.model}, {row.explainer} ({row.selection})"
        if row.key in images:
            faults = _faults_of_row(board, row, images[row.key], intervals[row.key])
            found += [f"{name}: {fault}" for fault in faults]
        elif row.complete and row.image_scores is None:
            found.append(f"{name}: a complete row needs its scores by image")
    return found + [f"{one.name}: {fault}" for one in board.models for fault in _faults_of_model(board, one)]


def _tables(board: Leaderboard, images: Mapping[RowKey, ImageScores], key: RowKey) -> dict[str, Scores]:
    """All scores of a row whose means it states, by name, (seeds, images) each."""
    tables = {name: np.array(table, np.float64) for name, table in images[key].scores.items()}
    random = images.get((*key[:3], True))
    if random is not None and random.ids == images[key].ids:
        tables["randomisation_drop"] = tables["iou"] - np.array(random.scores["iou"], np.float64)
    if _pooled(board):  # the pixels behind it are not among the scores
        del tables["iou"]
    return tables


def _intervals(
    board: Leaderboard, tables: Mapping[RowKey, Mapping[str, Scores]]
) -> dict[RowKey, dict[str, Interval]]:
    """The means of all scores of all rows with their intervals; resampled together, which costs far less."""
    places = [(key, name) for key, own in tables.items() for name in own]
    found: list[Interval] = []
    for start in range(0, len(places), _TOGETHER):
        part = [tables[key][name] for key, name in places[start : start + _TOGETHER]]
        found += bootstrap_means(part, confidence=board.confidence, resamples=_resamples(board))
    by_row: dict[RowKey, dict[str, Interval]] = {key: {} for key in tables}
    for (key, name), interval in zip(places, found, strict=True):
        by_row[key][name] = interval
    return {key: in_range(own) for key, own in by_row.items()}


def _faults_of_row(
    board: Leaderboard, row: Row, images: ImageScores, intervals: Mapping[str, Interval]
) -> Iterator[str]:
    if (images.benchmark, images.benchmark_version) != (board.benchmark, board.benchmark_version):
        yield (
            f"scores of {images.benchmark} version {images.benchmark_version}, "
            f"the leaderboard is of {board.benchmark} version {board.benchmark_version}"
        )
    iou = np.array(images.scores["iou"], np.float64)
    scored = np.isfinite(iou).all(axis=0)
    if row.n != scored.sum():
        yield f"{row.n} images counted, {scored.sum()} have a score"
    if row.n_failed != (~scored).sum():
        yield f"{row.n_failed} images counted as failed, {(~scored).sum()} have no score"
    if ((iou < 0) | (iou > 1)).any():
        yield "an IoU lies outside [0, 1]"
    for name, estimate in _estimates(row).items():
        if name in intervals:
            yield from _unlike("mean" if name == "iou" else name, estimate, intervals[name])
    means = {} if _pooled(board) else dict(zip(images.seeds, map(_mean, iou), strict=True))
    for one in row.seeds:
        if one.mean is not None and one.seed in means and not _close(one.mean, means[one.seed]):
            yield f"mean {one.mean} of seed {one.seed}, that of the scores by image is {means[one.seed]}"
    accuracy = next((model.accuracy for model in board.models if model.name == row.model), None)
    joined = "submissions" in board.provenance  # whose networks may answer otherwise on another machine
    if None not in (accuracy, row.model_accuracy) and not joined and accuracy != row.model_accuracy:
        yield f"model_accuracy {row.model_accuracy}, that of the model is {accuracy}"


def _estimates(row: Row) -> dict[str, Estimate]:
    """What a row says of its scores, by their names in the scores by image."""
    named = {"pointing_game": row.pointing_game, "energy": row.energy, **row.measures}
    found = {name: estimate for name, estimate in named.items() if estimate is not None}
    return {"iou": Estimate(mean=row.mean, ci_low=row.ci_low, ci_high=row.ci_high), **found}


def _unlike(
    name: str, said: Estimate, found: Interval, *, of: str = "the scores by image", step: float = 0.0
) -> Iterator[str]:
    """Say where a mean or its interval is not what was found; step: how much the ends may differ besides."""
    if said.mean is not None and not _close(said.mean, found.mean):
        yield f"{name} {said.mean}, that of {of} is {found.mean}"
    if said.ci_low is None or said.ci_high is None:
        return
    bound = 1e-6 + step + ENDS * (found.high - found.low)
    apart = max(abs(said.ci_low - found.low), abs(said.ci_high - found.high))
    if not apart <= bound:  # NaN, too
        yield (
            f"interval [{said.ci_low}, {said.ci_high}] of {name}, that of {of} is [{found.low}, {found.high}]"
        )


def _faults_of_model(board: Leaderboard, model: ModelSummary) -> Iterator[str]:
    for name in ("accuracy", "balanced_accuracy"):
        said, measure = getattr(model, name), model.measures.get(name, Estimate()).mean
        if said is not None and measure is not None and not _close(said, measure):
            yield f"{name} {said}, its measure of that name is {measure}"
    for name, estimate in _shares(model):
        yield from _faults_of_share(board, model, name, estimate)


def _shares(model: ModelSummary) -> Iterator[tuple[str, Estimate]]:
    """The measures of a classifier to which every image adds 0 or 1."""
    if "accuracy" in model.measures:
        yield "accuracy", model.measures["accuracy"]
    for kind, laps in (("", model.laps), (", read", model.laps_read)):
        for number, lap in enumerate(laps, start=1):
            yield f"predictivity of LAP {number}{kind}", lap.predictivity
            yield f"faithfulness of LAP {number}{kind}", lap.faithfulness


def _faults_of_share(board: Leaderboard, model: ModelSummary, name: str, said: Estimate) -> Iterator[str]:
    trainings = max(1, len(model.seeds))
    if said.mean is None:
        return
    answers = model.n * trainings
    right = round(said.mean * answers)
    if abs(said.mean * answers - right) > 1e-3:
        yield f"{name} {said.mean} is no share of {answers} answers"
    elif trainings == 1:
        column = np.arange(model.n) < right
        found = bootstrap_mean(column, confidence=board.confidence, resamples=_resamples(board))
        of = f"{right} of {answers} right answers"
        yield from _unlike(name, said, in_range({name: found})[name], of=of, step=1 / answers)


def _pooled(board: Leaderboard) -> bool:
    return board.protocol.get("averaging") == "pooled"


def _resamples(board: Leaderboard) -> int:
    """As many as the protocol says; a report comes from strangers, who may ask for any work."""
    found = board.protocol.get("resamples")
    return found if isinstance(found, int) and 0 < found <= _MOST else _MOST


def _mean(line: Scores) -> float:
    scored = line[np.isfinite(line)]
    return float(scored.mean()) if scored.size else math.nan


def _close(said: float, found: float) -> bool:
    return math.isclose(said, found, abs_tol=1e-9)
