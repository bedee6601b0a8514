"""The LAP layer: pooling whose weights come from concept probabilities, so that every pooling is also a map.

"LAP: An Attention-Based Module for Faithful Interpretation and Knowledge Injection in CNNs"
(Modegh, Salimi, Rabiee; arXiv 2201.11808), Eq. 1 to 4.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

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


class ConceptScoring(nn.Module):
    """Scores every pixel for every concept: logits z (B, h, H, W), and their joint value V (B, 1, H, W).

    hidden: channels of the hidden 1×1 convolution, None for a single layer. init ``zero`` starts all
    probabilities at 1/2, so that LAP starts as average pooling; ``default`` is torch's own. aggregation joins
    the probabilities of the h heads (Eq. 3): ``identity`` (h = 1), ``max``, ``sum``, or ``trainable``, a 1×1
    convolution made positive by ``positive``.
    """

    def __init__(
        self,
        in_channels: int,
        heads: int = 1,
        *,
        hidden: int | None = 8,
        activation: Literal["relu", "leaky_relu"] = "relu",
        init: Literal["zero", "default"] = "zero",
        aggregation: Literal["identity", "max", "sum", "trainable"] = "identity",
        positive: Literal["sigmoid", "softplus"] = "sigmoid",
    ) -> None:
        super().__init__()
        if aggregation == "identity" and heads != 1:
            raise ValueError(f"aggregation 'identity' needs exactly one concept head, found {heads}")
        self.in_channels, self.heads, self.init, self.aggregation = in_channels, heads, init, aggregation
        # Modules rather than functions: attribution methods that hook non-linearities must see them.
        self.hidden = nn.Conv2d(in_channels, hidden, 1) if hidden else None
        self.activation = nn.ReLU() if activation == "relu" else nn.LeakyReLU(0.2)
        self.head = nn.Conv2d(hidden or in_channels, heads, 1)
        self.probability = nn.Sigmoid()
        self.aggregator = nn.Conv2d(heads, 1, 1) if aggregation == "trainable" else None
        self.positive = nn.Sigmoid() if positive == "sigmoid" else nn.Softplus()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew, by the initialisation the module was made with."""
        for layer in (self.hidden, self.head, self.aggregator):
            if layer is not None:
                layer.reset_parameters()
        if self.init == "zero":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(cast(Tensor, self.head.bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → logits z (B, h, H, W)."""
        y = x.flatten(2)
        if self.hidden is not None:
            y = self.activation(per_pixel(y, self.hidden))
        return per_pixel(y, self.head).view(len(x), self.heads, *x.shape[2:])

    def aggregate(self, logits: Tensor) -> Tensor:
        """Logits (B, h, H, W) → V = A(σ(z)) (B, 1, H, W) ≥ 0, at least float32 (Eq. 3)."""
        probabilities: Tensor = self.probability(at_least_float32(logits))
        if self.aggregator is not None:
            raw = self.aggregator(probabilities.to(self.aggregator.weight.dtype))
            return cast(Tensor, self.positive(at_least_float32(raw)))
        if self.aggregation == "max":
            return probabilities.amax(1, keepdim=True)
        return probabilities.sum(1, keepdim=True)  # of one head, this is the identity


class LAP(nn.Module):
    """What the two LAP layers share; the layers are `LAP2d` and `AdaptiveLAP2d`.

    Calling it pools x (B, C, H, W) to (B, C, H', W') by weights from the features `scored` (B, C', H, W),
    which are x itself unless given. alpha of Eq. 4 is a parameter, or a buffer when it is not trainable.
    """

    alpha: Tensor

    def __init__(
        self,
        scoring: ConceptScoring,
        *,
        eps: float = 1e-6,
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
    ) -> None:
        super().__init__()
        self.scoring, self.eps, self.alpha_init = scoring, eps, alpha_init
        alpha = torch.tensor(float(alpha_init))
        if alpha_trainable:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)

    def reset_parameters(self) -> None:
        """Set alpha to its initial value; the scoring module resets itself."""
        with torch.no_grad():
            self.alpha.fill_(self.alpha_init)

    def forward(self, x: Tensor, scored: Tensor | None = None) -> Tensor:
        """Pool x (B, C, H, W) → (B, C, H', W') by the weights of `scored`, or of x itself (Eq. 1)."""
        return self.pool(x, self.window_weights(x if scored is None else scored))

    def window_weights(self, scored: Tensor) -> Tensor:
        """Weights (B, n, H', W') of the n pixels under each window, row by row: w / Σw of Eq. 1, in float32.

        They add up to 1 over n; pixels beyond the border have weight 0.
        """
        values = self.scoring.aggregate(self.scoring(scored))
        if values.shape[2] == 0 or values.shape[3] == 0:
            raise ValueError(
                f"LAP needs at least one pixel, found a map of {values.shape[2]}×{values.shape[3]}"
            )
        window = self.window(values.shape[2], values.shape[3])
        return _normalise(under_windows(values, window), validity(values, window), self.alpha, self.eps)

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
        raise NotImplementedError


class LAP2d(LAP):
    """LAP with a sliding window: kernel, stride, padding as in torch, in ceil mode by default.

    In ceil mode, LAP with kernel = stride = s after a convolution at stride 1 has the size of that
    convolution at stride s, for every input.
    """

    def __init__(
        self,
        scoring: ConceptScoring,
        kernel: int | Pair = 2,
        stride: int | Pair | None = None,
        *,
        padding: int | Pair = 0,
        ceil_mode: bool = True,
        eps: float = 1e-6,
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
    ) -> None:
        super().__init__(scoring, eps=eps, alpha_init=alpha_init, alpha_trainable=alpha_trainable)
        sizes = _pair(kernel), _pair(kernel if stride is None else stride), _pair(padding)
        if min(sizes[0] + sizes[1]) < 1 or min(sizes[2]) < 0:
            raise ValueError(f"kernel and stride must be at least 1 and padding at least 0, found {sizes}")
        if any(2 * p > k for p, k in zip(sizes[2], sizes[0], strict=True)):
            raise ValueError(f"padding may be at most half the kernel, found {sizes[2]} for {sizes[0]}")
        self._window = Window(*sizes, ceil_mode)

    def window(self, height: int, width: int) -> Window:  # noqa: ARG002 - the size matters for the adaptive layer only
        """The window's geometry, the same for every map."""
        return self._window

    def extra_repr(self) -> str:
        """Kernel, stride and, where they differ from the default, padding and rounding."""
        w = self._window
        extra = (f", padding={w.padding}" if any(w.padding) else "") + (
            "" if w.ceil_mode else ", ceil_mode=False"
        )
        return f"kernel={w.kernel}, stride={w.stride}{extra}"


class AdaptiveLAP2d(LAP):
    """LAP whose one window is the whole map: global pooling to (B, C, 1, 1)."""

    def window(self, height: int, width: int) -> Window:
        """One window as large as the map."""
        return Window((height, width), (height, width))


@dataclass(frozen=True, eq=False)
class LapRecord:
    """What one LAP saw and said in one forward pass.

    inputs: the features that were scored, (B, C, H, W). logits: z, (B, h, H, W). kernel, stride, padding:
    (rows, columns). output_size: (H', W') of the pooled map. The tensors keep their graph.
    """

    name: str
    inputs: Tensor
    logits: Tensor
    kernel: Pair
    stride: Pair
    padding: Pair
    output_size: Pair


@contextmanager
def record_laps(model: nn.Module) -> Iterator[list[LapRecord]]:
    """Record every LAP of the model while inside, in the order they run: shallow to deep.

    The list is emptied at each forward pass of the model, so that it always holds the latest pass; the hooks
    are gone when the block is left, also by an exception.
    """
    records: list[LapRecord] = []

    def recorder(name: str, lap: LAP) -> Any:
        def record(_module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            height, width = logits.shape[2:]
            window = lap.window(height, width)
            geometry = window.kernel, window.stride, window.padding, window.output_size(height, width)
            records.append(LapRecord(name, args[0], logits, *geometry))

        return record

    handles = [model.register_forward_pre_hook(lambda _module, _args: records.clear())]
    try:
        for name, module in model.named_modules():
            if isinstance(module, LAP):
                handles.append(module.scoring.register_forward_hook(recorder(name, module)))
        yield records
    finally:
        for handle in handles:
            handle.remove()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, in which ε of Eq. 4 does not vanish; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pair(size: int | Pair) -> Pair:
    return (size, size) if isinstance(size, int) else size


def per_pixel(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Apply a 1×1 convolution to (B, C, HW), as a matrix product: on CPUs that is twice as fast."""
    weight, bias = convolution.weight.flatten(1), cast(Tensor, convolution.bias)
    batch = len(x)
    return torch.baddbmm(bias[:, None].expand(batch, -1, 1), weight.expand(batch, -1, -1), x)


def _normalise(values: Tensor, valid: Tensor, alpha: Tensor, eps: float) -> Tensor:
    """Turn values V (B, n, H', W') under windows into weights N(V) (Eq. 4), divided by their sum (Eq. 1)."""
    alpha = alpha.to(values.dtype)
    distance = (
        values.amax(1, keepdim=True) - values
    )  # V ≥ 0, so the zeros beyond the border are never the maximum
    weights = (values * torch.exp(-(alpha**2) * distance**2) + eps) * valid
    return weights / weights.sum(1, keepdim=True)


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
