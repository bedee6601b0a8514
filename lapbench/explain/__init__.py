"""Explainers: functions from a network, images and targets to maps, and the door they are called by.

Importing this package registers lapbench's own explainers.
"""

from lapbench.explain import (
    ante_hoc,
    averaged_gradients,
    bla,
    cam,
    controls,
    gradient,
    lrp,
    perturbation,
    relevance_cam,
)
from lapbench.explain.checks import Check, check_explainer, run_checks
from lapbench.explain.foreign import from_attribute
from lapbench.explain.maps import Maps, Request, explain, explain_together
from lapbench.explain.passes import Prepared, passes_of
from lapbench.explain.state import untouched

__all__ = [
    "Check", "Maps", "Prepared", "Request", "ante_hoc", "averaged_gradients", "bla", "cam", "check_explainer",
    "controls", "explain", "explain_together", "from_attribute", "gradient", "lrp", "passes_of",
    "perturbation", "relevance_cam", "run_checks", "untouched",
]  # fmt: skip
