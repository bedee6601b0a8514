"""LAP and products of features for DeepLIFT: the same values, whose gradients are multipliers of differences.

Captum's DeepLIFT sends images and references through the network as the two halves of one batch and
replaces the gradient of each non-linear *module* by Δout/Δin. LAP multiplies, divides and takes maxima of
several values; with their plain gradients the contributions miss the difference of the outputs by per cents.
The rule here is lapbench's own (the paper of LAP has none). It is complete: every step below is exact,
however far apart image and reference are, and no step blows up where all scores of a window vanish.

With window weights a = softmax(ℓ), ℓ_u = log N(V)_u of Eq. 4, the pooled value is O = Σ_u a_u x_u, and

    ΔO   = Σ_u mean(a_u) Δx_u + mean(x_u) Δa_u              product, both orders averaged
    Δa_u = λ_u (Δℓ_u − Σ_v λ_v Δℓ_v / Σ_v λ_v)              λ: logarithmic mean of a and a'
    Δℓ_u = ℓ(V, m) − ℓ(V', m')                              V or the maximum m first, averaged
    Δm   = (max(m, m') − m') + (m − max(m, m'))             to the image's, to the reference's winner

The second line is the index number of Sato (1976) and Vartia (1976), the third a Shapley value, the fourth
DeepLIFT's rule for max pooling.
Probabilities σ(z), the scoring module's ReLU and a trainable aggregation follow the rescale rule as modules.
"""

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lapbench.models.lap import LAP, Window

EPS = 1e-10
"""Where |Δin| is smaller, a multiplier is the plain derivative, as in Captum."""


class DifferenceLap(nn.Module):
    """A LAP layer, sharing its parameters, for a batch whose second half are the references of the first."""

    def __init__(self, lap: LAP) -> None:
        super().__init__()
        self.lap = lap

    def forward(self, x: Tensor, scored: Tensor | None = None) -> Tensor:
        """Pool x (2B, C, H, W) → (2B, C, H', W') by the weights of ``scored``, or of x itself."""
        lap, window = self.lap, self.lap.window(x.shape[2], x.shape[3])
        values = _under(_joint_value(lap, x if scored is None else scored), window)
        valid = _under(values.new_ones(1, 1, *x.shape[2:]), window)
        largest = cast(Tensor, _Maximum.apply(values, 2))
        log_weights = cast(Tensor, _LogWeight.apply(values, largest.expand_as(values), lap.alpha, lap.eps))
        weights = _Softmax.apply(log_weights.masked_fill(valid == 0, -1e4), 2)
        pooled = product(weights, _under(x, window)).sum(2)
        return pooled.view(*x.shape[:2], *window.output_size(x.shape[2], x.shape[3]))


def with_differences(network: fx.GraphModule) -> fx.GraphModule:
    """Replace every LAP layer and product of features in a network that is ours to change, and return it.

    Products of features occur where a network gates its channels (squeeze and excitation).
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, LAP):
            network.set_submodule(name, DifferenceLap(module))
    for node in network.graph.nodes:
        factors = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
        if node.target in (operator.mul, torch.mul, "mul") and len(factors) == 2:
            node.op, node.target = "call_function", product
    network.recompile()
    return network


def product(a: Tensor, x: Tensor) -> Tensor:
    """Return a·x, with the multipliers of both factors."""
    return cast(Tensor, _Product.apply(a, x))


def _joint_value(lap: LAP, scored: Tensor) -> Tensor:
    """V = A(σ(z)), (2B, 1, H, W); Captum has its hooks on the modules inside."""
    logits = lap.scoring(scored)
    if lap.scoring.aggregation == "max":
        return cast(Tensor, _Maximum.apply(lap.scoring.probability(logits), 1))
    return lap.scoring.aggregate(logits)


def _under(x: Tensor, window: Window) -> Tensor:
    """(B, C, H, W) → (B, C, n, L): the n values under each of the L windows, 0 beyond the border."""
    (top, left), (rows, columns) = window.padding, window.covers(x.shape[2], x.shape[3])
    padded = F.pad(x, (left, columns - left - x.shape[3], top, rows - top - x.shape[2]))
    unfolded = F.unfold(padded, window.kernel, stride=window.stride)
    return unfolded.view(*x.shape[:2], -1, unfolded.shape[2])


def _both(half: Tensor) -> Tensor:
    return torch.cat([half, half])


def _mean(both: Tensor) -> Tensor:
    image, reference = both.chunk(2)
    return _both((image + reference) / 2)


def _multiplier(change_out: Tensor, change_in: Tensor, derivative: Tensor) -> Tensor:
    """Δout/Δin, or the derivative where the input hardly changes."""
    small = change_in.abs() < EPS
    return torch.where(small, derivative, change_out / change_in.masked_fill(small, 1))


class _Product(torch.autograd.Function):
    """a·x, broadcast: Δ(ax) = mean(a) Δx + mean(x) Δa."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(a, x)
        return a * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, x = ctx.saved_tensors
        return (g * _mean(x)).sum_to_size(a.shape), (g * _mean(a)).sum_to_size(x.shape)


class _Maximum(torch.autograd.Function):
    """The maximum along a dimension, kept with size 1; DeepLIFT's rule for max pooling."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        y, winners = x.max(dim, keepdim=True)
        ctx.save_for_backward(x, y, winners)
        ctx.dim = dim
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, y, winners = ctx.saved_tensors
        (image, reference), (m, m_reference), g = x.chunk(2), y.chunk(2), g.chunk(2)[0]
        top, zeros = torch.max(m, m_reference), torch.zeros_like(image)
        of_image, of_reference = winners.chunk(2)
        change = zeros.scatter(ctx.dim, of_image, g * (top - m_reference))
        change = change.scatter_add(ctx.dim, of_reference, g * (m - top))
        return _both(_multiplier(change, image - reference, zeros.scatter(ctx.dim, of_image, g))), None


class _LogWeight(torch.autograd.Function):
    """ℓ(V, m) = log(V exp(−α² (m − V)²) + ε), the logarithm of Eq. 4."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, m: Tensor, alpha: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(v, m, alpha)
        ctx.eps = eps
        return _log_weight(v, m, alpha, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values, largest, alpha = ctx.saved_tensors
        (v, v_), (m, m_), g = values.chunk(2), largest.chunk(2), g.chunk(2)[0]
        now, value_only, largest_only, before = (
            _log_weight(a, b, alpha, ctx.eps) for a, b in ((v, m), (v, m_), (v_, m), (v_, m_))
        )
        by_value = (now - largest_only + value_only - before) / 2
        by_largest = (now - value_only + largest_only - before) / 2
        gaussian, steepness = torch.exp(-(alpha**2) * (m - v) ** 2), 2 * alpha**2 * (m - v)
        weight = v * gaussian + ctx.eps
        to_value = _multiplier(by_value, v - v_, (gaussian + v * gaussian * steepness) / weight)
        to_largest = _multiplier(by_largest, m - m_, -v * gaussian * steepness / weight)
        return _both(g * to_value), _both(g * to_largest), None, None


def _log_weight(v: Tensor, m: Tensor, alpha: Tensor, eps: float) -> Tensor:
    return torch.log(v * torch.exp(-(alpha**2) * (m - v) ** 2) + eps)


class _Softmax(torch.autograd.Function):
    """Softmax along a dimension; its Jacobian a_u (δ_uv − a_v) with λ/Σλ and λ in place of a."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, dim: int) -> Tensor:
        logarithm = logits.log_softmax(dim)
        ctx.save_for_backward(logarithm)
        ctx.dim = dim
        return logarithm.exp()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (logarithm,) = ctx.saved_tensors
        (image, reference), g = logarithm.chunk(2), g.chunk(2)[0]
        half = (image - reference) / 2
        ratio = torch.where(half.abs() < 1e-2, 1 + half**2 / 6 + half**4 / 120, torch.sinh(half) / half)
        mean = torch.exp((image + reference) / 2) * ratio  # (a − a') / (log a − log a')
        average = (g * mean).sum(ctx.dim, keepdim=True) / mean.sum(ctx.dim, keepdim=True)
        return _both(mean * (g - average)), None
