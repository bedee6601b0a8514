"""What every explainer promises, as a function that anyone can call on theirs."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain.foreign import Attributor, as_function
from lapbench.explain.maps import Maps, explain
from lapbench.explain.state import seeded_generators
from lapbench.models.predict import evaluating
from lapbench.models.weights import randomise
from lapbench.registry import ExplainerSpec

TOLERANCE = 1e-3
"""Two maps are the same up to this fraction of their largest absolute value."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check; fault says what was found and wanted, and is empty where all is well."""

    name: str
    fault: str

    @property
    def passed(self) -> bool:
        """Whether all is well."""
        return not self.fault


def check_explainer(
    explainer: ExplainerSpec | Attributor | Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    parameters: Mapping[str, Any] | None = None,
    *,
    masks: Tensor | None = None,
    ids: Sequence[str] | None = None,
    bare: bool = False,
) -> list[Check]:
    """Run every check of the explainers' contract, and raise unless all pass.

    explainer: a registered one, a function, or what has ``attribute``: see `lapbench.explain.from_attribute`.
    images: at least two, (B, C, H, W); masks and ids default to made-up ones. bare: call the function itself
    rather than `explain`, so that what it leaves behind is found although `explain` would tidy up after it.
    A plain function is held to the whole contract; what is class-agnostic or a control must be registered so.
    The network holds random weights while their influence is checked, and then its own again.
    Errors: ExplainerError that lists the checks that failed, each with what was found and wanted;
    NotApplicableError where the explainer has nothing to say of this network or these targets.
    """
    checks = run_checks(explainer, model, images, target, parameters, masks=masks, ids=ids, bare=bare)
    faults = [f"  {check.name}: {check.fault}" for check in checks if not check.passed]
    if faults:
        unnamed = type(explainer).__name__
        name = getattr(explainer, "name", getattr(explainer, "__name__", unnamed))
        raise ExplainerError(
            f"explainer {name!r} breaks its contract in {len(faults)} of {len(checks)} checks\n"
            + "\n".join(faults)
        )
    return checks


def run_checks(
    explainer: ExplainerSpec | Attributor | Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    parameters: Mapping[str, Any] | None = None,
    *,
    masks: Tensor | None = None,
    ids: Sequence[str] | None = None,
    bare: bool = False,
) -> list[Check]:
    """Return the outcome of every check, in order; arguments as in `check_explainer`."""
    if len(images) < 2:
        raise ExplainerError(f"the checks need at least two images, found {len(images)}")
    masks = images[:, 0] > images[:, 0].mean() if masks is None else masks
    ids = [f"sample-{number}" for number in range(len(images))] if ids is None else ids
    held = explainer if isinstance(explainer, ExplainerSpec) else as_function(explainer)
    case = Case(held, model, images, target, dict(parameters or {}), masks, tuple(ids), bare)
    outcomes: list[Check] = []
    for name, check in CHECKS.items():
        outcomes.append(Check(name, _fault_of(check, case)))
        if name == "shape" and not outcomes[-1].passed:
            break  # there are no maps to look at
    return outcomes


def _fault_of(check: Callable[["Case"], str | None], case: "Case") -> str:
    """Run one check; an exception is a fault, but for one that says that there is nothing to check."""
    try:
        return check(case) or ""
    except NotApplicableError:
        raise
    except ExplainerError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - a stranger's explainer may raise anything
        return f"it raised {type(error).__name__}: {error}"


@dataclass(frozen=True)
class Case:
    """An explainer with everything it is given; state: what the global generators are seeded with."""

    explainer: ExplainerSpec | Callable[..., Any]
    model: nn.Module
    images: Tensor
    target: Tensor
    parameters: dict[str, Any]
    masks: Tensor
    ids: tuple[str, ...]
    bare: bool
    state: int = 0

    @property
    def spec(self) -> ExplainerSpec | None:
        """What is declared of the explainer; nothing, for a plain function."""
        return self.explainer if isinstance(self.explainer, ExplainerSpec) else None

    @property
    def function(self) -> Callable[..., Any]:
        """The explainer itself."""
        return self.explainer.function if isinstance(self.explainer, ExplainerSpec) else self.explainer

    @cached_property
    def result(self) -> Tensor:
        """The values that the explainer returned, as it returned them."""
        returned: list[Any] = []

        @wraps(self.function)
        def watched(*arguments: Any, **named: Any) -> Any:
            with seeded_generators(self.state):
                returned.append(self.function(*arguments, **named))
            return returned[-1]

        self.call(watched)
        return returned[-1].values if isinstance(returned[-1], Maps) else returned[-1]

    @property
    def maps(self) -> Tensor:
        """The maps (B, h, w), float64, without their graph; 0 where not finite, of which `_finite` speaks."""
        return self.result.detach().double().nan_to_num(0, 0, 0)

    def call(self, function: Callable[..., Any]) -> None:
        """Call a function as the explainer is called."""
        if self.bare:
            truth = {"masks": self.masks, "ids": self.ids}
            needed = {need: value for need, value in truth.items() if self.spec and need in self.spec.needs}
            function(self.model, self.images, self.target, **self.parameters, **needed)
        else:
            explainer = replace(self.spec, function=function) if self.spec else function
            explain(
                explainer, self.model, self.images, self.target, self.parameters,
                masks=self.masks, ids=self.ids,
            )  # fmt: skip

    def of(self, order: list[int]) -> "Case":
        """The same for some of the samples, in another order."""
        return replace(
            self,
            images=self.images[order],
            target=self.target[order],
            masks=self.masks[order],
            ids=tuple(self.ids[number] for number in order),
        )


def _shape(case: Case) -> str | None:
    values: Any = case.result
    if not isinstance(values, Tensor):
        return f"wanted a tensor or Maps, found {type(values).__name__}"
    if values.ndim != 3 or len(values) != len(case.images) or 0 in values.shape:
        return f"wanted maps ({len(case.images)}, h, w), found {tuple(values.shape)}"
    return None


def _dtype(case: Case) -> str | None:
    kind, fine = case.result.dtype, (torch.float32, case.images.dtype)  # a double network may answer in kind
    return None if kind in fine else f"wanted float32, found {str(kind).removeprefix('torch.')}"


def _finite(case: Case) -> str | None:
    broken = int((~torch.isfinite(case.result)).sum())
    return f"{broken} values are not finite" if broken else None


def _without_a_graph(case: Case) -> str | None:
    """A graph keeps every activation of the network in memory; `explain` takes it away."""
    held = case.bare and case.result.requires_grad
    return "the maps require a gradient, and keep their graph alive: return them detached" if held else None


def _repeatable(case: Case) -> str | None:
    again = replace(case, state=1).maps
    return _unlike(case.maps, again, "a second call, with the random generators in another state,")


def _declares_its_randomness(case: Case) -> str | None:
    """A parameter ``seed`` decides every draw; a plain function declares nothing."""
    if case.spec is None:
        return None
    field, randomness = case.spec.parameters.model_fields.get("seed"), case.spec.card.randomness
    if (field is not None) != (randomness == "seeded"):
        found = "no" if field is None else "a"
        return f"its card says randomness={randomness!r}, and it has {found} parameter seed"
    if field is None:
        return None
    seed = 2 if case.parameters.get("seed", field.default) == 1 else 1
    other = replace(case, parameters={**case.parameters, "seed": seed}).maps
    return None if _unlike(case.maps, other, "", tolerance=0) else "another seed gives the same maps"


def _alone_as_in_a_batch(case: Case) -> str | None:
    alone = torch.cat([case.of([number]).maps for number in range(len(case.images))])
    return _unlike(case.maps, alone, "calls with one image each")


def _any_order(case: Case) -> str | None:
    order = list(reversed(range(len(case.images))))
    return _unlike(case.maps, case.of(order).maps[order], "a call in reversed order")


def _any_number_of_threads(case: Case) -> str | None:
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        other = replace(case).maps
    finally:
        torch.set_num_threads(before)
    return _unlike(case.maps, other, "a call with another number of threads")


def _depends_on_target(case: Case) -> str | None:
    classes = _logits(case).shape[1]
    if classes == 1 or (case.spec and case.spec.class_agnostic):
        return None
    before = case.maps
    for step in range(1, classes):
        try:
            other = replace(case, target=(case.target + step) % classes).maps
        except NotApplicableError:
            return None  # it tells the classes apart: it has nothing to say of this one
        if _unlike(before, other, "", tolerance=1e-6):
            return None
    return "the maps are the same for every target, and it is not declared class-agnostic"


def _depends_on_weights(case: Case) -> str | None:
    if case.spec and case.spec.control:
        return None
    before = case.maps
    with _random_weights(case.model):
        if _unlike(before, replace(case).maps, "", tolerance=1e-6):
            return None
    return "the maps are the same for a network with random weights, and it is not declared a control"


def _leaves_all(case: Case) -> str | None:
    """Comes first: what is left once may not show the second time. That a call fails is for others to say."""
    with evaluating(case.model), _traces(case) as found, suppress(Exception):
        case.call(case.function)
    return "; ".join(found) or None


def _leaves_all_in_train_mode(case: Case) -> str | None:
    with evaluating(case.model):  # for its end: every module gets its own mode back
        case.model.train()
        with _traces(case) as found:
            case.call(case.function)
    return "; ".join(found) or None


def _leaves_all_after_an_exception(case: Case) -> str | None:
    """One of its operations fails: an early one, in the network; late ones, on the way back through it."""
    whole, faults = _Failing(), []
    case.call(_within(whole, case.function))
    for part in (0.25, 0.75, 0.95):
        failing = _Failing(at=max(1, int(part * whole.count)))
        # suppressed: the planted exception, wrapped in anything
        with _traces(case) as found, suppress(Exception):
            case.call(_within(failing, case.function))
        faults += [f"{trace} (operation {failing.at} of {whole.count} failed)" for trace in found]
    return "; ".join(faults) or None


CHECKS: dict[str, Callable[[Case], str | None]] = {
    "leaves all as it was": _leaves_all,
    "shape": _shape,
    "dtype": _dtype,
    "finite": _finite,
    "without a graph": _without_a_graph,
    "repeatable": _repeatable,
    "randomness as declared": _declares_its_randomness,
    "alone as in a batch": _alone_as_in_a_batch,
    "any order": _any_order,
    "any number of threads": _any_number_of_threads,
    "depends on target": _depends_on_target,
    "depends on weights": _depends_on_weights,
    "leaves all as it was, in train mode": _leaves_all_in_train_mode,
    "leaves all as it was, after an exception": _leaves_all_after_an_exception,
}
"""Name of each check → what it finds wrong with a case."""


def _unlike(one: Tensor, other: Tensor, what: str, *, tolerance: float = TOLERANCE) -> str | None:
    """Say by how much two maps differ, or None where they agree."""
    if one.shape != other.shape:
        return f"{what} gave maps of shape {tuple(other.shape)}, not {tuple(one.shape)}"
    apart = float((one - other).abs().max())
    largest = float(torch.max(one.abs().max(), other.abs().max()))
    if apart > tolerance * largest:
        return f"{what} gave maps that differ by {apart / largest:.2g} of their maximum"
    return None


def _logits(case: Case) -> Tensor:
    """Run the network on one image in eval mode."""
    with evaluating(case.model) as model, torch.no_grad():
        logits: Tensor = model(case.images[:1])
    return logits


@contextmanager
def _random_weights(model: nn.Module) -> Iterator[None]:
    """Give this very network random weights for a while: an object may know no other."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        model.load_state_dict(randomise(model, seed=1).state_dict())
        yield
    finally:
        model.load_state_dict(own)


class _Failing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations on tensors, those of backward passes too, and lets one of them fail."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count, self.at = 0, at

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if self.count == self.at:
            raise RuntimeError("a planted failure")
        return func(*args, **(kwargs or {}))


def _within(mode: _Failing, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function alone within a mode, not what `explain` does before and after."""

    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        with mode:
            return function(*arguments, **named)

    return wrapped


@contextmanager
def _traces(case: Case) -> Iterator[list[str]]:
    """Compare everything an explainer might leave behind, before and after; the list is filled at the end."""
    found: list[str] = []
    before = _state(case)
    yield found
    after = _state(case)
    found += [f"{name} changed" for name, value in before.items() if not _equal(value, after[name])]


def _state(case: Case) -> dict[str, Any]:
    """Copy what must stay as it is, by the name it has in a fault."""
    modules, parameters = dict(case.model.named_modules()), dict(case.model.named_parameters())
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "the weights": {name: p.detach().clone() for name, p in parameters.items()},
        "the buffers": {name: b.detach().clone() for name, b in case.model.named_buffers()},
        "the modules": {name: (id(m), type(m)) for name, m in modules.items()},
        "train and eval modes": {name: m.training for name, m in modules.items()},
        "attributes of modules": {name: sorted(vars(m)) for name, m in modules.items()},
        "hooks": {name: _hooks(m) for name, m in modules.items()},
        "requires_grad of weights": {name: p.requires_grad for name, p in parameters.items()},
        "gradients of weights": {
            name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()
        },
        "hooks of weights": {name: list(p._backward_hooks or ()) for name, p in parameters.items()},
        "the images": case.images.detach().clone(),
        "requires_grad of the images": case.images.requires_grad,
        "the gradient of the images": None if case.images.grad is None else case.images.grad.clone(),
        "the targets": case.target.clone(),
        "torch's random generator": torch.get_rng_state(),
        "CUDA's random generators": tuple(torch.cuda.get_rng_state_all()) if started else (),
        "NumPy's random generator": np.random.get_state(),  # noqa: NPY002 - the very one that must stay
        "Python's random generator": random.getstate(),
        "whether gradients are enabled": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "the default dtype": torch.get_default_dtype(),
    }


def _hooks(module: nn.Module) -> dict[str, list[int]]:
    tables = {name: table for name, table in vars(module).items() if name.endswith("_hooks")}
    return {name: [id(hook) for hook in table.values()] for name, table in tables.items() if table}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            torch.equal(one.nan_to_num(), other.nan_to_num())
            if one.is_floating_point()
            else torch.equal(one, other)
        )
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one == other)
