"""The family of local aggregation and normalisation: each kind by its formula, and in LAP's places."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from lapbench.benchmark import Model, Plug
from lapbench.digest import digest_of
from lapbench.errors import DefinitionError, TrainingError
from lapbench.models import copy_weights, load_weights, save_weights
from lapbench.models.lap import ConceptScoring
from lapbench.models.lip import LIP, ChannelScoring
from lapbench.models.plug import find_sites, is_plugged, lap_layers, lip_layers, load_plain, plug
from lapbench.models.pooling import Strided, Window, window_of
from lapbench.models.weights import randomise
from lapbench.models.zoo import build
from lapbench.train.freezing import only
from models.reference import slow_pooling

CLASSES = ("healthy", "pneumonia")
CONCEPTS = [{"name": "opacity", "classes": ["pneumonia"]}]
LAYERS = ("lap", "lip", "average", "max", "strided")


def slow_logits(x: Tensor, scoring: ConceptScoring) -> Tensor:
    y = F.relu(F.conv2d(x, scoring.hidden.weight, scoring.hidden.bias))
    return F.conv2d(y, scoring.head.weight, scoring.head.bias)


def spiky(channels: int, kind: type[ConceptScoring] = ConceptScoring) -> ConceptScoring:
    """A logit module with large random weights."""
    scoring = kind(channels, init="default").double()
    with torch.no_grad():
        for parameter in scoring.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return scoring


def drawn(data: st.DataObject) -> tuple[Window, tuple[int, int]]:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    return Window(kernel, stride, padding, data.draw(st.booleans())), size


def plugged(model: nn.Module, layer: str, **options) -> nn.Module:
    concepts = {"concepts": CONCEPTS} if layer == "lap" else {}
    return plug(model, Plug(layer=layer, **concepts, **options), classes=CLASSES)


def small_resnet(name: str = "resnet18", **parameters) -> nn.Module:
    model = build(name, num_classes=2, parameters={"width": 8, **parameters})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# LIP by its formula.


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_lip_is_the_formula_in_any_window(data, seed):
    torch.manual_seed(seed)
    window, size = drawn(data)
    lip = LIP(spiky(3), window)
    scored, x = torch.randn(1, 3, *size).double(), torch.randn(1, 2, *size).double()

    expected = slow_pooling(x, slow_logits(scored, lip.scoring).exp(), window)

    torch.testing.assert_close(lip(x, scored), expected, rtol=1e-9, atol=1e-12)


def test_global_lip_is_the_formula():
    lip = LIP(spiky(4), None)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    weight = slow_logits(x, lip.scoring).exp()

    torch.testing.assert_close(
        lip(x), (x * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True)
    )


@pytest.mark.parametrize(
    ("window", "size"),
    [
        (Window((2, 2), (2, 2)), (5, 7)),
        (Window((2, 2), (2, 2), ceil_mode=False), (5, 7)),
        (Window((3, 3), (2, 2), (1, 1), ceil_mode=False), (6, 5)),
        (None, (3, 4)),
    ],
    ids=str,
)
def test_gradients_of_lip_are_those_of_finite_differences(window, size):
    lip = LIP(spiky(3), window)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, *_parameters: lip(x), (x, *lip.parameters()))


def slow_gated(x: Tensor, scoring: ConceptScoring) -> Tensor:
    """G = 12 / (1 + e^−z), a logit for each channel."""
    return 12 / (1 + (-slow_logits(x, scoring)).exp())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_lip_of_each_channel_is_the_formula_channel_by_channel(data, seed):
    torch.manual_seed(seed)
    window, size = drawn(data)
    lip = LIP(spiky(3, ChannelScoring), window)
    x = torch.randn(2, 3, *size).double()
    weight = slow_gated(x, lip.scoring).exp()

    found = lip(x)
    for b in range(2):
        for c in range(3):
            channel = x[b : b + 1, c : c + 1]
            expected = slow_pooling(channel, weight[b : b + 1, c : c + 1], window)
            torch.testing.assert_close(found[b : b + 1, c : c + 1], expected, rtol=1e-9, atol=1e-12)


def test_lip_of_each_channel_is_two_average_poolings():
    """O = avg(x exp G) / avg(exp G), as its authors compute it; also as global pooling."""
    lip, x = LIP(spiky(4, ChannelScoring), Window((3, 3), (2, 2), (1, 1))), torch.randn(2, 4, 8, 8).double()
    weight = slow_gated(x, lip.scoring).exp()
    average = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    torch.testing.assert_close(lip(x), average(x * weight) / average(weight))
    everywhere = LIP(lip.scoring, None)
    torch.testing.assert_close(everywhere(x), (x * weight).mean((2, 3), True) / weight.mean((2, 3), True))
    assert everywhere(x[:0]).shape == (0, 4, 1, 1)


@pytest.mark.parametrize("window", [Window((2, 2), (2, 2)), Window((3, 3), (2, 2), (1, 1)), None], ids=str)
def test_gradients_of_lip_of_each_channel(window):
    lip = LIP(spiky(3, ChannelScoring), window)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_parameters: lip(x), (x, *lip.parameters()))


def test_lip_of_each_channel_starts_as_average_pooling():
    x = torch.randn(2, 4, 9, 7)
    expected = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(LIP(ChannelScoring(4), Window((3, 3), (2, 2), (1, 1)))(x), expected)
    half = LIP(ChannelScoring(4), Window((2, 2), (2, 2))).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert half.window_weights(x.bfloat16()).dtype == torch.float32


def test_lip_starts_as_average_pooling():
    x = torch.randn(2, 4, 9, 7)

    expected = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)

    torch.testing.assert_close(LIP(ConceptScoring(4), Window((3, 3), (2, 2), (1, 1)))(x), expected)
    torch.testing.assert_close(LIP(ConceptScoring(4), None)(x), F.adaptive_avg_pool2d(x, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_pass_the_heaviest_pixel_and_do_not_overflow(dtype):
    lip = LIP(ConceptScoring(1, hidden=None), Window((2, 2), (2, 2))).to(dtype)
    with torch.no_grad():
        lip.scoring.head.weight.fill_(300.0)
    x = torch.randperm(36).float().view(1, 1, 6, 6).to(dtype)

    assert lip(x).equal(F.max_pool2d(x, 2))


def test_a_constant_added_to_the_logits_changes_nothing():
    lip = LIP(spiky(3), Window((2, 2), (2, 2)))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = lip(x)
    with torch.no_grad():
        lip.scoring.head.bias.add_(5.0)

    torch.testing.assert_close(lip(x), before)


def test_lip_wants_one_head_and_a_pixel():
    with pytest.raises(ValueError, match="LIP needs a logit module with one head, found 3"):
        LIP(ConceptScoring(4, 3, aggregation="sum"), None)
    with pytest.raises(ValueError, match="LIP needs at least one pixel, found a map of 0×6"):
        LIP(ConceptScoring(4), None)(torch.zeros(1, 4, 0, 6))
    assert LIP(ConceptScoring(4), None)(torch.zeros(0, 4, 3, 6)).shape == (0, 4, 1, 1)


# A stride as pooling.


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_strided_passes_the_first_pixel_on_the_map(data, seed):
    torch.manual_seed(seed)
    window, size = drawn(data)
    x = torch.randn(2, 3, *size)
    rows, columns = window.output_size(*size)
    r = (torch.arange(rows) * window.stride[0] - window.padding[0]).clamp_min(0)
    c = (torch.arange(columns) * window.stride[1] - window.padding[1]).clamp_min(0)

    assert Strided(window)(x).equal(x[:, :, r][:, :, :, c])


def test_a_stride_is_the_convolution_with_it():
    convolution = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)

    expected = F.conv2d(x, convolution.weight, convolution.bias, stride=2, padding=1)

    torch.testing.assert_close(Strided(Window((2, 2), (2, 2)))(convolution(x)), expected)


def test_poolings_say_what_they_are():
    assert str(Strided(Window((3, 3), (2, 2), (1, 1), ceil_mode=False))) == (
        "Strided(kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=False)"
    )
    assert "LIP(\n" in str(LIP(ConceptScoring(4), None))
    with pytest.raises(ValueError, match="padding may be at most half the kernel"):
        window_of(2, 2, 2, ceil_mode=True)


# In a network.


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("branch_mode", ["shared", "separate", "post_add"])
def test_strided_makes_the_plain_resnet_bit_for_bit(name, branch_mode):
    model = small_resnet(name)
    x = torch.randn(2, 3, 75, 64)

    assert plugged(model, "strided", branch_mode=branch_mode)(x).equal(model(x))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "convnext_tiny", "regnet_y_400mf"])
def test_strided_makes_every_network_without_max_pooling_bit_for_bit(name):
    model = build(name, num_classes=2).eval()
    x = torch.randn(1, 3, 64, 71)

    assert plugged(model, "strided", sites="all", lap_position="post_act")(x).equal(model(x))


def test_strided_passes_the_first_pixel_where_maxima_were_taken():
    with torch.device("meta"):
        model = plugged(build("vgg11", num_classes=2), "strided", sites="all")

    assert [type(layer) for layer in model.features].count(Strided) == 5
    assert isinstance(model.avgpool, nn.AdaptiveAvgPool2d)


@torch.no_grad()
def test_max_where_maxima_were_taken_is_the_plain_network():
    squeezenet = build("squeezenet1_1", num_classes=2).eval()
    names = [site.name for site in find_sites(squeezenet)]
    pools = [name for name in names if isinstance(squeezenet.get_submodule(name), nn.MaxPool2d)]
    x = torch.randn(1, 3, 71, 64)

    assert len(pools) == 3
    assert plugged(squeezenet, "max", sites=pools)(x).equal(squeezenet(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "branch_mode"),
    [
        ("resnet18", "shared"),
        ("resnet18", "separate"),
        ("resnet18", "post_add"),
        ("squeezenet1_1", "shared"),
        ("mobilenet_v2", "shared"),
    ],
)
def test_average_and_untrained_lip_are_lap_with_constant_scores(name, branch_mode):
    model = small_resnet() if name == "resnet18" else build(name, num_classes=2).eval()
    x = torch.randn(1, 3, 75, 107)
    lap = plugged(model, "lap", sites="all", branch_mode=branch_mode)(x)

    for other in ("average", "lip"):
        found = plugged(model, other, sites="all", branch_mode=branch_mode)(x)
        torch.testing.assert_close(found, lap, rtol=1e-4, atol=1e-5)
    each = {"channels": "each", "branch_scores": "concat", "branch_mode": branch_mode}
    torch.testing.assert_close(plugged(model, "lip", sites="all", **each)(x), lap, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50", {"branch_mode": "separate", "lap_position": "post_act"}),
        ("inception_v3", {"mixed_mode": "concat"}),
        ("inception_v3", {"mixed_mode": "per_branch"}),
        ("mobilenet_v2", {}),
        ("squeezenet1_1", {}),
    ],
)
def test_every_layer_takes_the_same_places_with_the_same_sizes(name, options):
    with torch.device("meta"):
        plain = build(name, num_classes=3).eval()
        networks = [plugged(plain, kind, sites="all", **options) for kind in LAYERS]
        found = [sizes(model) for model in networks]
    assert found[0] and all(one == found[0] for one in found)
    assert not is_plugged(plain) and all(map(is_plugged, networks))
    with pytest.raises(DefinitionError, match="carries LAP, or what stands in its place, already"):
        plugged(networks[LAYERS.index("max")], "lap")


def sizes(model: nn.Module) -> list[torch.Size]:
    """The sizes of what the convolutions and the linear layer are given, in order of size."""
    found: list[torch.Size] = []
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(lambda _m, args, _out: found.append(args[0].shape[2:]))
    assert model(torch.empty(2, 3, 299, 224)).shape == (2, 3)
    return sorted(found)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_join_the_network_in_its_dtype_mode_and_with_its_weights(layer):
    model = small_resnet().double()
    result = plugged(model, layer)

    assert all(p.dtype == torch.float64 for p in result.parameters())
    assert not any(module.training for module in result.modules())
    load_plain(result, model.state_dict())
    assert result(torch.randn(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64
    own = {key for key in result.state_dict() if key not in model.state_dict()}
    assert bool(own) == (layer in ("lap", "lip"))


def test_every_lip_learns_and_only_lips_where_it_is_said():
    model = plugged(small_resnet(), "lip", score_init="default").train()
    assert len(lip_layers(model)) == 4 and not lap_layers(model)

    with only(model, ["lip"]):
        model(torch.randn(4, 3, 128, 128)).square().sum().backward()
        learning = {name for name, p in model.named_parameters() if p.requires_grad}

    assert learning == {name for name, _ in model.named_parameters() if ".scoring." in name}
    for one in lip_layers(model).values():
        assert one.scoring.hidden.weight.grad.abs().sum() > 0
    with pytest.raises(TrainingError, match="'lap' has no parameters"), only(model, ["lap"]):
        pass


def test_weights_of_a_lip_network_go_through_a_file_and_can_be_drawn_anew(tmp_path):
    model, other = (plugged(small_resnet(), "lip", score_init="default").eval() for _ in range(2))
    x = torch.randn(1, 3, 64, 64)
    save_weights(tmp_path / "lip.safetensors", model.state_dict(), {})
    assert not other(x).equal(model(x))

    copy_weights(other, load_weights(tmp_path / "lip.safetensors"))

    assert other(x).equal(model(x))
    fresh = plugged(small_resnet(), "lip")
    drawn_anew = [one.scoring.head.weight for one in lip_layers(randomise(fresh, seed=1)).values()]
    assert all(weight.abs().sum() > 0 for weight in drawn_anew)


def test_a_copy_of_a_lip_network_computes_the_same():
    model = plugged(small_resnet(), "lip", score_init="default", branch_scores="concat").eval()
    x = torch.randn(2, 3, 64, 64)

    assert copy.deepcopy(model)(x).equal(model(x))


# The definition.


def test_the_layer_is_in_no_name_where_it_is_lap():
    lap, lip = Plug(concepts=CONCEPTS), Plug(layer="lip")

    assert not {"layer", "channels"} & lap.model_dump().keys() and Plug(**lap.model_dump()) == lap
    assert lip.model_dump()["layer"] == "lip" and Plug(**lip.model_dump()) == lip
    assert digest_of(lap) == "3b842b475da813d84908f650ede68bc0a7ece2b0e9174008aa9753ef2242d9c8"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"layer": "lap"}, "LAP needs at least one concept"),
        ({"layer": "lip", "concepts": CONCEPTS}, "layer 'lip' has no concepts: leave that out, or use 'lap'"),
        ({"layer": "lip", "each_class": {}}, "layer 'lip' has no each_class: leave that out"),
        ({"layer": "lip", "aggregation": "sum", "eps": 1e-3}, "layer 'lip' has no aggregation, eps"),
        ({"layer": "max", "hidden": None}, "layer 'max' has no hidden: leave that out"),
        ({"layer": "strided", "branch_scores": "concat"}, "layer 'strided' has no branch_scores"),
        (
            {"concepts": CONCEPTS, "channels": "each"},
            "layer 'lap' has no channels: leave that out, or use 'lip'",
        ),
        ({"layer": "max", "channels": "each"}, "layer 'max' has no channels"),
        ({"layer": "lip", "channels": "each"}, "that are pooled: set branch_scores = 'concat', or branch_m"),
        ({"layer": "min"}, "'lap', 'lip', 'average', 'max' or 'strided'"),
    ],
)
def test_settings_of_what_a_layer_has_not_are_refused(fields, fault):
    with pytest.raises(ValidationError, match=fault):
        Plug(**fields)


def test_concepts_are_supervised_in_lap_alone():
    with pytest.raises(
        ValidationError,
        match=r"which need \[models.plug\] with layer 'lap' \(found 'lip'\)",
    ):
        Model(
            name="a", architecture="resnet18", plug=Plug(layer="lip"),
            recipe={"epochs": 1, "supervision": "weak"},
        )  # fmt: skip
    assert Model(name="a", architecture="resnet18", plug=Plug(layer="lip"), weights="a.pt").carries == {"lip"}


def test_the_limit_of_exponentials_is_the_maximum():
    """F = exp(β I), each channel for itself: why `max` belongs to the family."""
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    largest = F.max_pool2d(x, 2)
    apart = []
    for beta in (1.0, 10.0, 100.0):
        pooled = torch.cat(
            [slow_pooling(x[:, [c]], (beta * x[:, [c]]).exp(), Window((2, 2), (2, 2))) for c in range(2)], 1
        )
        apart.append(float((pooled - largest).abs().max()))

    assert apart == sorted(apart, reverse=True) and apart[-1] < 1e-2
