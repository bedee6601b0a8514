"""The LAP layer: pooling whose weights come from concept probabilities, so that every pooling is also a map.

"LAP: An Attention-Based Module for Faithful Interpretation and Knowledge Injection in CNNs"
(Modegh, Salimi, Rabiee; arXiv 2201.11808), Eq. 1 to 4.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lapbench.models.pooling import Pair, Pooling, Window, under_windows, validity, window_of


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


class LAP(Pooling):
    """What the two LAP layers share; the layers are `LAP2d` and `AdaptiveLAP2d`.

    alpha of Eq. 4 is a parameter, or a buffer when it is not trainable.
    """

    alpha: Tensor

    def __init__(
        self,
        scoring: ConceptScoring,
        window: Window | None,
        *,
        eps: float = 1e-6,
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
    ) -> None:
        super().__init__(window)
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
        window = window_of(kernel, kernel if stride is None else stride, padding, ceil_mode)
        super().__init__(scoring, window, eps=eps, alpha_init=alpha_init, alpha_trainable=alpha_trainable)


class AdaptiveLAP2d(LAP):
    """LAP whose one window is the whole map: global pooling to (B, C, 1, 1)."""

    def __init__(
        self,
        scoring: ConceptScoring,
        *,
        eps: float = 1e-6,
        alpha_init: float = 1.0,
        alpha_trainable: bool = True,
    ) -> None:
        super().__init__(scoring, None, eps=eps, alpha_init=alpha_init, alpha_trainable=alpha_trainable)


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
def record_laps(model: nn.Module, kinds: tuple[type[Pooling], ...] = (LAP,)) -> Iterator[list[LapRecord]]:
    """Record every LAP of the model while inside, in the order they run: shallow to deep.

    kinds: of poolings with a scoring module. The list is emptied at each forward pass of the model, so that
    it always holds the latest pass; the hooks are gone when the block is left, also by an exception.
    """
    records: list[LapRecord] = []

    def recorder(name: str, lap: Pooling) -> Any:
        def record(_module: nn.Module, args: tuple[Tensor, ...], logits: Tensor) -> None:
            height, width = logits.shape[2:]
            window = lap.window(height, width)
            geometry = window.kernel, window.stride, window.padding, window.output_size(height, width)
            records.append(LapRecord(name, args[0], logits, *geometry))

        return record

    handles = [model.register_forward_pre_hook(lambda _module, _args: records.clear())]
    try:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                scoring = module.get_submodule("scoring")
                handles.append(scoring.register_forward_hook(recorder(name, module)))
        yield records
    finally:
        for handle in handles:
            handle.remove()


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32, in which ε of Eq. 4 does not vanish; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
