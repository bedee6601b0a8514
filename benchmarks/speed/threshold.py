"""Speed of the streaming threshold: at least 15 times scikit-learn's fit at 10⁷ pixels, in flat memory.

Both times are taken in this process, one after the other, several times; the ratio of the medians counts.
Both fits get what they ask for: scikit-learn one float64 column of all pixels, already in memory; the
streaming fit float32 maps. Memory is the peak above what the maps themselves take, at 10⁶ and at 10⁷ pixels,
of a fit whose maps come one block at a time.

    python benchmarks/speed/threshold.py        exit code 1 where a target is missed
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported: one core for both

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import RidgeClassifier

from lapbench.score import StreamingFit
from lapbench.types import FloatArray, MaskArray

SIDE = 224
WANTED_RATIO = 15.0
WANTED_DIFFERENCE = 1e-9
WANTED_GROWTH = 1.1


def block(n: int, seed: int) -> tuple[FloatArray, MaskArray]:
    """Return n normalised maps and their masks: noise, a little brighter inside a box."""
    random = np.random.default_rng(seed)
    masks = np.zeros((n, SIDE, SIDE), bool)
    masks[:, 40:100, 60:140] = True
    maps = random.random((n, SIDE, SIDE), dtype=np.float32)
    maps[masks] += 0.2
    return maps, masks


def seconds(fit: Callable[[], object], repeats: int) -> float:
    """Return the median time of a fit."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fit()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak(fit: Callable[[], object]) -> int:
    """Return the bytes that a fit holds at most."""
    tracemalloc.start()
    fit()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def streamed(n_maps: int) -> StreamingFit:
    """Fit on maps that are made and dropped ten at a time."""
    fit = StreamingFit()
    for seed in range(n_maps // 10):
        fit.update(*block(10, seed))
    return fit


def main() -> int:
    """Measure, print, and return the exit code."""
    maps, masks = block(10**7 // SIDE**2 + 1, seed=0)
    pixels, labels = maps.reshape(-1, 1).astype(np.float64), masks.reshape(-1)
    ridge = RidgeClassifier(solver="lsqr", tol=1e-3, alpha=0.01, max_iter=100, class_weight="balanced")

    slow = seconds(lambda: ridge.fit(pixels, labels), repeats=3)
    fast = seconds(lambda: StreamingFit().update(maps, masks).compute(), repeats=5)
    expected = -float(np.ravel(ridge.intercept_)[0]) / float(np.ravel(ridge.coef_)[0])
    difference = abs(StreamingFit().update(maps, masks).compute().threshold / expected - 1)
    small, large = peak(lambda: streamed(20)), peak(lambda: streamed(200))
    of_ridge = peak(lambda: ridge.fit(pixels, labels))

    print(f"pixels                 {len(pixels):,}")
    print(f"scikit-learn           {slow:.3f} s, peak memory {of_ridge / 2**20:.0f} MiB above its pixels")
    print(f"streaming              {fast:.3f} s, {slow / fast:.1f} times faster (wanted: {WANTED_RATIO:g})")
    print(f"peak memory            {small / 2**20:.1f} MiB at 10⁶ pixels, {large / 2**20:.1f} MiB at 10⁷")
    print(f"relative difference    {difference:.1e} (wanted: at most {WANTED_DIFFERENCE:g})")
    flat = large <= WANTED_GROWTH * small
    reached = slow / fast >= WANTED_RATIO and flat and difference <= WANTED_DIFFERENCE
    print("reached" if reached else "MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
