"""Speed of scoring: IoU by threshold and by top-k, at least 4,000 maps a second at 224×224 on one core.

Beside it, in the same process, a plain loop over pixels scores a few of the same maps: that ratio depends
less on the machine, and both must agree. Three kinds of maps are measured, the slowest counts: dense ones,
ones that a ReLU has left mostly 0, and coarse ones brought up from 7×7.

    python benchmarks/speed/scoring.py          exit code 1 where a target is missed
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported: one core

import sys
import time

import numpy as np

from lapbench.score import iou_both_ways, scale_by_max, upsample
from lapbench.types import FloatArray, MaskArray

SIDE = 224
N = 200
REPEATS = 15
N_SLOW = 2
THRESHOLD = 0.5
WANTED_RATE = 4000.0
WANTED_RATIO = 100.0


def kinds_of_maps() -> dict[str, FloatArray]:
    """Return normalised maps (N, 224, 224) of three kinds."""
    random = np.random.default_rng(0)
    dense = random.standard_normal((N, SIDE, SIDE), dtype=np.float32)
    coarse = upsample(random.standard_normal((N, 7, 7), dtype=np.float32), (SIDE, SIDE))
    return {
        "dense": scale_by_max(dense),
        "sparse": scale_by_max(np.maximum(dense - 0.5, 0)),
        "coarse": scale_by_max(coarse),
    }


def boxes() -> MaskArray:
    """Return one box an image, of all sizes between 5 % and 30 % of the area."""
    random = np.random.default_rng(1)
    masks = np.zeros((N, SIDE, SIDE), bool)
    for mask in masks:
        height, width = random.integers(50, 124, size=2)
        y, x = random.integers(0, SIDE - height), random.integers(0, SIDE - width)
        mask[y : y + height, x : x + width] = True
    return masks


def slow_scores(values: FloatArray, mask: MaskArray) -> tuple[float, float]:
    """Score one map pixel by pixel, in plain Python."""
    k = sum(bool(inside) for row in mask for inside in row)
    ranked = sorted(((-float(v), i) for i, v in enumerate(values.ravel())))
    top = {i for _, i in ranked[:k]}
    both = either = both_top = 0
    for y in range(SIDE):
        for x in range(SIDE):
            predicted, inside = values[y, x] > THRESHOLD, bool(mask[y, x])
            both += predicted and inside
            either += predicted or inside
            both_top += inside and y * SIDE + x in top
    return both / either, both_top / (2 * k - both_top)


def main() -> int:
    """Measure, print, and return the exit code."""
    masks = boxes()
    reached = True
    for kind, maps in kinds_of_maps().items():
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            by_threshold, top_k = iou_both_ways(maps, masks, THRESHOLD)
            times.append(time.perf_counter() - start)
        rate = N / min(times)
        start = time.perf_counter()
        expected = [slow_scores(values, mask) for values, mask in zip(maps[:N_SLOW], masks, strict=False)]
        slow_rate = N_SLOW / (time.perf_counter() - start)
        same = np.array_equal(expected, np.stack([by_threshold.iou, top_k.iou], axis=1)[:N_SLOW])
        print(f"{kind:7} {rate:7,.0f} maps/s, {rate / slow_rate:5,.0f} times the loop, equal: {same}")
        reached &= rate >= WANTED_RATE and rate / slow_rate >= WANTED_RATIO and same
    print(f"{'reached' if reached else 'MISSED'}: wanted {WANTED_RATE:,.0f} maps/s, {WANTED_RATIO:g} times")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
