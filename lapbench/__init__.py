"""Measure how well importance maps of CNNs point at what is really there.

The main job, the LAP layer, and what a new explainer needs. Names are imported when they are first used, so
that `import lapbench` costs nothing. The stages of the job alone are in `lapbench.pipeline`: a name like
`lapbench.explain` is the room.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapbench import interop
    from lapbench.benchmark import Benchmark, Concept, Plug, load_benchmark
    from lapbench.explain import Maps, check_explainer, explain_together, from_attribute
    from lapbench.models import AdaptiveLAP2d, LAP2d, plug
    from lapbench.pipeline import Job, Workspace, run
    from lapbench.registry import architecture, explainer, reader
    from lapbench.report.export import load_results

_HOMES = {
    "benchmark": ("Benchmark", "Concept", "Plug", "load_benchmark"),
    "explain": ("Maps", "check_explainer", "explain_together", "from_attribute"),
    "models": ("AdaptiveLAP2d", "LAP2d", "plug"),
    "pipeline": ("Job", "Workspace", "run"),
    "registry": ("architecture", "explainer", "reader"),
    "report.export": ("load_results",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__version__ = version("lapbench")


def __getattr__(name: str) -> Any:
    if name == "interop":
        return importlib.import_module("lapbench.interop")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOME, "__version__", "interop"])


__all__ = [
    "AdaptiveLAP2d", "Benchmark", "Concept", "Job", "LAP2d", "Maps", "Plug", "Workspace", "architecture",
    "check_explainer", "explain_together", "explainer", "from_attribute", "interop", "load_benchmark",
    "load_results", "plug", "reader", "run",
]  # fmt: skip
