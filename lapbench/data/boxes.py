"""Boxes: foreign conventions end here, and half-open boxes become masks.

Inside lapbench a box is half-open, [x0, x1) × [y0, y1), in pixels whose corners are whole numbers: the pixel
in row i and column j is the square [j, j + 1) × [i, i + 1) and its centre is (j + 0.5, i + 0.5).
"""

import math
from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

from lapbench.errors import DataError
from lapbench.types import Box, MaskArray

Convention: TypeAlias = Literal["xyxy", "xyxy-inclusive", "xywh"]
"""xyxy: left, top, right, bottom, half-open; xyxy-inclusive: right and bottom are the last pixels that belong
to it; xywh: left, top, width, height."""
Base: TypeAlias = Literal[0, 1]
"""The number of the first pixel."""


def to_half_open(
    values: tuple[float, float, float, float],
    convention: Convention,
    base: Base,
    *,
    where: str,
    factor: float = 1.0,
) -> Box:
    """Turn four numbers of a declared convention into a half-open box.

    factor: multiplies the box, where it was drawn on an image of another size.
    Errors: DataError naming ``where`` for a number that is not finite, for an empty or inverted box, and for
    fractions of the image in the place of pixels.
    """
    if not all(math.isfinite(v) for v in values):
        raise DataError(f"{where}: a box needs four finite numbers, found {list(values)}")
    # a box of whole numbers may be the first pixel; a factor above 1 may be the side of the image
    if factor <= 1 and all(0 <= v <= 1 for v in values) and any(v % 1 for v in values):
        raise DataError(
            f"{where}: the box {list(values)} lies within one pixel, as if it were in fractions of the image:"
            " multiply them by the image's width and height, since boxes are in pixels"
        )
    a, b, c, d = values
    x0, y0 = a - base, b - base
    if convention == "xywh":
        box = Box(x0, y0, x0 + c, y0 + d)
    else:
        end = 1 - base if convention == "xyxy-inclusive" else -base
        box = Box(x0, y0, c + end, d + end)
    if box.width <= 0 or box.height <= 0:
        raise DataError(
            f"{where}: the box {list(values)}, read as {convention} counted from {base}, is {box.width:g}"
            f" pixels wide and"
            f" {box.height:g} high: correct the annotation, or the convention in the manifest"
        )
    return scale(box, factor, factor)


def from_half_open(box: Box, convention: Convention, base: Base) -> tuple[float, float, float, float]:
    """Write a half-open box in another convention; the inverse of `to_half_open`."""
    x0, y0 = box.x0 + base, box.y0 + base
    if convention == "xywh":
        return x0, y0, box.width, box.height
    end = 1 - base if convention == "xyxy-inclusive" else -base
    return x0, y0, box.x1 - end, box.y1 - end


def clip(box: Box, x0: float, y0: float, x1: float, y1: float) -> Box | None:
    """Return the part of a box inside a rectangle, in the same coordinates; None where nothing is."""
    cut = Box(max(box.x0, x0), max(box.y0, y0), min(box.x1, x1), min(box.y1, y1))
    return cut if cut.width > 0 and cut.height > 0 else None


def move(box: Box, dx: float, dy: float) -> Box:
    """Return the box shifted to the right by dx and down by dy."""
    return Box(box.x0 + dx, box.y0 + dy, box.x1 + dx, box.y1 + dy)


def scale(box: Box, fx: float, fy: float) -> Box:
    """Return the box in an image whose width is multiplied by fx and whose height by fy."""
    return Box(box.x0 * fx, box.y0 * fy, box.x1 * fx, box.y1 * fy)


def rasterise(boxes: Iterable[Box], height: int, width: int) -> MaskArray:
    """Return the union of the boxes as a mask (height, width).

    A pixel belongs to a box when its centre lies in it. A box that lies between centres along an axis marks
    the one row or column that holds its middle, so that no box inside the image is lost.
    """
    mask = np.zeros((height, width), bool)
    for box in boxes:
        rows, columns = _pixels(box.y0, box.y1, height), _pixels(box.x0, box.x1, width)
        mask[rows, columns] = True
    return mask


def _pixels(low: float, high: float, length: int) -> slice:
    """Return the pixels whose centres lie in [low, high), or the one that holds the middle."""
    first, last = math.ceil(low - 0.5), math.ceil(high - 0.5)
    if first >= last:
        first = math.floor((low + high) / 2)
        last = first + 1
    return slice(max(first, 0), max(min(last, length), 0))
