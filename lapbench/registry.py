"""Named, versioned functions: explainers, architectures, readers; third parties join through entry points."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from pydantic import SerializerFunctionWrapHandler, ValidationError, create_model, model_serializer

from lapbench.errors import UnknownNameError, suggest
from lapbench.toml import Table

Layer = Literal["lap", "lip", "bla", "antehoc"]
"""A layer that explains its network."""
Need = Literal["model", Layer, "masks", "ids"]
Reach = Literal["output", "layer", "image"]
YOUNGER = "younger than some weights and maps"
"""Marks a parameter (Annotated) that joined later: with its default, what was made before keeps its name."""


class Parameters(Table):
    """The keyword-only arguments of a registered function."""

    @model_serializer(mode="wrap")
    def _without_what_is_younger(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {n for n, f in fields.items() if YOUNGER in f.metadata and getattr(self, n) == f.default}
        return {name: value for name, value in write(self).items() if name not in unused}


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """The name it is asked for by."""

    @property
    def function(self) -> Callable[..., Any]:
        """What it names."""


E = TypeVar("E", bound=Named)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Card:
    """What one should know of an explainer before one trusts it, as sentences; `lapbench ls explainers -v`.

    What it measures is the first sentence of its docstring. cost: passes through the network for one image.
    randomness: ``none``, or ``seeded`` where a parameter ``seed`` decides every draw. limits: networks and
    targets it has nothing to say of. computed_by: the library that computes it, or why lapbench does.
    """

    cost: str = "not stated"
    randomness: Literal["none", "seeded"] = "none"
    limits: str = "none stated"
    computed_by: str = "its author"


@dataclass(frozen=True)
class ExplainerSpec:
    """An explainer and everything about it that decides a number.

    function: ``(model, images (B, C, H, W), target (B,), **parameters) -> maps (B, h, w)`` or
    `lapbench.explain.Maps`; parameters are its keyword-only arguments.
    version: raised whenever a change may change a map. needs: ``model`` (weights matter), ``lap``, ``lip``,
    ``bla``, ``antehoc`` (a network with such layers), ``masks`` (the truth, for the oracle), ``ids`` (sample
    ids, for seeded controls); ``masks`` and ``ids`` are passed as keyword arguments of that name.
    native_threshold: where the map's own scale says "important" (0.5 for probabilities), or None. upsample:
    how a map gets the image's size.
    """

    name: str
    version: int
    function: Callable[..., Any]
    title: str
    paper: str
    needs: frozenset[Need]
    native_threshold: float | None
    upsample: Literal["bilinear", "nearest"]
    signed: bool
    class_agnostic: bool
    control: bool
    reach: Reach
    card: Card
    parameters: type[Table]
    origin: str = "lapbench"

    @property
    def explains_networks(self) -> bool:
        """Whether its maps are of a network at all."""
        return bool(self.layers or "model" in self.needs)

    @property
    def layers(self) -> frozenset[str]:
        """The layers that the network must carry for it, as `lapbench.benchmark.Model.carries` names them."""
        return self.needs & set(get_args(Layer))

    @property
    def measures(self) -> str:
        """The first sentence of its docstring."""
        return " ".join((self.function.__doc__ or "not stated").partition("\n\n")[0].split())

    @property
    def reduction(self) -> str:
        """How channels become one map: its parameter ``reduce``, or nothing to reduce."""
        field = self.parameters.model_fields.get("reduce")
        return "none" if field is None else str(field.default)


@dataclass(frozen=True)
class Entry:
    """A named function with a version: an architecture or a data reader."""

    name: str
    version: int
    function: Callable[..., Any]
    parameters: type[Table]
    origin: str = "lapbench"


@dataclass
class Registry(Generic[E]):
    """Names → entries of one kind, filled on first use by lapbench's own module and by entry points."""

    kind: str
    home: str
    group: str
    broken: dict[str, str] = field(default_factory=dict)
    _entries: dict[str, E] = field(default_factory=dict)
    _loaded: bool = False

    def add(self, entry: E) -> None:
        """Register an entry; a name is taken once, but a function may be defined again, as notebooks do."""
        if _origin(entry.function) != "lapbench":
            importlib.import_module(self.home)  # whose names come first, whichever module is imported first
        known = self._entries.get(entry.name)
        if known is not None and _place(known.function) != _place(entry.function):
            raise ValueError(f"{self.kind} {entry.name!r} is registered twice")
        self._entries[entry.name] = entry

    def get(self, name: str) -> E:
        """Return the entry of that name. Errors: UnknownNameError with the nearest right name."""
        self._load()
        if name not in self._entries:
            raise UnknownNameError(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, in the order of registration."""
        self._load()
        return list(self._entries)

    def __iter__(self) -> Iterator[E]:
        self._load()
        return iter(list(self._entries.values()))

    def _load(self) -> None:
        """Import what registers entries; a broken plug-in adds nothing but a note in `broken`."""
        if self._loaded:
            return
        importlib.import_module(self.home)
        self._loaded = True
        for point in entry_points(group=self.group):
            try:
                with _whole_or_not_at_all():
                    point.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import may raise anything
                self.broken[point.name] = f"{point.value}: {type(error).__name__}: {error}"


explainers: Registry[ExplainerSpec] = Registry("explainer", "lapbench.explain", "lapbench.explainers")
architectures: Registry[Entry] = Registry("architecture", "lapbench.models.zoo", "lapbench.models")
readers: Registry[Entry] = Registry("reader", "lapbench.data.readers", "lapbench.readers")


def explainer(
    name: str,
    *,
    version: int,
    title: str,
    paper: str = "",
    needs: tuple[Need, ...] = ("model",),
    native_threshold: float | None = None,
    upsample: Literal["bilinear", "nearest"] = "bilinear",
    signed: bool = False,
    class_agnostic: bool = False,
    control: bool = False,
    reach: Reach = "output",
    card: Card = Card(),
) -> Callable[[F], F]:
    """Register the decorated function as an explainer; see `ExplainerSpec` for the words."""

    def register(function: F) -> F:
        explainers.add(
            ExplainerSpec(
                name, version, function, title, paper, frozenset(needs), native_threshold, upsample,
                signed, class_agnostic, control, reach, card, _parameters(name, function), _origin(function),
            )
        )  # fmt: skip
        return function

    return register


def architecture(name: str, *, version: int = 1) -> Callable[[F], F]:
    """Register ``(num_classes, in_channels, **parameters) -> nn.Module`` as an architecture."""

    def register(function: F) -> F:
        architectures.add(Entry(name, version, function, _parameters(name, function), _origin(function)))
        return function

    return register


def reader(name: str, *, version: int = 1) -> Callable[[F], F]:
    """Register ``(root, **parameters) -> list[lapbench.data.Record]`` as a data reader."""

    def register(function: F) -> F:
        readers.add(Entry(name, version, function, _parameters(name, function), _origin(function)))
        return function

    return register


def check_parameters(kind: str, name: str, table: type[Table], given: dict[str, Any]) -> None:
    """Raise ValueError with every fault of the parameters given to an explainer, architecture or reader."""
    try:
        table.model_validate(given)
    except ValidationError as error:
        faults = []
        for item in error.errors():
            key = str(item["loc"][0])
            if item["type"] == "extra_forbidden":
                faults.append(f"{kind} {name!r} has no parameter {key!r}{suggest(key, table.model_fields)}")
            elif item["type"] == "missing":
                faults.append(f"{kind} {name!r} needs the parameter {key!r}")
            else:
                faults.append(
                    f"parameter {key!r} of {kind} {name!r}: {item['msg']} (found {item['input']!r})"
                )
        raise ValueError("; ".join(faults)) from None


def _parameters(name: str, function: Callable[..., Any]) -> type[Table]:
    """Turn the keyword-only arguments of a function into a validated table of parameters."""
    fields: dict[str, Any] = {
        p.name: (
            Any if p.annotation is p.empty else p.annotation,
            ... if p.default is p.empty else p.default,
        )
        for p in inspect.signature(function, eval_str=True).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("masks", "ids")
    }
    return create_model(f"{name}_parameters", __base__=Parameters, **fields)


@contextmanager
def _whole_or_not_at_all() -> Iterator[None]:
    """Take back what a plug-in registered, of any kind, where it fails in the middle."""
    registries: tuple[Registry[Any], ...] = (explainers, architectures, readers)
    before = [set(registry._entries) for registry in registries]
    try:
        yield
    except (Exception, SystemExit):
        for registry, known in zip(registries, before, strict=True):
            for name, entry in list(registry._entries.items()):
                if (
                    name not in known and _origin(entry.function) != "lapbench"
                ):  # ours it may have brought along
                    del registry._entries[name]
        raise


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    """Where a function is defined: one that is defined there again takes its place."""
    return function.__module__, getattr(function, "__qualname__", repr(function))


def _origin(function: Callable[..., Any]) -> str:
    return function.__module__.partition(".")[0]
