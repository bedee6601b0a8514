"""wsolevaluation's evaluator, from a checkout of github.com/clovaai/wsolevaluation."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np


def foreign_evaluation(checkout: Path) -> Any:
    """Import the evaluator of a checkout.

    NumPy's removed aliases come back for it, and its command line's Munch, which may be missing, is a
    dictionary with attributes. Errors: SystemExit for another folder.
    """
    if not (checkout / "evaluation.py").is_file():
        raise SystemExit(f"{checkout}: no checkout of wsolevaluation, it has no evaluation.py")
    for alias in (float, int):
        setattr(np, alias.__name__, alias)
    munch = types.ModuleType("munch")
    attributes = {"__setattr__": dict.__setitem__, "__getattr__": dict.__getitem__}
    munch.Munch = type("Munch", (dict,), attributes)  # type: ignore[attr-defined]
    sys.modules.setdefault("munch", munch)
    sys.path.insert(0, str(checkout))
    import evaluation  # type: ignore[import-not-found]

    return evaluation
