import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import make_layers

from explain.networks import images, network, plugged, small_resnet, unsettled
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import Maps, check_explainer, explain
from lapbench.explain.lrp import RuleName, lrp, lrp_rules
from lapbench.explain.passes import passes_of
from lapbench.explain.relevance import Ledger
from lapbench.explain.tape import Operation, Rule
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])


def exact(model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Maps:
    """The relevance in float64."""
    return lrp(model.double(), batch.double(), target, **parameters)  # type: ignore[arg-type]


def small_vgg(batch_norm: bool) -> nn.Module:
    torch.manual_seed(0)
    features = make_layers([6, "M", 8, 8, "M", 8], batch_norm)
    classifier = nn.Sequential(nn.Linear(48, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 4))
    return unsettled(nn.Sequential(features, nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), classifier), side=48)


def small_bottlenecks() -> nn.Module:
    torch.manual_seed(0)
    return unsettled(ResNet(Bottleneck, [1, 2, 1, 1], num_classes=4, width_per_group=4), side=64)


# --- zennit


def of_zennit(model: nn.Module, batch: Tensor, rule: str) -> Tensor:
    """Relevance (B, C, H, W) by zennit's rules and canonizers, with hardly any stabiliser."""
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlus, EpsilonPlusFlat, LayerMapComposite, layer_map_base
    from zennit.rules import AlphaBeta, Epsilon, Flat, ZPlus
    from zennit.torchvision import ResNetCanonizer, VGGCanonizer
    from zennit.types import Linear

    canonizers = [ResNetCanonizer() if isinstance(model, ResNet) else VGGCanonizer()]
    single = {
        "epsilon": Epsilon(epsilon=1e-3),
        "z_plus": ZPlus(stabilizer=1e-14),
        "alpha_beta": AlphaBeta(2, 1, stabilizer=1e-14),
        "flat": Flat(stabilizer=1e-14),
    }
    if rule in single:
        stabilizer = 1e-3 if rule == "epsilon" else 1e-14
        table = [*layer_map_base(stabilizer), (Linear, single[rule])]
        composite = LayerMapComposite(table, canonizers=canonizers)
    else:
        kind = {"epsilon_plus": EpsilonPlus, "epsilon_plus_flat": EpsilonPlusFlat}[rule]
        composite = kind(epsilon=1e-14, stabilizer=1e-14, canonizers=canonizers)
    twin, chosen = copy.deepcopy(model).requires_grad_(False), torch.eye(4, dtype=torch.float64)[TARGET]
    with Gradient(twin, composite) as attributor:
        return attributor(batch, lambda logits: chosen * logits.detach())[1].detach()


RULES: list[RuleName] = ["epsilon", "z_plus", "alpha_beta", "flat", "epsilon_plus", "epsilon_plus_flat"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["vgg", "vgg_bn", "basic_blocks", "bottlenecks"])
def test_as_zennit_with_its_canonizers(rule: RuleName, name: str) -> None:
    makers = {
        "vgg": lambda: small_vgg(False),
        "vgg_bn": lambda: small_vgg(True),
        "basic_blocks": small_resnet,
        "bottlenecks": small_bottlenecks,
    }
    model = makers[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # zennit 0.5.1 merges a batch norm, and leaves its eps behind
    batch = images().double()
    expected = of_zennit(model, batch, rule).sum(1)
    found = exact(model, batch, rule=rule, epsilon=1e-3 if rule == "epsilon" else 1e-14).values
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-6, atol=1e-8)


# --- closed forms


@pytest.mark.parametrize("name", ["small_resnet", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_epsilon_zero_is_input_times_gradient_where_all_is_piecewise_linear(name: str) -> None:
    """LRP-0 of a network of ReLUs and maxima (Montavon et al., 2019)."""
    model = (small_resnet() if name == "small_resnet" else network(name)).double()
    batch = images(3, 80).double().requires_grad_()
    score = model(batch).gather(1, TARGET[:, None]).sum()
    expected = (batch * torch.autograd.grad(score, batch)[0]).sum(1).detach()
    found = exact(model, batch.detach(), rule="epsilon", epsilon=0.0).values
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "densenet121", "googlenet", "inception_v3", "vgg11_bn"])
def test_epsilon_zero_is_input_times_gradient_in_large_networks(name: str) -> None:
    test_epsilon_zero_is_input_times_gradient_where_all_is_piecewise_linear(name)


def test_without_biases_all_of_the_logit_arrives() -> None:
    model = small_vgg(False).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    batch = images().double()
    for rule in ("epsilon", "z_plus", "epsilon_plus"):
        found = exact(model, batch, rule=rule, epsilon=0.0)
        logit = model(batch).gather(1, TARGET[:, None])[:, 0].detach()
        torch.testing.assert_close(found.values.sum((1, 2)), logit, rtol=1e-9, atol=1e-12)
        assert found.diagnostics["bias_share"].abs().max() == 0


def test_of_one_linear_layer_the_bias_keeps_its_part_of_the_logit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 24, 4)).double()
    batch = images(3, 8).double()
    found = exact(model, batch, rule="epsilon", epsilon=0.0)
    terms = batch.flatten(1) * model[1].weight[TARGET]
    torch.testing.assert_close(found.values, terms.view_as(batch).sum(1).detach())
    logit = model(batch).gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(found.diagnostics["bias_share"], (model[1].bias[TARGET] / logit).detach())


def test_the_first_layer_alone_is_flat() -> None:
    """A 1×1 convolution: each channel of a pixel gets the same, and so they get what the pixel has."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    model, batch, ledger = model.double(), images().double(), Ledger()
    passes = passes_of(model, batch, TARGET)
    start = torch.rand(3, 4, dtype=torch.float64)
    found = passes.relevance(start, lrp_rules(ledger, "epsilon_plus_flat"))
    arrived = passes.relevance(start, lrp_rules(ledger, "epsilon_plus_flat"), "0").sum(1)
    torch.testing.assert_close(found, (arrived / 3)[:, None].expand_as(found))


# --- conservation


FAST = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5")
SLOW = (
    "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11", "vgg11_bn", "squeezenet1_0",
    "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0",
    "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "alexnet",
    "mnasnet0_5",
)  # fmt: skip
NETWORKS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("plug_it", [False, True])
def test_relevance_is_conserved(name: str, plug_it: bool) -> None:
    model = plugged(network(name)) if plug_it else network(name)
    for rule in ("z_plus", "epsilon"):
        found = exact(model, images(2, 96), TARGET[:2], rule=rule)
        assert found.diagnostics["conservation_error"].max() < 1e-10
        assert torch.isfinite(found.values).all()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"branch_mode": "separate"},
        {"branch_mode": "post_add"},
        {"sites": "all"},
        {"lap_position": "post_act"},
    ],
)
def test_relevance_is_conserved_in_lap_networks_of_every_kind(settings: dict[str, object]) -> None:
    model = plugged(small_resnet(), **settings)
    for rule in RULES:
        found = exact(model, images(), rule=rule)
        assert found.diagnostics["conservation_error"].max() < 1e-10
        assert found.values.abs().amax((1, 2)).min() > 0


def test_a_lap_network_loses_nothing_to_windows_without_positive_values() -> None:
    found = exact(plugged(small_resnet()), images(), rule="z_plus")
    assert found.diagnostics["epsilon_share"].abs().max() < 1e-3


def test_a_rule_that_loses_relevance_shows() -> None:
    model, batch, ledger = small_resnet().double(), images().double(), Ledger()
    sound = lrp_rules(ledger, "z_plus")

    def broken(operation: Operation) -> Rule:
        if operation.kind is not nn.MaxPool2d:
            return sound(operation)
        return lambda operation, received: tuple(0.9 * part for part in sound(operation)(operation, received))

    passes = passes_of(model, batch, TARGET)
    arrived = passes.relevance(torch.eye(4, dtype=torch.float64)[TARGET], broken).flatten(1).sum(1)
    assert (1 - arrived - ledger.bias - ledger.epsilon).abs().min() > 1e-3


def test_inputs_that_the_network_transforms() -> None:
    """GoogLeNet and Inception V3 with trained weights bring the image to other means, channel by channel."""
    extra = {"init_weights": False, "aux_logits": False, "transform_input": True}
    model = unsettled(
        torchvision.models.get_model("googlenet", weights=None, num_classes=4, **extra), side=64
    )
    found = exact(model, images(1, 64), TARGET[:1], rule="epsilon_plus_flat")
    assert found.diagnostics["conservation_error"].max() < 1e-10


# --- as an explainer


def test_the_contract() -> None:
    check_explainer(explainers.get("lrp"), small_resnet(), images(), TARGET)


def test_relevance_tells_classes_apart() -> None:
    maps = [
        explain(explainers.get("lrp"), small_resnet(), images(), torch.full((3,), c)).values.flatten(1)
        for c in (0, 1)
    ]
    assert (torch.cosine_similarity(*maps) < 0.995).all()


def test_a_logit_of_zero_has_nothing_to_hand_on() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False), nn.ReLU())
    nn.init.constant_(model[1].weight, -1)
    found = explain(explainers.get("lrp"), model, torch.ones(1, 3, 2, 2), torch.tensor([0]))
    assert found.values.abs().max() == 0
    assert {name: float(value) for name, value in found.diagnostics.items()} == {
        "conservation_error": 0, "bias_share": 0, "epsilon_share": 0,
    }  # fmt: skip


def test_alpha_minus_beta_is_one() -> None:
    with pytest.raises(ExplainerError, match=r"LRP needs alpha - beta = 1, found 2\.0 - 0\.5 = 1\.5"):
        explain(explainers.get("lrp"), small_resnet(), images(), TARGET, {"rule": "alpha_beta", "beta": 0.5})


def test_networks_with_other_operations_are_named() -> None:
    class Exponential(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x).mean((2, 3))

    with pytest.raises(NotApplicableError, match="LRP has no rule for 'exp': leave this network out"):
        explain(explainers.get("lrp"), nn.Sequential(nn.Conv2d(3, 4, 3), Exponential()), images(), TARGET)
