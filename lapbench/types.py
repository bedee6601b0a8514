"""The words of the house as types: boxes, samples, and what arrays hold."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
"""float32: images (C, H, W) in [0, 1]; maps (n, h, w), raw, higher = more important."""
MaskArray: TypeAlias = npt.NDArray[np.bool_]
"""bool: ground truth or predicted mask, (H, W) or (n, H, W)."""
IntArray: TypeAlias = npt.NDArray[np.int64]
"""int64: labels, targets, indices."""
Array: TypeAlias = npt.NDArray[Any]
Task: TypeAlias = Literal["classification", "landmarks", "captions"]
"""What a network answers: classes, the coordinates of landmarks, or a caption."""


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle [x0, x1) × [y0, y1) in pixels, x to the right, y down."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def width(self) -> float:
        """Pixels from left to right."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Pixels from top to bottom."""
        return self.y1 - self.y0


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its truth, everything at the size that the network sees.

    id: unique within the data set, stable across machines. image: (C, H, W) float32 in [0, 1], C = 1 or 3.
    label: index into the data set's classes, or into its other targets. boxes: in pixels of this image. mask:
    the ground truth as (H, W) bool: the union of the boxes, or the annotated mask; all False where nothing is
    annotated. ignore: (H, W) bool, pixels that count neither as truth nor as background; None: all count.
    """

    id: str
    image: FloatArray
    label: int
    boxes: tuple[Box, ...]
    mask: MaskArray
    ignore: MaskArray | None = None
