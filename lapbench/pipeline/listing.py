"""What a definition may name, as tables of text."""

from importlib.metadata import entry_points, version
from typing import Any

from lapbench.benchmark import load_benchmark, shipped
from lapbench.data import load_manifest
from lapbench.errors import LapbenchError
from lapbench.registry import ExplainerSpec, Registry, architectures, explainers, readers

REGISTRIES: dict[str, Registry[Any]] = {"explainers": explainers, "models": architectures, "data": readers}
Lines = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings, and the cells of every line."""


def benchmarks() -> Lines:
    """The shipped benchmark definitions."""
    lines: list[tuple[str, ...]] = []
    for path in shipped("benchmarks"):
        try:
            found = load_benchmark(path)
            lines.append((found.name, str(found.version), found.title))
        except LapbenchError as error:
            lines.append((path.stem, "", str(error)))
    return ("benchmark", "version", "title"), lines


def data() -> Lines:
    """The shipped data manifests."""
    lines: list[tuple[str, ...]] = []
    for path in shipped("data_manifests"):
        found = load_manifest(path)
        where = "embedded" if found.embedded else found.url
        count = found.class_list.count if found.class_list else len(found.classes)
        classes = ", ".join(found.classes) if count <= 10 and found.classes else f"{count} classes"
        if found.task == "landmarks":
            classes = f"{count // 2} landmarks"
        elif found.task == "captions":
            classes = f"captions of {count - 1} words"
        lines.append((found.name, classes, found.licence, where, found.title))
    return ("data", "classes", "licence", "where", "title"), lines


_LAYERS = {"lap": "LAP", "lip": "LIP", "bla": "BLA", "antehoc": "ante-hoc maps (reconstruction)"}


def explainers_known() -> Lines:
    """The registered explainers."""
    lines: list[tuple[str, ...]] = []
    for spec in explainers:
        own = "" if spec.native_threshold is None else f"{spec.native_threshold:g}"
        parameters = ", ".join(f"{n}={f.default}" for n, f in spec.parameters.model_fields.items())
        layers = ", ".join(_LAYERS[layer] for layer in sorted(spec.layers))
        kind = "control" if spec.control else f"needs {layers}" if layers else "any CNN"
        lines.append(
            (spec.name, spec.title, str(spec.version), kind, own, parameters, spec.paper, spec.origin)
        )
    headings = ("explainer", "row", "version", "network", "own threshold", "parameters", "paper", "from")
    return headings, lines


def cards() -> list[Lines]:
    """All that is declared of each explainer, one table each."""
    packages = _packages()
    return [
        ((spec.name, spec.title), _card(spec, packages.get(spec.origin, spec.origin))) for spec in explainers
    ]


def _card(spec: ExplainerSpec, package: str) -> list[tuple[str, ...]]:
    kinds = {
        "model": "the network",
        "lap": "LAP layers",
        "lip": "LIP layers",
        "bla": "a BLA layer",
        "antehoc": "a weighting network for ante-hoc maps (reconstruction)",
        "masks": "the truth",
        "ids": "the samples' ids",
    }
    needs = [text for kind, text in kinds.items() if kind in spec.needs]
    parameters = [f"{name}={field.default!r}" for name, field in spec.parameters.model_fields.items()]
    own = "" if spec.native_threshold is None else f"{spec.native_threshold:g} of its own, and "
    card = spec.card
    sign = (
        "positive speaks for the target, negative against it" if spec.signed else "higher is more important"
    )
    return [
        ("measures", spec.measures),
        ("paper", spec.paper or "none named"),
        ("needs", ", ".join(needs) or "nothing but the image's size"),
        ("target", "the same map for every class" if spec.class_agnostic else "a map for each class"),
        ("cost", card.cost),
        ("randomness", "decided by the parameter seed" if card.randomness == "seeded" else card.randomness),
        ("channels", "as its function does it" if spec.reduction == "none" else spec.reduction),
        ("sign", sign),
        ("up-sampling", spec.upsample),
        ("threshold", f"{own}fitted"),
        ("parameters", ", ".join(parameters) or "none"),
        ("limits", card.limits),
        ("computed by", card.computed_by),
        ("version", f"{spec.version}, from {package}"),
    ]  # fmt: skip


def _packages() -> dict[str, str]:
    """Package → its distribution and version, of lapbench and of all that join through entry points."""
    points = [point for registry in REGISTRIES.values() for point in entry_points(group=registry.group)]
    found = {p.module.partition(".")[0]: f"{p.dist.name} {p.dist.version}" for p in points if p.dist}
    return {**found, "lapbench": f"lapbench {version('lapbench')}"}


def broken(kind: str) -> list[str]:
    """What is wrong with the plug-ins of a kind, a sentence each."""
    registry = REGISTRIES.get(kind)
    if registry is None:
        return []
    registry.names()
    return [f"plug-in {name} is broken, and adds nothing: {why}" for name, why in registry.broken.items()]


def models() -> Lines:
    """The registered architectures."""
    lines: list[tuple[str, ...]] = [
        (entry.name, ", ".join(entry.parameters.model_fields), entry.origin) for entry in architectures
    ]
    return ("architecture", "parameters", "from"), lines
