"""Relevance-CAM: class activation maps whose channel weights are relevances, at any layer of any CNN.

"Relevance-CAM: Your Model Already Knows Where to Look" (Lee, Kim, Park, Yang; CVPR 2021). The network runs
forward once; relevance then walks back over the same graph, from the logits to the layer, by one rule for
each kind of operation.
"""

import operator
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.canonical import isolated
from lapbench.explain.passes import passes_of
from lapbench.explain.tape import Operation, Rule
from lapbench.models.lap import LAP, AdaptiveLAP2d, LAP2d
from lapbench.registry import explainer


@explainer(
    "relevance_cam",
    version=2,
    title="Relevance-CAM",
    paper="Lee et al., CVPR 2021",
    signed=True,
    reach="layer",
)
def relevance_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    layer: str = "last",
    start: Literal["constant", "logit"] = "constant",
) -> Tensor:
    """The layer's channels weighted by their mean relevance for the target, Σ_k mean(R_k) A_k, no ReLU.

    layer: as in `layer_of`. start: the contrastive relevance of the logits, (1, −1/N, …) for the target and
    the other N − 1 classes, or (z_c, −z_n / (N − 1), …). LAP passes relevance through its pooling with its
    weights as constants; its scoring receives none. Returns the map at the layer's own resolution.
    Errors: NotApplicableError that names an operation without a rule between layer and logits.
    """
    passes = passes_of(model, images, target)
    activation = passes.activation(layer)
    relevance = passes.relevance(_contrast(passes.logits, target, start), relevance_rule, layer)
    return (relevance.mean((2, 3), keepdim=True) * activation).sum(1)


def _contrast(logits: Tensor, target: Tensor, start: Literal["constant", "logit"]) -> Tensor:
    """Return the relevance (B, N) of the logits: positive for the target, negative for every other class."""
    classes = logits.shape[1]
    chosen = F.one_hot(target, classes).bool()
    if start == "constant":
        return torch.where(chosen, 1.0, torch.full_like(logits, -1 / classes))
    return torch.where(chosen, logits, -logits / max(classes - 1, 1))


Parts: TypeAlias = tuple[Any, ...]


def relevance_rule(operation: Operation) -> Rule:
    """The rule for an operation. Errors: NotApplicableError that names one without."""
    if operation.kind not in _RULES:
        raise NotApplicableError(
            f"Relevance-CAM has no rule for {operation.name!r}, which lies between the layer and the logits: "
            "choose a deeper layer, or leave this network out"
        )
    return _RULES[operation.kind]


def _share_out(function: Callable[..., Tensor], relevance: Tensor, *parts: Tensor) -> Tensor:
    """Return Σ_parts x ⊙ ∂f/∂xᵀ (R / f), 0 where f = 0: each input's share in what ``function`` adds up."""
    parts = tuple(part.detach().requires_grad_() for part in parts)
    with torch.enable_grad():
        total = function(*parts)
    gradients = torch.autograd.grad(total, parts, _ratio(relevance, total.detach()))
    return torch.stack([part.detach() * g for part, g in zip(parts, gradients, strict=True)]).sum(0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill(zero, 0)


def _same(_operation: Operation, relevance: Any) -> Parts:
    """ReLU, dropout, batch norm: the relevance goes through unchanged."""
    return (relevance,)


def _reshaped(operation: Operation, relevance: Tensor) -> Parts:
    return (relevance.reshape(operation.inputs[0].shape),)


def _z_plus(
    x: Tensor, weight: Tensor, apply: Callable[[Tensor, Tensor], Tensor], relevance: Tensor
) -> Tensor:
    """z⁺ extended to negative inputs: relevance shared out over x⁺ W⁺ + x⁻ W⁻, each with ``apply``'s bias."""
    positive, negative = weight.clamp_min(0), weight.clamp_max(0)
    return _share_out(
        lambda up, down: apply(up, positive) + apply(down, negative),
        relevance,
        x.clamp_min(0),
        x.clamp_max(0),
    )


def _linear(operation: Operation, relevance: Tensor) -> Parts:
    """The bias takes no part."""
    return (_z_plus(operation.inputs[0], operation.module.weight, F.linear, relevance),)


def _convolution(operation: Operation, relevance: Tensor) -> Parts:
    """The bias, where there is one, is added to both halves of the sum, whatever its sign."""
    module = operation.module

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return cast(Tensor, module._conv_forward(x, weight, module.bias))

    return (_z_plus(operation.inputs[0], module.weight, apply, relevance),)


def _functional_convolution(operation: Operation, relevance: Tensor) -> Parts:
    """As `_convolution`, for ``conv2d(x, weight, bias, …)``."""
    x, weight, *settings = operation.args

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, *settings, **operation.kwargs)

    return (_z_plus(x, weight, apply, relevance),)


def _pooled(operation: Operation, relevance: Tensor) -> Parts:
    """Max pooling: the winner takes all. Average pooling: in proportion to the signed x."""
    return (_share_out(operation.module, relevance, operation.inputs[0]),)


def _pooled_globally(operation: Operation, relevance: Tensor) -> Parts:
    """Adaptive average pooling: in proportion to x⁺."""
    return (_share_out(operation.module, relevance, operation.inputs[0].clamp_min(0)),)


def _mean(operation: Operation, relevance: Tensor) -> Parts:
    """As `_pooled_globally`, for ``x.mean(dimensions)``."""
    x, *dimensions = operation.args
    return (_share_out(lambda v: v.mean(*dimensions, **operation.kwargs), relevance, x.clamp_min(0)),)


def _lap(operation: Operation, relevance: Tensor) -> Parts:
    """In proportion to x⁺ w, the weights w being constants; the features that were scored receive nothing."""
    lap: LAP = operation.module
    x, scored = operation.inputs[0], operation.inputs[-1]
    with torch.no_grad():
        weights = lap.window_weights(scored)
    part = _share_out(lambda v: lap.pool(v, weights), relevance, x.clamp_min(0))
    return (part, *[None] * (len(operation.inputs) - 1))


def _sum(operation: Operation, relevance: Tensor) -> Parts:
    """In proportion to the signed summands; a number or weight that is added takes no part."""
    share = _ratio(relevance, sum(operation.inputs, start=torch.zeros_like(relevance)))
    return tuple(summand * share for summand in operation.inputs)


def _concatenation(operation: Operation, relevance: Tensor) -> Parts:
    dimension = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0)
    return torch.split(relevance, [part.shape[dimension] for part in operation.inputs], dimension)


def _pieces(operation: Operation, relevance: tuple[Tensor, ...]) -> Parts:
    """The inverse of a concatenation."""
    dimension = operation.kwargs.get("dim", operation.args[2] if len(operation.args) > 2 else 0)
    return (torch.cat(relevance, dimension),)


def _piece(operation: Operation, relevance: Tensor) -> Parts:
    """One of the tensors of a tuple; the others receive nothing from here."""
    pieces, index = operation.args
    if not isinstance(pieces, tuple | list):
        raise NotApplicableError("Relevance-CAM has no rule for an indexed tensor")
    return (tuple(relevance if i == index else torch.zeros_like(p) for i, p in enumerate(pieces)),)


_RULES: dict[Any, Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    F.conv2d: _functional_convolution,
    **dict.fromkeys(
        (nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.Dropout2d, nn.Identity, isolated, F.dropout), _same
    ),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), _pooled),
    nn.AdaptiveAvgPool2d: _pooled_globally,
    "mean": _mean,
    torch.mean: _mean,
    LAP2d: _lap,
    AdaptiveLAP2d: _lap,
    **dict.fromkeys((operator.add, torch.add, "add"), _sum),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    **dict.fromkeys((torch.split, torch.chunk, "split", "chunk"), _pieces),
    operator.getitem: _piece,
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten", "view", "reshape", "contiguous"), _reshaped),
}
"""By the class of a module, by function, or by the name of a method."""
