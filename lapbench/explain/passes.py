"""Passes through a network that several explainers share: each is made once a batch, when first asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx, nn

from lapbench.errors import NotApplicableError
from lapbench.explain import derivatives
from lapbench.explain.canonical import Canonical, canonical
from lapbench.explain.differences import differences
from lapbench.explain.layers import layer_of
from lapbench.explain.tape import SCORED, RuleBook, Tape, one_hot
from lapbench.models.bla import BlaRecord, record_bla
from lapbench.models.lap import LapRecord, record_laps
from lapbench.models.predict import evaluating
from lapbench.registry import Reach

T = TypeVar("T")
_ROUNDING = 1e-2  # of a gradient's largest value; what is lost under torch.no_grad() is more


class Prepared:
    """A network that is explained again and again, and traced once.

    It holds as long as no module or parameter of the network is exchanged for another.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._layers: dict[tuple[str, torch.Size], str] = {}
        self._traced: Canonical | NotApplicableError | None = None

    def canonical(self, images: Tensor) -> Canonical:
        """Its canonical form, which answers to images as itself does.

        Errors: NotApplicableError where torch.fx cannot trace it, or what is traced is not the whole of it.
        """
        if self._traced is None:
            try:
                self._traced = _tried(self.model, images[:1])
            except NotApplicableError as error:
                self._traced = error
        if isinstance(self._traced, NotApplicableError):
            raise self._traced
        return self._traced

    def traceable(self, images: Tensor) -> bool:
        """Whether it has a canonical form."""
        with suppress(NotApplicableError):
            self.canonical(images)
        return isinstance(self._traced, Canonical)

    def layer(self, layer: str, images: Tensor) -> str:
        """The name of a layer, as in `layer_of`."""
        key = layer, images.shape[1:]
        if key not in self._layers:
            self._layers[key] = layer_of(self.model, layer, images)
        return self._layers[key]


def _tried(model: nn.Module, image: Tensor) -> Canonical:
    """Trace a network, and let both answer to one image: not all that PyTorch can do shows in a graph."""
    form = canonical(model)
    with evaluating(model), torch.no_grad():
        wanted, found = _answer(model, image.clone()), form.module(image)
    if not torch.allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()), equal_nan=True):
        raise NotApplicableError(
            f"{type(model).__name__}, as torch.fx traces it, answers otherwise than it does itself: hooks "
            "that change values or weights do not show in its graph, nor do views that are changed in place"
        )
    if wanted.ndim == 2 and not _same_gradient(model, form, image, wanted.argmax(1)):
        raise NotApplicableError(
            f"{type(model).__name__}, as torch.fx traces it, has another gradient than itself: neither "
            "parts under torch.no_grad() nor functions with a backward pass of their own show in its graph"
        )
    return form


def _same_gradient(model: nn.Module, form: Canonical, image: Tensor, target: Tensor) -> bool:
    """Whether the gradient of a logit by the image is that of PyTorch, as far as both can be told."""
    image = image.detach().clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        logits = _answer(model, image.clone())
        score = logits.gather(1, target[:, None]).sum()
        wanted = torch.autograd.grad(score, image)[0] if score.requires_grad else None
    try:
        tape = Tape(form, image.detach(), form.images)
        found = tape.walk_back(one_hot(tape.logits, target), derivatives.gradient)
    except NotApplicableError:
        return True  # to be said by those that walk
    if wanted is None:
        return not found.any()
    bound = _ROUNDING * float(wanted.abs().max())
    return torch.allclose(found, wanted, rtol=0, atol=bound, equal_nan=True)


def _answer(model: nn.Module, images: Tensor) -> Tensor:
    logits: Any = model(images)
    if not isinstance(logits, Tensor):
        raise NotApplicableError(
            f"the network must return logits (B, N) alone, found {type(logits).__name__}"
        )
    return logits


class Passes:
    """The passes of one batch: images (B, C, H, W) and the class (B,) that is explained in each.

    reach: how far back explainers will follow the network; what is kept of the forward pass depends on it.
    What it returns is shared and must not be changed in place.
    """

    def __init__(self, prepared: Prepared, images: Tensor, target: Tensor, reach: Reach = "image") -> None:
        self.prepared, self.images, self.target = prepared, images, target
        self._reach = reach
        self._tapes: list[Tape] = []
        self._made: dict[Any, Any] = {}

    @property
    def logits(self) -> Tensor:
        """What the network answers, (B, N)."""
        return self._tape().logits if self._traceable else self._untraced[0]

    @property
    def laps(self) -> list[LapRecord]:
        """What every LAP, or LIP, layer of the network saw and said, shallow to deep."""
        return self._tape().laps if self._traceable else self._untraced[1]

    @property
    def bla(self) -> list[BlaRecord]:
        """What every BLA of the network said of the positions."""
        return self._tape().bla if self._traceable else self._untraced[2]

    def activation(self, layer: str = "last") -> Tensor:
        """The feature map (B, K, h, w) that a layer puts out; ``layer`` as in `layer_of`."""
        if not self._traceable:
            return self._hooked(layer)[0]
        node = self._node(layer)
        return _feature_map(self._tape(node).values[node], layer)

    def gradient(self, layer: str = "last") -> Tensor:
        """The gradient (B, K, h, w) of the target's logit by a layer's output."""
        if not self._traceable:
            return self._hooked(layer)[1]
        return _feature_map(self._walked(derivatives.gradient, self._node(layer)), layer)

    def image_gradient(self) -> Tensor:
        """The gradient (B, C, H, W) of the target's logit by the image."""
        if not self._traceable:
            return self._hooked(None)[1]
        return self._walked(derivatives.gradient, self._network.images)

    def guided_gradient(self) -> Tensor:
        """The same (B, C, H, W), where every ReLU lets only positive gradients back.

        Errors: NotApplicableError for a network without any ReLU outside LAP and its like, where this is the
        plain gradient.
        """
        network = self._network
        called = (node.target for node in network.module.graph.nodes if node.op == "call_module")
        if not any(isinstance(network.module.get_submodule(str(name)), nn.ReLU) for name in called):
            name = type(self.prepared.model).__name__
            raise NotApplicableError(f"{name} has no ReLU: Guided Backprop would be the plain gradient")
        return self._walked(derivatives.guided, network.images)

    def multipliers(self, baseline: Tensor) -> tuple[Tensor, Tensor]:
        """DeepLIFT's multipliers (B, C, H, W) for a baseline (1, C, H, W), and its logits (1, N)."""
        network = self._network
        tape, reference = self._tape(network.images), Tape(network, baseline)
        received = tape.walk_back(one_hot(tape.logits, self.target), differences, reference=reference)
        return received, reference.logits

    def relevance(self, start: Tensor, rules: RuleBook, layer: str | None = None) -> Tensor:
        """Walk back from relevances (B, N) of the logits, by these rules, to a layer or the image."""
        node = self._network.images if layer is None else self._node(layer)
        return self._tape(node).walk_back(start, rules, until=node)

    @property
    def _network(self) -> Canonical:
        return self.prepared.canonical(self.images)

    @property
    def _traceable(self) -> bool:
        return self.prepared.traceable(self.images)

    def _node(self, layer: str) -> fx.Node:
        return self._network.output_of(self.prepared.layer(layer, self.images))

    def _walked(self, rules: RuleBook, node: fx.Node) -> Tensor:
        def walk() -> Tensor:
            tape = self._tape(node)
            return tape.walk_back(one_hot(tape.logits, self.target), rules, until=node)

        return self._once((rules, node), walk)

    def _tape(self, start: fx.Node | None = None) -> Tape:
        """The forward pass, with what is kept from a node on; made anew only where too little was kept."""
        network = self._network
        for tape in self._tapes:
            if start is None or start in tape.kept:
                return tape
        if self._reach == "image":
            start = network.images
        elif start is None:
            start = network.logits if self._reach == "output" else self._node("last")
        self._tapes.append(Tape(network, self.images, start))
        return self._tapes[-1]

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    @cached_property
    def _untraced(self) -> tuple[Tensor, list[LapRecord], list[BlaRecord]]:
        model = self.prepared.model
        with torch.no_grad(), record_laps(model, SCORED) as laps, record_bla(model) as attended:
            return _answer(model, self.images.clone()), list(laps), list(attended)

    def _hooked(self, layer: str | None) -> tuple[Tensor, Tensor]:
        """A layer's output and its gradient, or the images and theirs, in a network that cannot be traced."""

        def make() -> tuple[Tensor, Tensor]:
            model, outputs = self.prepared.model, []
            images = self.images.clone().requires_grad_(layer is None)

            def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                outputs.append(_feature_map(output, layer).detach().requires_grad_())
                return outputs[-1].clone()  # what follows may work in place

            name = None if layer is None else self.prepared.layer(layer, self.images)
            handle = None if name is None else model.get_submodule(name).register_forward_hook(keep)
            try:
                with torch.enable_grad():
                    score = _answer(model, images.clone()).gather(1, self.target[:, None]).sum()
            finally:
                if handle is not None:
                    handle.remove()
            inner = images if layer is None else outputs[-1]
            return inner.detach(), torch.autograd.grad(score, inner)[0]

        return self._once(("hooked", layer), make)


def _feature_map(value: Any, layer: str | None) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim != 4:
        raise NotApplicableError(f"layer {layer!r} puts out no feature map (B, C, h, w)")
    return value


_Key: TypeAlias = tuple[Any, ...]
_shared: ContextVar[tuple[_Key, Passes] | None] = ContextVar("shared", default=None)


@contextmanager
def sharing(model: nn.Module, images: Tensor, target: Tensor, passes: Passes | None) -> Iterator[None]:
    """Let an explainer that is given these very tensors share the passes of its batch."""
    token = _shared.set(None if passes is None else (_key(model, images, target), passes))
    try:
        yield
    finally:
        _shared.reset(token)


def passes_of(model: nn.Module, images: Tensor, target: Tensor) -> Passes:
    """The passes of a batch: those that its explainers share, or fresh ones for any other images.

    Other images are also the batch's own, once they have been changed in place.
    """
    shared = _shared.get()
    if shared is not None and shared[0] == _key(model, images, target):
        return shared[1]
    return Passes(Prepared(model), images.detach(), target)


def _key(model: nn.Module, images: Tensor, target: Tensor) -> _Key:
    tensors = images, target
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return id(model), *map(id, tensors), *versions
