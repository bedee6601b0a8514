"""Explainers that follow gradients, computed by Captum on networks that Captum gets right."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from captum.attr import DeepLift, GuidedBackprop, LayerGradCam
from captum.attr._core import deep_lift as captum_deep_lift
from torch import Tensor, nn

from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain.canonical import ACTIVATIONS, canonical
from lapbench.explain.differences import with_differences
from lapbench.explain.layers import layer_of
from lapbench.explain.maps import Maps
from lapbench.registry import explainer

Reduction: TypeAlias = Literal["sum", "max_abs", "mean"]
"""How the channels of an attribution (B, C, H, W) become one map."""


@explainer("grad_cam", version=1, title="Grad-CAM", paper="Selvaraju et al., ICCV 2017, Eq. 1 and 2")
def grad_cam(
    model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last", relu_attributions: bool = True
) -> Tensor:
    """The layer's channels weighted by the target's mean gradients, ReLU(Σ_k mean(∂y/∂A_k) A_k).

    Returns the map at the layer's own resolution (7×7 at 224 px for ResNet's last stage); ``layer`` as in
    `layer_of`. A LAP's scoring path is part of the network: gradients flow through it.
    """
    module = model.get_submodule(layer_of(model, layer, images))
    with _quiet():
        method = LayerGradCam(model, module)
        attributions: Any = method.attribute(images, target, relu_attributions=relu_attributions)
    if not isinstance(attributions, Tensor) or attributions.ndim != 4:
        raise NotApplicableError(f"layer {layer!r} puts out no single feature map (B, C, h, w)")
    return attributions.squeeze(1)


@explainer(
    "guided_backprop", version=1, title="Guided Backprop", paper="Springenberg et al., 2015", signed=True
)
def guided_backprop(model: nn.Module, images: Tensor, target: Tensor, *, reduce: Reduction = "sum") -> Tensor:
    """The gradient of the target's logit by the image, where every ReLU lets only positive gradients back.

    Computed on the canonical network, so that functional ReLUs count, too (Captum alone would return the
    plain gradient for Inception V3). The ReLUs of LAP's scoring modules are guided like all others.
    Errors: NotApplicableError for a network without any ReLU, where this is the plain gradient.
    """
    return _reduce(_guided_gradient(model, images, target), reduce)


@explainer(
    "guided_grad_cam", version=1, title="Guided Grad-CAM", paper="Selvaraju et al., ICCV 2017", signed=True
)
def guided_grad_cam(
    model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last", reduce: Reduction = "sum"
) -> Tensor:
    """Guided Backprop times Grad-CAM, whose map is up-sampled bilinearly (align_corners False)."""
    cam = grad_cam(model, images, target, layer=layer)
    cam = F.interpolate(cam[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    return _reduce(_guided_gradient(model, images, target) * cam, reduce)


@explainer(
    "deeplift", version=1, title="DeepLIFT", paper="Shrikumar et al., ICML 2017, rescale rule", signed=True
)
def deeplift(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    baseline: float | tuple[float, ...] = 0.0,
    reduce: Reduction = "sum",
) -> Maps:
    """What each pixel contributes to the difference of the target's logit from that of a flat image.

    baseline: the flat image, one value or one per channel, in the network's (normalised) input space: 0 is
    the data's mean colour. Computed on the canonical network with `max_pool_rule` in place of Captum's and
    the exact rules for LAP and for products of features of `lapbench.explain.differences`. Diagnostic
    ``completeness_error``: by how much of |f(x) − f(baseline)| the contributions miss it; an operation
    without a rule, such as layer norm, shows there.
    """
    channels = images.shape[1]
    if isinstance(baseline, tuple) and len(baseline) != channels:
        raise ExplainerError(
            f"baseline needs one value or one per channel ({channels}), found {len(baseline)}"
        )
    colour = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)
    flat = colour.expand_as(images)
    network = with_differences(canonical(model).module)
    with _quiet(), _rules():
        attributions: Tensor = DeepLift(network).attribute(images, flat.clone(), target).detach()
    with torch.no_grad():
        rows = torch.arange(len(images), device=images.device)
        difference = model(images)[rows, target] - model(flat[:1])[0, target]
    missed = (attributions.flatten(1).sum(1) - difference).abs()
    return Maps(
        _reduce(attributions, reduce), {"completeness_error": missed / difference.abs().clamp_min(1e-8)}
    )


def max_pool_rule(
    module: nn.MaxPool2d, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float
) -> Tensor:
    """DeepLIFT's rule for max pooling, where the contributions of overlapping windows add up.

    inputs, outputs: images and references stacked in the batch. Of y − y', the part above max(y, y') − y' is
    given to the winner of the image's window and the rest to the winner of the reference's; a pixel that wins
    several windows receives all its parts. Captum's own rule keeps only the last of them.
    """
    x, reference = inputs.chunk(2)
    y, y_reference = outputs.chunk(2)
    window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    _, winners = F.max_pool2d(inputs, *window, return_indices=True)
    top, multiplier = torch.max(y, y_reference), grad_output.chunk(2)[0]
    shares = torch.cat([multiplier * (top - y_reference), multiplier * (y - top)]).flatten(2)
    received = torch.zeros_like(inputs).flatten(2).scatter_add_(2, winners.flatten(2), shares)
    first, second = received.view_as(inputs).chunk(2)
    difference = torch.cat(2 * [x - reference])
    return torch.where(difference.abs() < eps, grad_input, torch.cat(2 * [first + second]) / difference)


@contextmanager
def _rules() -> Iterator[None]:
    """Give Captum our max-pool rule and the rescale rule for every activation, while DeepLIFT runs."""
    table: dict[Any, Any] = captum_deep_lift.SUPPORTED_NON_LINEAR
    before = dict(table)
    table.update(dict.fromkeys(ACTIVATIONS, captum_deep_lift.nonlinear))
    table[nn.MaxPool2d] = max_pool_rule
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def _guided_gradient(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    network = canonical(model).module
    if not any(isinstance(part, nn.ReLU) for part in network.modules()):
        name = type(model).__name__
        raise NotApplicableError(f"{name} has no ReLU: Guided Backprop would be the plain gradient")
    with _quiet():
        gradient: Tensor = GuidedBackprop(network).attribute(images, target)
    return gradient


def _reduce(attributions: Tensor, reduce: Reduction) -> Tensor:
    """Make one map (B, H, W) of an attribution (B, C, H, W); only ``max_abs`` loses the sign."""
    if reduce == "sum":
        return attributions.sum(1)
    return attributions.abs().amax(1) if reduce == "max_abs" else attributions.mean(1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Captum says on every normal call: that it sets hooks, and that it asks for gradients."""
    with warnings.catch_warnings():
        for message in (
            "Setting backward hooks",
            "Setting forward, backward hooks",
            "Input Tensor .* did not",
        ):
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
