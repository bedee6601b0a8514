import pytest
import torch
from torch import nn
from torchvision import models

from lapbench.errors import DefinitionError, UnknownNameError
from lapbench.models.zoo import build
from lapbench.registry import architectures

RESNETS = [name for name in architectures.names() if "resne" in name]
IMAGE = {"inception_v3": 96, "squeezenet1_1": 64, "alexnet": 64}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_zoo_holds_every_convolutional_classifier_of_torchvision():
    families = (
        "alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenet",
        "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "vgg", "wide_resnet",
    )  # fmt: skip
    others = {name for name in models.list_models(module=models) if not name.startswith(families)}

    assert {name.partition("_")[0] for name in others} == {"maxvit", "swin", "vit"}
    assert set(architectures.names()) == set(models.list_models(module=models)) - others
    assert len(architectures.names()) >= 68


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_by_default_are_those_of_torchvision(name):
    with torch.device("meta"):
        ours, theirs = build(name, num_classes=5), models.get_model(name, weights=None, num_classes=5)

    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert [str(module) for module in ours.children()] == [str(module) for module in theirs.children()]


def test_a_default_resnet_computes_and_starts_as_that_of_torchvision():
    ours, theirs = build("resnet18", num_classes=5).eval(), models.resnet18(num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)

    for key, value in theirs.state_dict().items():
        if "conv" in key:  # drawn by the same rule
            assert ours.state_dict()[key].std() == pytest.approx(float(value.std()), rel=0.05)
    ours.load_state_dict(theirs.state_dict())
    assert ours(x).equal(theirs(x))


def test_resnets_take_width_blocks_and_stem():
    model = build(
        "resnet18",
        num_classes=2,
        parameters={"width": 8, "blocks": [1, 2, 1, 1], "stem": "3x3", "stem_stride": 1, "stem_pool": False},
    )

    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    assert [len(layer) for layer in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 2, 1, 1]
    assert model.fc.in_features == 64
    assert model(torch.randn(2, 3, 40, 56)).shape == (2, 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("stem", ["imagenet", "3x3"])
def test_the_stem_reduces_by_stride_and_pooling(stem, stride, pool):
    parameters = {"width": 4, "stem": stem, "stem_stride": stride, "stem_pool": pool}
    model = build("resnet18", num_classes=2, parameters=parameters)
    sizes = []
    model.layer1.register_forward_hook(lambda _m, _args, out: sizes.append(out.shape[2]))
    model(torch.randn(2, 3, 64, 64))

    assert sizes == [64 // stride // (2 if pool else 1)]


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "mobilenet_v2", "squeezenet1_1", "densenet121"])
def test_a_grey_network_is_the_colour_network_on_grey_images(name):
    torch.manual_seed(3)
    grey = build(name, num_classes=2, in_channels=1).eval()
    torch.manual_seed(3)
    colour = build(name, num_classes=2).eval()
    x = torch.randn(1, 1, IMAGE.get(name, 64), IMAGE.get(name, 64))

    torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "auxiliaries"), [("inception_v3", ["AuxLogits"]), ("googlenet", ["aux1", "aux2"])]
)
def test_auxiliary_classifiers_are_optional(name, auxiliaries):
    with torch.device("meta"):
        full = build(name, num_classes=3)
        bare = build(name, num_classes=3, parameters={"aux_logits": False})

    assert all(getattr(full, part) is not None for part in auxiliaries)
    assert all(getattr(bare, part) is None for part in auxiliaries)


def test_building_is_decided_by_the_seed():
    torch.manual_seed(5)
    first = build("squeezenet1_1", num_classes=2).state_dict()
    torch.manual_seed(5)
    second = build("squeezenet1_1", num_classes=2).state_dict()

    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "resnet18",
            {"parameters": {"widht": 8}},
            "architecture resnet18: widht: Extra inputs are not permitted "
            "(its parameters: width, blocks, stem, stem_stride, stem_pool, head)",
        ),
        ("resnet18", {"parameters": {"stem": "5x5"}}, "stem: Input should be 'imagenet' or '3x3'"),
        ("resnet18", {"parameters": {"width": 0}}, "width: Input should be greater than 0"),
        ("resnet18", {"parameters": {"blocks": [1, 1]}}, "blocks"),
        ("vgg11", {"parameters": {"width": 8}}, "Extra inputs are not permitted (its parameters: none)"),
        ("vgg11", {"in_channels": 4}, "vgg11 needs at least one class and 1 or 3 channels (found 2 and 4)"),
        ("vgg11", {"num_classes": 0}, "vgg11 needs at least one class and 1 or 3 channels (found 0 and 3)"),
        (
            "inception_v3",
            {"in_channels": 1, "parameters": {"transform_input": True}},
            "inception_v3: transform_input needs 3 channels, found 1",
        ),
    ],
)
def test_wrong_parameters_are_refused(name, arguments, message):
    with pytest.raises(DefinitionError) as caught:
        build(name, **{"num_classes": 2, **arguments})
    assert message in str(caught.value)


def test_unknown_networks_get_the_nearest_right_name():
    with pytest.raises(
        UnknownNameError, match=r"there is no architecture 'resnet-18'; did you mean 'resnet18'\?"
    ):
        build("resnet-18", num_classes=2)
