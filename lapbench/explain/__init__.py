"""Explainers: functions from a network, images and targets to maps, and the door they are called by.

Importing this package registers lapbench's own explainers.
"""

from lapbench.explain import controls, gradient
from lapbench.explain.maps import Maps, explain
from lapbench.explain.state import untouched

__all__ = ["Maps", "controls", "explain", "gradient", "untouched"]
