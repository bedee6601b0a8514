"""Maps as a page holds them: one byte a pixel, exact at every threshold that the page offers.

A row has a grid of at most 255 ascending thresholds, its own among them. The level of a pixel is the number
of thresholds below its value, so that `level > k` says what `value > grid[k]` says.
"""

import numpy as np
import numpy.typing as npt

from lapbench.types import FloatArray

Levels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]

EVEN, RANKS = 128, 124
"""Thresholds of a grid: evenly spread, for maps as smooth as a CAM, and by rank, for those whose pixels crowd
near zero, as gradients do."""
DIGITS = 5
"""Significant digits of a threshold; only a row's own one has all of its digits."""


def threshold_grid(values: FloatArray, own: float | None = None) -> Numbers:
    """Return ascending thresholds for normalised maps with these values, `own` among them.

    values: of any shape; NaN and infinity do not count. Values below −1 lie below every threshold.
    """
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    lowest = max(-1.0, min(0.0, finite.min(initial=0.0)))
    even = np.linspace(lowest, 1.0, EVEN)
    ranks = np.quantile(finite, np.linspace(0, 1, RANKS + 2)[1:-1]) if finite.size else even[:0]
    inside = ranks[(ranks > lowest) & (ranks < 1)]
    short = [float(f"{threshold:.{DIGITS}g}") for threshold in (*even, *inside)]
    return np.unique([*short, *([] if own is None else [own])])


def to_levels(maps: FloatArray, grid: Numbers, orientation: int = 1) -> Levels:
    """Return how many thresholds lie below each value; for orientation −1 how many do not lie above it.

    So `level > k` is `value > grid[k]`, or `level <= k` is `value < grid[k]`. NaN counts as 0.
    """
    edges = grid.astype(np.float32)  # rounded away from what is selected, a comparison stays as it is
    moved = edges > grid if orientation > 0 else edges < grid
    edges[moved] = np.nextafter(edges[moved], np.float32(-orientation * np.inf))
    levels = np.searchsorted(edges, maps.ravel(), side="left" if orientation > 0 else "right")
    return np.where(np.isnan(maps), 0, levels.reshape(maps.shape)).astype(np.uint8)
