"""Which rows of a ranking can be told apart, and how large a difference must be to be seen.

Ranks are by mean, so the test of a pair is of its mean difference: Student's t over the same images (and over
trainings, where there are several), corrected for all pairs of the ranking (Benjamini and Hochberg). The
signed-rank test asks something else, whether one row is *usually* higher, and gives alarm between rows of
equal means whose differences are skewed.
"""

import math
from collections.abc import Mapping, Sequence, Set
from itertools import combinations
from typing import TypeAlias

import numpy as np

from lapbench.report.comparison import adjusted, chance, mean_difference
from lapbench.report.results import ImageScores, Leaderboard, Power, Row, RowKey
from lapbench.report.statistics import Numbers

POWER = 0.8
"""The probability with which a difference as large as the detectable effect is found."""

Pair: TypeAlias = tuple[int, int]


def grouped(leaderboard: Leaderboard, images: Mapping[RowKey, ImageScores]) -> Leaderboard:
    """Return a ranked leaderboard with the groups of its rows, and what its rankings can tell apart.

    images: the scores by image of the rows. Rows without, or whose mean is not that of these scores (pooled
    IoU), have no group.
    """
    alpha = 1 - leaderboard.confidence
    found: dict[RowKey, int] = {}
    power: dict[str, Power] = {}
    for ranking in ("thresholding", "top-k"):
        rows = [row for row in leaderboard.rows if row.ranking == ranking and _is_ranked_by(row, images)]
        rows.sort(key=lambda row: (-(row.mean or 0.0), row.key))
        if len(rows) > 1:
            apart, power[ranking] = told_apart(_aligned([images[row.key] for row in rows]), alpha)
            found |= zip([row.key for row in rows], group_numbers(len(rows), apart), strict=True)
    rows = [row.model_copy(update={"group": found.get(row.key)}) for row in leaderboard.rows]
    return leaderboard.model_copy(update={"rows": tuple(rows), "power": power})


def told_apart(tables: Sequence[Numbers], alpha: float) -> tuple[set[Pair], Power]:
    """Return the pairs of rows whose means differ, as (i, j) with i < j, and what the test can see.

    tables: by row, (trainings, images) over the same images, NaN where a row has no score. alpha: the share
    of false alarms among the pairs returned. A pair with fewer than two images in common is not told apart.
    The detectable effect is that of the median pair, at the level that the correction leaves to one pair.
    """
    pairs = list(combinations(range(len(tables)), 2))
    found = [mean_difference(tables[i], tables[j]) for i, j in pairs]
    p_values = [chance(difference, spread) for difference, spread in found]
    apart = {pair for pair, p in zip(pairs, adjusted(p_values), strict=True) if p <= alpha}
    level = alpha * max(len(apart), 1) / len(pairs)
    effects = [
        spread.quantile_margin(level / 2) + spread.quantile_margin(1 - POWER)
        for _, spread in found
        if math.isfinite(spread.images)
    ]
    effect = round(float(np.median(effects)), 9) if effects else None
    return apart, Power(pairs=len(pairs), told_apart=len(apart), detectable_effect=effect)


def group_numbers(n: int, apart: Set[Pair]) -> list[int]:
    """Number the groups of n rows, which come by falling mean.

    The best row begins group 1. Every other row joins the first group from whose best it cannot be told
    apart; where there is none, it begins the next.
    """
    best: list[int] = []
    numbers = []
    for row in range(n):
        number = next((k for k, head in enumerate(best) if (head, row) not in apart), len(best))
        if number == len(best):
            best.append(row)
        numbers.append(1 + number)
    return numbers


def _is_ranked_by(row: Row, images: Mapping[RowKey, ImageScores]) -> bool:
    """Whether a row has a rank, and its mean is that of its scores by image."""
    if row.rank is None or row.mean is None or row.key not in images:
        return False
    table = _table(images[row.key])
    scored = table[:, np.isfinite(table).all(axis=0)]
    return scored.size > 0 and math.isclose(float(scored.mean()), row.mean, abs_tol=1e-6)


def _aligned(images: Sequence[ImageScores]) -> list[Numbers]:
    """Return the IoU of rows over the images that any of them has, (trainings, images); NaN for others."""
    places = {name: place for place, name in enumerate(dict.fromkeys(i for one in images for i in one.ids))}
    tables = []
    for one in images:
        table = np.full((len(one.seeds), len(places)), np.nan)
        table[:, [places[name] for name in one.ids]] = _table(one)
        tables.append(table)
    return tables


def _table(images: ImageScores) -> Numbers:
    return np.array(images.scores["iou"], dtype=np.float64)
