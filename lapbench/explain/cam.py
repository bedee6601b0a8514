"""Class activation maps: the channels of one layer, weighted by what they mean for the target."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.attribution import Reduction, reduced
from lapbench.explain.passes import Passes, passes_of
from lapbench.models.pooling import Pooling
from lapbench.registry import Card, explainer

COST = "1 forward, 1 backward to the layer"


@explainer(
    "grad_cam",
    version=2,
    title="Grad-CAM",
    paper="Selvaraju et al., ICCV 2017, Eq. 1 and 2",
    reach="layer",
    card=Card(
        cost=COST, computed_by="lapbench, from the batch's one forward pass (equal to Captum's LayerGradCam)"
    ),
)
def grad_cam(
    model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last", relu_attributions: bool = True
) -> Tensor:
    """The layer's channels weighted by the target's mean gradients, ReLU(Σ_k mean(∂y/∂A_k) A_k).

    Returns the map at the layer's own resolution (7×7 at 224 px for ResNet's last stage); ``layer`` as in
    `layer_of`. A LAP's scoring path is part of the network: gradients flow through it.
    """
    cam = _grad_cam(passes_of(model, images, target), layer)
    return cam.relu() if relu_attributions else cam


@explainer(
    "grad_cam_pp",
    version=2,
    title="Grad-CAM++",
    paper="Chattopadhay et al., WACV 2018, Eq. 19",
    reach="layer",
    card=Card(cost=COST, computed_by="lapbench: Captum has none"),
)
def grad_cam_pp(model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last") -> Tensor:
    """Grad-CAM whose weights count positive gradients only, each by its share in its channel.

    ReLU(Σ_k w_k A_k), w_k = Σ_ij α ReLU(g), α = g² / (2 g² + g³ Σ_ab A_k,ab), for the score exp(y), whose
    higher derivatives are powers of g = ∂y/∂A_k,ij; the factor exp(y), common to a whole map, is left out.
    """
    passes = passes_of(model, images, target)
    activation, g = passes.activation(layer), passes.gradient(layer)
    denominator = 2 + g * activation.sum((2, 3), keepdim=True)  # both divided by g²
    alpha = torch.where(denominator == 0, 0, 1 / denominator)
    weights = (alpha * g.relu()).sum((2, 3), keepdim=True)
    return (weights * activation).sum(1).relu()


@explainer(
    "layer_cam",
    version=1,
    title="LayerCAM",
    paper="Jiang et al., IEEE TIP 2021, Eq. 5 to 7",
    reach="layer",
    card=Card(cost=COST, computed_by="lapbench: Captum has none"),
)
def layer_cam(model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last") -> Tensor:
    """The layer's channels weighted pixel by pixel by positive gradients, ReLU(Σ_k ReLU(∂y/∂A_k) A_k).

    Meant for shallow layers as well, where one weight for a whole channel says little.
    """
    passes = passes_of(model, images, target)
    return (passes.gradient(layer).relu() * passes.activation(layer)).sum(1).relu()


@explainer(
    "cam",
    version=1,
    title="CAM",
    paper="Zhou et al., CVPR 2016, Eq. 1 and 2",
    reach="layer",
    signed=True,
    card=Card(
        cost="1 forward",
        limits="networks other than features, global average (or LAP, LIP, BLA) pooling and one linear layer",
        computed_by="lapbench: Captum has none",
    ),
)
def cam(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The last stage's channels weighted by the classifier's weights for the target, Σ_k w_k A_k.

    Its mean over the map (with LAP, LIP or BLA: by its weights) and the bias make the target's logit; that
    is checked, so that a network of another build is refused. Errors: NotApplicableError where they do not.
    """
    passes = passes_of(model, images, target)
    activation, name = passes.activation("last"), type(model).__name__
    classifier = [part for part in model.modules() if isinstance(part, nn.Linear)][-1:]
    if not classifier or classifier[0].in_features != activation.shape[1]:
        raise NotApplicableError(f"{name} has no linear layer on its last feature map: CAM needs one")
    weight, bias = classifier[0].weight[target], classifier[0].bias
    parts = weight[:, :, None, None] * activation
    pooled = (parts * _pooling_weights(model, activation)).sum((1, 2, 3))
    pooled = pooled + (0 if bias is None else bias[target])
    logit = passes.logits.gather(1, target[:, None])[:, 0]
    if not torch.allclose(pooled, logit, rtol=1e-3, atol=1e-4 * float(passes.logits.abs().max())):
        raise NotApplicableError(
            f"{name} does more than average its last feature map before its linear layer: "
            "CAM has no meaning for it (Grad-CAM has)"
        )
    return parts.sum(1)


def _pooling_weights(model: nn.Module, activation: Tensor) -> Tensor:
    """What each pixel of the last feature map counts in the pooled features, (B or 1, K or 1, h, w)."""
    layers = [part for part in model.modules() if isinstance(part, Pooling) and part.is_global]
    size = activation.shape[-2:]
    if layers and _channels(layers[-1]) == activation.shape[1]:
        weights = layers[-1].window_weights(activation).flatten(2).transpose(1, 2)  # (B, K or 1, h·w)
        return weights.reshape(len(activation), -1, *size)
    return activation.new_full((1, 1, *size), 1 / size.numel())


def _channels(layer: Pooling) -> int:
    """The channels that a pooling scores."""
    return next(part.in_channels for part in layer.modules() if isinstance(part, nn.Conv2d))


@explainer(
    "guided_grad_cam",
    version=2,
    title="Guided Grad-CAM",
    paper="Selvaraju et al., ICCV 2017, section 3.2",
    signed=True,
    reach="image",
    card=Card(
        cost="nothing beside Guided Backprop and Grad-CAM",
        limits="as Guided Backprop",
        computed_by="lapbench: Captum's GuidedGradCam misses functional ReLUs, and up-samples by nearest "
        "neighbours unless told otherwise",
    ),
)
def guided_grad_cam(
    model: nn.Module, images: Tensor, target: Tensor, *, layer: str = "last", reduce: Reduction = "sum"
) -> Tensor:
    """Guided Backprop times Grad-CAM, whose map is up-sampled bilinearly (align_corners False)."""
    passes = passes_of(model, images, target)
    weights = _grad_cam(passes, layer).relu()
    weights = F.interpolate(weights[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)
    return reduced(passes.guided_gradient(), reduce) * weights[:, 0]


def _grad_cam(passes: Passes, layer: str) -> Tensor:
    weights = passes.gradient(layer).mean((2, 3), keepdim=True)
    return (weights * passes.activation(layer)).sum(1)
