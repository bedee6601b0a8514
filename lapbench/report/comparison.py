"""Two rows over the same images: by how much they differ, and whether that could be chance.

The unit is the image, and images are paired: a hard image is hard for both, and does not count as a
difference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lapbench.report.statistics import Interval, Numbers, Spread, bootstrap_means, spread, widen

_DECIMALS = 9  # of a difference: the last bits of a mean over trainings are no difference
_SMALLEST = -90.0  # exponent of a p-value; below, the quantiles of Student's t overflow


@dataclass(frozen=True, slots=True)
class Comparison:
    """How one row differs from another over n images.

    difference: mean of ours − theirs, in [low, high]. p_value: that a difference like this comes by chance.
    superiority: the share of images where ours is higher, ties counted half (0.5: neither is).
    """

    n: int
    difference: float
    low: float
    high: float
    p_value: float
    superiority: float


def compare(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Compare the scores of two rows over the same images, in the same order.

    ours, theirs: (images,) or (trainings, images); images that lack a score (NaN) in either are left out.
    With one training each: a BCa bootstrap interval over the images' differences, and Wilcoxon's signed-rank
    test, two-sided, zeros split between the signs (no difference at all: 1.0). With several the claim is
    about other trainings, too: the interval is widened as `statistics` says, and the test is its inverse.
    Rows with equally many trainings are paired by place, as those of one model are; that is valid for
    independent trainings, too. To compare two results of the very same networks, average over the trainings
    first.

    Errors: ValueError for arrays over another number of images, and where no image has both scores.
    """
    return compare_all([(ours, theirs)], confidence=confidence, resamples=resamples, seed=seed)[0]


def compare_all(
    pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> list[Comparison]:
    """Compare many pairs of rows, as `compare` does; pairs over equally many images share their resamples.

    That makes a hundred pairs hardly dearer than one. Errors: as `compare`.
    """
    found = [_grids(ours, theirs) for ours, theirs in pairs]
    for (ours, _), grids in zip(pairs, found, strict=True):
        if grids[0].shape[1] == 0:
            raise ValueError(f"none of {np.shape(ours)[-1]} images has a score in both rows")
    averages = [np.round(sum(grid.mean(axis=0) for grid in grids), _DECIMALS) for grids in found]
    intervals = bootstrap_means(averages, confidence=confidence, resamples=resamples, seed=seed)
    return [
        _comparison(grids, averaged, interval, confidence)
        for grids, averaged, interval in zip(found, averages, intervals, strict=True)
    ]


def _comparison(grids: list[Numbers], averaged: Numbers, interval: Interval, confidence: float) -> Comparison:
    """Return what the differences by image say, and where there are several trainings, what they add."""
    n = len(averaged)
    if n > 1 and any(len(grid) > 1 for grid in grids):
        interval = widen(interval, *grids, confidence=confidence)
        p_value = chance(interval.mean, spread(*grids))
    else:
        p_value = _signed_rank(averaged)
    higher = (np.count_nonzero(averaged > 0) + np.count_nonzero(averaged == 0) / 2) / n
    return Comparison(n, interval.mean, interval.low, interval.high, p_value, float(higher))


def mean_difference(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> tuple[float, Spread]:
    """Return the mean of ours − theirs and its spread; both NaN for fewer than two images with both scores.

    ours, theirs: as `compare` takes them; trainings are paired as there.
    """
    grids = _grids(ours, theirs)
    n = grids[0].shape[1]
    if n < 2:
        return math.nan, Spread(math.nan, 0)
    difference = float(np.sum([grid.mean() for grid in grids]))
    return round(difference, _DECIMALS), spread(*grids)


def chance(difference: float, found: Spread) -> float:
    """Return the two-sided p-value of a mean difference: Student's t, over images and over trainings.

    It is 1 where nothing is known of the spread (NaN).
    """
    from scipy.optimize import brentq
    from scipy.special import stdtr

    distance = abs(difference)
    if distance == 0 or math.isnan(found.images):
        return 1.0
    if found.trainings == 0 and found.images > 0:
        return float(2 * stdtr(found.images_freedom, -distance / math.sqrt(found.images)))
    if found.quantile_margin(10.0**_SMALLEST) <= distance:
        return 0.0
    # the confidence at which the interval just touches zero
    exponent = brentq(lambda x: found.quantile_margin(10.0**x) - distance, _SMALLEST, math.log10(0.5))
    return float(2 * 10.0**exponent)


def adjusted(p_values: npt.ArrayLike) -> Numbers:
    """Return p-values corrected for being many, (m,): those ≤ α hold at most a share α of false alarms.

    Benjamini & Hochberg (1995), "Controlling the false discovery rate".
    """
    from scipy.stats import false_discovery_control

    values = np.asarray(p_values, dtype=np.float64)
    return np.asarray(false_discovery_control(values)) if values.size else values


def detectable_effect(differences: npt.ArrayLike, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true mean difference that a test of level α finds with the given power.

    differences: of two rows, (images,) or (trainings, images). The test is two-sided Student's t, over images
    and over trainings. NaN for fewer than two images with a difference.
    """
    grid = _finite_columns(np.atleast_2d(np.asarray(differences, dtype=np.float64)))
    if grid.shape[1] < 2:
        return math.nan
    found = spread(grid)
    return found.quantile_margin(alpha / 2) + found.quantile_margin(1 - power)


def _grids(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> list[Numbers]:
    """Return what is compared, (trainings, images) each; one grid where trainings are paired."""
    grids = _paired(ours, theirs)
    return [grids[0] + grids[1]] if len(grids[0]) == len(grids[1]) else grids


def _paired(ours: npt.ArrayLike, theirs: npt.ArrayLike) -> list[Numbers]:
    """Return ours and −theirs, (trainings, images), over the images that have both scores."""
    mine, other = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (ours, theirs))
    if mine.ndim != 2 or other.ndim != 2 or mine.shape[1] != other.shape[1]:
        raise ValueError(f"wanted scores of the same images, found shapes {mine.shape} and {other.shape}")
    both = np.isfinite(mine).all(axis=0) & np.isfinite(other).all(axis=0)
    return [mine[:, both], -other[:, both]]


def _finite_columns(grid: Numbers) -> Numbers:
    return grid[:, np.isfinite(grid).all(axis=0)]


def _signed_rank(differences: Numbers) -> float:
    from scipy.stats import wilcoxon

    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="zsplit").pvalue)
