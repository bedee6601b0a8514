"""How well maps point at the truth: pure functions on stacks of maps (n, H, W) and masks (n, H, W) bool.

The protocol of LAP (Table II, Appendix B): a map is brought to the size of the image, divided by its maximum,
and turned into a predicted mask in one of two ways, by a global threshold or by taking as many top pixels as
the truth covers; the score is the intersection over union with the truth. A map that holds NaN or infinity
never scores, and an image without truth has no score; both are NaN and counted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import ScoreError
from lapbench.score.pixels import Pixels, check_maps, check_masks, count, images
from lapbench.score.sweep import Sweep
from lapbench.types import Array, FloatArray, IntArray, MaskArray

Sign: TypeAlias = Literal["keep", "relu", "abs"]
Mode: TypeAlias = Literal["bilinear", "nearest"]
Selection: TypeAlias = Literal["threshold", "top-k", "native"]
Order: TypeAlias = Literal["upsample-scale", "scale-upsample"]
Scores: TypeAlias = npt.NDArray[np.float64]
Select: TypeAlias = Callable[[Pixels], tuple[int, int, float]]
"""Pixels → how many are selected, those of them in the truth, the fraction of them that tied."""


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
    """Every localisation score of n images.

    iou: by selection. pointing, tolerant_pointing, energy: (n,), as `pointing_game` and `energy_inside`
    define them. sweep: what all thresholds together say.
    """

    iou: Mapping[Selection, ImageScores]
    pointing: Scores
    tolerant_pointing: Scores
    energy: Scores
    sweep: Sweep

    @classmethod
    def join(cls, parts: Sequence["Localisation"]) -> "Localisation":
        """Join the scores of consecutive shards. Errors: ScoreError for no part."""
        _some(parts)
        return cls(
            iou={name: ImageScores.join([part.iou[name] for part in parts]) for name in parts[0].iou},
            pointing=np.concatenate([part.pointing for part in parts]),
            tolerant_pointing=np.concatenate([part.tolerant_pointing for part in parts]),
            energy=np.concatenate([part.energy for part in parts]),
            sweep=Sweep.join([part.sweep for part in parts]),
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
    tolerance: float = 0.0,
    ignore: MaskArray | None = None,
) -> Localisation:
    """Score raw maps (n, h, w) against masks (n, H, W): each map is sorted once, and everything read off.

    threshold, orientation: the fitted ones, for normalised maps; without a threshold every map fails it.
    native_threshold: the explainer's own, for raw maps; ``native`` is left out where it has none. tolerance:
    of the tolerant pointing game, in pixels. ignore: (n, H, W) bool, pixels that do not count, though the
    scale of a map is that of all its pixels.
    Errors: ScoreError for shapes that do not fit.
    """
    check_masks(masks)
    size = (masks.shape[1], masks.shape[2])
    normal = normalise(maps, size, mode=mode, sign=sign, order=order)
    ways: dict[Selection, Select | None] = {
        "threshold": _above_of_ranked(threshold, orientation),
        "top-k": _top_k_of_ranked,
    }
    found = Localisation(
        iou={selection: _unscored(len(maps)) for selection in selections if selection in ways},
        pointing=np.full(len(maps), math.nan),
        tolerant_pointing=np.full(len(maps), math.nan),
        energy=np.full(len(maps), math.nan),
        sweep=Sweep.empty(len(maps)),
    )
    for i, pixels in enumerate(images(normal, masks, ignore)):
        for selection, scores in found.iou.items():
            _enter(scores, i, pixels, ways[selection])
        if pixels.scorable:
            found.pointing[i], found.energy[i] = _hit_of_ranked(pixels), _share_of_ranked(pixels)
            counted = normal[i] if ignore is None else np.where(ignore[i], -math.inf, normal[i])
            found.tolerant_pointing[i] = _near(counted, masks[i], tolerance, found.pointing[i])
            found.sweep.record(i, pixels, orientation)
    if "native" not in selections or native_threshold is None:
        return found
    native = iou_by_threshold(upsample(maps, size, mode), masks, native_threshold, ignore=ignore)
    return replace(found, iou={**found.iou, "native": native})


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
    maps: FloatArray,
    masks: MaskArray,
    threshold: float,
    orientation: Literal[1, -1] = 1,
    *,
    ignore: MaskArray | None = None,
) -> ImageScores:
    """Return the IoU of the truth with the pixels above the threshold (below for orientation −1).

    maps: (n, H, W). masks: (n, H, W) bool. ignore: (n, H, W) bool, pixels that do not count. Without a
    threshold (NaN) every map fails. Errors: ScoreError for shapes that do not fit.
    """
    return _score(maps, masks, [_above(threshold, orientation)], ignore)[0]


def iou_top_k(maps: FloatArray, masks: MaskArray, *, ignore: MaskArray | None = None) -> ImageScores:
    """Return the IoU of the truth with the k highest pixels, k being the number of pixels of the truth.

    Of the pixels that tie at the cut the first in row-major order are taken, so that exactly k are selected;
    `tied` tells their share. maps: (n, H, W). masks: (n, H, W) bool. ignore: (n, H, W) bool, pixels that do
    not count. Errors: ScoreError for shapes.
    """
    return _score(maps, masks, [_top_k], ignore)[0]


def iou_both_ways(
    maps: FloatArray, masks: MaskArray, threshold: float, orientation: Literal[1, -1] = 1
) -> tuple[ImageScores, ImageScores]:
    """Return `iou_by_threshold` and `iou_top_k` in one pass over the images, a third faster than in two."""
    by_threshold, top_k = _score(maps, masks, [_above(threshold, orientation), _top_k])
    return by_threshold, top_k


def pointing_game(maps: FloatArray, masks: MaskArray, *, tolerance: float = 0.0) -> Scores:
    """Return whether the highest pixel of each map lies in the truth, 1 or 0; pixels that tie share the hit.

    tolerance: a pixel that is so many pixels away from the truth hits as well (Zhang et al., "Top-down Neural
    Attention by Excitation Backprop", 2018: 15). (n,); NaN where the map holds NaN or infinity or the image
    has no truth. Errors: ScoreError for shapes that do not fit.
    """
    hits = _per_image(maps, masks, _hit)
    near = [_near(v, m, tolerance, float(hit)) for v, m, hit in zip(maps, masks, hits, strict=True)]
    return np.array(near, np.float64)


def energy_inside(maps: FloatArray, masks: MaskArray) -> Scores:
    """Return the share of each map's positive part that lies in the truth (Wang et al., Score-CAM, 2020).

    It is the relevance mass accuracy (Arras et al., 2022) of the positive part. (n,); NaN where the map has
    no positive value, holds NaN or infinity, or the image has no truth. Errors: ScoreError for shapes that do
    not fit.
    """
    return _per_image(maps, masks, _share)


def _above(threshold: float, orientation: Literal[1, -1]) -> Select | None:
    """Return the selection by a threshold, or None where there is no threshold."""

    def select(pixels: Pixels) -> tuple[int, int, float]:
        predicted = predict_mask(pixels.values, threshold, orientation)
        return count(predicted), count(predicted & pixels.inside), 0.0

    return None if math.isnan(threshold) else select


def _above_of_ranked(threshold: float, orientation: Literal[1, -1]) -> Select | None:
    """Do the same where the pixels are to be put in order anyway."""

    def select(pixels: Pixels) -> tuple[int, int, float]:
        selected, common = pixels.ranked.beyond(np.asarray(threshold), orientation)
        return int(selected), int(common), 0.0

    return None if math.isnan(threshold) else select


def _top_k(pixels: Pixels) -> tuple[int, int, float]:
    """Select the k highest pixels; of those that tie at the cut the first."""
    return _cut_at(_kth_largest(pixels.values, pixels.area), pixels)


def _top_k_of_ranked(pixels: Pixels) -> tuple[int, int, float]:
    """Do the same where the pixels are to be put in order anyway."""
    common, tied = pixels.ranked.highest(pixels.area)
    return _cut_at(pixels.ranked.values[-pixels.area], pixels) if tied else (pixels.area, common, 0.0)


def _cut_at(cut: np.floating[Any], pixels: Pixels) -> tuple[int, int, float]:
    """Select the k highest pixels, the last of which has the value `cut`."""
    k, chosen = pixels.area, pixels.values >= cut
    if count(chosen) == k:
        return k, count(chosen & pixels.inside), 0.0
    above = pixels.values > cut
    wanted = k - count(above)
    ties = np.flatnonzero(chosen & ~above)[:wanted]
    return k, count(above & pixels.inside) + count(pixels.inside[ties]), wanted / k


def _score(
    maps: Array, masks: MaskArray, selections: Sequence[Select | None], ignore: MaskArray | None = None
) -> list[ImageScores]:
    """Score each image by each selection; all images fail one that is None."""
    results = [_unscored(len(maps)) for _ in selections]
    for i, pixels in enumerate(images(maps, masks, ignore)):
        for select, scores in zip(selections, results, strict=True):
            _enter(scores, i, pixels, select)
    return results


def _enter(scores: ImageScores, i: int, pixels: Pixels, select: Select | None) -> None:
    """Enter image i as one selection scores it."""
    scores.truth[i], scores.flat[i] = pixels.area, pixels.flat
    scores.failed[i] = pixels.failed or select is None
    if select is None or not pixels.scorable:
        return
    selected, common, scores.tied[i] = select(pixels)
    scores.selected[i], scores.intersection[i] = selected, common
    scores.union[i] = union = pixels.area + selected - common
    scores.iou[i] = common / union


def _unscored(n: int) -> ImageScores:
    """Return the scores of n images before any is scored."""
    selected, common, union, truth = np.zeros((4, n), np.int64)
    failed, flat = np.zeros((2, n), bool)
    return ImageScores(np.full(n, math.nan), common, union, selected, truth, np.zeros(n), failed, flat)


def _per_image(maps: Array, masks: MaskArray, score: Callable[[Pixels], float]) -> Scores:
    """Apply a score to every finite map of an image with truth."""
    found = [score(pixels) if pixels.scorable else math.nan for pixels in images(maps, masks)]
    return np.array(found, np.float64)


def _hit(pixels: Pixels) -> float:
    """Return the share of the highest pixels that lies in the truth."""
    peak = pixels.values == pixels.extremes[1]
    return count(peak & pixels.inside) / count(peak)


def _hit_of_ranked(pixels: Pixels) -> float:
    """Do the same where the pixels are to be put in order anyway."""
    values, inside = pixels.ranked.values, pixels.ranked.inside
    first = values.searchsorted(values[-1])
    return float((len(inside) - inside.searchsorted(first)) / (len(values) - first))


def _near(values: Array, mask: MaskArray, tolerance: float, hit: float) -> float:
    """Return the share of the highest pixels of a map (H, W) that lies within the tolerance of the truth.

    hit: the share that lies in it.
    """
    if tolerance <= 0 or not hit < 1:
        return hit
    peaks = np.flatnonzero(values == values.max())
    rows, columns = np.divmod(peaks, values.shape[1])
    reach = math.ceil(tolerance)
    top, left = max(int(rows[0]) - reach, 0), max(int(columns.min()) - reach, 0)
    window = mask[top : int(rows[-1]) + reach + 1, left : int(columns.max()) + reach + 1]
    if not window.any():
        return 0.0
    if len(rows) == 1:
        y, x = np.nonzero(window)
        return float((np.hypot(y + (top - rows), x + (left - columns)) <= tolerance).any())
    from scipy.ndimage import distance_transform_edt  # here: its import takes longer than scoring

    return float((distance_transform_edt(~window)[rows - top, columns - left] <= tolerance).mean())


def _share(pixels: Pixels) -> float:
    """Return the share of the positive part that lies in the truth."""
    positive = pixels.values
    if pixels.extremes[0] < 0:
        positive = np.maximum(positive, positive.dtype.type(0))
    total = positive.sum(dtype=np.float64)
    return float(positive[pixels.inside].sum(dtype=np.float64) / total) if total > 0 else math.nan


def _share_of_ranked(pixels: Pixels) -> float:
    """Do the same where the pixels are to be put in order anyway."""
    values, inside = pixels.ranked.values, pixels.ranked.inside
    first = values.searchsorted(values.dtype.type(0), side="right")
    total = values[first:].sum(dtype=np.float64)
    common = values[inside[inside.searchsorted(first) :]].sum(dtype=np.float64)
    return float(common / total) if total > 0 else math.nan


def _kth_largest(values: Array, k: int) -> np.floating[Any]:
    """Return the k-th largest of finite values, in the faster of two ways.

    Selection is fastest, but many equal values, as a ReLU leaves them, make it ten times slower than a full
    sort; a small sample tells.
    """
    sample = np.sort(values[::97])
    repeated = count(sample[1:] == sample[:-1])
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
