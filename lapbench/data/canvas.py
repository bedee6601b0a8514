"""What embedded data sets draw with: chance from a text, textured canvases, and soft-edged figures.

The same bytes come out on every machine and with every version of NumPy. Chance is SHAKE-256. Textures are
integers (matrix products run in float64 on integers below 2^53, which is exact in any order). Figures take
float64 through sums, products, quotients and roots of single elements alone, which IEEE 754 rounds in one
way; no transcendental function and no reduction takes part.
"""

import hashlib
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.types import Array

Levels: TypeAlias = npt.NDArray[np.int32]
Reals: TypeAlias = npt.NDArray[np.float64]
Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


class Chance:
    """Integers from SHAKE-256 of a text, one after the other, without end."""

    def __init__(self, text: str) -> None:
        self._stream = hashlib.shake_256(text.encode())
        self._bytes = self._stream.digest(256)
        self._at = 0

    def below(self, n: int) -> int:
        """Return an integer in [0, n); 32 bits of chance each."""
        return int.from_bytes(self.take(4), "little") * n >> 32

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both included."""
        return low + self.below(high - low + 1)

    def take(self, n: int) -> bytes:
        """Return the next n bytes."""
        start, self._at = self._at, self._at + n
        if self._at > len(self._bytes):
            self._bytes = self._stream.digest(2 * self._at)  # a longer digest begins with the shorter one
        return self._bytes[start : self._at]


def texture(chance: Chance, side: int, level: tuple[int, int] = (15, 60)) -> Levels:
    """Return smooth noise (side, side) in three octaves, its contrast drawn, and its level between two."""
    total = np.full((side, side), chance.between(*level) * 255 * 256.0)
    for step, strongest in ((16, 60), (8, 45), (4, 30)):
        weights = _blend(side, step)
        nodes = weights.shape[1]
        lattice = np.frombuffer(chance.take(nodes * nodes), np.uint8).reshape(nodes, nodes).astype(np.float64)
        strength = chance.between(strongest // 5, strongest)
        total += (weights @ lattice @ weights.T) * (strength * (256 // step**2))
    return (total.astype(np.int64) // (255 * 256)).astype(np.int32)


def with_noise(canvas: Levels, chance: Chance, strength: tuple[int, int] = (6, 32)) -> Array:
    """Add fine noise, its strength drawn between two, and return bytes of the same shape."""
    drawn = chance.between(*strength)
    noise = np.frombuffer(chance.take(canvas.size), np.uint8).reshape(canvas.shape).astype(np.int32) - 128
    return np.clip(canvas + (noise * drawn >> 7), 0, 255).astype(np.uint8)


def pixel_centres(side: int) -> tuple[Reals, Reals]:
    """Return x (1, side) and y (side, 1) of the centres of pixels."""
    centres: Reals = np.arange(side, dtype=np.float64) + 0.5
    return centres[None, :], centres[:, None]


def ellipse(x: Reals, y: Reals, width: float, height: float) -> Reals:
    """Return how deep points lie in an ellipse around 0 with these half axes: above 0 inside, in pixels.

    Exact on circles; else near the edge, which is what counts.
    """
    return (1 - np.sqrt((x / width) * (x / width) + (y / height) * (y / height))) * min(width, height)


def paint(canvas: Reals, depth: Reals, colour: Colour) -> None:
    """Paint a figure onto a canvas (side, side, 3); its edge is one soft pixel wide.

    depth: (side, side) how far inside the figure pixels lie, in pixels.
    """
    opacity = np.clip(depth + 0.5, 0, 1)[:, :, None]
    canvas += opacity * (np.array(colour, np.float64) - canvas)


@cache
def _blend(side: int, step: int) -> Reals:
    """Return (side, nodes): linear interpolation between nodes ``step`` apart, times ``step``."""
    matrix = np.zeros((side, (side - 1) // step + 2))
    at = np.arange(side)
    matrix[at, at // step] = step - at % step
    matrix[at, at // step + 1] = at % step
    return matrix
