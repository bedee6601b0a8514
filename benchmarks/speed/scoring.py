"""Speed of scoring on one core, at 224×224: what is wanted is below, in maps a second or as a ratio.

- IoU by threshold and by top-k: 4,000 maps a second. Beside it, in the same process, a plain loop over pixels
  scores a few of the same maps: that ratio depends less on the machine, and both must agree.
- All scores together (both IoUs, the best threshold of each image, IoU at 101 thresholds, AUC, PxAP's 1,000
  thresholds, pointing game with and without tolerance, energy): 1,500 maps a second; the IoUs must agree.
- MaxBoxAcc and MaxBoxAccV2 at 1,000 thresholds: 20 times wsolevaluation's evaluator, whose numbers must be
  the same. Only where a checkout of it is named.

Three kinds of maps are measured: dense ones, ones that a ReLU has left mostly 0, and coarse ones brought up
from 7×7. The slowest counts.

    python benchmarks/speed/scoring.py [WSOLEVALUATION]          exit code 1 where a target is missed
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported: one core

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lapbench.score import iou_both_ways, localise, scale_by_max, sweep_boxes, upsample
from lapbench.types import Array, Box, FloatArray, MaskArray

sys.path.append(str(Path(__file__).parents[1]))
from wsolevaluation import foreign_evaluation

T = TypeVar("T")

SIDE = 224
N = 200
REPEATS = 15
N_SLOW = 2
THRESHOLD = 0.5
WANTED_RATE = 4000.0
WANTED_RATIO = 100.0
WANTED_RATE_OF_ALL = 1500.0
WANTED_RATIO_OF_BOXES = 20.0
N_BOXES = 2  # maps: of dense ones a contour follower sees a million contours


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


def fastest(work: Callable[[], T], repeats: int) -> tuple[T, float]:
    """Return what some work gives, and its shortest time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return result, min(times)


def measure_both_ways(kind: str, maps: FloatArray, masks: MaskArray) -> bool:
    """Measure and print IoU by threshold and by top-k; return whether the targets are reached."""
    (by_threshold, top_k), seconds = fastest(lambda: iou_both_ways(maps, masks, THRESHOLD), REPEATS)
    rate = N / seconds
    start = time.perf_counter()
    expected = [slow_scores(values, mask) for values, mask in zip(maps[:N_SLOW], masks, strict=False)]
    ratio = rate * (time.perf_counter() - start) / N_SLOW
    same = np.array_equal(expected, np.stack([by_threshold.iou, top_k.iou], axis=1)[:N_SLOW])
    print(f"both IoUs   {kind:7} {rate:7,.0f} maps/s, {ratio:5,.0f} times the loop, equal: {same}")
    return rate >= WANTED_RATE and ratio >= WANTED_RATIO and same


def measure_all(kind: str, maps: FloatArray, masks: MaskArray) -> bool:
    """Measure and print all scores together; return whether the target is reached."""
    found, seconds = fastest(
        lambda: localise(maps, masks, selections=("threshold", "top-k"), threshold=THRESHOLD, tolerance=7),
        REPEATS,
    )
    alone = iou_both_ways(maps, masks, THRESHOLD)
    same = all(
        np.array_equal(found.iou[name].iou, one.iou) for name, one in zip(found.iou, alone, strict=True)
    )
    print(f"all scores  {kind:7} {N / seconds:7,.0f} maps/s, equal: {same}")
    return N / seconds >= WANTED_RATE_OF_ALL and same


def measure_boxes(kind: str, maps: FloatArray, checkout: Path) -> bool:
    """Measure and print box accuracy beside wsolevaluation's; return whether the target is reached."""
    evaluation = foreign_evaluation(checkout)
    truth = [[Box(40, 60, 140, 170)] for _ in range(N_BOXES)]
    thresholds = np.arange(0, 1, 0.001)
    ours, seconds = fastest(lambda: sweep_boxes(maps[:N_BOXES], truth), 3)

    def theirs() -> list[Array]:
        hits = []
        for several, asked in ((False, (0.5,)), (True, (0.3, 0.5, 0.7))):
            iou = np.array([box_ious(evaluation, values, thresholds, several) for values in maps[:N_BOXES]])
            hits += [(iou >= wanted).sum(axis=0) for wanted in asked]
        return hits

    expected, slow_seconds = fastest(theirs, 1)
    level = (thresholds * 255).astype(int)
    found = [hit.sum(axis=0)[level] for hit in (ours.largest, *ours.any)]
    same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    ratio = slow_seconds / seconds
    rate = N_BOXES / seconds
    print(f"boxes       {kind:7} {rate:7,.1f} maps/s, {ratio:5,.1f} times wsolevaluation, equal: {same}")
    return ratio >= WANTED_RATIO_OF_BOXES and same


def box_ious(evaluation: Any, values: FloatArray, thresholds: Array, several: bool) -> list[float]:
    """Let wsolevaluation find the boxes of a map at each threshold and compare them with the truth."""
    scaled = values.astype(np.float64) - values.min()
    boxes, numbers = evaluation.compute_bboxes_from_scoremaps(scaled / scaled.max(), thresholds, several)
    iou = evaluation.calculate_multiple_iou(np.concatenate(boxes), np.array([[40, 60, 140, 170]])).max(1)
    ends = np.cumsum(numbers if several else np.ones_like(numbers))
    return [float(part.max()) for part in np.split(iou, ends[:-1])]


def main() -> int:
    """Measure, print, and return the exit code."""
    masks, checkouts = boxes(), [Path(name) for name in sys.argv[1:]]
    reached = True
    for kind, maps in kinds_of_maps().items():
        reached &= measure_both_ways(kind, maps, masks)
        reached &= measure_all(kind, maps, masks)
        for checkout in checkouts:
            reached &= measure_boxes(kind, maps, checkout)
    print(
        f"{'reached' if reached else 'MISSED'}: wanted {WANTED_RATE:,.0f} maps/s, {WANTED_RATIO:g} times; "
        f"all scores {WANTED_RATE_OF_ALL:,.0f} maps/s; boxes {WANTED_RATIO_OF_BOXES:g} times"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
