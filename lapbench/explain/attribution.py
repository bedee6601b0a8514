"""Attributions to pixels: the flat image they compare with, what they miss, and one map of many channels."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lapbench.errors import ExplainerError

Reduction: TypeAlias = Literal["sum", "max_abs", "mean"]
"""How the channels of an attribution (B, C, H, W) become one map."""
Colour: TypeAlias = float | tuple[float, ...]
"""A flat image: one value or one per channel, in the network's (normalised) input space, 0 being the mean."""


def reduced(attributions: Tensor, reduce: Reduction) -> Tensor:
    """Make one map (B, H, W) of an attribution (B, C, H, W); only ``max_abs`` loses the sign."""
    if reduce == "sum":
        return attributions.sum(1)
    return attributions.abs().amax(1) if reduce == "max_abs" else attributions.mean(1)


def flat_like(images: Tensor, colour: Colour) -> Tensor:
    """Return images of that colour, of the shape of ``images``; they share their memory."""
    channels = images.shape[1]
    if isinstance(colour, tuple) and len(colour) != channels:
        raise ExplainerError(f"baseline needs one value or one per channel ({channels}), found {len(colour)}")
    value = torch.as_tensor(colour, dtype=images.dtype, device=images.device)
    return value.reshape(-1, 1, 1).expand_as(images)


@torch.no_grad()
def completeness_error(
    model: nn.Module, attributions: Tensor, images: Tensor, flat: Tensor, target: Tensor
) -> Tensor:
    """By how much of |f(x) − f(flat)| attributions (B, C, H, W) miss it, (B,); f is the target's logit."""
    rows = torch.arange(len(images), device=images.device)
    difference: Tensor = model(images)[rows, target] - model(flat[:1])[0, target]
    return relative_miss(attributions, difference)


def relative_miss(attributions: Tensor, difference: Tensor) -> Tensor:
    """By how much of |difference| (B,) the sums of attributions (B, C, H, W) miss it, (B,)."""
    missed = (attributions.flatten(1).sum(1) - difference).abs()
    return missed / difference.abs().clamp_min(1e-8)
