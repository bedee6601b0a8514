"""One forward pass, written down, and the walks back over it that post-hoc explainers are made of.

A gradient, a guided gradient, DeepLIFT's multipliers and relevance all start at the logits and go back
through the same operations; they differ in the rule for each kind. So one recorded pass serves them all.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.canonical import Canonical
from lapbench.models.bla import BlaRecord, record_bla
from lapbench.models.lap import LAP, LapRecord, record_laps
from lapbench.models.lip import LIP


class Operation:
    """One node of the graph with the values it had in a forward pass.

    kind: the module's class, the function, or the method's name. sources: the nodes whose tensors flow into
    it from the images, in order and with repetition; weights and sizes are not among them. reference: the
    same operation in the forward pass of a reference image, for rules about differences.
    """

    def __init__(self, tape: "Tape", node: fx.Node, reference: "Operation | None") -> None:
        module = tape.network.module
        self.node, self.reference, self._tape, self._values = node, reference, tape, tape.values
        self.module: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        self.kind: Any = node.target if self.module is None else type(self.module)
        found: list[fx.Node] = []
        fx.node.map_arg((node.args, node.kwargs), lambda source: found.append(source))
        self.sources = tuple(source for source in found if source in tape.flowing)

    @property
    def name(self) -> str:
        """What it calls, for errors."""
        return self.kind if isinstance(self.kind, str) else getattr(self.kind, "__name__", repr(self.kind))

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The values of its sources."""
        return tuple(self._values[source] for source in self.sources)

    @property
    def output(self) -> Any:
        """Its own value."""
        return self._values[self.node]

    @property
    def before(self) -> "Operation":
        """The same operation in the reference's pass."""
        if self.reference is None:
            raise ValueError("this walk has no reference")
        return self.reference

    @cached_property
    def args(self) -> tuple[Any, ...]:
        """All positional arguments, as values."""
        return tuple(fx.node.map_arg(self.node.args, lambda n: self._values[n]))

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """All named arguments, as values."""
        return dict(fx.node.map_arg(self.node.kwargs, lambda n: self._values[n]))

    @property
    def winners(self) -> Tensor:
        """The positions (B, C, h, w) of a max pooling's winners."""
        return self._tape.winners[self.node]

    def again(self, *inputs: Any) -> Any:
        """Do it once more with other values in place of its inputs."""
        given = iter(inputs)

        def value(node: fx.Node) -> Any:
            return next(given) if node in self.sources else self._values[node]

        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), value)
        if self.module is not None:
            return self.module(*args, **kwargs)
        function = getattr(type(args[0]), self.kind) if self.node.op == "call_method" else self.kind
        return function(*args, **kwargs)


Rule: TypeAlias = Callable[[Operation, Any], tuple[Any, ...]]
"""(operation, what its output receives) → what each of its inputs receives, None where that is nothing."""
RuleBook: TypeAlias = Callable[[Operation], Rule]
"""The rule for an operation. Errors: NotApplicableError that names an operation without one."""


class Tape:
    """A forward pass of a canonical network: logits, records of LAP, LIP, BLA, and values to walk back over.

    images: (B, C, H, W). start: the node whose value and everything after it is kept; the images, if not
    given. No graph is built: the walks bring their own rules.
    """

    def __init__(self, network: Canonical, images: Tensor, start: fx.Node | None = None) -> None:
        self.network = network
        self.start = network.images if start is None else start
        self.kept = after(self.start)
        self._end = network.logits
        interpreter = _Recording(network.module, self.start)
        module = network.module
        with torch.no_grad(), record_laps(module, SCORED) as laps, record_bla(module) as attended:
            interpreter.run(images)
            self.laps: list[LapRecord] = list(laps)
            self.bla: list[BlaRecord] = list(attended)
        self.values, self.flowing = interpreter.values, interpreter.flowing
        self.winners = interpreter.winners

    @property
    def logits(self) -> Tensor:
        """What the network answers, (B, N)."""
        return cast(Tensor, self.values[self._end])

    @torch.no_grad()
    def walk_back(
        self,
        received: Tensor,
        rules: RuleBook,
        *,
        until: fx.Node | None = None,
        reference: "Tape | None" = None,
    ) -> Tensor:
        """Return what a node's output receives (the images', if not given), when the logits receive this.

        A value that several operations take receives the sum of what they send back. What reaches values that
        do not depend on the node, such as a skip connection around it, is dropped.
        """
        until = self.start if until is None else until
        concerned = after(until)
        received_by: dict[fx.Node, Any] = {self._end: received}
        for node in reversed(self.network.module.graph.nodes):
            if node is until:
                break
            if node not in received_by:
                continue
            operation = self._operation(node, reference)
            parts = rules(operation)(operation, received_by.pop(node))
            for source, part in zip(operation.sources, parts, strict=True):
                if source in concerned and part is not None:
                    received_by[source] = _plus(received_by.get(source), part)
        if until not in received_by:
            raise NotApplicableError(f"nothing reaches {until.name!r}: the logits do not depend on it")
        return cast(Tensor, received_by[until])

    def _operation(self, node: fx.Node, reference: "Tape | None") -> Operation:
        twin = reference._operation(node, None) if reference else None
        return Operation(self, node, twin)


SCORED = (LAP, LIP)
"""Poolings whose scores a forward pass keeps."""
_WINDOW = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


class _Recording(fx.Interpreter):
    """Runs a graph and keeps the values of one node and all after it, and those that they are made from."""

    def __init__(self, module: fx.GraphModule, start: fx.Node) -> None:
        super().__init__(module)
        concerned = after(start)
        self.needed = concerned | {source for node in concerned - {start} for source in node.all_input_nodes}
        self.values: dict[fx.Node, Any] = {}
        self.flowing: set[fx.Node] = set()  # nodes whose tensors are made from the images
        self.winners: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = self._max_pooled(n) if n in self.needed and self._pools(n) else super().run_node(n)
        made_from_images = n.op == "placeholder" or any(s in self.flowing for s in n.all_input_nodes)
        if made_from_images and _holds_tensors(value):
            self.flowing.add(n)
        if n in self.needed:
            self.values[n] = value
        return value

    def _pools(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        module = self.module.get_submodule(str(node.target))
        return type(module) is nn.MaxPool2d and not module.return_indices

    def _max_pooled(self, node: fx.Node) -> Tensor:
        """What the module would answer; torch finds the winners on the way, and drops them."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        pool = self.module.get_submodule(str(node.target))
        window = {name: getattr(pool, name) for name in _WINDOW}
        pooled: Tensor
        pooled, self.winners[node] = F.max_pool2d(*args, **kwargs, **window, return_indices=True)  # type: ignore[call-overload]
        return pooled


def after(start: fx.Node) -> set[fx.Node]:
    """Return a node and all nodes that depend on it."""
    found, waiting = {start}, [start]
    while waiting:
        for user in waiting.pop().users:
            if user not in found:
                found.add(user)
                waiting.append(user)
    return found


def one_hot(logits: Tensor, target: Tensor) -> Tensor:
    """1 for each image's target, 0 for every other class, (B, N): where a gradient starts."""
    return torch.zeros_like(logits).scatter_(1, target[:, None], 1)


def _plus(one: Any, other: Any) -> Any:
    """Add what one value receives from two sides; for a tuple of tensors that is a tuple."""
    if one is None:
        return other
    return tuple(map(_plus, one, other)) if isinstance(other, tuple) else one + other


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, tuple | list) and bool(value) and isinstance(value[0], Tensor)
    )
