"""Layer-wise relevance propagation: the rules by which relevance walks back through a network.

"On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation" (Bach et
al., PLoS ONE 2015); "Layer-Wise Relevance Propagation: An Overview" (Montavon et al., 2019). Where an
operation adds up z = Σ_i z_i + b, each input gets its share of the relevance, R_i = z_i R / z. Rules for
layers with weights differ in the terms that they count. All other operations have one:

- activations, dropout, stochastic depth, products with constants: all of it goes on;
- products of features: all of it to the signal, nothing to its gate (Arras et al., WASSA 2017);
- maxima: all of it to the winner;
- sums, averages, and what is one where some values are taken for constants: LAP and its like with their
  weights, layer norm with its statistics (Ali et al., ICML 2022), a batch norm that no convolution takes in.
  Each summand's share is in proportion to its signed value, and what is constant has that of a bias. The
  features that LAP and its like score get nothing.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.ops import stochastic_depth

from lapbench.errors import NotApplicableError
from lapbench.explain.canonical import ACTIVATIONS, isolated
from lapbench.explain.derivatives import REARRANGING, gradient, passed_on
from lapbench.explain.tape import Operation, Rule, RuleBook
from lapbench.models.bla import BLA
from lapbench.models.lap import AdaptiveLAP2d, LAP2d
from lapbench.models.lip import LIP
from lapbench.models.pooling import Pooling, Strided


class Ledger:
    """What relevance goes to no input in a walk, summed for each image, (B,): the shares of biases and of ε.

    A unit that nothing adds up in (0 / 0) hands nothing on. Its relevance counts as ε's, which takes all of
    it however small it is.
    """

    def __init__(self) -> None:
        self.bias: Tensor | float = 0.0
        self.epsilon: Tensor | float = 0.0

    def ratio(self, relevance: Tensor, total: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        """Return R / (z + ε sign z), 0 where that divides by 0, and write down what bias and ε take of R."""
        stable = torch.where(total < 0, total - epsilon, total + epsilon) if epsilon else total
        dead = stable == 0
        ratio = (relevance / stable.masked_fill(dead, 1)).masked_fill(dead, 0)
        if bias is not None:
            self.bias = self.bias + (bias * ratio).flatten(1).sum(1)
        kept = relevance * dead + (stable - total) * ratio
        self.epsilon = self.epsilon + kept.flatten(1).sum(1)
        return ratio


def share_out(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    relevance: Tensor,
    ledger: Ledger,
    *,
    bias: Tensor | None = None,
    epsilon: float = 0.0,
) -> tuple[Tensor, ...]:
    """Return x ⊙ ∂f/∂xᵀ (R / f) for each input x: its share in what an affine function f adds up.

    bias: what f adds on its own, broadcast to its output. epsilon: as in `Ledger.ratio`.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        total = function(*leaves)
    ratio = ledger.ratio(relevance, total.detach(), bias, epsilon)
    gradients = torch.autograd.grad(total, leaves, ratio)
    return tuple(leaf.detach() * gradient for leaf, gradient in zip(leaves, gradients, strict=True))


# --- layers with weights


LINEAR = (nn.Linear, F.linear)
CONVOLUTIONS = (nn.Conv2d, F.conv2d)
Term: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""An input, a weight and a bias: what a layer makes of them is a part of the sum that is shared out."""


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution: its input, its weight and bias, and how they are put together.

    Where nothing else takes a convolution's output, the batch norm that does is part of the layer: both are
    one affine map, whose weight and bias these are.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Portion:
    """The terms that add up, and the fraction of the relevance that is shared out over them."""

    terms: Sequence[Term]
    fraction: float = 1.0
    epsilon: float = 0.0


Split: TypeAlias = Callable[[Layer], Sequence[Portion]]
"""A rule for layers with weights: what relevance is shared out over."""


def by_epsilon(layer: Layer, epsilon: float) -> Sequence[Portion]:
    """LRP-ε: contributions of both signs; ε is added to the size of their sum (Bach et al., Eq. 58)."""
    return [Portion([(layer.x, layer.weight, layer.bias)], epsilon=epsilon)]


def by_positive(layer: Layer) -> Sequence[Portion]:
    """LRP-z⁺: positive contributions only, x⁺ W⁺ + x⁻ W⁻ + b⁺ (Montavon et al., 2017)."""
    return [Portion(_of_sign(layer, 1))]


def by_sign(layer: Layer, alpha: float, beta: float) -> Sequence[Portion]:
    """LRP-αβ: α over the positive contributions, −β over the negative ones (Bach et al., Eq. 60)."""
    return [Portion(_of_sign(layer, 1), alpha), Portion(_of_sign(layer, -1), -beta)]


def evenly(layer: Layer) -> Sequence[Portion]:
    """LRP-♭: the same to every input, whatever its value (Lapuschkin et al., Nature Communications 2019)."""
    return [Portion([(torch.ones_like(layer.x), torch.ones_like(layer.weight), None)])]


def _of_sign(layer: Layer, sign: int) -> list[Term]:
    """The contributions of one sign."""
    same, other = _part(layer.weight, sign), _part(layer.weight, -sign)
    bias = None if layer.bias is None else _part(layer.bias, sign)
    terms: list[Term] = [(layer.x.clamp_min(0), same, bias)]
    if (layer.x < 0).any():  # never behind a ReLU
        terms.append((layer.x.clamp_max(0), other, None))
    return terms


def _part(values: Tensor, sign: int) -> Tensor:
    return values.clamp_min(0) if sign > 0 else values.clamp_max(0)


def weighted(
    split: Callable[[Operation], Split], ledger: Ledger, *, merge: bool = True
) -> Mapping[Any, Rule]:
    """The rules for layers with weights; merge: a convolution takes in the batch norm behind it."""

    def rule(operation: Operation, relevance: Tensor) -> tuple[Any, ...]:
        layer = _layer(operation, merge)
        parts = [_shared_out(layer, portion, relevance, ledger) for portion in split(operation)(layer)]
        return (sum(parts[1:], start=parts[0]), *[None] * (len(operation.sources) - 1))

    return dict.fromkeys((*LINEAR, *CONVOLUTIONS), rule)


def _shared_out(layer: Layer, portion: Portion, relevance: Tensor, ledger: Ledger) -> Tensor:
    inputs, weights, biases = zip(*portion.terms, strict=True)

    def add_up(*inputs: Tensor) -> Tensor:
        parts = [layer.apply(*term) for term in zip(inputs, weights, biases, strict=True)]
        return sum(parts[1:], start=parts[0])

    given = [bias for bias in biases if bias is not None]
    bias = sum(given[1:], start=given[0]).view(-1, *[1] * (layer.weight.ndim - 2)) if given else None
    received = relevance if portion.fraction == 1 else portion.fraction * relevance
    shares = share_out(add_up, inputs, received, ledger, bias=bias, epsilon=portion.epsilon)
    return sum(shares[1:], start=shares[0])


def _layer(operation: Operation, merge: bool) -> Layer:
    given = _given(operation, "weight", "bias", "stride", "padding", "dilation", "groups")
    weight, bias = given.pop("weight").detach(), given.pop("bias", None)
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor] = partial(operation.kind, **given)
    if operation.module is not None:
        apply = F.linear if operation.kind is nn.Linear else operation.module._conv_forward
    layer = Layer(operation.inputs[0], weight, None if bias is None else bias.detach(), apply)
    return _merged(layer, operation.node) if merge else layer


def _given(operation: Operation, *names: str) -> dict[str, Any]:
    """What a module has, or a function was given behind its input, by these names."""
    if operation.module is not None:
        return {name: getattr(operation.module, name) for name in names if hasattr(operation.module, name)}
    given = dict(zip(("input", *names), operation.args, strict=False)) | operation.kwargs
    return {name: value for name, value in given.items() if name != "input"}


def _merged(layer: Layer, node: fx.Node) -> Layer:
    """Take in the batch norm behind a convolution."""
    norm = norm_behind(node)
    if norm is None:
        return layer
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = 0 if norm.bias is None else norm.bias.detach()
    bias = ((0 if layer.bias is None else layer.bias) - norm.running_mean) * scale + shift
    return Layer(layer.x, layer.weight * scale.view(-1, 1, 1, 1), bias, layer.apply)


def norm_behind(node: fx.Node) -> Any:
    """The batch norm, with statistics of its own, that alone takes a convolution's output, or None."""
    if _kind(node) not in CONVOLUTIONS or len(node.users) != 1:
        return None
    norm = _module(next(iter(node.users)))
    return norm if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None else None


def sees_the_image(node: fx.Node) -> bool:
    """Whether a layer is a first one: no other with weights lies between the images and it."""
    return all(
        _kind(source) not in (*LINEAR, *CONVOLUTIONS) and sees_the_image(source)
        for source in node.all_input_nodes
    )


def _kind(node: fx.Node) -> Any:
    """As `Operation.kind`."""
    return type(_module(node)) if node.op == "call_module" else node.target


def _module(node: fx.Node) -> nn.Module | None:
    """The module that a node calls, or None."""
    network = node.graph.owning_module
    return network.get_submodule(str(node.target)) if node.op == "call_module" and network else None


# --- operations without weights of their own


def in_proportion(
    ledger: Ledger, epsilon: float = 0.0, *, of: Callable[[Tensor], Tensor] = lambda x: x
) -> Rule:
    """A rule for averages: each value's share is in proportion to it, or to a function ``of`` it."""

    def rule(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
        return share_out(operation.again, [of(operation.inputs[0])], relevance, ledger, epsilon=epsilon)

    return rule


def pooled_in_proportion(
    ledger: Ledger, epsilon: float = 0.0, *, of: Callable[[Tensor], Tensor] = lambda x: x
) -> Rule:
    """The same for LAP and its like, to the value times its weight; the features scored get nothing."""

    def rule(operation: Operation, relevance: Tensor) -> tuple[Any, ...]:
        layer: Pooling = operation.module
        x, scored = operation.inputs[0], operation.inputs[-1]
        with torch.no_grad():
            weights = layer.window_weights(scored)
        shares = share_out(lambda v: layer.pool(v, weights), [of(x)], relevance, ledger, epsilon=epsilon)
        return (*shares, *[None] * (len(operation.inputs) - 1))

    return rule


def unweighted(ledger: Ledger, epsilon: float = 0.0) -> Mapping[Any, Rule]:
    """The rules for operations that have no weights to choose a rule by; ε as in `Ledger.ratio`."""

    def affine(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
        inputs = operation.inputs
        bias = operation.again(*map(torch.zeros_like, inputs)).detach() if len(inputs) < 2 else None
        return share_out(operation.again, inputs, relevance, ledger, bias=bias, epsilon=epsilon)

    def batch_norm(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
        """Whole, where the convolution before it took it in, or where its statistics are the batch's."""
        if norm_behind(operation.sources[0]) is not None or operation.module.running_mean is None:
            return (relevance,)
        return affine(operation, relevance)

    def layer_norm(operation: Operation, relevance: Tensor) -> tuple[Tensor, ...]:
        x = operation.inputs[0]
        given = _given(operation, "normalized_shape", "weight", "bias", "eps")
        over = tuple(range(-len(given["normalized_shape"]), 0))
        scale = (x.var(over, correction=0, keepdim=True) + given.get("eps", 1e-5)).rsqrt()
        scale = scale if given.get("weight") is None else scale * given["weight"].detach()
        bias: Tensor = operation.again(torch.zeros_like(x)).detach()

        def with_constant_statistics(x: Tensor) -> Tensor:
            return torch.addcmul(bias, x - x.mean(over, keepdim=True), scale)

        return share_out(with_constant_statistics, [x], relevance, ledger, bias=bias, epsilon=epsilon)

    return {
        **REARRANGING,
        **dict.fromkeys((*ACTIVATIONS, *_FURTHER_ACTIVATIONS, stochastic_depth), passed_on),
        **dict.fromkeys((operator.mul, torch.mul, "mul"), _gated),
        **dict.fromkeys((operator.truediv, torch.div, "div"), _divided),
        **dict.fromkeys((operator.add, torch.add, "add", operator.sub, torch.sub, "sub"), affine),
        **dict.fromkeys((nn.LayerNorm, F.layer_norm), layer_norm),
        nn.BatchNorm2d: batch_norm,
        **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d), _to_winners),
        **dict.fromkeys((nn.AvgPool2d, *GLOBAL_AVERAGES), in_proportion(ledger, epsilon)),
        **dict.fromkeys(POOLINGS, pooled_in_proportion(ledger, epsilon)),
    }


POOLINGS = (LAP2d, AdaptiveLAP2d, LIP, Strided, BLA)
GLOBAL_AVERAGES = (nn.AdaptiveAvgPool2d, torch.mean, "mean")
_FURTHER_ACTIVATIONS = (nn.SELU, nn.CELU, F.selu, F.celu, F.mish, F.hardtanh, torch.clamp, "clamp")


def _to_winners(operation: Operation, relevance: Tensor) -> tuple[Any, ...]:
    return gradient(operation)(operation, relevance)


def _gated(operation: Operation, relevance: Tensor) -> tuple[Any, ...]:
    """The signal takes all, its gate nothing; nor does a factor that does not come from the images."""
    return _all_to(operation, 0 if len(operation.sources) == 1 else _signal(operation), relevance)


def _divided(operation: Operation, relevance: Tensor) -> tuple[Any, ...]:
    """What is divided takes all."""
    if operation.node.args[0] is not operation.sources[0]:
        raise NotApplicableError("relevance has no rule for a constant that is divided by features")
    return _all_to(operation, 0, relevance)


def _all_to(operation: Operation, position: int, relevance: Tensor) -> tuple[Any, ...]:
    parts: list[Tensor | None] = [None] * len(operation.sources)
    parts[position] = relevance.sum_to_size(operation.inputs[position].shape)
    return tuple(parts)


def _signal(operation: Operation) -> int:
    """Which of two factors is no gate: a gate is the smaller one, or else the one that a sigmoid made."""
    sizes = [value.numel() for value in operation.inputs]
    gates = [_is_gate(node) for node in operation.sources]
    if sizes[0] != sizes[1]:
        return int(sizes[0] < sizes[1])
    if gates[0] == gates[1]:
        raise NotApplicableError(
            f"relevance has no rule for a product ({operation.name!r}) of two features of the same size, "
            "neither of which, or both, a sigmoid made: the signal cannot be told from its gate"
        )
    return int(gates[0])


def _is_gate(node: fx.Node) -> bool:
    """Whether a factor is a sigmoid's output, or expanded to its size."""
    while node.target in (*_RESHAPING, isolated) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.target in ("expand", "expand_as") or isinstance(_module(node), nn.Sigmoid | nn.Hardsigmoid)


_RESHAPING = ("view", "reshape", "unsqueeze", torch.unsqueeze, torch.reshape)


# --- a book of rules


def book(method: str, rules: Mapping[Any, Rule], advice: str = ": leave this network out") -> RuleBook:
    """Look rules up by the class of a module, by function, or by the name of a method.

    Errors: NotApplicableError that names an operation without a rule.
    """

    def rule(operation: Operation) -> Rule:
        if operation.kind not in rules:
            raise NotApplicableError(f"{method} has no rule for {operation.name!r}{advice}")
        return rules[operation.kind]

    return rule
