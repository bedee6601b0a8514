"""All thresholds at once: what a map could score, with each image's best cut or with any global one.

Everything comes from the map's pixels in order (`Ranked`). What belongs to one image is kept by image; what
belongs to a data set is kept as sums, so that shards join and the order of images does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.score.pixels import Pixels, Ranked, images
from lapbench.types import Array, IntArray, MaskArray

Scores: TypeAlias = npt.NDArray[np.float64]

THRESHOLDS = np.arange(101) / 100
"""Where the curve of IoU by threshold is taken, on normalised maps."""
EDGES = np.append(np.arange(0, 1, 0.001), 1.0)
"""The thresholds of PxAP (Choe et al., 2020): as their evaluator makes them, bit for bit."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What n maps score over all thresholds.

    oracle: (n,) the highest IoU that a threshold reaches, each image having its own. auc: (n,) the chance
    that a pixel of the truth scores above one outside, equal scores counting half (the area under the ROC
    curve). Both NaN where the map failed or the image has no truth; auc also where all pixels are truth.
    by_threshold: (n, 101) IoU at each of `THRESHOLDS`, in the map's orientation. true, false: (1001,) pixels
    inside and outside the truth at or above each of `EDGES`, over all scored maps brought to [0, 1].
    """

    oracle: Scores
    auc: Scores
    by_threshold: Scores
    true: IntArray
    false: IntArray

    @property
    def pixel_average_precision(self) -> float:
        """PxAP: the area under the curve of precision over recall of all pixels of all images together.

        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", 2020, Sec. 4: the sum
        of precision times the gain in recall over 1,000 thresholds. NaN where there is no truth.
        """
        true, selected = self.true[::-1], (self.true + self.false)[::-1]
        if not len(true) or not true[-1]:
            return math.nan
        gain = np.diff(true / true[-1], prepend=0.0)
        return float((true / np.maximum(selected, 1) * gain).sum())

    @classmethod
    def join(cls, parts: Sequence["Sweep"]) -> "Sweep":
        """Join the sweeps of consecutive shards. Errors: ScoreError for no part."""
        if not parts:
            raise ScoreError("there are no sweeps to join: that of one shard at least is wanted")
        return cls(
            oracle=np.concatenate([part.oracle for part in parts]),
            auc=np.concatenate([part.auc for part in parts]),
            by_threshold=np.concatenate([part.by_threshold for part in parts]),
            true=np.sum([part.true for part in parts], axis=0),
            false=np.sum([part.false for part in parts], axis=0),
        )

    @classmethod
    def empty(cls, n: int) -> "Sweep":
        """Return the sweep of n maps before any is scored."""
        oracle, auc = np.full((2, n), math.nan)
        by_threshold = np.full((n, len(THRESHOLDS)), math.nan)
        true, false = np.zeros((2, len(EDGES)), np.int64)
        return cls(oracle, auc, by_threshold, true, false)

    def record(self, i: int, pixels: Pixels, orientation: Literal[1, -1] = 1) -> None:
        """Enter image i, which has truth and a finite map."""
        ranked = pixels.ranked
        self.oracle[i] = best_iou(ranked, orientation)
        self.auc[i] = area_under_curve(ranked)
        self.by_threshold[i] = iou_at(ranked, THRESHOLDS, orientation)
        true, selected = _at_or_above_edges(ranked, *pixels.scale)
        self.true[:] += true
        self.false[:] += selected - true


def sweep_thresholds(
    maps: Array, masks: MaskArray, *, orientation: Literal[1, -1] = 1, ignore: MaskArray | None = None
) -> Sweep:
    """Score normalised maps (n, H, W) against masks (n, H, W) bool at all thresholds.

    orientation: −1 where thresholds select below. ignore: (n, H, W) bool, pixels that do not count.
    Errors: ScoreError for shapes that do not fit.
    """
    found = Sweep.empty(len(maps))
    for i, pixels in enumerate(images(maps, masks, ignore)):
        if pixels.scorable:
            found.record(i, pixels, orientation)
    return found


def best_iou(ranked: Ranked, orientation: Literal[1, -1] = 1) -> float:
    """Return the highest IoU of the truth with the pixels above any threshold (below for orientation −1).

    Only cuts just below a pixel of the truth can be best: any other adds pixels outside alone.
    """
    n, k = len(ranked.values), len(ranked.inside)
    if orientation > 0:  # of equal pixels the first counts all of them, and the others less
        common, selected = np.arange(k, 0, -1.0), n - ranked.inside
    else:
        common = np.arange(1.0, k + 1)
        selected = ranked.values.searchsorted(ranked.values[ranked.inside], side="right")
    return float((common / (k + selected - common)).max())


def area_under_curve(ranked: Ranked) -> float:
    """Return the chance that a pixel of the truth scores above one outside; equal scores count half."""
    n, k, tied = len(ranked.values), len(ranked.inside), ranked.tied
    if k == n:
        return math.nan
    above = int(ranked.inside.sum()) - k * (k - 1) // 2  # pairs, without equal ones
    start = ranked.values.searchsorted(ranked.values[tied])
    end = ranked.values.searchsorted(ranked.values[tied], side="right")
    equal = (tied + 1 - start) * (end - 1 - tied)
    return (above + int(equal.sum()) / 2) / (k * (n - k))


def iou_at(ranked: Ranked, thresholds: Scores, orientation: Literal[1, -1] = 1) -> Scores:
    """Return the IoU of the truth with the pixels above each threshold (below for orientation −1)."""
    selected, common = ranked.beyond(thresholds, orientation)
    return np.asarray(common / (len(ranked.inside) + selected - common), np.float64)


def iou_by_size(iou: Scores, area: IntArray, bins: int = 5) -> tuple[Scores, Scores, IntArray]:
    """Return how IoU depends on the size of the truth: mean area, mean IoU and images of equally full bins.

    iou, area: (n,), of which images without IoU (NaN) are left out. Bins that would be empty are left out.
    """
    scored = np.isfinite(iou)
    order = np.flatnonzero(scored)[np.argsort(area[scored], kind="stable")]
    groups = [group for group in np.array_split(order, bins) if group.size]
    means = np.array([[area[group].mean(), iou[group].mean()] for group in groups]).reshape(-1, 2)
    return means[:, 0], means[:, 1], np.array([len(group) for group in groups], np.int64)


def _at_or_above_edges(ranked: Ranked, low: float, high: float) -> tuple[IntArray, IntArray]:
    """Return the pixels of the truth, and all pixels, at or above each of `EDGES`.

    The map is brought to [0, 1] as wsolevaluation brings it: less its minimum, by what is then its maximum;
    a flat map is 0.
    """
    values, spread = ranked.values, high - low
    n, k = len(values), len(ranked.inside)
    first = values.searchsorted((low + EDGES * spread).astype(values.dtype))
    unsure = np.arange(len(EDGES))
    while len(unsure):  # few edges move, by the rounding that scaling before comparing does not share
        at, edges = first[unsure], EDGES[unsure]
        below = (at < n) & (_scaled(values.take(at, mode="clip"), low, spread) < edges)
        beyond = (at > 0) & (_scaled(values.take(at - 1, mode="clip"), low, spread) >= edges)
        first[unsure[below]] = values.searchsorted(values[at[below]], side="right")
        first[unsure[beyond]] = values.searchsorted(values[at[beyond] - 1])
        unsure = unsure[below | beyond]
    return k - ranked.inside.searchsorted(first), n - first


def _scaled(values: Array, low: float, spread: float) -> Scores:
    """Bring values to [0, 1]; those of a flat map to 0."""
    scaled = values.astype(np.float64) - low
    return np.asarray(scaled / spread if spread > 0 else scaled)
