"""Class activation maps: held to loops straight from the papers, to pytorch-grad-cam, and to each other."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from explain.networks import images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import explain
from lapbench.explain.layers import layer_of
from lapbench.models.lap import AdaptiveLAP2d
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])


def maps(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, target, parameters).values


def layer_and_gradient(model: nn.Module, layer: str, image: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """What a layer puts out (K, h, w) for one image, and the gradient of one logit by it, by torch alone."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(image[None].clone().requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, label], kept[-1])
    return kept[-1][0].detach(), gradient[0]


def by_loops(
    method: Callable[[Tensor, Tensor], Tensor], model: nn.Module, batch: Tensor, layer: str = "layer4"
) -> Tensor:
    """One image at a time."""
    found = [
        method(*layer_and_gradient(model, layer, image, int(label)))
        for image, label in zip(batch, TARGET, strict=True)
    ]
    return torch.stack(found)


def grad_cam_by_loops(activation: Tensor, gradient: Tensor) -> Tensor:
    """Selvaraju et al., Eq. 1 and 2."""
    total = torch.zeros_like(activation[0])
    for a, g in zip(activation, gradient, strict=True):
        total += sum(map(float, g.flatten())) / g.numel() * a
    return total.clamp_min(0)


def grad_cam_pp_by_loops(activation: Tensor, gradient: Tensor) -> Tensor:
    """Chattopadhay et al., Eq. 5, 6 and 19, and ReLU; pixel by pixel."""
    total = torch.zeros_like(activation[0])
    for a, g in zip(activation, gradient, strict=True):
        weight = 0.0
        for g_ij in map(float, g.flatten()):
            denominator = 2 * g_ij**2 + float(a.sum()) * g_ij**3
            alpha = g_ij**2 / denominator if denominator != 0 else 0.0
            weight += alpha * max(g_ij, 0.0)
        total += weight * a
    return total.clamp_min(0)


def layer_cam_by_loops(activation: Tensor, gradient: Tensor) -> Tensor:
    """Jiang et al., Eq. 5 to 7."""
    total = torch.zeros_like(activation[0])
    for a, g in zip(activation, gradient, strict=True):
        total += g.clamp_min(0) * a
    return total.clamp_min(0)


LOOPS = {"grad_cam": grad_cam_by_loops, "grad_cam_pp": grad_cam_pp_by_loops, "layer_cam": layer_cam_by_loops}
FOREIGN = {"grad_cam": GradCAM, "grad_cam_pp": GradCAMPlusPlus, "layer_cam": LayerCAM}
MODELS = {
    "plain": small_resnet,
    "plugged": lambda: plugged(small_resnet()),
    "plugged after the activation": lambda: plugged(small_resnet(), lap_position="post_act", sites="all"),
}


# --- the formulas


@pytest.mark.parametrize("layer", ["layer4", "layer2", "conv1"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", LOOPS)
def test_maps_are_what_the_papers_say(name: str, kind: str, layer: str) -> None:
    """Gradients flow through LAP's scoring modules, too; `conv1` is not behind a ReLU."""
    model, batch = MODELS[kind]().double(), images().double()
    found = maps(name, model, batch, layer=layer).double()
    expected = by_loops(LOOPS[name], model, batch, layer)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))


def test_grad_cam_of_captums_toy_network() -> None:
    """The numbers that Captum's own tests expect."""
    model, image, target = (
        BasicModel_ConvNet_One_Conv(),
        torch.arange(16.0).view(1, 1, 4, 4),
        torch.tensor([0]),
    )
    convolution = maps("grad_cam", model, image, target, layer="conv1", relu_attributions=False)
    torch.testing.assert_close(convolution, torch.tensor([[[11.25, 13.5], [20.25, 22.5]]]))
    rectified = maps("grad_cam", model, image, target, layer="relu1")
    torch.testing.assert_close(rectified, torch.tensor([[[0.0, 4.0], [28.0, 32.5]]]))


@pytest.mark.parametrize("layer", ["layer4", "layer1"])
@pytest.mark.parametrize("kind", ["plain", "plugged"])
def test_grad_cam_is_captums(kind: str, layer: str) -> None:
    model = MODELS[kind]()
    theirs = LayerGradCam(model, model.get_submodule(layer)).attribute(images(), TARGET)[:, 0].detach()
    torch.testing.assert_close(
        maps("grad_cam", model, images(), layer=layer, relu_attributions=False), theirs
    )


def steep(model: nn.Module) -> nn.Module:
    """With gradients so large that pytorch-grad-cam's ε = 1e-6 in Grad-CAM++'s denominator does not count."""
    with torch.no_grad():
        model.fc.weight.mul_(1e4)
    return model


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
@pytest.mark.parametrize("name", FOREIGN)
def test_maps_are_pytorch_grad_cams(name: str, layer: str) -> None:
    """After its steps: bilinear up-sampling of what it has stretched to [0, 1] (its OpenCV: half pixels)."""
    model = steep(small_resnet())
    ours = maps(name, model, images(side=64), layer=layer)
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    ours = F.interpolate(((ours - low) / (high - low))[:, None], size=(64, 80), mode="bilinear")[:, 0]
    foreign = copy.deepcopy(model)  # it changes the model
    with FOREIGN[name](model=foreign, target_layers=[foreign.get_submodule(layer)]) as method:
        theirs = method(images(side=64), [ClassifierOutputTarget(int(t)) for t in TARGET])
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    np.testing.assert_allclose((ours - low) / (high - low), theirs, atol=2e-5)


def test_grad_cam_pp_of_small_gradients_is_not_pytorch_grad_cams() -> None:
    """There, ε outweighs 2 g² + g³ Σ A, and Grad-CAM++ becomes Σ g³ A: the paper has no ε."""
    model = small_resnet()
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
    ours = maps("grad_cam_pp", model, images())
    loops = by_loops(grad_cam_pp_by_loops, copy.deepcopy(model).double(), images().double()).float()
    torch.testing.assert_close(ours, loops, rtol=1e-4, atol=1e-5 * float(loops.max()))
    foreign = copy.deepcopy(model)
    with GradCAMPlusPlus(model=foreign, target_layers=[foreign.layer4]) as method:
        theirs = method.forward(images(), [ClassifierOutputTarget(int(t)) for t in TARGET])
    stretched = F.interpolate((ours / ours.amax((1, 2), keepdim=True))[:, None], size=theirs.shape[1:])[:, 0]
    assert np.abs(stretched.numpy() - theirs).max() > 0.05


# --- layers


def test_the_last_stage_has_the_name_that_papers_use() -> None:
    inception = network("inception_v3")
    assert layer_of(inception, "last", images(1, 107)) == "Mixed_7c"
    assert layer_of(plugged(inception), "last", images(1, 107)) == "Mixed_7c"
    assert layer_of(small_resnet(), "last", images()) == "layer4"
    assert layer_of(plugged(small_resnet()), "last", images()) == "layer4"
    assert layer_of(network("squeezenet1_1"), "last", images(1, 64)) == "features"
    assert layer_of(nn.Sequential(small_resnet()), "last", images()) == "0.layer4"


def test_a_network_that_writes_to_its_images_does_not_change_them_while_its_layer_is_found() -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 6, 3), nn.Flatten(), nn.LazyLinear(4))
    batch = images(1, 8)
    model(batch.clone())
    assert layer_of(model, "last", batch) == "1"
    assert torch.equal(batch, images(1, 8))


def test_the_last_call_of_a_module_decides_whether_it_is_the_last_layer() -> None:
    """One ReLU for all: behind the pooling it puts out a single cell."""

    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()
            self.pool, self.hidden, self.last = (
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(4, 4, 1),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.act(self.second(self.act(self.first(x))))
            return self.last(self.act(self.hidden(self.pool(x)))).flatten(1)

    model, batch = Sharing().eval(), images(2, 16)
    assert layer_of(model, "last", batch) == "second"
    assert explain(explainers.get("grad_cam"), model, batch, torch.tensor([0, 1])).values.shape == (2, 12, 28)


def test_layers_are_found_by_name() -> None:
    assert maps("grad_cam", small_resnet(), images(), layer="layer2").shape == (3, 8, 12)
    with pytest.raises(ExplainerError, match="the network has no layer 'layer_3'; did you mean 'layer3'"):
        maps("grad_cam", small_resnet(), images(), layer="layer_3")
    with pytest.raises(NotApplicableError, match="layer 'fc' puts out no feature map"):
        maps("grad_cam", small_resnet(), images(), layer="fc")
    with pytest.raises(NotApplicableError, match=r"no part of Sequential puts out a feature map .* 32×48"):
        maps("grad_cam", nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 48, 4)), images())


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_pp", "layer_cam"])
def test_a_layer_that_the_logits_do_not_depend_on_says_so(name: str) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.shown, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.used(x).mean((2, 3))) * self.shown(x).shape[1]

    with pytest.raises(NotApplicableError, match="nothing reaches 'shown': the logits do not depend on it"):
        maps(name, Aside(), images(), layer="shown")


def test_no_positive_gradient_no_map() -> None:
    """Every logit falls with every feature: Grad-CAM++ and LayerCAM have nothing to weight with."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    with torch.no_grad():
        model[4].weight.copy_(-model[4].weight.abs())
    for name in ("grad_cam", "grad_cam_pp", "layer_cam"):
        assert maps(name, model, images(), layer="1").abs().max() == 0
    assert maps("grad_cam", model, images(), layer="1", relu_attributions=False).max() <= 0


# --- CAM


AVERAGING = [("shufflenet_v2_x0_5", 64), ("mobilenet_v2", 64), ("mnasnet0_5", 64)]
AVERAGING_SLOW = [("densenet121", 64), ("googlenet", 64), ("resnext50_32x4d", 64), ("inception_v3", 107)]


@pytest.mark.parametrize(
    ("name", "side"), AVERAGING + [pytest.param(*row, marks=pytest.mark.slow) for row in AVERAGING_SLOW]
)
def test_cam_is_grad_cam_without_relu_times_the_number_of_cells(name: str, side: int) -> None:
    """Where features are averaged, ∂y/∂A_k = w_k / (h·w) at every pixel."""
    model, batch = network(name), images(side=side)
    plain = maps("grad_cam", model, batch, relu_attributions=False)
    expected = plain * plain[0].numel()
    found = maps("cam", model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", MODELS)
def test_the_means_of_cam_make_the_logit(kind: str) -> None:
    """In a LAP network the mean is LAP's, with the weights of its final pooling."""
    model = MODELS[kind]()
    found = maps("cam", model, images())
    laps = [part for part in model.modules() if isinstance(part, AdaptiveLAP2d)]
    size = found.shape[1:]
    weights = torch.full((3, *size), 1 / size.numel())
    if laps:
        kept: list[Tensor] = []
        handle = laps[-1].register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0]))
        with torch.no_grad():
            model(images())
        handle.remove()
        weights = laps[-1].window_weights(kept[0]).view(3, *size).detach()
        assert weights.std() > 0
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))
    with torch.no_grad():
        logits = model(images()).gather(1, TARGET[:, None])[:, 0]
        bias = [part for part in model.modules() if isinstance(part, nn.Linear)][-1].bias[TARGET]
    torch.testing.assert_close((found * weights).sum((1, 2)) + bias, logits, rtol=1e-4, atol=1e-4)


def test_cam_by_hand() -> None:
    """Two channels of 2 × 2 and two classes."""
    model = nn.Sequential(
        nn.Conv2d(2, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        model[3].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [1.0, 0.0]]]])
    found = [maps("cam", model, image, torch.tensor([label]))[0] for label in (0, 1)]
    torch.testing.assert_close(found[0], torch.tensor([[1.0, 0.0], [1.0, 4.0]]))
    torch.testing.assert_close(found[1], torch.tensor([[0.5, 4.0], [4.5, 2.0]]))


class Head(nn.Module):
    """Features, and a head that CAM's formula may or may not describe."""

    def __init__(self, head: Callable[[nn.Module, Tensor], Tensor], bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.fc, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4, bias=bias), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc, self.features(x))


@pytest.mark.parametrize(
    ("head", "bias"),
    [
        (lambda fc, x: fc(x.mean((2, 3))), True),
        (lambda fc, x: fc(x.mean((2, 3))), False),
        (lambda fc, x: fc(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), training=False)), True),
    ],
)
def test_cam_of_heads_that_are_an_average_and_a_linear_layer(
    head: Callable[[nn.Module, Tensor], Tensor], bias: bool
) -> None:
    model = Head(head, bias)
    found = maps("cam", model, images())
    pooled = found.mean((1, 2)) + (model.fc.bias[TARGET] if bias else 0)
    torch.testing.assert_close(pooled, model(images()).gather(1, TARGET[:, None])[:, 0])


MORE = "does more than average its last feature map before its linear layer: CAM has no meaning for it"


def other_builds() -> Iterator[tuple[nn.Module, int, str]]:
    yield Head(lambda fc, x: fc(x.amax((2, 3)))), 32, f"Head {MORE}"
    yield Head(lambda fc, x: fc(x.mean((2, 3)).relu())), 32, f"Head {MORE}"
    yield Head(lambda fc, x: fc(x.relu().mean((2, 3)))), 32, f"Head {MORE}"
    yield Head(lambda fc, x: 2 * fc(x.mean((2, 3)))), 32, f"Head {MORE}"
    yield network("alexnet"), 64, "AlexNet has no linear layer on its last feature map: CAM needs one"
    yield network("squeezenet1_1"), 64, "SqueezeNet has no linear layer on its last feature map"
    yield nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32, "has no linear layer"


@pytest.mark.parametrize(("model", "side", "reason"), [*other_builds()])
def test_cam_is_refused_where_the_build_differs(model: nn.Module, side: int, reason: str) -> None:
    with pytest.raises(NotApplicableError, match=reason):
        maps("cam", model.eval(), images(side=side))
