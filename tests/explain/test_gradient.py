import warnings

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
from torch import Tensor, nn

from explain.networks import images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import differences, explain, untouched
from lapbench.explain.cam import grad_cam
from lapbench.explain.canonical import canonical
from lapbench.explain.derivatives import derivative
from lapbench.explain.gradient import deeplift
from lapbench.models.lap import AdaptiveLAP2d, LAP2d
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])
BASELINE = (0.3, -0.2, 0.1)


def maps(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, target, parameters).values


# --- Captum's own toy network and the numbers its tests expect


def toy() -> tuple[nn.Module, Tensor, Tensor]:
    return BasicModel_ConvNet_One_Conv(), torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([0])


def test_guided_backprop_of_captums_toy_network() -> None:
    expected = torch.tensor([[[0, 1, 1, 1], [1, 3, 3, 2], [1, 3, 3, 2], [1, 2, 2, 1.0]]])
    torch.testing.assert_close(maps("guided_backprop", *toy()), expected)


# --- Guided Backprop and Guided Grad-CAM


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return g * (x > 0) * (g > 0)


def slow_guided_backprop(
    model: nn.Module, batch: Tensor, target: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda x, **_: GuidedReLU.apply(x))  # nn.ReLU calls it, too
        batch = batch.clone().requires_grad_()
        chosen = model(batch)[torch.arange(len(batch)), target]
        return torch.autograd.grad(chosen.sum(), batch)[0]


@pytest.mark.parametrize(
    "model",
    [small_resnet(), plugged(small_resnet()), network("inception_v3")],
    ids=["plain", "plugged", "inception"],
)
def test_guided_backprop_against_a_guided_relu(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(2, 80)
    expected = slow_guided_backprop(model, batch, TARGET[:2], monkeypatch)
    found = maps("guided_backprop", model, batch, TARGET[:2])
    torch.testing.assert_close(found, expected.sum(1), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_guided_backprop_of_inception_is_not_the_plain_gradient() -> None:
    model, batch = network("inception_v3"), images(2, 80)
    x = batch.clone().requires_grad_()
    plain = torch.autograd.grad(model(x)[[0, 1], TARGET[:2]].sum(), x)[0].sum(1)
    guided = maps("guided_backprop", model, batch, TARGET[:2])
    assert F.cosine_similarity(plain.flatten(), guided.flatten(), dim=0) < 0.9


def test_a_network_without_relu_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.LazyLinear(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lazy modules announce themselves
        model(images())
    with pytest.raises(NotApplicableError, match="Sequential has no ReLU"):
        maps("guided_backprop", model, images())


def test_the_relus_of_laps_scoring_do_not_count() -> None:
    with pytest.raises(NotApplicableError, match="has no ReLU"):
        maps("guided_backprop", plugged(network("mobilenet_v2")), images())


def test_guided_grad_cam_against_captum_on_the_canonical_network() -> None:
    model = small_resnet()
    form = canonical(model)
    last = form.module.get_submodule(str(form.output_of("layer4").target))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum sets hooks and says so
        method = captum.attr.GuidedGradCam(form.module, last)
        theirs = method.attribute(images(), TARGET, interpolate_mode="bilinear")
    torch.testing.assert_close(maps("guided_grad_cam", model, images()), theirs.sum(1).detach())


@pytest.mark.parametrize(
    ("reduce", "by_hand"),
    [
        ("sum", lambda g: g[:, 0] + g[:, 1] + g[:, 2]),
        ("mean", lambda g: (g[:, 0] + g[:, 1] + g[:, 2]) / 3),
        ("max_abs", lambda g: torch.maximum(torch.maximum(g[:, 0].abs(), g[:, 1].abs()), g[:, 2].abs())),
    ],
)
def test_channel_reductions(reduce: str, by_hand: object, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = slow_guided_backprop(small_resnet(), images(), TARGET, monkeypatch)
    found = maps("guided_backprop", small_resnet(), images(), reduce=reduce)
    torch.testing.assert_close(found, by_hand(gradient))  # type: ignore[operator]


# --- DeepLIFT


def completeness(model: nn.Module, batch: Tensor, baseline: object = BASELINE) -> float:
    target = TARGET[: len(batch)]
    with untouched(model):
        result = deeplift(model, batch, target, baseline=baseline)  # type: ignore[arg-type]
    with torch.no_grad():
        flat = torch.as_tensor(baseline, dtype=batch.dtype).view(-1, 1, 1).expand_as(batch)
        rows = torch.arange(len(batch))
        change = (model(batch) - model(flat))[rows, target]
    error = (result.values.sum((1, 2)) - change).abs() / change.abs().clamp_min(1e-8)
    torch.testing.assert_close(error, result.diagnostics["completeness_error"], rtol=0, atol=2e-5)
    return float(error.max())


def sized(name: str) -> int:
    return 107 if "inception" in name else 64


@pytest.mark.parametrize(
    "name", ["resnet18", "alexnet", "inception_v3", "squeezenet1_1", "mobilenet_v3_small"]
)
def test_contributions_of_plain_networks_add_up(name: str) -> None:
    """In float64, with biases, unsettled statistics and a baseline, which a wrong rule cannot survive."""
    assert completeness(network(name).double(), images(2, sized(name)).double()) < 1e-9


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"branch_mode": "separate", "aggregation": "max"},
        {"branch_mode": "post_add", "aggregation": "trainable", "hidden": None},
        {"lap_position": "post_act", "aggregation": "trainable", "aggregate_positive": "softplus"},
        {"branch_scores": "concat", "score_activation": "leaky_relu", "alpha_init": 30.0},
        {"sites": "all"},
    ],
)
def test_contributions_of_lap_networks_add_up(settings: dict[str, object]) -> None:
    model = plugged(small_resnet(), **settings)
    assert completeness(model, images()) < 1e-4
    assert completeness(model.double(), images().double()) < 1e-9


def test_contributions_of_inception_with_lap_add_up() -> None:
    model = plugged(network("inception_v3"))
    assert completeness(model, images(2, 107)) < 1e-4
    assert completeness(model.double(), images(2, 107).double()) < 1e-9


def test_contributions_add_up_where_lap_is_saturated() -> None:
    """Scores of ±100: in one of image and reference a whole window may have lost all its weight but ε."""
    model = plugged(small_resnet()).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scoring.head.weight"):
                parameter.mul_(1000)
    assert completeness(model, images().double()) < 1e-9


def test_the_plain_rule_for_lap_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(differences._RULES, LAP2d, derivative)
    monkeypatch.setitem(differences._RULES, AdaptiveLAP2d, derivative)
    assert completeness(plugged(small_resnet()).double(), images().double()) > 1e-3


def captums(model: nn.Module, batch: Tensor) -> Tensor:
    """Captum's own DeepLift on the canonical network."""
    flat = torch.tensor(BASELINE, dtype=batch.dtype).view(-1, 1, 1).expand_as(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum sets hooks and says so
        return captum.attr.DeepLift(canonical(model).module).attribute(batch, flat.clone(), TARGET).detach()


def test_deeplift_is_captums_where_captum_is_right() -> None:
    """On a canonical network whose pooling windows do not overlap."""
    model, batch = network("vgg11_bn").double(), images(side=64).double()
    found = maps("deeplift", model, batch, baseline=BASELINE)
    torch.testing.assert_close(found, captums(model, batch).sum(1).float(), rtol=1e-5, atol=1e-6)


def test_captums_own_rule_for_overlapping_windows_does_not_add_up() -> None:
    model, batch = small_resnet().double(), images().double()
    with torch.no_grad():
        flat = torch.tensor(BASELINE, dtype=batch.dtype).view(-1, 1, 1).expand_as(batch)
        change = (model(batch) - model(flat)).gather(1, TARGET[:, None])[:, 0]
    missed = captums(model, batch).sum((1, 2, 3)) - change
    assert (missed.abs() / change.abs()).max() > 1e-3
    assert completeness(model, batch) < 1e-9


def test_deeplift_of_a_linear_network_is_its_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 4))
    batch = torch.randn(3, 3, 4, 5)
    colour = torch.tensor(BASELINE).view(3, 1, 1)
    expected = ((batch - colour) * model[1].weight[TARGET].view(3, 3, 4, 5)).sum(1)
    torch.testing.assert_close(maps("deeplift", model, batch, baseline=BASELINE), expected.detach())


def test_deeplift_of_an_overlapping_max_pool_by_hand() -> None:
    """Windows of 3 at stride 1 on one row: the middle pixel wins twice and gets both its parts."""
    model = nn.Sequential(nn.MaxPool2d((1, 3), (1, 1)), nn.Flatten(), nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[2].weight)
    image = torch.tensor([[[[1.0, 5.0, 2.0, 3.0]]]])
    found = maps("deeplift", model, image, torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 10.0, 0.0, 0.0]]]))


def test_a_baseline_needs_one_value_for_each_channel() -> None:
    with pytest.raises(ExplainerError, match=r"one value or one per channel \(3\), found 2"):
        maps("deeplift", small_resnet(), images(), baseline=(0.0, 1.0))


def test_warnings_of_others_are_not_silenced() -> None:
    class Warner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("look here", UserWarning, stacklevel=1)
            return x.mean((2, 3))

    with pytest.warns(UserWarning, match="look here"), untouched(model := nn.Sequential(nn.ReLU(), Warner())):
        grad_cam(model, images(), torch.tensor([0, 1, 2]), layer="0")
