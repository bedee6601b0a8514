"""Maps and masks as rows of pixels: checked, image by image, and in the order of their values."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from lapbench.errors import ScoreError
from lapbench.types import Array, IntArray, MaskArray

_MAGNITUDE = np.int32(2**31 - 1)  # the bits of a float32 but for its sign


@dataclass(frozen=True, eq=False)
class Ranked:
    """The N pixels of one map in ascending order; of equal ones those of the truth come first.

    values: (N,). inside: positions in it of the K pixels of the truth, ascending. tied: positions of those
    that are followed by an equal pixel outside.
    """

    values: Array
    inside: IntArray
    tied: IntArray

    def beyond(self, thresholds: Array, orientation: Literal[1, -1] = 1) -> tuple[IntArray, IntArray]:
        """Return the pixels strictly above each threshold (below for −1), and those of them in the truth."""
        n, k = len(self.values), len(self.inside)
        if orientation > 0:
            edges = _not_above(thresholds, self.values.dtype)
            first = self.values.searchsorted(edges, side="right")
            return n - first, k - self.inside.searchsorted(first)
        selected = self.first_reaching(thresholds)
        return selected, self.inside.searchsorted(selected)

    def first_reaching(self, thresholds: Array) -> IntArray:
        """Return the position of the first pixel that is not below each threshold; N for none."""
        return self.values.searchsorted(-_not_above(-thresholds, self.values.dtype), side="left")

    def highest(self, k: int) -> tuple[int, bool]:
        """Return how many of the k highest pixels are in the truth, and whether others equal the last."""
        first = len(self.values) - k
        tied = first > 0 and bool(self.values[first - 1] == self.values[first])
        return len(self.inside) - int(self.inside.searchsorted(first)), tied


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of one map that count, in row-major order: values (N,), and inside (N,) the truth.

    whole: (≥ N,) all pixels of the map, whose range decides its scale.
    """

    values: Array
    inside: MaskArray
    whole: Array

    @cached_property
    def area(self) -> int:
        """Pixels of the truth."""
        return count(self.inside)

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """The lowest and the highest value; not finite exactly where any value is not."""
        return float(self.values.min()), float(self.values.max())

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest value of the whole map."""
        if self.whole is self.values:
            return self.extremes
        return float(self.whole.min()), float(self.whole.max())

    @property
    def failed(self) -> bool:
        """Whether the map holds NaN or infinity."""
        return not all(math.isfinite(end) for end in self.scale)

    @property
    def flat(self) -> bool:
        """Whether all values are equal."""
        return self.extremes[0] == self.extremes[1] and not self.failed

    @property
    def scorable(self) -> bool:
        """Whether there is something to score."""
        return self.area > 0 and not self.failed

    @cached_property
    def ranked(self) -> Ranked:
        """The pixels in order."""
        return rank(self.values, self.inside, *self.extremes)


def rank(values: Array, inside: MaskArray, low: float, high: float) -> Ranked:
    """Put the finite values (N,) of a map in order, and find the truth (N,) bool among them.

    low, high: the extremes of the values. One sort is all that it takes: whether a pixel is in the truth
    travels as the last bit of its value. A float32 in (−2, 2), as normalised maps hold them, leaves room for
    it in 32 bits, which sort fastest.
    """
    if values.dtype != np.float32:
        order = np.lexsort((~inside, values))
        return _ranked(values[order], inside[order])
    keys = (values + np.float32(0)).view(np.int32)  # without −0, which equals 0 and has other bits
    if low < 0:  # the larger the bits of a negative number, the lower it is
        flip = keys >> 31
        flip &= _MAGNITUDE
        keys ^= flip
    if low <= -2 or high >= 2:
        keys = keys.astype(np.int64)
    keys <<= 1
    keys |= ~inside
    keys.sort()
    outside = keys.astype(np.uint8)
    outside &= 1
    keys >>= 1
    keys = keys.astype(np.int32, copy=False)
    if low < 0:
        keys[: keys.searchsorted(np.int32(0))] ^= _MAGNITUDE
    return _ranked(keys.view(np.float32), ~outside.view(np.bool_))


def images(maps: Array, masks: MaskArray, ignore: MaskArray | None = None) -> Iterator[Pixels]:
    """Give each map with its truth as a row of pixels; one by one: they stay in the processor's cache.

    ignore: (n, H, W) bool, pixels that are left out as if they were not there.
    Errors: ScoreError for shapes that do not fit, and for an image that is ignored as a whole.
    """
    check_stacks(maps, masks)
    size = math.prod(maps.shape[1:])
    if len(maps) and not size:
        raise ScoreError(f"maps {maps.shape} have no pixels")
    if ignore is None:
        for values, inside in zip(maps.reshape(len(maps), size), masks.reshape(len(maps), size), strict=True):
            yield Pixels(values, inside, values)
        return
    _check_ignored(masks, ignore)
    for number, (image, mask, out) in enumerate(zip(maps, masks, ignore, strict=True)):
        if out.all():
            raise ScoreError(f"image {number} is ignored as a whole: leave it out")
        yield Pixels(image[~out], mask[~out], image)


def without_ignored(
    maps: Array, masks: MaskArray, ignore: MaskArray | None
) -> Iterator[tuple[Array, MaskArray]]:
    """Give maps and masks (n, H, W) without the pixels that do not count, in parts that fits take.

    Without pixels to ignore they are one part, as they are; with some, the pixels of each image are a row (1,
    1, N). A map with NaN or infinity anywhere stays whole: it is left out as a whole. Errors: ScoreError for
    shapes that do not fit.
    """
    if ignore is None:
        yield maps, masks
        return
    _check_ignored(masks, ignore)
    check_stacks(maps, masks)
    for values, inside, out in zip(maps, masks, ignore, strict=True):
        if np.isfinite(values).all():
            yield values[~out][None, None], inside[~out][None, None]
        else:
            yield values[None], inside[None]


def count(pixels: MaskArray) -> int:
    """Return how many pixels are True."""
    return int(np.count_nonzero(pixels))


def check_maps(maps: Array) -> None:
    """Raise ScoreError unless maps are a stack (n, H, W) of floating-point numbers."""
    if maps.ndim != 3 or not np.issubdtype(maps.dtype, np.floating):
        raise ScoreError(f"maps must be floating-point numbers (n, H, W); found {maps.dtype} {maps.shape}")


def check_masks(masks: Array) -> None:
    """Raise ScoreError unless masks are a stack (n, H, W) of bool."""
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ScoreError(f"masks must be bool (n, H, W); found {masks.dtype} {masks.shape}")


def check_stacks(maps: Array, masks: Array) -> None:
    """Raise ScoreError unless maps (n, H, W) and masks (n, H, W) bool have the same shape."""
    check_maps(maps)
    check_masks(masks)
    if maps.shape != masks.shape:
        raise ScoreError(
            f"maps {maps.shape} and masks {masks.shape} must have the same shape: "
            "one map for each mask, brought to the size of the image first"
        )


def _check_ignored(masks: MaskArray, ignore: MaskArray) -> None:
    check_masks(ignore)
    if ignore.shape != masks.shape:
        raise ScoreError(f"regions to ignore {ignore.shape} must have the shape of the masks {masks.shape}")


def _not_above(thresholds: Array, dtype: np.dtype[Any]) -> Array:
    """Return the greatest numbers of a type that are not above the thresholds: v > t exactly if v > they."""
    edges = np.asarray(thresholds, dtype)
    over = edges.astype(np.float64) > thresholds
    return np.where(over, np.nextafter(edges, dtype.type(-math.inf)), edges)


def _ranked(values: Array, inside: MaskArray) -> Ranked:
    mixed = values[1:] == values[:-1]
    mixed &= inside[:-1] > inside[1:]
    return Ranked(values, np.flatnonzero(inside), np.flatnonzero(mixed))
