"""The other libraries, imported when they are needed, and the explainers made of them."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

from lapbench.errors import MissingLibraryError

EXTRA = "pip install 'lapbench[interop]'"

Explainer: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images (B, C, H, W), target (B,)) → maps (B, h, w)."""


def library(module: str, name: str) -> ModuleType:
    """Import a module of a library. Errors: MissingLibraryError that says why not, and what brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibraryError(
            f"the bridge to {name} needs {name}, which cannot be imported ({error}): {EXTRA}"
        ) from error


def named(explainer: Explainer, maker: Callable[..., Any], what: str) -> Explainer:
    """Give an explainer the name of what it is made of, for messages, and a sentence that says what it is."""
    name = getattr(getattr(maker, "func", maker), "__name__", type(maker).__name__)
    explainer.__name__ = explainer.__qualname__ = name
    explainer.__doc__ = f"{name} {what}."
    return explainer
