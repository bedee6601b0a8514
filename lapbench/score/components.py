"""The connected components of a map at all its levels at once.

The levels are walked down, and pixels that come in join what they touch (union-find); a component that stays
as it is over several levels is one line of a table, a node of the component tree (Najman and Couprie,
"Building the component tree in quasi-linear time", 2006). Such loops have no name in NumPy: Numba compiles
them.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from lapbench.types import Array, IntArray

F = TypeVar("F", bound=Callable[..., Any])
Levels: TypeAlias = npt.NDArray[np.uint8]

LEVELS = 255
"""Levels of a map of 8 bits but for 0, where every pixel is in."""
LOWEST, HIGHEST, LEFT, RIGHT, FIRST, LAST, AREA = range(7)
"""Columns of a table of components."""


def _compiled(function: F) -> F:
    """Let Numba compile a function when it is first called, and keep that where a folder can be written."""
    try:
        return cast(F, njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # there is none
        return cast(F, njit(error_model="numpy")(function))


def _halves(around: int) -> int:
    """Return how many halves of squares of 2×2 pixels come in with a pixel, by which of the eight are in."""
    halves = 0
    for corner in (1, 3, 5, 7):
        halves += sum(around >> (i % 8) & 1 for i in (corner - 1, corner, corner + 1)) >= 2
    return halves


HALVES = np.array([_halves(around) for around in range(256)])


@_compiled
def components(levels: Levels, corners: bool) -> IntArray:
    """Return all components of the pixels at or above any level of a map (H, W), as a table (m, 7).

    corners: whether pixels that touch by their corners belong together. Columns: the lowest and the highest
    level at which a component stands as it is; its leftmost and its rightmost x; the flat index of its first
    and of its last pixel in reading order; and twice the area of the polygons through the centres of its
    pixels, if corners connect: of every square of 2×2 pixels a half counts with the third that is in, and a
    half with the fourth.
    """
    height, width = levels.shape
    row = width + 2  # the frame is never in
    steps = np.array([1, row + 1, row, row - 1, -1, -row - 1, -row, 1 - row])[:: 1 if corners else 2]
    order, ends = _downwards(levels)
    owner = np.full((height + 2) * row, -1, np.int32)  # which component each pixel came to
    parent = np.empty(levels.size, np.int32)  # which one that came to, or itself
    standing, found = np.empty((2, levels.size, 7), np.int32)
    n = m = start = 0
    for level in range(LEVELS, 0, -1):
        for flat in order[start : ends[level]]:
            y = flat // width
            x = flat - y * width
            pixel = flat + 2 * y + row + 1
            root = last = -1
            around = 0
            for i, step in enumerate(steps):
                beside = owner[pixel + step]
                around |= (beside >= 0) << i
                if beside == last or beside < 0:
                    continue
                last, other = beside, _root(parent, beside)
                if other == root:
                    continue
                if standing[other, HIGHEST] > level:  # as it was it stands no longer
                    found[m], found[m, LOWEST] = standing[other], level + 1
                    standing[other, HIGHEST] = level
                    m += 1
                if root < 0:
                    root = other
                else:
                    parent[other] = root
                    _take_in(standing, root, standing[other])
            if root < 0:
                parent[n], root, n = n, n, n + 1
                standing[root] = (1, level, x, x, flat, flat, 0)
            owner[pixel] = root
            _take_in(standing, root, (0, 0, x, x, flat, flat, HALVES[around]))
        start = ends[level]
    for root in range(n):
        if parent[root] == root:
            found[m] = standing[root]
            m += 1
    return found[:m].astype(np.int64)


def boxes_around(table: IntArray, width: int) -> IntArray:
    """Return the bounding boxes of a table's components in a map of that width: (m, 4), half-open."""
    sides = [table[:, LEFT], table[:, FIRST] // width, table[:, RIGHT] + 1, table[:, LAST] // width + 1]
    return np.stack(sides, axis=1)


@_compiled
def without_holes(levels: Levels) -> Levels:
    """Fill the holes of a map (H, W): no pixel stays below the lowest wall between it and what is outside.

    Water rises around the map and enters it from pixel to pixel, in four directions, at the lowest place
    first; each pixel is raised to where it was when it got wet (Barnes et al., "Priority-flood", 2014).
    """
    height, width = levels.shape
    row = width + 2
    filled = np.zeros((height + 2, width + 2), np.uint8)  # with a frame, which is wet
    filled[1:-1, 1:-1] = levels
    flat = filled.ravel()
    dry = np.zeros((height + 2, width + 2), np.bool_)
    dry[1:-1, 1:-1] = True
    dry = dry.ravel()
    waiting = np.full(LEVELS + 1, -1, np.int64)  # for the water to reach each level: lists, linked backwards
    before = np.empty(len(flat), np.int64)
    for y in range(1, height + 1):
        for x in range(1, width + 1):
            if y in (1, height) or x in (1, width):
                pixel = y * row + x
                dry[pixel] = False
                before[pixel], waiting[flat[pixel]] = waiting[flat[pixel]], pixel
    for level in range(LEVELS + 1):
        while waiting[level] >= 0:
            pixel = waiting[level]
            waiting[level] = before[pixel]
            for step in (1, row, -1, -row):
                beside = pixel + step
                if dry[beside]:
                    dry[beside] = False
                    raised = flat[beside] = max(flat[beside], level)
                    before[beside], waiting[raised] = waiting[raised], beside
    return filled[1:-1, 1:-1].copy()


@_compiled
def first_by(keys: Array, table: IntArray) -> IntArray:
    """Return which component of a table has the highest key (m,), at each of the 255 levels; −1 for none."""
    best = np.full(LEVELS, -1, np.int64)
    for i in range(len(table)):
        for level in range(table[i, LOWEST] - 1, table[i, HIGHEST]):
            if best[level] < 0 or keys[i] > keys[best[level]]:
                best[level] = i
    return best


@_compiled
def _downwards(levels: Levels) -> tuple[IntArray, IntArray]:
    """Return the pixels (H·W,) from the highest level down, in reading order, and where each level ends."""
    flat = levels.ravel()
    size = np.zeros(LEVELS + 1, np.int64)
    for level in flat:
        size[level] += 1
    ends = size[::-1].cumsum()[::-1].copy()
    free = ends - size
    order = np.empty(len(flat), np.int64)
    for pixel, level in enumerate(flat):
        order[free[level]] = pixel
        free[level] += 1
    return order, ends


@_compiled
def _root(parent: Array, pixel: int) -> int:
    """Return the root of a pixel's component, and halve the way to it."""
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


@_compiled
def _take_in(standing: Array, root: int, part: Array | tuple[int, ...]) -> None:
    """Let a component grow by a part, which has the same columns."""
    standing[root, LEFT] = min(standing[root, LEFT], part[LEFT])
    standing[root, RIGHT] = max(standing[root, RIGHT], part[RIGHT])
    standing[root, FIRST] = min(standing[root, FIRST], part[FIRST])
    standing[root, LAST] = max(standing[root, LAST], part[LAST])
    standing[root, AREA] += part[AREA]
