"""How faithful maps are to the network: what becomes of its answer as important pixels go, or come.

Insertion and deletion of Petsiuk et al. ("RISE", 2018): pixels are replaced in the order of the map, the
highest first, and the network is asked after each step. A faithful map makes the answer fall soon when its
pixels are deleted (a small area under the curve), and rise soon when they are inserted (a large one). The
network is a function here: nothing in this room runs one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.score.pixels import check_maps
from lapbench.types import Array, FloatArray, IntArray

Scores: TypeAlias = npt.NDArray[np.float64]
Predict: TypeAlias = Callable[[FloatArray], Array]
"""Images (m, C, H, W) → the network's answer to each, (m,): the probability of the class explained."""


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The curves of n images over s steps.

    fractions: (s + 1,) the share of pixels replaced, from 0 to 1. deletion, insertion: (n, s + 1) what the
    network answers; NaN where the map holds NaN or infinity.
    """

    fractions: Scores
    deletion: Scores
    insertion: Scores

    @property
    def deletion_auc(self) -> Scores:
        """The area under each deletion curve, (n,), by trapezia; low is faithful."""
        return _area(self.deletion)

    @property
    def insertion_auc(self) -> Scores:
        """The area under each insertion curve, (n,), by trapezia; high is faithful."""
        return _area(self.insertion)

    @classmethod
    def join(cls, parts: Sequence["Faithfulness"]) -> "Faithfulness":
        """Join the curves of consecutive shards, of as many steps. Errors: ScoreError for no part."""
        if not parts:
            raise ScoreError("there are no curves to join: those of one shard at least are wanted")
        return cls(
            parts[0].fractions,
            np.concatenate([part.deletion for part in parts]),
            np.concatenate([part.insertion for part in parts]),
        )


def insert_and_delete(
    predict: Sequence[Predict], images: FloatArray, maps: FloatArray, *, steps: int, baseline: float = 0.0
) -> Faithfulness:
    """Delete and insert the pixels of images (n, C, H, W) in the order of maps (n, H, W).

    predict: for each image what the network answers to changed ones; it is asked twice for steps + 1 of them.
    baseline: the value of a deleted pixel, in the images' own scale. Of equal pixels the first in row-major
    order goes first. Errors: ScoreError for shapes that do not fit.
    """
    _check(predict, images, maps)
    if steps < 1:
        raise ScoreError(f"steps: {steps} is not at least 1")
    fractions = np.arange(steps + 1) / steps
    counts = np.round(fractions * math.prod(maps.shape[1:])).astype(np.int64)
    deletion, insertion = np.full((2, len(maps), steps + 1), math.nan)
    for i, (ask, image, values) in enumerate(zip(predict, images, maps, strict=True)):
        if np.isfinite(values).all():
            gone = _replaced(values, counts)
            empty = np.full_like(image, baseline)
            deletion[i] = ask(np.where(gone, empty, image))
            insertion[i] = ask(np.where(gone, image, empty))
    return Faithfulness(fractions, deletion, insertion)


def removal_drops(
    predict: Sequence[Predict], images: FloatArray, *, grid: int, baseline: float = 0.0
) -> Scores:
    """Return what the removal of each region costs the network's answer to images (n, C, H, W), (n, grid²).

    Images are cut into grid × grid regions, numbered in reading order; one that is removed is set to
    `baseline`. predict: as in `insert_and_delete`, asked once for grid² + 1 images. Errors: ScoreError for
    shapes that do not fit, and for regions smaller than a pixel.
    """
    _check_predict(predict, images)
    gone = _regions(images.shape[2:], grid) == np.arange(grid**2)[:, None, None, None]
    drops = np.empty((len(images), grid**2))
    for i, (ask, image) in enumerate(zip(predict, images, strict=True)):
        answers = ask(np.concatenate([image[None], np.where(gone, np.float32(baseline), image)]))
        drops[i] = answers[0] - answers[1:]
    return drops


def removal_correlation(drops: Array, maps: FloatArray) -> Scores:
    """Return how well maps (n, H, W) foretell what the removal of regions costs, (n,) in [−1, 1].

    drops: (n, grid²) by `removal_drops`. They are correlated (Pearson) with the map's means in the regions:
    faithfulness in the sense of Alvarez-Melis and Jaakkola (NeurIPS 2018). NaN where either is the same in
    all regions, or the map holds NaN or infinity. Errors: ScoreError for shapes that do not fit.
    """
    check_maps(maps)
    grid = math.isqrt(drops.shape[-1])
    if drops.shape != (len(maps), grid**2):
        raise ScoreError(f"drops {drops.shape} must be those of a square of regions for {len(maps)} maps")
    regions = _regions(maps.shape[1:], grid)
    sizes = np.bincount(regions.ravel())
    correlation = np.full(len(maps), math.nan)
    for i, (drop, values) in enumerate(zip(drops, maps, strict=True)):
        if not np.isfinite(values).all():
            continue
        weight = np.bincount(regions.ravel(), weights=values.ravel()) / sizes
        if np.ptp(weight) > 0 and np.ptp(drop) > 0:
            correlation[i] = np.corrcoef(weight, drop)[0, 1]
    return correlation


def _regions(size: tuple[int, ...], grid: int) -> IntArray:
    """Return the number of each pixel's region, (H, W)."""
    if not 2 <= grid <= min(size):
        raise ScoreError(f"grid: {grid} is not between 2 and the {min(size)} pixels of a side")
    rows, columns = (np.arange(side) * grid // side for side in size)
    return np.asarray(rows[:, None] * grid + columns, np.int64)


def _check(predict: Sequence[Predict], images: FloatArray, maps: FloatArray) -> None:
    check_maps(maps)
    if images.ndim != 4 or (len(images), *images.shape[2:]) != maps.shape:
        raise ScoreError(
            f"images {images.shape} and maps {maps.shape} must be of the same images and size: "
            "(n, C, H, W) and (n, H, W), maps brought to the size of the image first"
        )
    _check_predict(predict, images)


def _check_predict(predict: Sequence[Predict], images: FloatArray) -> None:
    if len(predict) != len(images):
        raise ScoreError(f"{len(images)} images need as many predictions, found {len(predict)}")


def _area(curves: Scores) -> Scores:
    """Return the areas under curves (n, s + 1) over [0, 1]."""
    return np.asarray((curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2, np.float64)


def _replaced(values: FloatArray, counts: IntArray) -> npt.NDArray[np.bool_]:
    """Return which pixels are replaced after each step, (steps + 1, 1, H, W): the highest `counts`."""
    place = np.empty(values.size, np.int64)
    place[np.argsort(-values, axis=None, kind="stable")] = np.arange(values.size)
    return np.asarray(place.reshape(values.shape) < counts[:, None, None, None])
