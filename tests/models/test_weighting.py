"""Ante-hoc maps (reconstruction): by slow formulas, in networks of several kinds, and through files."""

import copy
import json
import math
import operator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from lapbench.benchmark import AnteHoc, Model, Plug, Recipe
from lapbench.errors import DefinitionError, TrainingError
from lapbench.models import copy_weights, load_weights, save_weights
from lapbench.models.plug import is_added, load_plain, plug, put_antehoc
from lapbench.models.weighting import AnteHocPool, WeightingNetwork, antehoc_layers, minmax, second_pass
from lapbench.models.weights import randomise
from lapbench.models.zoo import build
from lapbench.train.freezing import only
from lapbench.train.images import Batch
from lapbench.train.objective import Objective, task_terms

SWITCHES = [{"gate": gate, "net": net} for gate in ("sigmoid", "softmax") for net in ("channels", "spatial")]
BACKBONES = ("resnet18", "efficientnet_b0", "squeezenet1_1", "mobilenet_v2", "densenet121")


@torch.no_grad()
def slow_map(A: Tensor, network: WeightingNetwork) -> Tensor:
    """M for one image's features A (K, h, w), number by number."""
    K, h, w = A.shape
    W1, b1 = network.reduce.weight.flatten(1).tolist(), network.reduce.bias.tolist()
    W2, b2 = network.expand.weight.flatten(1).tolist(), network.expand.bias.tolist()

    def linear(W: list[list[float]], b: list[float], x: list[float]) -> list[float]:
        return [sum(map(operator.mul, row, x)) + bias for row, bias in zip(W, b, strict=True)]

    def outputs(x: list[float]) -> list[float]:
        return linear(W2, b2, [max(0.0, value) for value in linear(W1, b1, x)])

    def gates(z: list[float]) -> list[float]:
        if network.gate == "sigmoid":
            return [1 / (1 + math.exp(-v)) for v in z]
        total = sum(math.exp(v) for v in z)
        return [math.exp(v) / total for v in z]

    if network.net == "channels":
        a = gates(outputs([float(A[k].sum()) / (h * w) for k in range(K)]))
        S = [max(0.0, sum(a[k] * float(A[k, i, j]) for k in range(K))) for i in range(h) for j in range(w)]
    else:
        S = gates([outputs(A[:, i, j].tolist())[0] for i in range(h) for j in range(w)])
    low, high = min(S), max(S)
    M = [(s - low) / (high - low) if high > low else 0.0 for s in S]
    return torch.tensor(M, dtype=A.dtype).view(1, h, w)


def network_of(name: str, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    parameters = {"width": 8} if name == "resnet18" else {}
    return put_antehoc(build(name, num_classes=2, parameters=parameters), AnteHoc(**settings))


def layer_of(model: nn.Module) -> AnteHocPool:
    return next(iter(antehoc_layers(model).values()))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The map.


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("channels", [3, 40])
def test_the_map_is_the_formula(switches, channels):
    network = WeightingNetwork(channels, AnteHoc(**switches)).double()
    A = torch.randn(2, channels, 4, 5, dtype=torch.float64)

    expected = torch.stack([slow_map(one, network) for one in A])

    assert network.reduce.out_channels == max(1, channels // 16)
    torch.testing.assert_close(network(A), expected)
    assert network(A).amin() == 0 and network(A).amax() == 1


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_gradients_of_the_map_and_of_both_passes_are_those_of_finite_differences(switches):
    layer = AnteHocPool(5, nn.AdaptiveAvgPool2d(1), AnteHoc(**switches)).double()
    A = torch.rand(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)

    def both(A: Tensor, *_parameters: Tensor) -> tuple[Tensor, Tensor]:
        with second_pass(layer) as maps:
            return layer(A), maps[0]

    assert torch.autograd.gradcheck(both, (A, *layer.parameters()))


def test_a_constant_map_is_zero_and_its_gradient_finite():
    network = WeightingNetwork(4, AnteHoc())
    negative = -torch.rand(2, 4, 3, 3)  # ReLU leaves nothing of it
    assert network(negative).eq(0).all()
    even = torch.rand(2, 4, 1, 1).expand(-1, -1, 3, 3).clone().requires_grad_()
    maps = network(even)
    assert maps.abs().max() < 1e-5 or maps.amax() == 1  # rounding may tell pixels apart, nothing else

    values = torch.full((1, 1, 3, 3), 0.7, requires_grad=True)
    minmax(values).sum().backward()
    assert minmax(values).eq(0).all() and values.grad.isfinite().all()


def test_what_minmax_gives_is_free_of_scale_and_shift():
    values = torch.randn(3, 1, 4, 5, dtype=torch.float64)

    torch.testing.assert_close(minmax(3 * values + 2), minmax(values))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_map_is_float32_and_the_features_keep_their_type(dtype):
    layer = AnteHocPool(8, nn.AdaptiveAvgPool2d(1), AnteHoc()).to(dtype)
    with second_pass(layer) as maps:
        pooled = layer(torch.rand(2, 8, 4, 4, dtype=dtype))

    assert pooled.dtype == dtype and pooled.shape == (4, 8, 1, 1)
    assert maps[0].dtype == torch.float32


# In a network.


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_the_network_answers_as_if_the_map_were_not_there(name):
    parameters = {"width": 8} if name == "resnet18" else {}
    plain = build(name, num_classes=2, parameters=parameters).eval()
    model = put_antehoc(plain, AnteHoc())
    x = torch.randn(2, 3, 64, 64)

    found = model(x)

    if name in ("resnet18", "efficientnet_b0", "squeezenet1_1"):  # elsewhere the pooling was a function call
        assert found.equal(plain(x))
    torch.testing.assert_close(found, plain(x), rtol=1e-5, atol=1e-6)
    assert not antehoc_layers(plain) and not any(module.training for module in model.modules())
    load_plain(model, plain.state_dict())
    own = model.state_dict().keys() - plain.state_dict()
    assert {key for key in model.state_dict() if is_added(model, key)} == own


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "squeezenet1_1", "mobilenet_v2"])
def test_inside_the_head_answers_to_the_features_and_to_what_the_map_keeps(name):
    model = network_of(name).eval()
    layer, x = layer_of(model), torch.randn(3, 3, 64, 64)
    seen = []
    handle = layer.features.register_forward_hook(lambda _m, _i, features: seen.append(features))
    plain = model(x)
    with second_pass(layer) as maps:
        both = model(x)
    handle.remove()
    A = seen[0]
    masked = A * layer.weighting(A)
    hook = layer.features.register_forward_hook(lambda *_: masked)

    assert both[:3].equal(plain)
    torch.testing.assert_close(both[3:], model(x))
    torch.testing.assert_close(maps[0], layer.weighting(A))
    hook.remove()
    assert model(x).equal(plain)  # and outside, all is as before


def test_the_second_pass_ends_with_an_exception_too():
    layer = AnteHocPool(4, nn.AdaptiveAvgPool2d(1), AnteHoc())
    with pytest.raises(ZeroDivisionError), second_pass(layer):
        raise ZeroDivisionError
    assert layer(torch.rand(2, 4, 3, 3)).shape == (2, 4, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "parameters"), [("vgg11_bn", {}), ("resnet18", {"width": 8, "head": "heat-maps"})]
)
def test_the_last_layer_may_read_where_features_are(name, parameters):
    """The pooling may be to more than 1×1, or by heat maps: what is masked are the features before it."""
    plain = build(name, num_classes=2, parameters=parameters).eval()
    model, x = put_antehoc(plain, AnteHoc()), torch.randn(2, 3, 64, 64)
    load_plain(model, {key: value.clone() for key, value in plain.state_dict().items()})
    (layer,) = antehoc_layers(model).values()
    features = []
    layer.features.register_forward_hook(lambda _m, _args, out: features.append(out))
    with second_pass(layer) as maps:
        both = model(x)
    masked = features[0] * maps[0]
    assert maps[0].shape == (2, 1, *features[0].shape[2:])
    torch.testing.assert_close(both[:2], plain(x))
    layer.features.register_forward_hook(lambda *_: masked)
    torch.testing.assert_close(both[2:], model(x))


def test_networks_without_a_place_are_refused():
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(DefinitionError, match="Sequential has no global pooling to a fixed size"):
        put_antehoc(bare, AnteHoc())
    with pytest.raises(
        DefinitionError, match="SizedResNet carries LAP, or what stands in its place, already"
    ):
        put_antehoc(network_of("resnet18"), AnteHoc())
    resnet = build("resnet18", num_classes=2, parameters={"width": 8})
    with pytest.raises(
        DefinitionError, match="SizedResNet carries LAP, or what stands in its place, already"
    ):
        put_antehoc(plug(resnet, Plug(layer="max"), classes=()), AnteHoc())


def test_weights_go_through_a_file_and_can_be_drawn_anew(tmp_path):
    model, other = network_of("resnet18").eval(), randomise(network_of("resnet18"), 7).eval()
    A = torch.rand(1, 64, 3, 3)
    assert not layer_of(other).weighting(A).equal(layer_of(model).weighting(A))

    save_weights(tmp_path / "a.safetensors", model.state_dict(), {})
    copy_weights(other, load_weights(tmp_path / "a.safetensors"))

    assert layer_of(other).weighting(A).equal(layer_of(model).weighting(A))
    assert layer_of(copy.deepcopy(model)).weighting(A).equal(layer_of(model).weighting(A))


# The loss.


def test_the_loss_is_the_formula():
    model, spec = network_of("resnet18").eval(), AnteHoc(masked=0.5, area=0.1)
    x, y = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 1, 0])
    terms, logits = task_terms(model, Batch(x, y, None, None))

    with second_pass(layer_of(model)) as maps:
        both = model(x)
    assert logits.equal(both[:4])
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(both[:4], y))
    torch.testing.assert_close(terms["masked_cross_entropy"], F.cross_entropy(both[4:], y))
    torch.testing.assert_close(terms["map_area"], maps[0].mean())
    recipe = Recipe(epochs=1, losses={"cross_entropy": 2.0})
    assert Objective(recipe, antehoc=spec).weights == {
        "cross_entropy": 2.0, "masked_cross_entropy": 1.0, "map_area": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("term", ["masked_cross_entropy", "map_area"])
@pytest.mark.parametrize("net", ["channels", "spatial"])
def test_gradients_reach_both_networks(term, net):
    model = network_of("resnet18", net=net).train()
    terms, _ = task_terms(model, Batch(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 1, 0]), None, None))
    terms[term].backward()

    for part in (model.layer4, layer_of(model).weighting.expand):
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0


def test_auxiliary_classifiers_answer_once():
    with torch.device("meta"):
        model = put_antehoc(build("inception_v3", num_classes=3), AnteHoc()).train()
        with second_pass(layer_of(model)):
            logits, auxiliary = model(torch.empty(2, 3, 299, 299))
    assert logits.shape == (4, 3) and auxiliary.shape == (2, 3)

    class Auxiliary(nn.Module):
        """Returns what Inception V3 does."""

        def __init__(self) -> None:
            super().__init__()
            self.avgpool = AnteHocPool(3, nn.AdaptiveAvgPool2d(1), AnteHoc())

        def forward(self, x: Tensor) -> object:
            from torchvision.models.inception import InceptionOutputs

            return InceptionOutputs(self.avgpool(x).flatten(1), x.mean((2, 3)) * 2)

    x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 2])
    terms, logits = task_terms(Auxiliary(), Batch(x, y, None, None))
    expected = F.cross_entropy(x.mean((2, 3)), y) + 0.4 * F.cross_entropy(2 * x.mean((2, 3)), y)
    torch.testing.assert_close(terms["cross_entropy"], expected)
    assert logits.shape == (2, 3)


def test_the_weighting_network_may_learn_alone():
    model = network_of("resnet18").train()
    with only(model, ["antehoc"]):
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith("avgpool.weighting.")}
    plain = build("resnet18", num_classes=2, parameters={"width": 8})
    with pytest.raises(TrainingError, match="'antehoc' has no parameters"), only(plain, ["antehoc"]):
        pass


# The definition.


def test_a_model_without_it_is_described_as_before():
    plain = Model(name="a", architecture="resnet18", weights="a.pt")
    model = Model(name="a", architecture="resnet18", weights="a.pt", antehoc={"gate": "softmax"})

    assert not {"bla", "antehoc", "concept_mlp"} & set(plain.model_dump()) and plain.carries == frozenset()
    assert json.loads(model.model_dump_json())["antehoc"]["gate"] == "softmax"
    assert model.carries == {"antehoc"}
    fault = r"give at most one of \[models.plug\] and \[models.bla\] and \[models.antehoc\]"
    with pytest.raises(ValidationError, match=fault):
        Model(name="a", architecture="resnet18", weights="a.pt", antehoc={}, bla={}, plug={"layer": "lip"})
    with pytest.raises(ValidationError, match="trains concept heads"):
        Model(name="a", architecture="resnet18", antehoc={}, recipe={"epochs": 1, "supervision": "weak"})
