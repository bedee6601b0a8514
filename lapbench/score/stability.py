"""How stable maps are: how far they move when the image hardly does.

The explainer is a function here: nothing in this room runs one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.types import FloatArray

Scores: TypeAlias = npt.NDArray[np.float64]


def perturb(images: FloatArray, radius: float, seeds: Sequence[tuple[int, int]]) -> FloatArray:
    """Return images (n, C, H, W) with noise on every value, uniform in ±radius; one seed for each image."""
    noise = [
        np.random.default_rng(seed).uniform(-radius, radius, image.shape).astype(np.float32)
        for image, seed in zip(images, seeds, strict=True)
    ]
    return images + np.stack(noise) if noise else images


def stability(
    explain: Callable[[FloatArray], FloatArray],
    images: FloatArray,
    maps: FloatArray,
    neighbours: Iterable[FloatArray],
) -> dict[str, Scores]:
    """Return how unstable the maps (n, H, W) of images (n, C, H, W) are, by name, (n,) each; low is stable.

    local_lipschitz: the largest ‖M(x) − M(x′)‖ / ‖x − x′‖ over the neighbours x′ (Alvarez-Melis and Jaakkola,
    "Towards robust interpretability with self-explaining neural networks", NeurIPS 2018). max_sensitivity:
    the largest ‖M(x) − M(x′)‖ / ‖M(x)‖ (Yeh et al., "On the (in)fidelity and sensitivity of explanations",
    NeurIPS 2019); NaN for a map of zeros. explain: draws the maps of changed images. neighbours: all images
    changed, once for every turn, (n, C, H, W) each.
    Errors: ScoreError where the explainer draws maps of another shape.
    """
    moved, sensitivity = np.full((2, len(maps)), -np.inf)
    size = _norm(maps)
    for near in neighbours:
        drawn = explain(near)
        if drawn.shape != maps.shape:
            raise ScoreError(f"maps of changed images must be {maps.shape}, found {drawn.shape}")
        step, way = _norm(drawn - maps), _norm(near - images)
        moved = np.maximum(moved, np.where(way > 0, step / np.where(way > 0, way, 1), np.nan))
        sensitivity = np.maximum(sensitivity, np.where(size > 0, step / np.where(size > 0, size, 1), np.nan))
    return {"local_lipschitz": moved, "max_sensitivity": sensitivity}


def _norm(values: FloatArray) -> Scores:
    """Return the Euclidean norm of every image or map, (n,)."""
    rows = values.reshape(len(values), math.prod(values.shape[1:])).astype(np.float64)
    return np.asarray(np.linalg.norm(rows, axis=1))
