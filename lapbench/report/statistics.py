"""How sure a mean is: bootstrap intervals over images, by scipy.stats.bootstrap, widened by the trainings.

With one training the image is the unit, and an interval speaks about other images of the same kind. With
several, images and trainings cross: every network saw every image. More trainings are then no more images;
the interval speaks about other images *and* other trainings. Trainings are few, and resampling two to five of
them covers far too little (their variance comes out short by 1/S, and three values have no 2.5 % quantile).
So their part is Student's t over the trainings, and the images' part is resampled; both are joined as Cochran
(1964, "Approximate significance levels of the Behrens-Fisher test") joins two variances.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

BCA_LIMIT = 20_000
"""Above so many images the jackknife of BCa, quadratic in their number, is left out; the skewness that it
corrects, of order 1/√n, is then below what a table shows."""

RANGES = {
    "randomisation_drop": (-1.0, 1.0),
    "removal_correlation": (-1.0, 1.0),
    "local_lipschitz": (0.0, math.inf),
    "max_sensitivity": (0.0, math.inf),
    "normalised_error": (0.0, math.inf),
    "selected": (0.0, math.inf),
}
"""The least and the most that a score can be, where that is not 0 and 1."""
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

    values: (images,) or (trainings, images); NaN marks an image without a score. Otherwise as
    `bootstrap_means`.
    """
    table = np.asarray(values, dtype=np.float64)
    return bootstrap_means([table], confidence=confidence, resamples=resamples, seed=seed)[0]


def bootstrap_means(
    table: Sequence[npt.ArrayLike], *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> list[Interval]:
    """Return the mean and interval of many scores at once, in the order given.

    Each score is (images,) or (trainings, images). An image that lacks a score (NaN) in any training is left
    out; that it was is for the caller to count. The interval is BCa (Efron, 1987, "Better bootstrap
    confidence intervals"), and the plain percentile interval above `BCA_LIMIT` images or where BCa is not
    defined; several trainings widen it. Scores over the same images are resampled together, which costs
    hardly more than one. One image has a mean and no interval (NaN ends), equal values have an interval of no
    width, and no image at all gives NaN throughout.

    Errors: ValueError for another number of dimensions.
    """
    columns = [_over_trainings(values) for values in table]
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
    return [
        widen(interval, _scored(values), confidence=confidence)
        for interval, values in zip(intervals, table, strict=True)
    ]


def bootstrap_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """Return Σ numerators / Σ denominators over images, drawn in pairs: the interval of a pooled IoU.

    numerators, denominators: (images,) or (trainings, images), for instance the pixels of intersection and of
    union. The interval is that of `bootstrap_means`. Errors: ValueError for arrays of other shapes, NaN, or a
    denominator ≤ 0.
    """
    above, below = (
        np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (numerators, denominators)
    )
    if above.ndim != 2 or above.shape != below.shape:
        raise ValueError(f"wanted two tables of one shape, found shapes {above.shape} and {below.shape}")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below > 0).all()):
        raise ValueError("wanted finite numbers and positive denominators: leave out images without truth")
    n = above.shape[1]
    ratio = float(above.sum() / below.sum()) if n else math.nan
    if n < 2:
        return Interval(ratio, math.nan, math.nan, n)
    pairs = np.stack([above.sum(axis=0), below.sum(axis=0)], axis=1)
    low = high = ratio
    if np.ptp(pairs[:, 0] / pairs[:, 1]) > 0:
        ((low, high),) = _interval_ends(pairs, lambda m: m[:, :1] / m[:, 1:], confidence, resamples, seed)
    linear = ratio + (above - ratio * below) / below.mean()  # the ratio as a mean, to first order
    return widen(Interval(ratio, low, high, n), linear, confidence=confidence)


@dataclass(frozen=True, slots=True)
class Spread:
    """The variance of a mean, by what it comes from: other images, and other trainings.

    With one training nothing is known about others, and `trainings` is 0.
    """

    images: float
    images_freedom: float
    trainings: float = 0.0
    trainings_freedom: float = math.inf

    def margin(self, images: float, trainings: float) -> float:
        """Join the quantiles of the two parts, in standard errors, to a distance from the mean (Cochran)."""
        whole = self.images + self.trainings
        return (self.images * images + self.trainings * trainings) / math.sqrt(whole) if whole else 0.0

    def quantile_margin(self, probability: float) -> float:
        """Return the distance from the mean that Student's t exceeds with a probability, on one side."""
        from scipy.special import stdtrit

        images, trainings = -stdtrit([self.images_freedom, self.trainings_freedom], probability)
        return self.margin(float(images), float(trainings))


def spread(*tables: npt.ArrayLike) -> Spread:
    """Return the spread of a sum of means over the same images, each table of trainings of its own.

    tables: finite, (images,) or (trainings, images), of at least two images. The part of the images is their
    variance less what the residual of images × trainings adds to it, since the part of the trainings holds
    that already.
    """
    grids = [np.atleast_2d(np.asarray(table, dtype=np.float64)) for table in tables]
    n = grids[0].shape[1]
    by_images = float(np.sum([grid.mean(axis=0) for grid in grids], axis=0).var(ddof=1)) / n
    parts = [_training_parts(grid) for grid in grids if len(grid) > 1]
    whole = sum(variance for variance, _, _ in parts)
    if not parts or whole == 0:
        return Spread(by_images, n - 1)
    # Welch (1947), where two tables are of different trainings
    freedom = whole**2 / sum(variance**2 / freedom for variance, _, freedom in parts)
    residual = sum(residual for _, residual, _ in parts)
    return Spread(max(by_images - residual, 0.0), n - 1, whole, freedom)


def _training_parts(grid: Numbers) -> tuple[float, float, int]:
    """Return the variance of a mean by its trainings, the residual's share in it, and the freedom."""
    trainings, n = grid.shape
    per_training = grid.mean(axis=1)
    residual = grid - per_training[:, None] - grid.mean(axis=0) + grid.mean()
    share = float((residual**2).sum()) / ((trainings - 1) * (n - 1)) / (trainings * n)
    return float(per_training.var(ddof=1)) / trainings, share, trainings - 1


def widen(interval: Interval, *tables: npt.ArrayLike, confidence: float) -> Interval:
    """Widen the interval of a sum of means, which is over images alone, by what the trainings add.

    tables: as `spread` wants them. The ends are turned into quantiles first, so that their skewness is kept.
    """
    grids = [np.atleast_2d(np.asarray(table, dtype=np.float64)) for table in tables]
    if math.isnan(interval.low) or all(len(grid) == 1 for grid in grids):
        return interval
    from scipy.special import stdtrit

    found = spread(*grids)
    if found.trainings == 0:
        return interval
    variance = np.sum([grid.mean(axis=0) for grid in grids], axis=0).var(ddof=1) / interval.n
    error = math.sqrt(variance) or 1.0  # without any, both ends are the mean
    quantile = float(stdtrit(found.trainings_freedom, (1 + confidence) / 2))
    low = interval.mean - found.margin((interval.mean - interval.low) / error, quantile)
    high = interval.mean + found.margin((interval.high - interval.mean) / error, quantile)
    return replace(interval, low=round(low, _DECIMALS), high=round(high, _DECIMALS))


def in_range(found: Mapping[str, Interval]) -> dict[str, Interval]:
    """Return intervals, by the names of their scores, within what a score can be.

    Student's t, of few trainings, may leave that range.
    """
    ranges = {name: RANGES.get(name, (0.0, 1.0)) for name in found}
    return {
        name: replace(one, low=max(one.low, ranges[name][0]), high=min(one.high, ranges[name][1]))
        for name, one in found.items()
    }


def _over_trainings(values: npt.ArrayLike) -> Numbers:
    """Average (trainings, images) over trainings; an image without a score in any stays NaN."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"values are (images,) or (trainings, images), found shape {array.shape}")
    mean = array if array.ndim == 1 else array.mean(axis=0)
    return np.where(np.isfinite(mean), mean, np.nan)


def _scored(values: npt.ArrayLike) -> Numbers:
    """Leave out the images without a score in any training: (trainings, images)."""
    grid = np.atleast_2d(np.asarray(values, dtype=np.float64))
    return grid[:, np.isfinite(grid).all(axis=0)]


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
