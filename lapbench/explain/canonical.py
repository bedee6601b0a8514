"""Any CNN in the form that the rules of Guided Backprop, DeepLIFT and Relevance-CAM are written for."""

import copy
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lapbench.errors import ExplainerError, NotApplicableError, suggest
from lapbench.models.graph import LayerTracer
from lapbench.models.pooling import Pooling

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.Mish, nn.Sigmoid, nn.Softplus, nn.Tanh,
)  # fmt: skip
"""Element-wise modules that get one instance per call."""


@dataclass(frozen=True)
class Canonical:
    """A network as an fx graph of modules that may be hooked one by one.

    module: the same function in eval mode, bit for bit. outputs: the value that each of the user's modules
    returns, by the module's name; a module that is called twice stands for its last call.
    """

    module: fx.GraphModule
    outputs: dict[str, fx.Node]

    @property
    def images(self) -> fx.Node:
        """The node of the network's input."""
        nodes: list[fx.Node] = list(self.module.graph.nodes)
        return next(node for node in nodes if node.op == "placeholder")

    @property
    def logits(self) -> fx.Node:
        """The node of the logits (B, N). Errors: NotApplicableError where the network returns more."""
        result = next(node for node in reversed(self.module.graph.nodes) if node.op == "output").args[0]
        if not isinstance(result, fx.Node):
            raise NotApplicableError(f"the network must return logits (B, N) alone, it returns {result}")
        return result

    def output_of(self, name: str) -> fx.Node:
        """Return the node of a module's output. Errors: ExplainerError with the nearest right name."""
        if name not in self.outputs:
            raise ExplainerError(f"the network calls no module {name!r}{suggest(name, self.outputs)}")
        return self.outputs[name]


def canonical(model: nn.Module) -> Canonical:
    """Rewrite a network so that every non-linear operation is a module of its own, called once.

    Functional and re-used activations and pools become fresh modules, one per call; nothing works in place;
    every such module gets an input that no other operation shares, because Captum replaces the *whole*
    gradient of that tensor. LAP layers and their relatives stay whole. All parameters and buffers are those
    of ``model`` (no copy), every module is a new object without the user's hooks: nothing done to the result
    can be seen in ``model``. Errors: NotApplicableError where torch.fx cannot trace the network.
    """
    tracer = _Tracer()
    try:
        twin = twin_of(model).eval()
        optional = list(inspect.signature(twin.forward).parameters.values())[1:]  # behind the images
        graph = tracer.trace(twin, {p.name: p.default for p in optional if p.default is not p.empty})
    except Exception as error:
        raise NotApplicableError(
            f"{type(model).__name__} cannot be traced by torch.fx, which this explainer needs: "
            f"{type(error).__name__}: {error}"
        ) from error
    module = fx.GraphModule(twin, graph)
    module.graph.eliminate_dead_code()
    for number, node in enumerate(list(module.graph.nodes)):
        own = _own_module(module, node)
        if own is not None:
            _call(module, node, f"own_{number}", own)
    module.delete_all_unused_submodules()
    module.recompile()
    alive = set(module.graph.nodes)
    return Canonical(module.eval(), {name: node for name, node in tracer.outputs.items() if node in alive})


def twin_of(module: nn.Module) -> nn.Module:
    """Copy a module's structure: new objects without hooks around the very same parameters and buffers."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        for name, table in vars(part).items():
            if name.endswith("_hooks") and isinstance(table, dict):
                memo[id(table)] = OrderedDict()
    return copy.deepcopy(module, memo)


class _Tracer(LayerTracer):
    """Notes which node each module returns, and has nothing work in place.

    What works in place becomes an operation that does not; all that is done with the tensor from there on is
    done with its result. (Where a *view* is changed in place, that cannot be seen in a graph.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, fx.Node] = {}
        self._changed: dict[fx.Node, fx.Node] = {}  # what was worked on in place → what it is since

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *named: Any, **more: Any
    ) -> fx.Node:
        args, kwargs = fx.node.map_arg((args, kwargs), self._now)
        out_of_place = _out_of_place(kind, target)
        changed = args[0] if args else kwargs.get("input")
        in_place = out_of_place is not target or kwargs.get("inplace") is True
        if kind == "call_module":
            in_place = getattr(self.root.get_submodule(target), "inplace", False)
        elif in_place:
            kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
        node = super().create_node(kind, out_of_place, args, kwargs, *named, **more)
        if in_place and isinstance(changed, fx.Node):
            self._changed[changed] = node
        return node

    def _now(self, node: fx.Node) -> fx.Node:
        while node in self._changed:
            node = self._changed[node]
        return node

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.outputs[self.path_of_module(m)] = self._now(result.node)
        return result


_POOL = ("kernel_size", "stride", "padding")
_FUNCTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.silu: (nn.SiLU, ("inplace",)),
    F.gelu: (nn.GELU, ("approximate",)),
    F.hardswish: (nn.Hardswish, ("inplace",)),
    F.hardsigmoid: (nn.Hardsigmoid, ("inplace",)),
    F.softplus: (nn.Softplus, ("beta", "threshold")),
    F.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    F.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    F.max_pool2d: (nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode", "return_indices")),
    torch.max_pool2d: (nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode")),
    F.avg_pool2d: (nn.AvgPool2d, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
}
"""Functions, the module that does the same, and the names of the arguments behind the input."""
_METHODS: dict[str, Any] = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
_AUGMENTED: dict[Any, Any] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}  # fmt: skip
"""What these do, without changing their first argument."""


def _out_of_place(kind: str, target: Any) -> Any:
    """Return what does the same as a function or method that works in place, without that; or itself."""
    if kind == "call_method" and target.endswith("_") and callable(getattr(Tensor, target[:-1], None)):
        return target[:-1]  # x.relu_()
    name = getattr(target, "__name__", "")
    if kind == "call_function" and target in _AUGMENTED:
        return _AUGMENTED[target]
    if kind == "call_function" and name.endswith("_") and not name.endswith("__"):
        return getattr(F, name[:-1], getattr(torch, name[:-1], target))  # F.relu_(x), torch.clamp_(x, …)
    return target


def _own_module(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the fresh module that should do what a node does, or None where the node may stay."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        in_place = getattr(module, "inplace", False)
        if not isinstance(module, (*ACTIVATIONS, nn.MaxPool2d, Pooling)) and not in_place:
            return None
        own = twin_of(module)
        if hasattr(own, "inplace"):
            setattr(own, "inplace", False)  # noqa: B010 - not every activation declares it
        return own
    function = _METHODS.get(str(node.target)) if node.op == "call_method" else node.target
    if node.op not in ("call_function", "call_method") or function not in _FUNCTIONS:
        return None
    kind, names = _FUNCTIONS[function]
    given = dict(node.kwargs) | dict(zip(names, node.args[1:], strict=False))
    arguments = {name: value for name, value in given.items() if name in names and name != "inplace"}
    if any(isinstance(value, fx.Node) for value in fx.node.map_arg(list(arguments.values()), lambda n: n)):
        return None  # a window that depends on the shape of the input
    return kind(**arguments)


def _call(graph_module: fx.GraphModule, node: fx.Node, name: str, module: nn.Module) -> None:
    """Make a node call a module of its own, on an input tensor of its own."""
    graph_module.add_submodule(name, module.eval())
    source = node.args[0] if node.args else node.kwargs["input"]
    further = node.args[1:] if node.op == "call_module" else ()  # what a LAP takes its scores from
    with graph_module.graph.inserting_before(node):
        alone = graph_module.graph.call_function(isolated, (source,))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (alone, *further), {}


def isolated(tensor: Tensor) -> Tensor:
    """Return the same values as a tensor of its own, so that a hook on it concerns one consumer only."""
    return tensor.view_as(tensor)
