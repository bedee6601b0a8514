"""How sure a mean is: bootstrap intervals over images, by scipy.stats.bootstrap.

The unit of resampling is the image. Values of several seeds are first averaged image by image, so an interval
speaks about other images of the same kind, not about other trainings.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

BCA_LIMIT = 20_000
"""Above so many images the jackknife of BCa, quadratic in their number, is left out; the skewness that it
corrects, of order 1/√n, is then below what a table shows."""

_BATCH = 2_000_000  # resampled indices held at once: 16 MB
_DECIMALS = 9  # of interval ends: hides the last bits, in which differently blocked matrix products differ


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over n images and the ends of its confidence interval; NaN where it is not defined."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """Return the mean of one score over images with its interval.

    values: (images,) or (seeds, images); NaN marks an image without a score. Otherwise as `bootstrap_means`.
    """
    table = np.asarray(values, dtype=np.float64)
    return bootstrap_means([table], confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstrap_means(
    table: Sequence[npt.ArrayLike], *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> list[Interval]:
    """Return the mean and interval of many scores at once, in the order given.

    Each score is (images,) or (seeds, images). An image that lacks a score (NaN) in any seed is left out;
    that it was is for the caller to count. The interval is BCa (Efron, 1987, "Better bootstrap confidence
    intervals"), and the plain percentile interval above `BCA_LIMIT` images or where BCa is not defined.
    Scores over the same images are resampled together, which costs hardly more than one. One image has a
    mean and no interval (NaN ends), equal values have an interval of no width, and no image at all gives
    NaN throughout.

    Errors: ValueError for another number of dimensions.
    """
    columns = [_over_seeds(values) for values in table]
    intervals = [_without_resampling(column[np.isfinite(column)]) for column in columns]
    groups: dict[bytes, list[int]] = {}  # the scores that are over the same images
    for index, column in enumerate(columns):
        if intervals[index].n > 1 and math.isnan(intervals[index].low):
            groups.setdefault(np.isfinite(column).tobytes(), []).append(index)
    for members in groups.values():
        scored = np.isfinite(columns[members[0]])
        values = np.stack([columns[index][scored] for index in members], axis=1)
        ends = _interval_ends(values, lambda means: means, confidence, resamples, seed)
        for index, (low, high) in zip(members, ends, strict=True):
            intervals[index] = replace(intervals[index], low=low, high=high)
    return intervals


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return Σ numerators / Σ denominators over images, drawn in pairs: the interval of a pooled IoU.

    numerators, denominators: (images,), for instance the pixels of intersection and of union. The interval is
    that of `bootstrap_means`. Errors: ValueError for arrays of other shapes, NaN, or a denominator ≤ 0.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ValueError(f"wanted two vectors of one length, found shapes {above.shape} and {below.shape}")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        raise ValueError("wanted finite numbers and positive denominators: leave out images without truth")
    n = len(above)
    if n < 2:
        return Interval(float(above[0] / below[0]) if n else math.nan, math.nan, math.nan, n)
    ratio = float(above.sum() / below.sum())
    if np.ptp(above / below) == 0:
        return Interval(ratio, ratio, ratio, n)
    pairs = np.stack([above, below], axis=1)
    ((low, high),) = _interval_ends(pairs, lambda m: m[:, :1] / m[:, 1:], confidence, resamples, seed)
    return Interval(ratio, low, high, n)


def _over_seeds(values: npt.ArrayLike) -> Numbers:
    """Average (seeds, images) over seeds; an image without a score in any seed stays NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"values are (images,) or (seeds, images), found shape {array.shape}")
    mean = array if array.ndim == 1 else array.mean(axis=0)
    return np.where(np.isfinite(mean), mean, np.nan)


def _without_resampling(values: Numbers) -> Interval:
    """Return the mean, with the ends of the interval where they need no resampling, else NaN."""
    if len(values) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(values) > 1 and np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]), float(values[0]), len(values))
    return Interval(float(values.mean()), math.nan, math.nan, len(values))


def _interval_ends(
    values: Numbers, combine: Callable[[Numbers], Numbers], confidence: float, resamples: int, seed: int
) -> list[tuple[float, float]]:
    """Return the ends of the interval of each statistic of the images' values (n, m).

    combine: means of resampled columns, (draws, m), → statistics, (draws, k). Means over a resample are taken
    by counting how often each image was drawn, which makes them one matrix product for all columns.
    """
    # not above: importing this takes longer than all else in the room
    from scipy.stats import DegenerateDataWarning, bootstrap

    n = len(values)

    def statistics(indices: npt.NDArray[np.int64], axis: int) -> Numbers:
        drawn = np.moveaxis(indices, axis, -1).reshape(-1, indices.shape[axis])
        cells = drawn + n * np.arange(len(drawn))[:, None]
        counts = np.bincount(cells.ravel(), minlength=n * len(drawn)).reshape(-1, n)
        return combine(counts @ values / drawn.shape[1]).T.reshape(-1, *indices.shape[:-1])

    def ends(method: str) -> Numbers:
        interval = bootstrap(
            (np.arange(n),),
            statistics,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH // n),
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return np.stack([interval.low, interval.high], axis=-1)

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # BCa is not defined: seen to below
        found = ends("BCa" if n <= BCA_LIMIT else "percentile")
    undefined = ~np.isfinite(found).all(axis=-1, keepdims=True)
    if undefined.any():
        found = np.where(undefined, ends("percentile"), found)
    return [(float(low), float(high)) for low, high in np.round(found, _DECIMALS)]
