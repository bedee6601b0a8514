"""Pooling by local aggregation and normalisation, of which average, strided, LIP and LAP are kinds.

"LIP: Local Importance-based Pooling" (Gao, Wang, Wu; ICCV 2019, arXiv 1908.04156): with weights F(I) ≥ 0 of
the pixels under a window, O = Σ F(I) I / Σ F(I). A constant F is average pooling, one that is 0 but for the
first pixel is a stride, exp(G(I)) is LIP, N(V(I)) is LAP; exp(β I), each channel for itself, tends to max
pooling as β grows. What pools here has one weight for all channels of a pixel; but LIP may have one for each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Pair = tuple[int, int]
Slices = tuple[slice, slice, slice, slice]

_CACHE = 2**20  # numbers that a CPU keeps in its cache; to pass larger buffers takes up to twice the time


@dataclass(frozen=True)
class Window:
    """The geometry of a pooling: (rows, columns) of the kernel, the stride and the padding.

    A window that reaches over the border pools its valid pixels only. ceil_mode counts such windows at the
    right and bottom, too; without it, pixels that fill no window are left out.
    """

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = True

    def output_size(self, height: int, width: int) -> Pair:
        """Rows and columns of the pooled map; at least one of each, however small the input."""
        return self._length(height, 0), self._length(width, 1)

    def covers(self, height: int, width: int) -> Pair:
        """Rows and columns from the first window's first to the last window's last."""
        rows, columns = self.output_size(height, width)
        return (rows - 1) * self.stride[0] + self.kernel[0], (columns - 1) * self.stride[1] + self.kernel[1]

    def offsets(self, height: int, width: int) -> Iterator[tuple[Slices, Slices]]:
        """For each place in the kernel, row by row: slices of the outputs it feeds and pixels it takes."""
        size = self.output_size(height, width)
        for m in range(self.kernel[0]):
            out_rows, in_rows = self._slices(height, size[0], m, 0)
            for n in range(self.kernel[1]):
                out_columns, in_columns = self._slices(width, size[1], n, 1)
                every = slice(None)
                yield (every, every, out_rows, out_columns), (every, every, in_rows, in_columns)

    @property
    def tiles(self) -> bool:
        """Whether no pixel lies in two windows, nor any between them."""
        return self.kernel == self.stride and self.padding == (0, 0)

    def _length(self, length: int, axis: int) -> int:
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        steps = (length + 2 * padding - kernel) / stride
        windows = (math.ceil(steps) if self.ceil_mode else math.floor(steps)) + 1
        if (windows - 1) * stride >= length + padding:  # the last would start beyond the map: nothing to pool
            windows -= 1
        return max(windows, 1)

    def _slices(self, length: int, windows: int, offset: int, axis: int) -> tuple[slice, slice]:
        stride, shift = self.stride[axis], offset - self.padding[axis]
        first = max(0, -(shift // stride))
        last = min(windows - 1, (length - 1 - shift) // stride)
        if last < first:
            return slice(0, 0), slice(0, 0)
        return slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)


class Pooling(nn.Module):
    """What pools windows by one weight for each pixel; how the weights come about is a kind's own affair.

    Calling it pools x (B, C, H, W) to (B, C, H', W') by weights from the features `scored` (B, C', H, W),
    which are x itself unless given. window: its geometry; None for one window as large as the map.
    """

    def __init__(self, window: Window | None) -> None:
        super().__init__()
        self._window = window

    def forward(self, x: Tensor, scored: Tensor | None = None) -> Tensor:
        """Pool x (B, C, H, W) → (B, C, H', W') by the weights of `scored`, or of x itself."""
        return self.pool(x, self.window_weights(x if scored is None else scored))

    def window_weights(self, scored: Tensor) -> Tensor:
        """Weights F / ΣF (B or 1, n, H', W') of the n pixels under each window, row by row.

        They add up to 1 over n, but for BLA; pixels beyond the border have weight 0.
        """
        raise NotImplementedError

    def pool(self, x: Tensor, weights: Tensor) -> Tensor:
        """Pool x (B, C, H, W) by given window weights (B, n, H', W') → (B, C, H', W'), in x's own dtype."""
        size = x.shape[2], x.shape[3]
        window = self.window(*size)
        weights = weights.to(x.dtype)
        if not window.tiles:
            return cast(Tensor, _PoolWindows.apply(x, weights, window))
        if window.kernel == size:
            return (x.flatten(2) @ weights.flatten(1).unsqueeze(2)).unsqueeze(3)
        height, width = window.covers(*size)
        x = x[:, :, :height, :width]
        return cast(Tensor, _PoolTiles.apply(x, _as_map(weights, window, x.shape[2], x.shape[3]), window))

    def window(self, height: int, width: int) -> Window:
        """The window's geometry on a map of this size."""
        return Window((height, width), (height, width)) if self._window is None else self._window

    @property
    def is_global(self) -> bool:
        """Whether its window is the whole map."""
        return self._window is None

    def extra_repr(self) -> str:
        """Kernel, stride and, where they differ from the default, padding and rounding."""
        if self._window is None:
            return ""
        w = self._window
        extra = (f", padding={w.padding}" if any(w.padding) else "") + (
            "" if w.ceil_mode else ", ceil_mode=False"
        )
        return f"kernel={w.kernel}, stride={w.stride}{extra}"


class Strided(Pooling):
    """Passes the first pixel of each window that lies on the map: a stride, where nothing else is pooled."""

    def window_weights(self, scored: Tensor) -> Tensor:
        """1 for the first valid pixel, 0 for all others, (B, n, H', W')."""
        valid = validity(scored[:1, :1].detach(), self.window(scored.shape[2], scored.shape[3]))
        first = valid * (valid.cumsum(1) == 1)
        return first.expand(len(scored), -1, -1, -1)


def window_of(kernel: int | Pair, stride: int | Pair, padding: int | Pair, ceil_mode: bool) -> Window:
    """The geometry in torch's words. Errors: ValueError for sizes that no pooling can have."""
    sizes = as_pair(kernel), as_pair(stride), as_pair(padding)
    if min(sizes[0] + sizes[1]) < 1 or min(sizes[2]) < 0:
        raise ValueError(f"kernel and stride must be at least 1 and padding at least 0, found {sizes}")
    if any(2 * p > k for p, k in zip(sizes[2], sizes[0], strict=True)):
        raise ValueError(f"padding may be at most half the kernel, found {sizes[2]} for {sizes[0]}")
    return Window(*sizes, ceil_mode)


def as_pair(size: int | Pair) -> Pair:
    """(rows, columns) of a size that may be given once for both."""
    return (size, size) if isinstance(size, int) else size


def under_windows(values: Tensor, window: Window) -> Tensor:
    """(B, 1, H, W) → (B, n, H', W'): the n values under each window, 0 beyond the border."""
    height, width = values.shape[2:]
    top, left = window.padding
    full = window.covers(height, width)
    padded = F.pad(values, (left, full[1] - left - width, top, full[0] - top - height))
    (rows, columns), (m, n) = window.output_size(height, width), window.kernel
    if window.tiles:
        under = padded.view(len(values), rows, m, columns, n).permute(0, 2, 4, 1, 3)
    else:
        under = F.unfold(padded, (m, n), stride=window.stride)
    return under.reshape(len(values), m * n, rows, columns)


def validity(values: Tensor, window: Window) -> Tensor:
    """(1, n, H', W'): 1 where a window's pixel lies on the map, 0 beyond the border."""
    return under_windows(values.new_ones(1, 1, *values.shape[2:]), window)


def _as_map(weights: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Weights (B, n, H', W') of windows that tile the map → (B, 1, H, W): each pixel's own."""
    (rows, columns), (m, n) = weights.shape[2:], window.kernel
    tiles = weights.reshape(len(weights), m, n, rows, columns).permute(0, 3, 1, 4, 2)
    return tiles.reshape(len(weights), 1, rows * m, columns * n)[:, :, :height, :width]


def _in_cache(x: Tensor) -> int:
    """How many samples' features a CPU core keeps in its cache; elsewhere the whole batch counts as one."""
    fitting = _CACHE // max(1, x.shape[1:].numel()) if x.device.type == "cpu" else len(x)
    return max(1, min(fitting, len(x)))


def _batches(x: Tensor) -> Iterator[slice]:
    count = _in_cache(x)
    return (slice(start, start + count) for start in range(0, len(x), count))


def _spread(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """Repeat every value over a tile of the map: (…, H', W') → (…, H'·m, W'·n)."""
    (rows, columns), (m, n) = values.shape[2:], tile
    spread = values.new_empty(*values.shape[:2], rows * m, columns * n)
    first = spread[:, :, ::m]
    for column in range(n):
        first[..., column::n] = values
    for row in range(1, m):
        spread[:, :, row::m] = first
    return spread


def _add_up(parts: list[Tensor], *, out: Tensor) -> None:
    """Write the sum into `out`, which may be the first part; no other memory is touched."""
    if len(parts) == 1:
        out.copy_(parts[0])
        return
    torch.add(parts[0], parts[1], out=out)
    for part in parts[2:]:
        out.add_(part)


class _PoolTiles(torch.autograd.Function):
    """Σ w·x over windows that tile the map; weights (B, 1, H, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.window = window
        height, width = x.shape[2:]
        pooled = x.new_empty(*x.shape[:2], *window.output_size(height, width))
        weighted = x.new_empty(_in_cache(x), x.shape[1], *window.covers(height, width))
        weighted[:, :, height:] = weighted[:, :, :, width:] = 0
        for some in _batches(x):
            part = weighted[: len(x[some])]
            torch.mul(x[some], weights[some], out=part[:, :, :height, :width])
            rows = [part[:, :, m :: window.kernel[0]] for m in range(window.kernel[0])]
            _add_up(rows, out=rows[0])
            _add_up([rows[0][..., n :: window.kernel[1]] for n in range(window.kernel[1])], out=pooled[some])
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_weights = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        for some in _batches(x):
            spread = _spread(gradient[some], ctx.window.kernel)[:, :, : x.shape[2], : x.shape[3]]
            if to_x is not None:
                torch.mul(spread, weights[some], out=to_x[some])
            if to_weights is not None:
                torch.sum(spread.mul_(x[some]), 1, keepdim=True, out=to_weights[some])
        return to_x, to_weights, None


class _PoolWindows(torch.autograd.Function):
    """Σ w·x over windows of any geometry, one place in the kernel at a time; weights (B, n, H', W')."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(x, weights)
        ctx.window = window
        total = x.new_zeros(*x.shape[:2], *weights.shape[2:])
        for n, (outputs, inputs) in enumerate(window.offsets(*x.shape[2:])):
            total[outputs].addcmul_(x[inputs], weights[:, n : n + 1][outputs])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weights = ctx.saved_tensors
        to_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        to_weights = torch.zeros_like(weights) if ctx.needs_input_grad[1] else None
        for n, (outputs, inputs) in enumerate(ctx.window.offsets(*x.shape[2:])):
            if to_x is not None:
                to_x[inputs].addcmul_(gradient[outputs], weights[:, n : n + 1][outputs])
            if to_weights is not None:
                to_weights[:, n : n + 1][outputs] = (gradient[outputs] * x[inputs]).sum(1, keepdim=True)
        return to_x, to_weights, None
