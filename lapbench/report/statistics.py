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
    by_images = float(sum(grid.mean(axis=0) for grid in grids).var(ddof=1)) / n
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


def widen(interval: Interval, image_variance: float, found: Spread, confidence: float) -> Interval:
    """Widen an interval over images by what the trainings add.

    image_variance: of the mean over images that the interval is of; it turns the ends into quantiles, so that
    their skewness is kept.
    """
    if found.trainings == 0 or math.isnan(interval.low):
        return interval
    from scipy.special import stdtrit

    error = math.sqrt(image_variance)
    below, above = (
        (abs(end - interval.mean) / error if error else 0.0) for end in (interval.low, interval.high)
    )
    quantile = float(stdtrit(found.trainings_freedom, (1 + confidence) / 2))
    low, high = (found.margin(part, quantile) for part in (below, above))
    return replace(
        interval, low=round(interval.mean - low, _DECIMALS), high=round(interval.mean + high, _DECIMALS)
    )


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
