"""Explainers that follow gradients back to the image."""

from torch import Tensor, nn

from lapbench.explain.attribution import Colour, Reduction, flat_like, reduced, relative_miss
from lapbench.explain.maps import Maps
from lapbench.explain.passes import passes_of
from lapbench.registry import Card, explainer

CHAIN_RULE = "lapbench, by torch's derivatives over the batch's one forward pass (equal to Captum's Saliency)"


@explainer(
    "gradient",
    version=1,
    title="Gradient",
    paper="Simonyan, Vedaldi, Zisserman, ICLR workshop 2014",
    signed=True,
    reach="image",
    card=Card(cost="1 forward, 1 backward to the image", computed_by=CHAIN_RULE),
)
def gradient(model: nn.Module, images: Tensor, target: Tensor, *, reduce: Reduction = "max_abs") -> Tensor:
    """How much the target's logit changes when a pixel does: ∂y/∂x.

    The paper's map is the largest absolute value over the channels; ``sum`` and ``mean`` keep the sign.
    """
    return reduced(passes_of(model, images, target).image_gradient(), reduce)


@explainer(
    "input_x_gradient",
    version=1,
    title="Input×Gradient",
    paper="Shrikumar et al., arXiv 1605.01713",
    signed=True,
    reach="image",
    card=Card(cost="1 forward, 1 backward to the image", computed_by=CHAIN_RULE),
)
def input_x_gradient(
    model: nn.Module, images: Tensor, target: Tensor, *, reduce: Reduction = "sum"
) -> Tensor:
    """What a pixel adds to the target's logit, were the network linear: x ∂y/∂x.

    x is the network's (normalised) input: a pixel of the data's mean colour gets 0.
    """
    return reduced(images * passes_of(model, images, target).image_gradient(), reduce)


@explainer(
    "guided_backprop",
    version=2,
    title="Guided Backprop",
    paper="Springenberg et al., ICLR workshop 2015",
    signed=True,
    reach="image",
    card=Card(
        cost="1 forward, 1 backward to the image",
        limits="networks without ReLU, or that torch.fx cannot trace",
        computed_by="lapbench, on the canonical network: Captum's GuidedBackprop misses functional ReLUs and "
        "is the plain gradient then (Inception V3, GoogLeNet)",
    ),
)
def guided_backprop(model: nn.Module, images: Tensor, target: Tensor, *, reduce: Reduction = "sum") -> Tensor:
    """The gradient of the target's logit by the image, where every ReLU lets only positive gradients back.

    The ReLUs of LAP's scoring modules are guided like all others.
    Errors: NotApplicableError for a network without any ReLU, where this is the plain gradient.
    """
    return reduced(passes_of(model, images, target).guided_gradient(), reduce)


@explainer(
    "deeplift",
    version=2,
    title="DeepLIFT",
    paper="Shrikumar et al., ICML 2017, rescale rule",
    signed=True,
    reach="image",
    card=Card(
        cost="1 forward of the images and 1 of the baseline, 1 backward to the image",
        limits="networks that torch.fx cannot trace; an operation without a rule shows in completeness_error",
        computed_by="lapbench: Captum's DeepLift refuses re-used ReLUs (captum #199, #378, #578, #934), errs "
        "where a ReLU meets a max pool (captum #1104) or windows overlap, and takes gates, layer norm and "
        "LAP for linear",
    ),
)
def deeplift(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    baseline: Colour = 0.0,
    reduce: Reduction = "sum",
) -> Maps:
    """What each pixel contributes to the difference of the target's logit from that of a flat image.

    baseline: the flat image, one value or one per channel, in the network's (normalised) input space: 0 is
    the data's mean colour. The rules stand in `lapbench.explain.differences`. Diagnostic
    ``completeness_error``: by how much of |f(x) − f(baseline)| the contributions miss it; an operation
    without a rule shows there.
    """
    flat = flat_like(images[:1], baseline)
    passes = passes_of(model, images, target)
    multipliers, answer = passes.multipliers(flat)
    contributions = multipliers * (images - flat)
    difference = (passes.logits - answer).gather(1, target[:, None])[:, 0]
    return Maps(
        reduced(contributions, reduce), {"completeness_error": relative_miss(contributions, difference)}
    )
