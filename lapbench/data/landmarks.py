"""Landmarks: the coordinates that a network is to give, and how right those are that it gives.

A target is one coordinate, ``left_eye_x`` for one; two make a landmark. Points are pixels of the whole
displayed image where they are annotated, and fractions of the network's image where it answers them.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.types import Box, FloatArray

Scores: TypeAlias = npt.NDArray[np.float64]

EYES = ("left_eye", "right_eye")
"""The landmarks whose distance errors are divided by, where the data have both."""
NEAR = 0.1
"""How far off a landmark may be that counts as found, in the unit of errors."""


def landmark_names(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the landmarks of targets ``a_x``, ``a_y``, ``b_x``, ``b_y`` and so on.

    Errors: ValueError where the targets are not pairs like these.
    """
    names = tuple(target.removesuffix("_x") for target in targets[::2])
    wanted = [f"{name}_{axis}" for name in names for axis in "xy"]
    if not targets or list(targets) != wanted:
        odd = next(
            (t for t, w in zip(targets, wanted, strict=False) if t != w), targets[-1] if targets else "none"
        )
        raise ValueError(
            f"landmarks have two targets each, NAME_x and NAME_y in this order: found {odd!r} out of place"
        )
    return names


def squares(
    names: Sequence[str], points: Sequence[tuple[float, float]], side: float
) -> list[tuple[str, Box]]:
    """Return every target with its truth: the square of that side around its landmark."""
    half = side / 2
    around = [Box(x - half, y - half, x + half, y + half) for x, y in points]
    return [(f"{name}_{axis}", box) for name, box in zip(names, around, strict=True) for axis in "xy"]


def check_points(answer: Sequence[float], targets: Sequence[str]) -> None:
    """Errors: ValueError where the coordinates are not as many as the targets, or not finite."""
    if len(answer) != len(targets):
        raise ValueError(f"wanted {len(targets)} coordinates, two a landmark, found {len(answer)}")
    if not np.isfinite(answer).all():
        raise ValueError(f"coordinates must be finite numbers, found {list(answer)}")


def outside(answer: Sequence[float], size: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the points that lie outside an image of this height and width; its edges belong to it."""
    points = list(zip(answer[::2], answer[1::2], strict=True))
    return [(x, y) for x, y in points if not (0 <= x <= size[1] and 0 <= y <= size[0])]


def fractions(answer: Sequence[float], window: tuple[int, int, int, int]) -> FloatArray:
    """Return points (2K,) as fractions of the part of the image that a window (x0, y0, x1, y1) shows."""
    x0, y0, x1, y1 = window
    points = np.asarray(answer, np.float64).reshape(-1, 2)
    return ((points - (x0, y0)) / (x1 - x0, y1 - y0)).reshape(-1).astype(np.float32)


def landmark_scores(
    found: npt.NDArray[Any], truth: FloatArray, targets: Sequence[str], size: tuple[int, int]
) -> dict[str, Scores]:
    """Return how far off the landmarks of every image are, and how many are found, by name.

    found: (..., n, 2K), truth: (n, 2K), fractions of an image of this height and width. normalised_error: the
    mean distance over the landmarks, in pixels, divided by the distance of the eyes (NME; Sagonas et al., 300
    Faces in-the-Wild, 2013), or by √(height · width) where the data have no two eyes. landmark_accuracy: the
    share of landmarks that are off by less than 0.1 of it (PCK; Yang and Ramanan, 2013). Both (..., n).
    """
    names = landmark_names(targets)
    scale = np.array([size[1], size[0]], np.float64)
    wanted = truth.astype(np.float64).reshape(*truth.shape[:-1], -1, 2) * scale
    given = found.astype(np.float64).reshape(*found.shape[:-1], -1, 2) * scale
    unit = np.full(len(truth), np.sqrt(size[0] * size[1]))
    if set(EYES) <= set(names):
        left, right = (wanted[:, names.index(eye)] for eye in EYES)
        unit = np.linalg.norm(left - right, axis=1)
    # eyes at one point leave nothing to divide by
    errors = np.linalg.norm(given - wanted, axis=-1) / np.where(unit > 0, unit, np.nan)[:, None]
    missed = np.isnan(errors).any(axis=-1)
    near = np.where(missed, np.nan, (errors < NEAR).mean(axis=-1))
    return {"normalised_error": errors.mean(axis=-1), "landmark_accuracy": near}
