"""Slow, plain re-implementations of the localisation protocol, pixel by pixel, to compare with."""

import math

import numpy as np


def threshold(maps, masks):
    """Half the sum of the mean scores inside and outside, added up one pixel at a time."""
    pixels = list(zip(maps.ravel().tolist(), masks.ravel().tolist(), strict=True))
    inside = [value for value, within in pixels if within]
    outside = [value for value, within in pixels if not within]
    return (math.fsum(inside) / len(inside) + math.fsum(outside) / len(outside)) / 2


def iou(predicted, mask):
    """Intersection over union of two masks."""
    height, width = mask.shape
    common = union = 0
    for y in range(height):
        for x in range(width):
            common += bool(predicted[y, x] and mask[y, x])
            union += bool(predicted[y, x] or mask[y, x])
    return common / union


def top_k_mask(values, k):
    """The k highest pixels; of pixels with the same value the first in row-major order."""
    pixels = sorted(range(values.size), key=lambda i: (-float(values.ravel()[i]), i))
    mask = np.zeros(values.size, bool)
    mask[pixels[:k]] = True
    return mask.reshape(values.shape)


def pointing(values, mask):
    """The share of the highest pixels that lies in the mask."""
    peaks = [i for i, v in enumerate(values.ravel()) if v == max(values.ravel())]
    return sum(bool(mask.ravel()[i]) for i in peaks) / len(peaks)


def energy(values, mask):
    """The share of the positive values that lies in the mask."""
    positive = [max(float(v), 0.0) for v in values.ravel()]
    return math.fsum(p for p, i in zip(positive, mask.ravel(), strict=True) if i) / math.fsum(positive)


def bilinear(values, height, width):
    """A map brought to another size, each pixel from its four neighbours (align_corners=False)."""
    h, w = values.shape
    out = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = math.floor(v), math.floor(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = values[y0, x0] * (1 - (u - x0)) + values[y0, x1] * (u - x0)
            bottom = values[y1, x0] * (1 - (u - x0)) + values[y1, x1] * (u - x0)
            out[y, x] = top * (1 - (v - y0)) + bottom * (v - y0)
    return out


def best_iou(values, mask, orientation=1):
    """The highest IoU of all thresholds, each value tried as one, and one that selects everything."""
    cuts = [*values.ravel().tolist(), -math.inf * orientation]
    return max(iou(values > cut if orientation == 1 else values < cut, mask) for cut in cuts)


def area_under_curve(values, mask):
    """The share of pairs of pixels inside and outside in which that inside is higher; equal ones half."""
    pixels = list(zip(values.ravel().tolist(), mask.ravel().tolist(), strict=True))
    inside = [value for value, within in pixels if within]
    outside = [value for value, within in pixels if not within]
    wins = sum((a > b) + (a == b) / 2 for a in inside for b in outside)
    return wins / (len(inside) * len(outside))


def pixel_average_precision(maps, masks):
    """PxAP: precision times gain in recall, from the highest threshold to the lowest, pixel by pixel."""
    pixels = []
    for values, mask in zip(maps, masks, strict=True):
        low, high = float(values.min()), float(values.max())
        scaled = [(float(v) - low) / (high - low) if high > low else 0.0 for v in values.ravel()]
        pixels += zip(scaled, mask.ravel().tolist(), strict=True)
    total, before, area = sum(within for _, within in pixels), 0.0, 0.0
    for edge in [1.0, *(0.001 * step for step in range(999, -1, -1))]:
        chosen = [within for value, within in pixels if value >= edge]
        if chosen:
            area += sum(chosen) / len(chosen) * (sum(chosen) / total - before)
            before = sum(chosen) / total
    return area


def near(values, mask, tolerance):
    """The share of the highest pixels that have a pixel of the mask within the tolerance."""
    peaks = np.argwhere(values == values.max()).tolist()
    truth = np.argwhere(mask).tolist()
    return sum(any(math.dist(p, t) <= tolerance for t in truth) for p in peaks) / len(peaks)
