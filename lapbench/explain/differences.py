"""DeepLIFT's rules: multipliers Δout/Δin in place of derivatives, for an image and a reference.

"Learning Important Features Through Propagating Activation Differences" (Shrikumar, Greenside, Kundaje; ICML
2017), rescale rule. A linear operation hands multipliers back as it does gradients; an element-wise
non-linearity multiplies by Δout/Δin; the others have rules that are complete, too: what the inputs of an
operation receive, times their differences, adds up to the difference of its output, however far apart image
and reference are. Those for products, for layer norm, and for LAP, LIP and BLA are lapbench's own.
"""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.explain.bla_differences import bla_rule
from lapbench.explain.canonical import ACTIVATIONS
from lapbench.explain.derivatives import derivative, gradient
from lapbench.explain.lap_differences import lap_rule, lip_rule
from lapbench.explain.multipliers import given_to_winners, mean, multiplier, rescaled
from lapbench.explain.tape import Operation, Rule
from lapbench.models.bla import BLA
from lapbench.models.lap import AdaptiveLAP2d, LAP2d
from lapbench.models.lip import LIP


def differences(operation: Operation) -> Rule:
    """DeepLIFT's rule for an operation; one that has none is differentiated, and misses completeness."""
    return _RULES.get(operation.kind) or gradient(operation)


def _relu(operation: Operation, received: Tensor) -> tuple[Tensor]:
    """The rescale rule; of a ReLU, Δout/Δin is exact however small Δin, but for 0/0."""
    before = operation.before
    change = operation.inputs[0] - before.inputs[0]
    handed_back = (operation.output - before.output).div_(change).mul_(received)
    if handed_back.sum().isnan():
        (plain,) = gradient(operation)(operation, received)
        handed_back = torch.where(change == 0, plain, handed_back)
    return (handed_back,)


def _rescale(operation: Operation, received: Tensor) -> tuple[Tensor]:
    """Δout/Δin, element by element."""
    before = operation.before
    plain = lambda: gradient(operation)(operation, received)[0]  # noqa: E731
    values = operation.inputs[0], before.inputs[0], operation.output, before.output
    return (rescaled(received, *values, plain),)


def _product(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """a·x, broadcast: Δ(ax) = mean(a) Δx + mean(x) Δa. Products of features gate channels, for one."""
    if len(operation.inputs) != 2:
        return derivative(operation, received)
    a, x = map(mean, operation.inputs, operation.before.inputs)
    to_a, to_x = received * x, received * a
    return to_a.sum_to_size(operation.inputs[0].shape), to_x.sum_to_size(operation.inputs[1].shape)


def _max_pool(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """As `given_to_winners`; what overlapping windows give one pixel adds up.

    Captum's own rule keeps only the last window's part.
    """
    if operation.module.return_indices:
        return derivative(operation, received)
    return (_maxima(operation, received, operation.winners, operation.before.winners),)


def _adaptive_max_pool(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """The same where windows are fractions of the map."""
    size, inputs = operation.module.output_size, (operation.inputs[0], operation.before.inputs[0])
    winners = [F.adaptive_max_pool2d(x, size, return_indices=True)[1] for x in inputs]
    return (_maxima(operation, received, *winners),)


def _maxima(operation: Operation, received: Tensor, winners: Tensor, winners_: Tensor) -> Tensor:
    before = operation.before
    pairs = (operation.inputs[0], before.inputs[0]), (operation.output, before.output)
    (x, x_), (y, y_) = [(now.flatten(2), old.flatten(2)) for now, old in pairs]
    positions = winners.flatten(2), winners_.flatten(2)
    return given_to_winners(received.flatten(2), x, x_, y, y_, *positions, 2).view_as(operation.inputs[0])


def _layer_norm(operation: Operation, received: Tensor) -> tuple[Tensor]:
    """γ c r + β with c = x − mean(x), r = (v + ε)^−½, v = mean(c²): the product rule, twice."""
    shape, weight, eps = _settings(operation)
    over = tuple(range(-len(shape), 0))
    c, c_ = (x - x.mean(over, keepdim=True) for x in (operation.inputs[0], operation.before.inputs[0]))
    v, v_ = (centred.square().mean(over, keepdim=True) for centred in (c, c_))
    r, r_ = (v + eps).rsqrt(), (v_ + eps).rsqrt()
    scaled, half_way = received if weight is None else received * weight, mean(c, c_)
    to_r = (scaled * half_way).sum(over, keepdim=True)
    to_v = to_r * multiplier(r - r_, v - v_, -(r**3) / 2)
    to_c = scaled * mean(r, r_) + 2 * to_v * half_way / math.prod(shape)
    return (to_c - to_c.mean(over, keepdim=True),)


def _settings(operation: Operation) -> tuple[tuple[int, ...], Tensor | None, float]:
    """The normalised shape, γ and ε of a layer norm, whether module or function."""
    if operation.module is not None:
        module: nn.LayerNorm = operation.module
        return tuple(module.normalized_shape), module.weight, module.eps
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given = dict(zip(names, operation.args, strict=False)) | operation.kwargs
    return tuple(given["normalized_shape"]), given.get("weight"), given.get("eps", 1e-5)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(ACTIVATIONS, _rescale),
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _product),
    **dict.fromkeys((nn.LayerNorm, F.layer_norm), _layer_norm),
    **dict.fromkeys((LAP2d, AdaptiveLAP2d), lap_rule),
    LIP: lip_rule,
    BLA: bla_rule,
}
"""By the class of a module, by function, or by the name of a method; what is linear needs none."""
