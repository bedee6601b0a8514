"""Explainers of other libraries: objects with Captum's ``attribute(inputs, target=...)``, as functions."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from lapbench.errors import ExplainerError
from lapbench.explain.attribution import Reduction, reduced


class Attributor(Protocol):
    """Captum's interface, which other libraries have, too."""

    def attribute(self, inputs: Tensor, *, target: Tensor) -> Any:
        """Return attributions (B, C, H, W), (B, 1, h, w) or (B, h, w) of images (B, C, H, W)."""


def from_attribute(
    source: Attributor | Callable[[nn.Module], Attributor],
    *,
    reduce: Reduction = "sum",
    options: Mapping[str, Any] | None = None,
) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Turn an object with ``attribute(inputs, target=...)`` into an explainer, which is a plain function.

    source: what makes the object for a network, such as ``Saliency`` or ``lambda model: LayerGradCam(model,
    model.layer4)``; or the object itself, which then explains no network but the one it was made for. reduce:
    the rule by which the second of four dimensions is removed. options: further arguments of ``attribute``.
    Errors, when called: ExplainerError for an object that was made for another network.
    """
    bound = not isinstance(source, type) and hasattr(source, "attribute")

    def attributed(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        method: Any = source if bound else source(model)  # type: ignore[operator]
        known = getattr(method, "forward_func", model)
        if isinstance(known, nn.Module) and known is not model:
            raise ExplainerError(
                f"this {type(method).__name__} was made for another network, and would explain that one: "
                "give what makes it, from_attribute(lambda model: ...)"
            )
        inputs = images.detach().clone().requires_grad_()  # Captum warns where it has to ask for gradients
        attributions = method.attribute(inputs, target=target, **(options or {}))
        if not isinstance(attributions, Tensor):
            raise ExplainerError(f"attribute() must return a tensor, found {type(attributions).__name__}")
        return (reduced(attributions, reduce) if attributions.ndim == 4 else attributions).detach()

    named = type(source) if bound else source
    attributed.__module__, attributed.__doc__ = named.__module__, named.__doc__
    attributed.__name__ = attributed.__qualname__ = getattr(named, "__qualname__", type(named).__name__)
    return attributed


def as_function(explainer: Attributor | Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as it is, and whatever has ``attribute``, an object or its class, as a function."""
    if hasattr(explainer, "attribute"):
        return from_attribute(explainer)
    if not callable(explainer):
        raise ExplainerError(
            "an explainer is a function (model, images, target), or has attribute(inputs, target=...); "
            f"found {type(explainer).__name__}"
        )
    return explainer
