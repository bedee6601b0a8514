"""Pooling by local aggregation and normalisation, slow and plain."""

from collections.abc import Callable

import torch
from torch import Tensor

from lapbench.models.pooling import Window


@torch.no_grad()
def slow_pooling(
    x: Tensor, values: Tensor, window: Window, weigh: Callable[[list[float]], list[float]] = list
) -> Tensor:
    """O = Σ F I / Σ F window by window, pixel by pixel; F: weigh of the values (B, 1, H, W) in the window."""
    B, C, H, W = x.shape
    rows, columns = window.output_size(H, W)
    out = torch.zeros(B, C, rows, columns, dtype=x.dtype)
    for b in range(B):
        for i in range(rows):
            for j in range(columns):
                top = i * window.stride[0] - window.padding[0]
                left = j * window.stride[1] - window.padding[1]
                pixels = [
                    (r, c)
                    for r in range(top, top + window.kernel[0])
                    for c in range(left, left + window.kernel[1])
                    if 0 <= r < H and 0 <= c < W
                ]
                f = weigh([float(values[b, 0, r, c]) for r, c in pixels])
                for weight, (r, c) in zip(f, pixels, strict=True):
                    out[b, :, i, j] += weight / sum(f) * x[b, :, r, c]
    return out
