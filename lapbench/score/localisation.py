"""How well maps point at the truth: pure functions on stacks of maps (n, H, W) and masks (n, H, W) bool.

The protocol of LAP (Table II, Appendix B): a map is brought to the size of the image, divided by its maximum,
and turned into a predicted mask in one of two ways, by a global threshold or by taking as many top pixels as
the truth covers; the score is the intersection over union with the truth. A map that holds NaN or infinity
never scores, and an image without truth has no score; both are NaN and counted.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.types import Array, FloatArray, IntArray, MaskArray

Sign: TypeAlias = Literal["keep", "relu", "abs"]
Mode: TypeAlias = Literal["bilinear", "nearest"]
Selection: TypeAlias = Literal["threshold", "top-k", "native"]
Order: TypeAlias = Literal["upsample-scale", "scale-upsample"]
Scores: TypeAlias = npt.NDArray[np.float64]
Select: TypeAlias = Callable[[Array, MaskArray, int], tuple[int, int, float]]
"""(pixels, truth, pixels of the truth) → pixels selected, those of them in the truth, fraction that tied."""


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One selection's outcome for each of n images; everything is (n,).

    iou: in [0, 1]; NaN where the map failed or the image has no truth. intersection, union, selected: pixels,
    for averaging over the pool; 0 where there is no iou. truth: pixels. tied: the fraction of the selected
    pixels that the tie rule chose. failed: the map holds NaN or infinity, or there is no threshold. flat: all
    pixels of the map are equal.
    """

    iou: Scores
    intersection: IntArray
    union: IntArray
    selected: IntArray
    truth: IntArray
    tied: Scores
    failed: MaskArray
    flat: MaskArray

    def __len__(self) -> int:
        return len(self.iou)

    @property
    def n_scored(self) -> int:
        """Images with a score."""
        return int(np.isfinite(self.iou).sum())

    @property
    def n_failed(self) -> int:
        """Images with truth whose map cannot be scored."""
        return int((self.failed & (self.truth > 0)).sum())

    @property
    def n_flat(self) -> int:
        """Constant maps."""
        return int(self.flat.sum())

    @property
    def n_empty(self) -> int:
        """Images with truth whose predicted mask is empty; they score 0."""
        return int(((self.selected == 0) & (self.truth > 0) & ~self.failed).sum())

    @property
    def n_no_truth(self) -> int:
        """Images without truth, which no score counts."""
        return int((self.truth == 0).sum())

    def mean(self, averaging: Literal["per-image", "pooled"] = "per-image") -> float:
        """Return the mean IoU of the scored images, or Σ intersection / Σ union; NaN where there is none."""
        scored = np.isfinite(self.iou)
        if not scored.any():
            return math.nan
        if averaging == "pooled":
            return float(self.intersection[scored].sum() / self.union[scored].sum())
        return float(self.iou[scored].mean())

    @classmethod
    def join(cls, parts: Sequence["ImageScores"]) -> "ImageScores":
        """Join the scores of consecutive shards. Errors: ScoreError for no part."""
        _some(parts)
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True, eq=False)
class Localisation:
    """Every localisation score of n images: IoU by selection, pointing game and energy inside the truth."""

    iou: Mapping[Selection, ImageScores]
    pointing: Scores
    energy: Scores

    @classmethod
    def join(cls, parts: Sequence["Localisation"]) -> "Localisation":
        """Join the scores of consecutive shards. Errors: ScoreError for no part."""
        _some(parts)
        return cls(
            iou={name: ImageScores.join([part.iou[name] for part in parts]) for name in parts[0].iou},
            pointing=np.concatenate([part.pointing for part in parts]),
            energy=np.concatenate([part.energy for part in parts]),
        )


def localise(
    maps: FloatArray,
    masks: MaskArray,
    *,
    selections: Sequence[Selection],
    threshold: float = math.nan,
    orientation: Literal[1, -1] = 1,
    native_threshold: float | None = None,
    mode: Mode = "bilinear",
    sign: Sign = "keep",
    order: Order = "upsample-scale",
) -> Localisation:
    """Score raw maps (n, h, w) against masks (n, H, W): all selections, pointing game and energy inside.

    threshold, orientation: the fitted ones, for normalised maps; without a threshold every map fails it.
    native_threshold: the explainer's own, for raw maps; ``native`` is left out where it has none.
    Errors: ScoreError for shapes that do not fit.
    """
    check_masks(masks)
    size = (masks.shape[1], masks.shape[2])
    normal = normalise(maps, size, mode=mode, sign=sign, order=order)
    ways: dict[Selection, Select | None] = {"threshold": _above(threshold, orientation), "top-k": _top_k}
    wanted = [selection for selection in selections if selection in ways]
    iou = dict(zip(wanted, _score(normal, masks, [ways[name] for name in wanted]), strict=True))
    if "native" in selections and native_threshold is not None:
        iou["native"] = iou_by_threshold(upsample(maps, size, mode), masks, native_threshold)
    return Localisation(iou, pointing_game(normal, masks), energy_inside(normal, masks))


def normalise(
    maps: FloatArray,
    size: tuple[int, int],
    *,
    mode: Mode = "bilinear",
    sign: Sign = "keep",
    order: Order = "upsample-scale",
) -> FloatArray:
    """Bring raw maps (n, h, w) to size (H, W) and divide each by its maximum, in the declared order."""
    signed = apply_sign(maps, sign)
    if order == "upsample-scale":
        return scale_by_max(upsample(signed, size, mode))
    return upsample(scale_by_max(signed), size, mode)


def apply_sign(maps: FloatArray, sign: Sign) -> FloatArray:
    """Treat negative values: keep them, set them to 0 (relu), or drop the sign (abs). NaN stays NaN."""
    if sign == "keep":
        return maps
    return np.abs(maps) if sign == "abs" else np.maximum(maps, maps.dtype.type(0))


def scale_by_max(maps: FloatArray) -> FloatArray:
    """Divide each map (n, H, W) by its maximum.

    A map whose maximum is not positive becomes 0, for a negative divisor would turn it upside down. A map
    that holds NaN or infinity still does.
    """
    check_maps(maps)
    if not maps.size:
        return maps
    top = maps.max(axis=(1, 2), keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite, and fails
        scaled = np.divide(maps, np.where(top > 0, top, 1), dtype=maps.dtype)
    dead = (top <= 0)[:, 0, 0]
    scaled[dead] = np.where(np.isfinite(maps[dead]), maps.dtype.type(0), maps[dead])
    return scaled


def upsample(maps: FloatArray, size: tuple[int, int], mode: Mode = "bilinear") -> FloatArray:
    """Bring maps (n, h, w) to size (H, W) as PyTorch's `interpolate` does with align_corners=False.

    Computed as a + t·(b − a), which leaves a constant region exactly constant: no tie is lost or made, and
    the result does not depend on a matrix library. Maps of that size are returned as they are.
    Errors: ScoreError for empty maps or sizes.
    """
    check_maps(maps)
    if min(*maps.shape[1:], *size) < 1:
        raise ScoreError(f"maps of {maps.shape[1:]} pixels cannot be brought to {tuple(size)} pixels")
    if maps.shape[1:] == tuple(size):
        return maps
    if mode == "nearest":
        rows, columns = (_nearest(n, m) for n, m in zip(maps.shape[1:], size, strict=True))
        return np.take(np.take(maps, rows, axis=1), columns, axis=2)
    top, bottom, down = _neighbours(maps.shape[1], size[0])
    left, right, across = _neighbours(maps.shape[2], size[1])
    with np.errstate(over="ignore", invalid="ignore"):
        wide = _between(np.take(maps, left, axis=2), np.take(maps, right, axis=2), across)
        return _between(np.take(wide, top, axis=1), np.take(wide, bottom, axis=1), down[:, None])


def predict_mask(maps: FloatArray, threshold: float, orientation: Literal[1, -1] = 1) -> MaskArray:
    """Return where maps lie strictly above the threshold, or strictly below for orientation −1, as bool.

    Errors: ScoreError where the threshold is NaN.
    """
    if math.isnan(threshold):
        raise ScoreError("there is no threshold to predict a mask with: it is NaN, and its fit says why")
    edge = maps.dtype.type(threshold)
    if (float(edge) - threshold) * orientation > 0:  # rounded to the maps' precision, it would move pixels
        edge = np.nextafter(edge, maps.dtype.type(-orientation * math.inf))
    return np.greater(maps, edge) if orientation > 0 else np.less(maps, edge)


def iou_by_threshold(
    maps: FloatArray, masks: MaskArray, threshold: float, orientation: Literal[1, -1] = 1
) -> ImageScores:
    """Return the IoU of the truth with the pixels above the threshold (below for orientation −1).

    maps: (n, H, W). masks: (n, H, W) bool. Without a threshold (NaN) every map fails.
    Errors: ScoreError for shapes that do not fit.
    """
    return _score(maps, masks, [_above(threshold, orientation)])[0]


def iou_top_k(maps: FloatArray, masks: MaskArray) -> ImageScores:
    """Return the IoU of the truth with the k highest pixels, k being the number of pixels of the truth.

    Of the pixels that tie at the cut the first in row-major order are taken, so that exactly k are selected;
    `tied` tells their share. maps: (n, H, W). masks: (n, H, W) bool. Errors: ScoreError for shapes.
    """
    return _score(maps, masks, [_top_k])[0]


def iou_both_ways(
    maps: FloatArray, masks: MaskArray, threshold: float, orientation: Literal[1, -1] = 1
) -> tuple[ImageScores, ImageScores]:
    """Return `iou_by_threshold` and `iou_top_k` in one pass over the images, a third faster than in two."""
    by_threshold, top_k = _score(maps, masks, [_above(threshold, orientation), _top_k])
    return by_threshold, top_k


def pointing_game(maps: FloatArray, masks: MaskArray) -> Scores:
    """Return whether the highest pixel of each map lies in the truth, 1 or 0; pixels that tie share the hit.

    (n,); NaN where the map holds NaN or infinity or the image has no truth (Zhang et al., 2018, without
    tolerance). Errors: ScoreError for shapes that do not fit.
    """

    def hit(values: Array, inside: MaskArray) -> float:
        peak = values == values.max()
        return _count(peak & inside) / _count(peak)

    return _per_image(maps, masks, hit)


def energy_inside(maps: FloatArray, masks: MaskArray) -> Scores:
    """Return the share of each map's positive part that lies in the truth (Wang et al., Score-CAM, 2020).

    (n,); NaN where the map has no positive value, holds NaN or infinity, or the image has no truth.
    Errors: ScoreError for shapes that do not fit.
    """

    def share(values: Array, inside: MaskArray) -> float:
        positive = np.maximum(values, 0, dtype=np.float64)
        total = positive.sum()
        return float((positive * inside).sum() / total) if total > 0 else math.nan

    return _per_image(maps, masks, share)


def check_maps(maps: Array) -> None:
    """Raise ScoreError unless maps are a stack (n, H, W) of floating-point numbers."""
    if maps.ndim != 3 or not np.issubdtype(maps.dtype, np.floating):
        raise ScoreError(f"maps must be floating-point numbers (n, H, W); found {maps.dtype} {maps.shape}")


def check_masks(masks: Array) -> None:
    """Raise ScoreError unless masks are a stack (n, H, W) of bool."""
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ScoreError(f"masks must be bool (n, H, W); found {masks.dtype} {masks.shape}")


def check_stacks(maps: Array, masks: Array) -> None:
    """Raise ScoreError unless maps (n, H, W) and masks (n, H, W) bool have the same shape."""
    check_maps(maps)
    check_masks(masks)
    if maps.shape != masks.shape:
        raise ScoreError(
            f"maps {maps.shape} and masks {masks.shape} must have the same shape: "
            "one map for each mask, brought to the size of the image first"
        )


def _above(threshold: float, orientation: Literal[1, -1]) -> Select | None:
    """Return the selection by a threshold, or None where there is no threshold."""

    def select(values: Array, inside: MaskArray, _: int) -> tuple[int, int, float]:
        predicted = predict_mask(values, threshold, orientation)
        return _count(predicted), _count(predicted & inside), 0.0

    return None if math.isnan(threshold) else select


def _top_k(values: Array, inside: MaskArray, k: int) -> tuple[int, int, float]:
    """Select the k highest pixels; of those that tie at the cut the first."""
    cut = _kth_largest(values, k)
    chosen = values >= cut
    if _count(chosen) == k:
        return k, _count(chosen & inside), 0.0
    above = values > cut
    wanted = k - _count(above)
    ties = np.flatnonzero(chosen & ~above)[:wanted]
    return k, _count(above & inside) + _count(inside[ties]), wanted / k


def _score(maps: Array, masks: MaskArray, selections: Sequence[Select | None]) -> list[ImageScores]:
    """Score each image by each selection; all images fail one that is None."""
    results = [_unscored(len(maps)) for _ in selections]
    for i, (values, inside) in enumerate(_images(maps, masks)):
        area = _count(inside)
        broken, flat = _condition(values)
        for select, scores in zip(selections, results, strict=True):
            scores.truth[i], scores.flat[i] = area, flat
            scores.failed[i] = failed = broken or select is None
            if select is None or failed or not area:
                continue
            selected, common, scores.tied[i] = select(values, inside, area)
            scores.selected[i], scores.intersection[i] = selected, common
            scores.union[i] = union = area + selected - common
            scores.iou[i] = common / union
    return results


def _unscored(n: int) -> ImageScores:
    """Return the scores of n images before any is scored."""
    selected, common, union, truth = np.zeros((4, n), np.int64)
    failed, flat = np.zeros((2, n), bool)
    return ImageScores(np.full(n, math.nan), common, union, selected, truth, np.zeros(n), failed, flat)


def _per_image(maps: Array, masks: MaskArray, score: Callable[[Array, MaskArray], float]) -> Scores:
    """Apply a score to every finite map of an image with truth."""
    return np.array(
        [
            score(values, inside) if inside.any() and not _condition(values)[0] else math.nan
            for values, inside in _images(maps, masks)
        ],
        np.float64,
    )


def _images(maps: Array, masks: MaskArray) -> Iterator[tuple[Array, MaskArray]]:
    """Give each map and mask as a row of pixels; one by one, so that it stays in the processor's cache."""
    check_stacks(maps, masks)
    pixels = math.prod(maps.shape[1:])
    if len(maps) and not pixels:
        raise ScoreError(f"maps {maps.shape} have no pixels")
    return zip(maps.reshape(len(maps), pixels), masks.reshape(len(maps), pixels), strict=True)


def _condition(values: Array) -> tuple[bool, bool]:
    """Return whether a map holds NaN or infinity (its extremes show it), and whether it is flat."""
    low, high = float(values.min()), float(values.max())
    failed = not (math.isfinite(low) and math.isfinite(high))
    return failed, low == high and not failed


def _count(pixels: MaskArray) -> int:
    """Return how many pixels are True."""
    return int(np.count_nonzero(pixels))


def _kth_largest(values: Array, k: int) -> np.floating[Any]:
    """Return the k-th largest of finite values, in the faster of two ways.

    Selection is fastest, but many equal values, as a ReLU leaves them, make it ten times slower than a full
    sort; a small sample tells.
    """
    sample = np.sort(values[::97])
    repeated = _count(sample[1:] == sample[:-1])
    order = np.sort(values) if repeated > len(sample) // 16 else np.partition(values, values.size - k)
    return order[values.size - k]  # type: ignore[no-any-return]


def _neighbours(n: int, m: int) -> tuple[IntArray, IntArray, Scores]:
    """Return for each of m pixels which two of n it lies between, and how far from the first, in [0, 1)."""
    at = np.maximum((np.arange(m) + 0.5) * n / m - 0.5, 0)
    first = np.minimum(at.astype(np.int64), n - 1)
    return first, np.minimum(first + 1, n - 1), at - first


def _between(a: FloatArray, b: FloatArray, t: Scores) -> FloatArray:
    """Return a + t·(b − a)."""
    return a + t.astype(a.dtype) * (b - a)


def _nearest(n: int, m: int) -> IntArray:
    """Return which of n pixels each of m takes; in float32, as PyTorch reckons."""
    at = np.floor(np.arange(m, dtype=np.float32) * (np.float32(n) / np.float32(m)))
    nearest: IntArray = np.minimum(at.astype(np.int64), n - 1)
    return nearest


def _some(parts: Sequence[object]) -> None:
    """Raise ScoreError where there is nothing to join."""
    if not parts:
        raise ScoreError("there are no scores to join: the scores of one shard at least are wanted")
