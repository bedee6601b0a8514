"""Relevance-CAM: class activation maps whose channel weights are relevances, at any layer of any CNN.

"Relevance-CAM: Your Model Already Knows Where to Look" (Lee, Kim, Park, Yang; CVPR 2021). The network runs
forward once; relevance then walks back over the same graph, from the logits to the layer, by one rule for
each kind of operation.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.canonical import canonical, isolated
from lapbench.explain.layers import layer_of
from lapbench.models.lap import LAP, AdaptiveLAP2d, LAP2d
from lapbench.registry import explainer


@explainer("relevance_cam", version=1, title="Relevance-CAM", paper="Lee et al., CVPR 2021", signed=True)
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
    network = canonical(model)
    node = network.output_of(layer_of(model, layer, images))
    values = _Recording(network.module, node).record(images)
    activation, logits = values[node], values[_logits(network.module.graph)]
    if not isinstance(activation, Tensor) or activation.ndim != 4:
        raise NotApplicableError(f"layer {layer!r} puts out no feature map (B, C, h, w)")
    relevance = _walk_back(network.module, node, values, _contrast(logits, target, start))
    return (relevance.mean((2, 3), keepdim=True) * activation).sum(1)


def _contrast(logits: Tensor, target: Tensor, start: Literal["constant", "logit"]) -> Tensor:
    """Return the relevance (B, N) of the logits: positive for the target, negative for every other class."""
    classes = logits.shape[1]
    chosen = F.one_hot(target, classes).bool()
    if start == "constant":
        return torch.where(chosen, 1.0, torch.full_like(logits, -1 / classes))
    return torch.where(chosen, logits, -logits / max(classes - 1, 1))


class _Recording(fx.Interpreter):
    """Runs a graph and keeps the values relevance will need: those from one node on, and their inputs."""

    def __init__(self, module: fx.GraphModule, start: fx.Node) -> None:
        super().__init__(module)
        concerned = _after(start)
        self.needed = concerned | {source for node in concerned for source in node.all_input_nodes}
        self.values: dict[fx.Node, Any] = {}

    def record(self, images: Tensor) -> dict[fx.Node, Any]:
        with torch.no_grad():
            self.run(images)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.needed:
            self.values[n] = value
        return value


def _after(start: fx.Node) -> set[fx.Node]:
    """Return a node and all nodes that depend on it."""
    found, waiting = {start}, [start]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def _logits(graph: fx.Graph) -> fx.Node:
    """Return the node of the logits (B, N). Errors: NotApplicableError for any other output."""
    result = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if not isinstance(result, fx.Node):
        raise NotApplicableError(f"the network must return logits (B, N) alone, it returns {result}")
    return result


def _walk_back(
    network: fx.GraphModule, start: fx.Node, values: dict[fx.Node, Any], relevance: Tensor
) -> Tensor:
    """Return the relevance of a node's output, given that of the logits.

    An output that several operations take receives the sum of what they send back. What reaches values that
    do not depend on ``start``, such as a skip connection around it, is dropped.
    """
    concerned = _after(start)
    received: dict[fx.Node, Any] = {_logits(network.graph): relevance}
    for node in reversed(network.graph.nodes):
        if node is start:
            break
        if node not in received:
            continue
        operation = Operation.of(network, node, values)
        parts = _rule_for(operation)(operation, received.pop(node))
        for source, part in zip(operation.sources, parts, strict=True):
            if source in concerned and part is not None:
                received[source] = _plus(received.get(source), part)
    if start not in received:
        raise NotApplicableError(f"no relevance reaches {start.name!r}: the logits do not depend on it")
    return cast(Tensor, received[start])


def _plus(one: Any, other: Any) -> Any:
    """Add relevances; those of a value that is a tuple of tensors are tuples."""
    if one is None:
        return other
    return tuple(map(_plus, one, other)) if isinstance(other, tuple) else one + other


@dataclass(frozen=True)
class Operation:
    """One node of the graph with the values it had.

    name: what it calls, for errors. kind: the module's class, the function, or the method's name. sources,
    inputs: the nodes whose tensors flow into it, in order and with repetition, and their values; weights are
    not among them. args, kwargs: all arguments, as values.
    """

    name: str
    kind: Any
    module: Any
    sources: tuple[fx.Node, ...]
    inputs: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, network: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> "Operation":
        """Look an operation up in the graph that was run."""
        found: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), lambda source: found.append(source))
        sources = tuple(n for n in found if n.op != "get_attr" and _holds_tensors(values[n]))
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = node.target if module is None else type(module)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        name = kind if isinstance(kind, str) else getattr(kind, "__name__", repr(kind))
        return cls(name, kind, module, sources, tuple(values[n] for n in sources), tuple(args), dict(kwargs))


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and bool(value) and isinstance(value[0], Tensor)
    )


Parts: TypeAlias = tuple[Any, ...]
Rule: TypeAlias = Callable[[Operation, Any], Parts]
"""(operation, relevance of its output) → relevance of each of its inputs, None where there is none."""


def _rule_for(operation: Operation) -> Rule:
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
