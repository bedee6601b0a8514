"""MaxBoxAcc and MaxBoxAccV2 of Choe et al. (2020), to the definition of their evaluator, at all thresholds.

A map is brought to [0, 1] and to 8 bits, so that 1,000 thresholds are 255 different ones. At each of them the
pixels above fall into components (8-connected, as OpenCV's contours are), with holes in them (4-connected);
each has a bounding box, and a hit is a box whose IoU with a box of the truth is high enough. Instead of
following contours at each threshold, all components of all thresholds are found at once.

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
from lapbench.score.components import (
    AREA,
    FIRST,
    HIGHEST,
    LEVELS,
    LOWEST,
    Levels,
    boxes_around,
    components,
    first_by,
    without_holes,
)
from lapbench.score.pixels import check_maps
from lapbench.types import Array, Box, IntArray, MaskArray

Scores: TypeAlias = npt.NDArray[np.float64]

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
    if not levels.any():  # without a pixel the box is the first pixel
        return (np.full(LEVELS, _ious(np.zeros((1, 4), np.int64), wanted)[0]),) * 2
    filled = without_holes(levels)
    whole = components(filled, True)  # what lies in a hole is smaller than what is around it
    largest = first_by(whole[:, AREA] * levels.size + whole[:, FIRST], whole)
    parts, holes = components(levels, True), _holes(levels, filled)
    around = boxes_around(holes, width) + np.array([-1, -1, 1, 1])
    everything = np.concatenate([parts, holes])
    end = np.array([width - 1, height - 1] * 2)
    iou = _ious(np.minimum(np.concatenate([boxes_around(parts, width), around]), end), wanted)
    iou_of_whole = _ious(np.minimum(boxes_around(whole[largest], width), end), wanted)
    return iou_of_whole, iou[first_by(iou, everything)]


def to_levels(values: Array) -> Levels:
    """Bring a finite map (H, W) to [0, 1] and to 8 bits, as the published evaluator does; a flat map is 0."""
    scaled = values.astype(np.float64)
    scaled -= scaled.min()
    top = scaled.max()
    return (scaled / top * LEVELS).astype(np.uint8) if top > 0 else np.zeros(values.shape, np.uint8)


def boxes_of(mask: MaskArray) -> tuple[Box, ...]:
    """Return the bounding boxes of a mask's 8-connected components (H, W), from top to bottom."""
    from scipy.ndimage import find_objects, label  # here: its import takes longer than scoring

    numbered, _ = label(mask, np.ones((3, 3), bool))
    return tuple(Box(x.start, y.start, x.stop, y.stop) for y, x in find_objects(numbered))


def _holes(levels: Levels, filled: Levels) -> IntArray:
    """Return the holes of all levels as a table of components.

    A hole is a part of the pixels below a level, 4-connected, that is not connected with the outside: a pixel
    is in one at the levels above its own, up to that at which it is filled.
    """
    holes = components(np.where(levels < filled, LEVELS - levels, 0), False)  # the darkest is the highest
    holes[:, [LOWEST, HIGHEST]] = LEVELS + 1 - holes[:, [HIGHEST, LOWEST]]
    holes[:, HIGHEST] = np.minimum(holes[:, HIGHEST], filled.ravel()[holes[:, FIRST]])
    return holes


def _ious(found: IntArray, truth: IntArray) -> Scores:
    """Return the highest IoU of each box (m, 4) with boxes of the truth (g, 4), each widened by a pixel."""
    a, b = found[:, None], truth[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=-1) for boxes in (a, b)]
    return np.asarray((common / (areas[0] + areas[1] - common)).max(axis=1), np.float64)
