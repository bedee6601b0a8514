"""Explainers that average gradients over many points: along a line, or in a cloud around the image.

At such points the batch's one forward pass is of no use: these run the network itself, traceable or not.
"""

from typing import Annotated, Literal

import torch
from captum.attr import IntegratedGradients
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from lapbench.explain.attribution import Colour, Reduction, completeness_error, flat_like, reduced
from lapbench.explain.maps import Maps
from lapbench.registry import Card, explainer

AT_ONCE = 32
"""Points whose gradients are computed in one pass: what bounds the memory, however large the batch."""


@explainer(
    "integrated_gradients",
    version=1,
    title="Integrated Gradients",
    paper="Sundararajan et al., ICML 2017, Eq. 1 and 3",
    signed=True,
    card=Card(
        cost="`steps` (50) forwards and backwards to the image, 2 forwards",
        limits="pixels of the baseline's own colour, which get 0; too few steps show in completeness_error",
        computed_by="Captum's IntegratedGradients, on the network itself; its riemann_trapezoid is left out: "
        "its weights add up to 1 − 1/steps",
    ),
)
def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    baseline: Colour = 0.0,
    steps: Annotated[int, Field(ge=2)] = 50,
    method: Literal["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"] = "gausslegendre",
    reduce: Reduction = "sum",
) -> Maps:
    """The difference to a flat image times the mean gradient of the target's logit on the way from there.

    baseline: the flat image, as in `Colour`. steps: points on the straight line from it to the image; method:
    where they lie and how they weigh; the paper's sum is ``riemann_right``. Diagnostic
    ``completeness_error``: by how much of |f(x) − f(baseline)| the attributions miss it; more steps, less.
    """
    flat = flat_like(images, baseline)
    integrate = IntegratedGradients(model).attribute
    values, errors = [], []
    for block, wanted in zip(torch.split(images, AT_ONCE), torch.split(target, AT_ONCE), strict=True):
        start = flat[: len(block)]
        attributions: Tensor = integrate(
            block, start, wanted, n_steps=steps, method=method, internal_batch_size=AT_ONCE
        ).detach()
        values.append(reduced(attributions, reduce))
        errors.append(completeness_error(model, attributions, block, start, wanted))
    return Maps(torch.cat(values), {"completeness_error": torch.cat(errors)})


@explainer(
    "smoothgrad",
    version=1,
    title="SmoothGrad",
    paper="Smilkov et al., ICML workshop 2017, Section 3",
    signed=True,
    card=Card(
        cost="`samples` (25) forwards and backwards to the image",
        randomness="seeded",
        limits="an image of one colour, whose noise is 0: it gets its plain gradient",
        computed_by="lapbench, on the network itself: Captum's NoiseTunnel draws from the global generator, "
        "and an image's noise depends on the batch it is in",
    ),
)
def smoothgrad(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    samples: PositiveInt = 25,
    noise: Annotated[float, Field(ge=0, le=1)] = 0.15,
    magnitude: Literal["signed", "absolute", "squared"] = "signed",
    seed: int = 0,
    reduce: Reduction = "sum",
) -> Tensor:
    """The gradient of the target's logit, averaged over copies of the image with Gaussian noise.

    noise: its standard deviation, as a fraction of the image's range max − min over all pixels and channels.
    The noise is decided by the seed alone: it is the same for every image but for that range. magnitude: what
    is averaged: the gradients, their absolute values, or their squares (SmoothGrad-squared, Hooker et al.,
    NeurIPS 2019).
    """
    spread = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    means = []
    for block, width, wanted in zip(
        *(torch.split(x, AT_ONCE) for x in (images, spread, target)), strict=True
    ):
        generator = torch.Generator().manual_seed(seed)  # anew: every image is given the same noise
        total = torch.zeros_like(block)
        for numbers in torch.split(torch.arange(samples), AT_ONCE // len(block)):
            # one by one: what a generator draws at once depends on how much it draws
            drawn = [torch.randn(images.shape[1:], generator=generator) for _ in numbers]
            points = block[:, None] + width[:, None] * torch.stack(drawn).to(images)
            gradients = _gradients(model, points, wanted)
            total += _magnitude(gradients, magnitude).sum(1)
        means.append(total / samples)
    return reduced(torch.cat(means), reduce)


def _gradients(model: nn.Module, points: Tensor, target: Tensor) -> Tensor:
    """Return the gradients (B, n, C, H, W) of the target's logit at n points for each image."""
    flat = points.flatten(0, 1).requires_grad_()
    wanted = target.repeat_interleave(points.shape[1])[:, None]
    (gradients,) = torch.autograd.grad(model(flat).gather(1, wanted).sum(), flat)
    return gradients.view_as(points)


def _magnitude(gradients: Tensor, magnitude: Literal["signed", "absolute", "squared"]) -> Tensor:
    if magnitude == "signed":
        return gradients
    return gradients.abs() if magnitude == "absolute" else gradients.square()
