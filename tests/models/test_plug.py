import copy

import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock

from lapbench.benchmark import Plug
from lapbench.errors import DefinitionError, UnknownNameError, WeightsError
from lapbench.models.lap import LAP, AdaptiveLAP2d, record_laps
from lapbench.models.plug import find_sites, is_plugged, lap_heads, lap_layers, lap_names, load_plain, plug
from lapbench.models.zoo import build
from lapbench.registry import architectures

CLASSES = ("healthy", "pneumonia")
EVERY_NETWORK = architectures.names()
ONE_OF_A_FAMILY = {  # with an image large enough for it
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnet50": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 64,
    "vgg11": 32,
}


def spec(**options) -> Plug:
    return Plug(concepts=[{"name": "opacity", "classes": ["pneumonia"]}], **options)


def plugged(model: nn.Module, **options) -> nn.Module:
    return plug(model, spec(**options), classes=CLASSES)


def vivid(model: nn.Module) -> nn.Module:
    """Draw batch norm's parameters and statistics at random, so that nothing cancels by chance."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3, generator=generator)
    return model


def take_corners(model: nn.Module) -> nn.Module:
    """Let every windowed LAP pass the pixel in its top left corner: what a strided convolution keeps."""

    def corner(lap):
        def weights(scored):
            even = lap_weights(scored)
            one_hot = torch.zeros_like(even)
            one_hot[:, 0] = 1
            return one_hot

        lap_weights = lap.window_weights
        return weights

    for lap in lap_layers(model).values():
        if not isinstance(lap, AdaptiveLAP2d):
            lap.window_weights = corner(lap)
    return model


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def inception():
    torch.manual_seed(0)
    return vivid(build("inception_v3", num_classes=2)).eval()


def small_resnet(name="resnet18", **parameters):
    return vivid(build(name, num_classes=2, parameters={"width": 8, **parameters}))


# A LAP that passes the corner makes the plain network again: strides, branches, dilation and order are right.


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("branch_mode", ["shared", "separate", "post_add"])
@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
@pytest.mark.parametrize("branch_scores", ["conv", "concat"])
def test_resnet_with_corner_weights_is_the_plain_resnet(name, branch_mode, lap_position, branch_scores):
    width = 64 if name.startswith("resnext") else 8
    model = small_resnet(name, width=width, blocks=(1, 2, 1, 1)).eval()
    x = torch.randn(2, 3, 75, 64)

    got = take_corners(
        plugged(model, branch_mode=branch_mode, lap_position=lap_position, branch_scores=branch_scores)
    )(x)

    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixed_mode", ["concat", "per_branch"])
@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
def test_inception_with_corner_weights_is_the_plain_inception(inception, mixed_mode, lap_position):
    sites = ("Conv2d_1a_3x3", "Mixed_6a", "Mixed_7a", "avgpool")
    x = torch.randn(1, 3, 128, 117)
    model = plugged(inception, sites=sites, mixed_mode=mixed_mode, lap_position=lap_position)
    if mixed_mode == "per_branch":  # here the pooling branch has a LAP(3, 2) that stands for a maximum
        for block in (model.Mixed_6a, model.Mixed_7a):
            block.lap_pool = nn.MaxPool2d(3, 2)

    torch.testing.assert_close(take_corners(model)(x), inception(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny",
        "efficientnet_b0",
        "mnasnet0_5",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "regnet_y_400mf",
    ],
)
def test_strided_convolutions_with_corner_weights_are_the_plain_network(name, lap_position):
    model = vivid(build(name, num_classes=2)).eval()
    x = torch.randn(1, 3, 64, 71)

    got = take_corners(plugged(model, sites="all", lap_position=lap_position))(x)

    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
def test_shufflenet_with_corner_weights_is_the_plain_shufflenet(lap_position):
    model = vivid(build("shufflenet_v2_x0_5", num_classes=2)).eval()
    x = torch.randn(1, 3, 64, 71)
    sites = ("conv1", "stage2", "stage3", "stage4", "global_pool")  # all but its maximum pooling

    got = take_corners(plugged(model, sites=sites, lap_position=lap_position))(x)

    torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_average_poolings_as_lap_are_the_plain_densenet():
    model = vivid(build("densenet121", num_classes=2)).eval()
    x = torch.randn(1, 3, 64, 80)

    torch.testing.assert_close(plugged(model)(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "googlenet", "densenet121", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5"]
)
def test_global_pooling_as_lap_is_the_identity_at_constant_scores(name):
    model = vivid(build(name, num_classes=2)).eval()
    site = find_sites(model)[-1].name
    x = torch.randn(2, 3, 64, 64)

    torch.testing.assert_close(plugged(model, sites=(site,))(x), model(x), rtol=1e-5, atol=1e-6)


def test_batch_norm_commutes_with_lap_of_fixed_weights_in_evaluation_mode():
    lap = lap_layers(plugged(small_resnet(), score_init="default"))["layer2.0.lap"]
    norm = vivid(nn.Sequential(nn.BatchNorm2d(16))).eval()
    x = torch.randn(2, 16, 9, 8)
    weights = lap.window_weights(x)

    torch.testing.assert_close(lap.pool(norm(x), weights), norm(lap.pool(x, weights)), rtol=1e-5, atol=2e-6)


def test_post_add_needs_the_dilation_in_the_basic_block():
    model = small_resnet().eval()
    undilated = take_corners(plugged(model, branch_mode="post_add", sites=("layer3",)))
    undilated.layer3[0].conv2.dilation = undilated.layer3[0].conv2.padding = (1, 1)
    x = torch.randn(2, 3, 64, 64)

    assert not torch.allclose(undilated(x), model(x), atol=1e-3)


# Every network of the zoo, by its shapes.


def shapes_only(name: str) -> nn.Module:
    """The network on the meta device: it has shapes and no numbers, and costs next to nothing."""
    if name.startswith("regnet"):  # computes its own sizes with tensors
        return build(name, num_classes=7).eval().to("meta")
    with torch.device("meta"):
        return build(name, num_classes=7).eval()


def in_turn(networks):
    """Every network, of which all but one of a family are for patient people."""
    return [
        pytest.param(name, marks=() if name in (*ONE_OF_A_FAMILY, "inception_v3") else pytest.mark.slow)
        for name in networks
    ]


@pytest.mark.parametrize("name", in_turn(EVERY_NETWORK))
def test_every_network_can_carry_lap_and_its_maps_keep_their_sizes(name):
    plain = shapes_only(name)
    sites = find_sites(plain)
    model = plugged(plain, sites="all")
    laps = lap_layers(model)
    wanted = {}
    for site in sites:
        if site.name != "global_pool":
            plain.get_submodule(site.name).register_forward_hook(
                lambda _m, _args, out, name=site.name: wanted.update({name: {tuple(out.shape[2:])}})
            )
    for size in ((299, 224), (128, 141)):  # even and odd
        plain(torch.empty(1, 3, *size, device="meta"))
        with record_laps(model) as records:
            assert model(torch.empty(2, 3, *size, device="meta")).shape == (2, 7)
        assert [record.name for record in records] == list(laps)  # named in the order they run
        for site, expected in wanted.items():
            found = [r for r in records if r.name == site or r.name.startswith((f"{site}.", f"{site}_"))]
            assert {record.output_size for record in found} == expected
    own = tuple(f"{lap}." for lap in laps)
    assert [key for key in model.state_dict() if not key.startswith(own)] == list(plain.state_dict())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    assert all(layer.stride in (1, (1, 1)) for layer in layers)
    # the paper's places: at least three, and whatever is left out comes first
    chosen = [site.in_paper for site in sites]
    assert sum(chosen) >= 3
    assert chosen == sorted(chosen)


# Representatives of every family, with numbers.


@pytest.mark.parametrize(("name", "size"), ONE_OF_A_FAMILY.items(), ids=ONE_OF_A_FAMILY)
def test_plain_weights_load_and_every_lap_learns(name, size):
    torch.manual_seed(0)
    plain = vivid(build(name, num_classes=2))
    state = {
        key: torch.rand_like(value) if value.dtype.is_floating_point else value
        for key, value in plain.state_dict().items()
    }
    model = plugged(plain, score_init="default")
    before = {key: copy.deepcopy(lap.state_dict()) for key, lap in lap_layers(model).items()}

    load_plain(model, state)
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())
    load_plain(model, plain.state_dict())
    model.eval()(torch.randn(2, 3, size, size)).square().sum().backward()

    for key, lap in lap_layers(model).items():
        assert all(lap.state_dict()[k].equal(v) for k, v in before[key].items())
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lap.parameters())


def test_every_lap_gets_a_gradient_that_is_not_zero():
    model = plugged(small_resnet(), score_init="default")
    model(torch.randn(4, 3, 128, 128)).square().sum().backward()

    for lap in lap_layers(model).values():
        assert lap.alpha.grad.abs() > 0
        assert lap.scoring.hidden.weight.grad.abs().sum() > 0


# Places.


def test_the_places_in_resnet18_are_those_of_the_paper():
    with torch.device("meta"), record_laps(model := plugged(build("resnet18", num_classes=2))) as records:
        model(torch.empty(2, 3, 224, 224))

    assert [(r.name, tuple(r.inputs.shape[1:])) for r in records] == [
        ("layer2.0.lap", (128, 56, 56)),
        ("layer3.0.lap", (256, 28, 28)),
        ("layer4.0.lap", (512, 14, 14)),
        ("avgpool", (512, 7, 7)),
    ]


def test_separate_branches_have_a_lap_each():
    assert list(lap_layers(plugged(small_resnet(), branch_mode="separate"))) == [
        "layer2.0.lap",
        "layer2.0.lap_skip",
        "layer3.0.lap",
        "layer3.0.lap_skip",
        "layer4.0.lap",
        "layer4.0.lap_skip",
        "avgpool",
    ]


@pytest.mark.parametrize(("mode", "channels"), [("shared", 512), ("post_add", 2048)])
def test_resnet50_of_the_imagenet_experiment_has_one_lap_in_the_fourth_layer(mode, channels):
    with torch.device("meta"):
        model = plugged(build("resnet50", num_classes=1000), sites=("layer4",), branch_mode=mode)
        with record_laps(model) as records:
            model(torch.empty(2, 3, 224, 224))

    assert [(r.name, tuple(r.inputs.shape[1:])) for r in records] == [("layer4.0.lap", (channels, 14, 14))]
    assert isinstance(model.avgpool, nn.AdaptiveAvgPool2d)


@pytest.mark.parametrize(
    ("size", "maps", "outputs"),
    [
        (299, [71, 33, 15, 8], [35, 17, 8, 1]),
        (256, [60, 27, 12, 6], [29, 14, 6, 1]),
        (224, [52, 23, 10, 5], [25, 12, 5, 1]),
    ],
)
def test_the_places_in_inception_are_those_of_the_paper(size, maps, outputs):
    with (
        torch.device("meta"),
        record_laps(model := plugged(build("inception_v3", num_classes=2)).eval()) as records,
    ):
        model(torch.empty(2, 3, size, size))

    assert [r.name for r in records] == ["maxpool2", "Mixed_6a.lap", "Mixed_7a.lap", "avgpool"]
    assert [r.inputs.shape[1] for r in records] == [192, 768, 1280, 2048]
    assert [r.inputs.shape[2] for r in records] == maps
    assert [r.output_size[0] for r in records] == outputs
    assert [r.kernel[0] for r in records] == [3, 2, 2, outputs[2]]


def test_per_branch_inception_has_three_maps_a_site():
    with torch.device("meta"):
        model = plugged(
            build("inception_v3", num_classes=2).eval(), mixed_mode="per_branch", sites=("Mixed_6a",)
        )
        with record_laps(model) as records:
            model(torch.empty(2, 3, 299, 299))

    assert sorted((r.inputs.shape[2], r.kernel[0]) for r in records) == [(33, 2), (33, 2), (35, 3)]
    assert {r.output_size for r in records} == {(17, 17)}


def test_inception_trains_with_its_auxiliary_head():
    with torch.device("meta"):
        model = plugged(build("inception_v3", num_classes=5)).train()
        logits, auxiliary = model(torch.empty(2, 3, 299, 299))

    assert logits.shape == auxiliary.shape == (2, 5)


def test_a_small_stem_keeps_all_four_places():
    model = small_resnet(stem="3x3", stem_stride=1, stem_pool=False)
    with record_laps(plugged_model := plugged(model)) as records:
        plugged_model(torch.randn(1, 3, 32, 32))

    assert [r.inputs.shape[2] for r in records] == [32, 16, 8, 4]


def test_vgg_keeps_its_pooling_to_a_fixed_grid():
    with torch.device("meta"):
        model = plugged(build("vgg16", num_classes=2))

    assert list(lap_layers(model)) == ["features.16", "features.23", "features.30"]
    assert isinstance(model.avgpool, nn.AdaptiveAvgPool2d)


def test_squeeze_and_excitation_is_no_place_for_lap():
    assert not any(
        "fc" in site.name or ".avgpool" in site.name
        for site in find_sites(build("mobilenet_v3_small", num_classes=2))
    )


@pytest.mark.parametrize(
    ("mode", "extra"), [("shared", 0.58e9), ("post_add", 1.62e9)], ids=["shared", "post_add"]
)
def test_the_extra_cost_in_resnet18_is_the_stride(mode, extra):
    def cost(model):
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, 3, 224, 224))
        return counter.get_total_flops() / 2

    with torch.device("meta"):
        plain = build("resnet18", num_classes=1000)
        assert cost(plain) == pytest.approx(1.82e9, rel=0.01)
        assert cost(plugged(plain, branch_mode=mode)) - cost(plain) == pytest.approx(extra, rel=0.02)


# What plug promises about the given and the resulting network.


def test_the_given_network_is_untouched():
    model = small_resnet().train()
    state = copy.deepcopy(model.state_dict())
    text = str(model)
    model.layer2.eval()
    modes = [module.training for module in model.modules()]

    result = plugged(model)

    assert str(model) == text
    assert not is_plugged(model)
    assert is_plugged(result)
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in [*model.modules(), *result.modules()])
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.parameters()}


def test_lap_joins_the_network_in_its_dtype_and_mode():
    result = plugged(small_resnet().double().eval())

    assert all(p.dtype == torch.float64 for p in result.parameters())
    assert not any(module.training for module in result.modules())
    assert result(torch.randn(1, 3, 64, 64, dtype=torch.float64)).dtype == torch.float64


def test_heads_and_names_are_those_of_the_concepts():
    concepts = [
        {"name": "negative", "classes": ["no"]},
        {"name": "positive", "classes": ["yes", "maybe"]},
        {"name": "common"},
    ]
    definition = Plug(concepts=concepts, aggregation="sum")
    result = copy.deepcopy(plug(small_resnet(), definition, classes=("no", "yes", "maybe")))

    assert lap_heads(result) == result.lap_heads == ((0,), (1, 2), ())
    assert lap_names(result) == result.lap_names == ("negative", "positive", "common")
    assert all(lap.scoring.heads == 3 for lap in lap_layers(result).values())
    assert lap_heads(small_resnet()) == ()


def test_the_definition_reaches_every_lap():
    definition = spec(
        hidden=None,
        score_init="default",
        aggregation="trainable",
        aggregate_positive="softplus",
        alpha_init=0.1,
        alpha_trainable=False,
        eps=1e-7,
    )
    for lap in lap_layers(plug(small_resnet(), definition, classes=CLASSES)).values():
        assert lap.scoring.hidden is None
        assert isinstance(lap.scoring.positive, nn.Softplus)
        assert lap.scoring.aggregator is not None
        assert lap.scoring.head.weight.abs().sum() > 0
        assert lap.eps == 1e-7
        assert float(lap.alpha) == pytest.approx(0.1)
        assert not isinstance(lap.alpha, nn.Parameter)


def test_a_copy_of_a_plugged_network_computes_the_same():
    model = plugged(small_resnet(), score_init="default").eval()
    x = torch.randn(2, 3, 64, 64)

    assert copy.deepcopy(model)(x).equal(model(x))


@torch.no_grad()
@pytest.mark.parametrize("branch_mode", ["shared", "separate", "post_add"])
@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
def test_plugged_resnets_can_be_traced_with_lap_as_a_leaf(branch_mode, lap_position):
    model = plugged(small_resnet(), branch_mode=branch_mode, lap_position=lap_position, score_init="default")
    check_trace(model.eval(), 64)


@torch.no_grad()
@pytest.mark.parametrize("mixed_mode", ["concat", "per_branch"])
def test_plugged_inception_can_be_traced_with_lap_as_a_leaf(inception, mixed_mode):
    check_trace(plugged(inception, mixed_mode=mixed_mode, score_init="default"), 96)


def check_trace(model, size):
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, LAP) or super().is_leaf_module(module, name)

    x = torch.randn(1, 3, size, size)
    assert fx.GraphModule(model, Tracer().trace(model))(x).equal(model(x))


# Networks of others.


class Fixed(nn.Module):
    """A network that takes images of one size only."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(6 * 4 * 4, 2)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


@pytest.mark.parametrize("lap_position", ["pre_norm", "post_act"])
def test_a_network_of_ones_own_with_a_fixed_image_size(lap_position):
    plain = Fixed()
    model = plugged(plain, sites="all", lap_position=lap_position)
    x = torch.randn(2, 1, 32, 32)

    after = "0_lap" if lap_position == "pre_norm" else "1_lap"
    assert next(iter(lap_layers(model))) == f"features.{after}"
    model.features[-1] = nn.MaxPool2d(2)
    torch.testing.assert_close(take_corners(model)(x), plain(x))


class Unusual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


class Repeating(nn.Module):
    """One pooling in three places."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.pool(self.pool(self.pool(x)))


class Halving(nn.Conv2d):
    """A convolution that does more."""

    def forward(self, x):
        return super().forward(x) / 2


class Gated(BasicBlock):
    """A block that does more."""

    def forward(self, x):
        return super().forward(x).sigmoid()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), {}, "Sequential has no place for LAP: no pooling layer"),
        (Unusual(nn.Conv2d(3, 4, 3, 2)), {}, "sites = 'paper' chooses no place for LAP: choose among layer"),
        (Unusual(nn.Conv2d(3, 4, 3, 2)), {"sites": ()}, "sites = () chooses no place"),
        (
            Unusual(nn.Conv2d(3, 4, 3, 2)),
            {"sites": "all", "lap_position": "post_act"},
            "lap_position 'post_act' needs to know what follows the convolution 'layer' in Unusual: use",
        ),
        (Unusual(nn.MaxPool2d(2, 2, dilation=2)), {"sites": "all"}, "the pooling 'layer' is dilated"),
        (
            Unusual(Repeating()),
            {"sites": "all"},
            "Unusual runs its module 'layer.pool' 3 times: give each place a module of its own",
        ),
        (Unusual(Halving(3, 4, 3, 2)), {"sites": "all"}, "a Halving may compute otherwise than a Conv2d"),
        (
            Unusual(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, 2))),
            {"sites": "all"},
            "a ParametrizedConv2d may compute otherwise",
        ),
        (
            Unusual(Gated(3, 4, 2, downsample=nn.Sequential(nn.Conv2d(3, 4, 1, 2)))),
            {"sites": "all"},
            "a Gated may compute otherwise than a BasicBlock",
        ),
        (Unusual(nn.Linear(5, 2)), {}, "takes images of none of the sizes 299, 224, 128, 64, 32, 28"),
    ],
)  # fmt: skip
def test_networks_that_cannot_carry_lap_are_refused(model, options, message):
    model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    with pytest.raises(DefinitionError) as caught:
        plugged(model, **options)
    assert message in str(caught.value)


def test_a_network_is_plugged_once():
    with pytest.raises(
        DefinitionError, match="this SizedResNet carries LAP, or what stands in its place, already: start"
    ):
        plugged(plugged(small_resnet()))


def test_unknown_sites_and_classes_get_the_nearest_right_name():
    with pytest.raises(
        UnknownNameError, match=r"there is no LAP site 'layer5\.0'; did you mean 'layer4\.0'\?"
    ):
        plugged(small_resnet(), sites=("avgpool", "layer5.0"))
    with pytest.raises(UnknownNameError, match="there is no class 'pneumonia'; did you mean 'pneumonic'"):
        plug(small_resnet(), spec(), classes=("healthy", "pneumonic"))


def test_plain_weights_that_do_not_fit_are_named_and_nothing_is_loaded():
    model = plugged(small_resnet())
    before = copy.deepcopy(model.state_dict())
    state = small_resnet(stem="3x3").state_dict()
    del state["fc.bias"]
    state["extra"] = torch.zeros(1)

    with pytest.raises(WeightsError) as caught:
        load_plain(model, state, source="x.pth")

    assert str(caught.value) == (
        "x.pth do not fit this SizedResNet: missing: fc.bias; unexpected: extra; "
        "of another shape: conv1.weight (found 8×3×3×3, wanted 8×3×7×7)"
    )
    assert all(model.state_dict()[key].equal(value) for key, value in before.items())
