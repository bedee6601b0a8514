"""Explainers: functions from a network, images and targets to maps, and the door they are called by.

Importing this package registers lapbench's own explainers.
"""

from lapbench.explain import ante_hoc, averaged_gradients, controls, gradient, perturbation, relevance_cam
from lapbench.explain.checks import Check, check_explainer, run_checks
from lapbench.explain.foreign import from_attribute
from lapbench.explain.maps import Maps, explain
from lapbench.explain.state import untouched

__all__ = [
    "Check", "Maps", "ante_hoc", "averaged_gradients", "check_explainer", "controls", "explain",
    "from_attribute", "gradient", "perturbation", "relevance_cam", "run_checks", "untouched",
]  # fmt: skip
