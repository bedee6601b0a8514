"""MaxBoxAcc and MaxBoxAccV2 of Choe et al. (2020), to the definition of their evaluator, at all thresholds.

A map is brought to [0, 1] and to 8 bits, so that 1,000 thresholds are 255 different ones. At each of them the
pixels above fall into components (8-connected, as OpenCV's contours are), with holes in them (4-connected);
each has a bounding box, and a hit is a box whose IoU with a box of the truth is high enough. Instead of
following contours at each threshold, all components of all thresholds are found at once: every pixel climbs
to a summit, and summits merge at the saddles between them (a max-tree by basins; Kruskal's algorithm).

The published evaluator reads the exclusive ends of boxes as the last pixels that belong to them, which
widens each by a pixel, unless it ends at the image's edge. That is kept: numbers are compared with theirs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.score.pixels import check_maps
from lapbench.types import Array, Box, IntArray, MaskArray

Scores: TypeAlias = npt.NDArray[np.float64]

LEVELS = 255
"""Different thresholds of a map of 8 bits."""
STEPS = 20
"""Bits of a pixel below its level."""
IOUS = (0.3, 0.5, 0.7)
"""What MaxBoxAccV2 asks of a box; MaxBoxAcc asks for the second."""


@dataclass(frozen=True, eq=False)
class BoxSweep:
    """Whether the boxes of n maps hit, at each of the 255 thresholds.

    largest: (n, 255) bool, the box of the largest component has an IoU of 0.5 with a box of the truth. any:
    (3, n, 255) bool, the box of any component, or of a hole in one, has each of `IOUS`. scored: (n,) bool,
    images with boxes and a finite map; the others hit nothing and do not count.
    """

    largest: MaskArray
    any: MaskArray
    scored: MaskArray

    def hits(self) -> Scores:
        """Return for each image whether it is hit at the best global threshold, (n,); NaN where not scored.

        The mean is MaxBoxAcc: the share of images whose largest component is hit, where that is highest.
        """
        return self._at_best(self.largest)

    def hits_v2(self) -> Scores:
        """Return for each image the share of `IOUS` at which it is hit, (n,), each at its best threshold.

        The mean is MaxBoxAccV2.
        """
        return np.asarray(np.mean([self._at_best(hit) for hit in self.any], axis=0), np.float64)

    def _at_best(self, hit: MaskArray) -> Scores:
        best = int(hit[self.scored].sum(axis=0).argmax())
        return np.where(self.scored, hit[:, best], math.nan)

    @classmethod
    def join(cls, parts: Sequence["BoxSweep"]) -> "BoxSweep":
        """Join the sweeps of consecutive shards. Errors: ScoreError for no part."""
        if not parts:
            raise ScoreError("there are no sweeps to join: that of one shard at least is wanted")
        return cls(
            largest=np.concatenate([part.largest for part in parts]),
            any=np.concatenate([part.any for part in parts], axis=1),
            scored=np.concatenate([part.scored for part in parts]),
        )


def sweep_boxes(maps: Array, boxes: Sequence[Sequence[Box]]) -> BoxSweep:
    """Compare the boxes of maps (n, H, W) at all thresholds with the boxes of the truth, in the same pixels.

    Errors: ScoreError for shapes that do not fit.
    """
    check_maps(maps)
    if len(boxes) != len(maps):
        raise ScoreError(f"{len(maps)} maps need the boxes of as many images, found {len(boxes)}")
    found = BoxSweep(
        largest=np.zeros((len(maps), LEVELS), bool),
        any=np.zeros((len(IOUS), len(maps), LEVELS), bool),
        scored=np.zeros(len(maps), bool),
    )
    for i, (values, truth) in enumerate(zip(maps, boxes, strict=True)):
        if not truth or not np.isfinite(values).all():
            continue
        found.scored[i] = True
        largest, best = box_ious(values, truth)
        found.largest[i] = largest >= IOUS[1]
        for hit, wanted in zip(found.any, IOUS, strict=True):
            hit[i] = best >= wanted
    return found


def box_ious(values: Array, truth: Sequence[Box]) -> tuple[Scores, Scores]:
    """Return the IoU with the truth of the box of the largest component, and the highest of all boxes.

    values: (H, W), finite. (255,) each: for pixels above 0, above 1, … above 254 of 255. Where several boxes
    are the truth, the one that fits best counts.
    """
    levels = to_levels(values)
    height, width = levels.shape
    wanted = np.array([[box.x0, box.y0, box.x1, box.y1] for box in truth]).astype(np.int64)
    nothing = float(
        _ious(np.zeros((1, 4), np.int64), wanted)[0]
    )  # without a pixel the box is the first pixel
    if not levels.any():
        return np.full(LEVELS, nothing), np.full(LEVELS, nothing)
    components, holes = _components(levels)
    edges = np.array([width - 1, height - 1] * 2)
    iou = _ious(np.minimum(components.boxes, edges), wanted)
    largest = np.zeros(LEVELS + 1)
    order = np.lexsort((components.first, components.area, components.level))
    largest[components.level[order]] = iou[order]  # the last that is written stays
    level = np.r_[components.level, holes.level]
    iou = np.r_[iou, _ious(np.minimum(holes.boxes, edges), wanted)]
    best, order = np.zeros(LEVELS + 1), np.argsort(iou, kind="stable")
    best[level[order]] = iou[order]
    return largest[1:], best[1:]


def to_levels(values: Array) -> IntArray:
    """Bring a finite map (H, W) to [0, 1] and to 256 levels of 2^20 steps each; a flat map is 0.

    The level is what the published evaluator keeps of a pixel, by the same arithmetic; the steps tell in
    which direction a smooth map rises within a level.
    """
    scaled = values.astype(np.float64)
    scaled -= scaled.min()
    top = scaled.max()
    if top > 0:
        scaled /= top
    scaled *= LEVELS << STEPS  # 255, and a power of two, which changes no digit
    return scaled.astype(np.int64)


def boxes_of(mask: MaskArray) -> tuple[Box, ...]:
    """Return the bounding boxes of a mask's 8-connected components (H, W), from top to bottom."""
    from scipy.ndimage import find_objects, label  # here: its import takes longer than scoring

    numbered, _ = label(mask, np.ones((3, 3), bool))
    return tuple(Box(x.start, y.start, x.stop, y.stop) for y, x in find_objects(numbered))


@dataclass(frozen=True, eq=False)
class _Parts:
    """The components, or the holes, of all levels together, m of them.

    level: (m,) the lowest value that belongs to them, 1 to 255. boxes: (m, 4) x0, y0, x1, y1, half-open; a
    hole's is that of the contour around it. first: (m,) the flat index of the first pixel in reading order.
    area: (m,) twice the area within the contour.
    """

    level: IntArray
    boxes: IntArray
    first: IntArray
    area: IntArray


@dataclass(frozen=True, eq=False)
class _Basins:
    """The basins of a map's summits: every pixel belongs to the summit that it climbs to.

    of: (H·W,) the basin of each pixel. peak: (B,) the value of the summit. parent, death: (B,) the basin that
    it merges into, and up to which level it is a part of that. extent: (4, B, 256) of the pixels at or above
    each level, merged basins included: the first in reading order, the leftmost column, and minus the last
    and minus the rightmost, so that all are minima. area: (B, 256) summed likewise.
    """

    of: Array
    peak: IntArray
    parent: IntArray
    death: IntArray
    extent: Array
    area: IntArray

    def standing(self) -> tuple[IntArray, IntArray]:
        """Return all components, as the basins that stand for them and their levels; level 0 left out."""
        levels = np.arange(1, LEVELS + 1)
        basin, level = np.nonzero((levels > self.death[:, None]) & (levels <= self.peak[:, None]))
        return basin, level + 1

    def standing_for(self, pixels: IntArray, levels: IntArray) -> IntArray:
        """Return the basins that stand for the components which hold pixels at levels."""
        basin = self.of[pixels]
        while (merged := self.death[basin] >= levels).any():
            basin = np.where(merged, self.parent[basin], basin)
        return basin

    def boxes(self, basin: IntArray, level: IntArray, width: int) -> IntArray:
        """Return the bounding boxes (m, 4) of components, half-open."""
        first, left, last, right = self.extent[:, basin, level].astype(np.int64)
        return np.stack([left, first // width, 1 - right, 1 + -last // width], axis=1)


def _components(levels: IntArray) -> tuple[_Parts, _Parts]:
    """Return the components of the pixels at or above each level, and the holes in them.

    The area within a contour is that of the polygon through its pixels' centres, as OpenCV reckons: of every
    square of 2×2 pixels that lies inside it counts whole, and half where one pixel lies outside. A component
    counts the squares of its own pixels; what lies in its holes is added.
    """
    width, framed = levels.shape[1], levels.shape[1] + 2
    bright = _basins(levels, eight=True)
    basin, level = bright.standing()
    first = bright.extent[0, basin, level].astype(np.int64)
    area = bright.area[basin, level]
    boxes = bright.boxes(basin, level, width)

    brightest = (LEVELS + 1 << STEPS) - 1
    dark = _basins(np.pad(brightest - levels, 1, constant_values=brightest), eight=False)  # framed
    hollow, depth = dark.standing()
    inside = (
        dark.standing_for(np.zeros_like(hollow), depth) != hollow
    )  # the frame is outside, and its component
    hollow, depth = hollow[inside], depth[inside]
    holes = _Parts(
        level=LEVELS + 1 - depth,
        boxes=dark.boxes(hollow, depth, framed) + np.array([-2, -2, 0, 0]),  # without the frame, one wider
        first=dark.extent[0, hollow, depth].astype(np.int64),
        area=dark.area[hollow, depth],
    )
    if len(hollow):
        around = _numbered(bright, basin, level)
        row, column = np.divmod(
            holes.first - framed, framed
        )  # the pixel over a hole's first belongs to what it is in
        owner = around[bright.standing_for((row - 1) * width + column - 1, holes.level), holes.level]
        within = _numbered(dark, hollow, depth)
        row, column = np.divmod(first, width)  # likewise; in the frame's coordinates it is in the row over it
        island = within[dark.standing_for(row * framed + column + 1, LEVELS + 1 - level), LEVELS + 1 - level]
        parent = np.r_[np.where(island < 0, -1, island + len(level)), owner]
        area = _with_descendants(np.r_[area, holes.area], parent)[: len(level)]
    return _Parts(level, boxes, first, area), holes


def _numbered(basins: _Basins, basin: IntArray, level: IntArray) -> IntArray:
    """Return the number of each component in a table (B, 256) of basins and levels; −1 for none."""
    table = np.full(basins.area.shape, -1, np.int64)
    table[basin, level] = np.arange(len(basin))
    return table


def _with_descendants(values: IntArray, parent: IntArray) -> IntArray:
    """Add to the value of each node of a forest those of all nodes below it; parent −1: a root."""
    total, nodes = values.copy(), np.flatnonzero(parent >= 0)
    ancestor = parent[nodes]
    while len(nodes):
        np.add.at(total, ancestor, values[nodes])
        ancestor = parent[ancestor]
        nodes, ancestor = nodes[ancestor >= 0], ancestor[ancestor >= 0]
    return total


def _basins(values: IntArray, *, eight: bool) -> _Basins:
    """Divide a map (H, W) into basins, pixels being neighbours in eight directions or four, and merge them.

    values: levels and steps. Of equal pixels the later in reading order counts as the higher, so that every
    pixel but a summit has one neighbour to climb to. The area is that of components for eight, and that of
    holes for four.
    """
    height, width = values.shape
    pixels = np.arange(height * width)
    shift = len(pixels).bit_length()
    row = width + 1  # the last of each is no pixel: below all, so that what lies beside is one step away
    keys = np.full((height, row), -1)
    keys[:, :width] = (values << shift) | pixels.reshape(height, width)
    keys = keys.ravel()
    beside = _highest_within(1, keys, keys)
    highest = _highest_within(row, beside, beside if eight else keys)
    climbed = _followed((highest.reshape(height, row)[:, :width] & (2**shift - 1)).ravel())
    summits = np.flatnonzero(climbed == pixels)
    number = np.empty(len(pixels), np.int32)
    number[summits] = np.arange(len(summits))
    of = number[climbed]
    levels = (values >> STEPS).astype(np.uint8)
    extent = _extents(of, levels, len(summits))
    area = _areas(of.reshape(height, width), levels, len(summits), eight)
    parent, death = _merge(*_saddles(of.reshape(height, width), levels, len(summits), eight), extent, area)
    return _Basins(of, levels.ravel()[summits].astype(np.int64), parent, death, extent, area)


def _highest_within(distance: int, found: IntArray, others: IntArray) -> IntArray:
    """Return the highest of each of `found` (m,) and of the `others` a distance before and behind it."""
    highest = found.copy()
    for here, there in ((slice(distance, None), slice(-distance)), (slice(-distance), slice(distance, None))):
        np.maximum(highest[here], others[there], out=highest[here])
    return highest


def _followed(steps: IntArray) -> IntArray:
    """Follow steps (m,), each the index of the next, to where they end; each time around is twice as far."""
    further = np.empty_like(steps)
    while True:
        np.take(steps, steps, out=further, mode="clip")  # without "clip" it takes twice the time
        if np.array_equal(further, steps):
            return steps
        steps, further = further, steps


def _extents(of: Array, levels: npt.NDArray[np.uint8], n: int) -> Array:
    """Return where the pixels of each basin at or above each level reach, as `_Basins` keeps it."""
    height, width = levels.shape
    cell = (of * (LEVELS + 1) + levels.ravel()).astype(np.intp)
    pixels = np.arange(levels.size, dtype=np.int32)
    columns = np.tile(np.arange(width, dtype=np.int32), height)
    extent = np.full((4, n * (LEVELS + 1)), np.iinfo(np.int32).max, np.int32)
    for table, reach in zip(extent, (pixels, columns, -pixels, -columns), strict=True):
        np.minimum.at(table, cell, reach)
    falling = extent.reshape(4, n, LEVELS + 1)[:, :, ::-1]
    np.minimum.accumulate(falling, axis=2, out=falling)
    return falling[:, :, ::-1]


def _areas(of: Array, levels: npt.NDArray[np.uint8], n: int, components: bool) -> IntArray:
    """Return twice the area that each basin's pixels at or above each level give to contours, (n, 256).

    Each square of 2×2 pixels gives a half as soon as three of it are in, and another with the fourth, to a
    component; to a hole a half with the first and a half with the second.
    """
    if components:  # at that level all of the square that are in belong together: any of them may count it
        (high, low), (other_high, other_low) = _ordered(levels[:-1]), _ordered(levels[1:])
        third = np.minimum(np.minimum(high, other_high), np.maximum(low, other_low))
        one, other = of[:-1, :-1], of[:-1, 1:]
        owners = [np.where(levels[:-1, :-1] >= third, one, other), one]
        times = [third, np.minimum(low, other_low)]
    else:  # two that touch by their corners may be in different holes: each counts its own
        shift = n.bit_length()
        keys = levels.astype(np.int32) << shift | of
        (high, low), (other_high, other_low) = _ordered(keys[:-1]), _ordered(keys[1:])
        first = np.maximum(high, other_high)
        second = np.maximum(np.minimum(high, other_high), np.maximum(low, other_low))
        owners = [key & (1 << shift) - 1 for key in (first, second)]
        times = [key >> shift for key in (first, second)]
    cells = [owner * (LEVELS + 1) + time for owner, time in zip(owners, times, strict=True)]
    area = np.bincount(np.concatenate(cells).ravel(), minlength=n * (LEVELS + 1)).reshape(n, LEVELS + 1)
    return np.asarray(area[:, ::-1].cumsum(axis=1)[:, ::-1])


def _ordered(rows: Array) -> tuple[Array, Array]:
    """Return the higher and the lower of every two that are beside each other, (h, w) to twice (h, w − 1)."""
    return np.maximum(rows[:, :-1], rows[:, 1:]), np.minimum(rows[:, :-1], rows[:, 1:])


def _saddles(of: Array, levels: npt.NDArray[np.uint8], n: int, eight: bool) -> tuple[IntArray, IntArray]:
    """Return the highest saddle of each two basins that touch, the highest first: basins (m, 2) and levels.

    Those at level 0 are left out.
    """
    here, there, everything = slice(None, -1), slice(1, None), slice(None)
    pairs = [((everything, here), (everything, there)), ((here, everything), (there, everything))]
    if eight:
        pairs += [((here, here), (there, there)), ((here, there), (there, here))]
    found = []
    for one, other in pairs:
        apart = np.flatnonzero(of[one] != of[other])
        y, x = np.divmod(apart, of[one].shape[1])
        a, b = of[one][y, x].astype(np.int64), of[other][y, x]
        level = np.minimum(levels[one][y, x], levels[other][y, x])
        found.append(((np.minimum(a, b) * n + np.maximum(a, b)) << 8) | level)
    packed = np.sort(np.concatenate(found))[::-1]
    packed = packed[np.diff(packed >> 8, prepend=-1) != 0]  # the highest of each
    packed = packed[packed & 255 > 0]
    packed = packed[np.argsort(-(packed & 255), kind="stable")]
    return np.stack(np.divmod(packed >> 8, n), axis=1), packed & 255


def _merge(basins: IntArray, levels: IntArray, extent: Array, area: IntArray) -> tuple[IntArray, IntArray]:
    """Merge basins at their saddles, from the highest down, and enter what is merged into the tables.

    Returns for each basin the one that it merges into, and the level; 0 for those that never do.
    """
    n = len(area)
    parent, size, into, death = list(range(n)), [1] * n, list(range(n)), [0] * n
    for (a, b), level in zip(basins.tolist(), levels.tolist(), strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a == b:
            continue
        if size[a] > size[b]:
            a, b = b, a
        size[b] += size[a]
        parent[a] = into[a] = b
        death[a] = level
        whole = extent[:, b, : level + 1]
        np.minimum(whole, extent[:, a, : level + 1], out=whole)
        area[b, : level + 1] += area[a, : level + 1]
    return np.array(into), np.array(death)


def _ious(found: IntArray, truth: IntArray) -> Scores:
    """Return the highest IoU of each box (m, 4) with boxes of the truth (g, 4), each widened by a pixel."""
    a, b = found[:, None], truth[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=-1) for boxes in (a, b)]
    return np.asarray((common / (areas[0] + areas[1] - common)).max(axis=1), np.float64)
