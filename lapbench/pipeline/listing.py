"""What a definition may name, as tables of text."""

from lapbench.benchmark import load_benchmark, shipped
from lapbench.data import load_manifest
from lapbench.errors import LapbenchError
from lapbench.registry import architectures, explainers

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
        lines.append((found.name, ", ".join(found.classes), found.licence, where, found.title))
    return ("data", "classes", "licence", "where", "title"), lines


def explainers_known() -> Lines:
    """The registered explainers."""
    lines: list[tuple[str, ...]] = []
    for spec in explainers:
        own = "" if spec.native_threshold is None else f"{spec.native_threshold:g}"
        parameters = ", ".join(f"{n}={f.default}" for n, f in spec.parameters.model_fields.items())
        kind = "control" if spec.control else "needs LAP" if "lap" in spec.needs else "any CNN"
        lines.append(
            (spec.name, spec.title, str(spec.version), kind, own, parameters, spec.paper, spec.origin)
        )
    headings = ("explainer", "row", "version", "network", "own threshold", "parameters", "paper", "from")
    return headings, lines


def models() -> Lines:
    """The registered architectures."""
    lines: list[tuple[str, ...]] = [
        (entry.name, ", ".join(entry.parameters.model_fields), entry.origin) for entry in architectures
    ]
    return ("architecture", "parameters", "from"), lines
