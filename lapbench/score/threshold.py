"""One global threshold per model and explainer, fitted on the pixels of the fitting split (LAP, Appendix B).

The definition is scikit-learn's ridge classifier on one feature, the normalised score of a pixel, with label
1 inside the truth, balanced class weights, and the threshold where its decision value is 0. With balanced
weights and one feature that point does not depend on the ridge penalty: centring makes the weighted mean of
the ±1 labels 0, so the decision function is coef·(x − (μ₁ + μ₀)/2), with the means μ₁ inside and μ₀ outside
the truth. `StreamingFit` computes it from counts and sums; `fit_ridge` asks scikit-learn.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from lapbench.score.pixels import check_stacks
from lapbench.types import Array, MaskArray

RIDGE_PIXELS = 1_000_000
"""``auto`` hands at most this many pixels to scikit-learn, which needs all of them in memory."""
SAME_MEAN = 1e-12
"""Means that differ relatively by less are the same: float32 maps cannot differ so little, rounding can."""
_BLOCK = 2**17  # pixels that are held in float64 at once: they stay in the processor's cache


@dataclass(frozen=True)
class ThresholdFit:
    """A fitted threshold and what it rests on.

    threshold: NaN where none exists, and reason says why. orientation: +1 marks pixels above the threshold,
    −1 those below. n_maps, n_pixels: what entered. n_nan: maps left out because they hold NaN or infinity.
    n_inside: pixels inside the truth. mean_inside, mean_outside: mean normalised scores, NaN for none.
    """

    threshold: float
    orientation: Literal[1, -1]
    method: Literal["ridge", "streaming"]
    n_maps: int
    n_pixels: int
    n_inside: int
    n_nan: int
    mean_inside: float
    mean_outside: float
    reason: str = ""

    @property
    def exists(self) -> bool:
        """Whether there is a threshold to predict with."""
        return bool(np.isfinite(self.threshold))

    @property
    def inverted(self) -> bool:
        """Whether the truth scores lower than the rest: the map points away from it."""
        return self.exists and self.mean_inside < self.mean_outside


class StreamingFit:
    """The balanced ridge threshold from five sums: maps, pixels and scores inside and outside the truth.

    Memory does not grow with pixels. A map's sums are rounded to float64 once and then added up exactly, as
    fractions, so that neither the order of maps nor their division into shards changes a bit of the result.
    """

    def __init__(self) -> None:
        self.n_maps = 0
        self.n_nan = 0
        self.n_outside = 0
        self.n_inside = 0
        self.sum_outside = Fraction(0)
        self.sum_inside = Fraction(0)

    def update(self, maps: Array, masks: MaskArray) -> Self:
        """Take in normalised maps (n, H, W) and masks (n, H, W) bool; return itself.

        Maps with NaN or infinity are left out and counted. Errors: ScoreError for shapes that do not fit.
        """
        for values, inside in _pixel_blocks(maps, masks):
            with np.errstate(invalid="ignore"):  # +inf − inf
                finite = np.isfinite(values.sum(axis=1))
            if not finite.all():
                self.n_nan += int((~finite).sum())
                values, inside = values[finite], inside[finite]
            within = (values * inside).sum(axis=1)
            beyond = (values * ~inside).sum(axis=1)  # by itself: a difference of sums would cancel
            self.n_maps += len(values)
            self.n_inside += int(np.count_nonzero(inside))
            self.n_outside += int(inside.size - np.count_nonzero(inside))
            self.sum_inside += sum(map(Fraction, within.tolist()), Fraction(0))
            self.sum_outside += sum(map(Fraction, beyond.tolist()), Fraction(0))
        return self

    @property
    def n_pixels(self) -> int:
        """Pixels taken in."""
        return self.n_inside + self.n_outside

    def merge(self, other: "StreamingFit") -> "StreamingFit":
        """Return the fit of both, as if all maps had been seen by one."""
        both = StreamingFit()
        for name in vars(both):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def compute(self) -> ThresholdFit:
        """Return the threshold (μ₁ + μ₀)/2 with orientation sign(μ₁ − μ₀), or NaN and the reason."""
        inside = float(self.sum_inside / self.n_inside) if self.n_inside else float("nan")
        outside = float(self.sum_outside / self.n_outside) if self.n_outside else float("nan")
        reason = self._obstacle(inside, outside)
        return ThresholdFit(
            threshold=float("nan") if reason else inside / 2 + outside / 2,
            orientation=-1 if inside < outside else 1,
            method="streaming",
            n_maps=self.n_maps,
            n_pixels=self.n_pixels,
            n_inside=self.n_inside,
            n_nan=self.n_nan,
            mean_inside=inside,
            mean_outside=outside,
            reason=reason,
        )

    def _obstacle(self, inside: float, outside: float) -> str:
        """Say why there is no threshold, or nothing."""
        if not self.n_maps:
            return "no map to fit on" + (f": all {self.n_nan} hold NaN or infinity" if self.n_nan else "")
        if not self.n_inside:
            return "no pixel of the fitting split lies inside the truth"
        if not self.n_outside:
            return "every pixel of the fitting split lies inside the truth"
        if abs(inside - outside) <= SAME_MEAN * max(abs(inside), abs(outside)):
            return f"no separation: the mean score is {inside:.6g} inside the truth and outside"
        return ""


def fit_ridge(maps: Array, masks: MaskArray) -> ThresholdFit:
    """Fit scikit-learn's ridge classifier on all pixels at once, in float64; needs them all in memory.

    maps: (n, H, W) normalised. masks: (n, H, W) bool. Errors: ScoreError for shapes that do not fit.
    """
    return _fit_ridge([(maps, masks)])


def fit_threshold(
    parts: Iterable[tuple[Array, MaskArray]],
    *,
    method: Literal["auto", "ridge", "streaming"] = "auto",
    orientation: Literal["literal", "always-above"] = "literal",
    images: Literal["all", "positives"] = "all",
) -> ThresholdFit:
    """Fit the global threshold on normalised maps and masks that come in parts, such as shards.

    method: ``auto`` is ridge up to `RIDGE_PIXELS` pixels and streaming above. orientation: an inverted fit
    marks the pixels below the threshold (``literal``) or those above it all the same. images: ``positives``
    leaves out images without truth. Errors: ScoreError for shapes that do not fit.
    """
    streaming = StreamingFit()
    kept: list[tuple[Array, MaskArray]] = []
    keep = method != "streaming"
    for maps, masks in parts:
        check_stacks(maps, masks)
        used = masks.any(axis=(1, 2)) if images == "positives" else np.ones(len(masks), bool)
        part = (maps, masks) if used.all() else (maps[used], masks[used])
        streaming.update(*part)
        if method == "auto" and streaming.n_pixels > RIDGE_PIXELS:
            keep = False
            kept.clear()
        if keep:
            kept.append(part)
    fit = _fit_ridge(kept) if keep else streaming.compute()
    return replace(fit, orientation=1) if orientation == "always-above" else fit


def _fit_ridge(parts: Sequence[tuple[Array, MaskArray]]) -> ThresholdFit:
    """Fit scikit-learn's ridge classifier on the pixels of all finite maps, in float64."""
    streaming = StreamingFit()
    for maps, masks in parts:
        streaming.update(maps, masks)
    found = replace(streaming.compute(), method="ridge")
    if found.reason:
        return found
    from sklearn.linear_model import RidgeClassifier  # here: its import takes longer than scoring

    finite = [np.isfinite(maps).all(axis=(1, 2)) for maps, _ in parts]
    scores = [maps[ok].reshape(-1) for (maps, _), ok in zip(parts, finite, strict=True)]
    labels = [masks[ok].reshape(-1) for (_, masks), ok in zip(parts, finite, strict=True)]
    ridge = RidgeClassifier(solver="lsqr", tol=1e-3, alpha=0.01, max_iter=100, class_weight="balanced")
    ridge.fit(np.concatenate(scores, dtype=np.float64)[:, None], np.concatenate(labels))
    slope = float(np.ravel(ridge.coef_)[0])  # one or two axes, depending on the version of scikit-learn
    offset = float(np.ravel(ridge.intercept_)[0])
    if not slope:  # the squares of scores below 1e-160 are 0: the closed form knows better
        return found
    return replace(found, threshold=-offset / slope, orientation=1 if slope > 0 else -1)


def _pixel_blocks(maps: Array, masks: MaskArray) -> Iterator[tuple[npt.NDArray[np.float64], MaskArray]]:
    """Give maps and masks as (m, pixels), a few maps at a time, in float64."""
    check_stacks(maps, masks)
    pixels = max(1, math.prod(maps.shape[1:]))
    step = max(1, _BLOCK // pixels)
    for start in range(0, len(maps), step):
        block = slice(start, start + step)
        yield maps[block].reshape(-1, pixels).astype(np.float64), masks[block].reshape(-1, pixels)
