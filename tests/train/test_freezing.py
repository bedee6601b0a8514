"""Training in stages: only some modules learn, and a training starts where another ended."""

import pytest
import torch
from torch import nn

from lapbench import pipeline
from lapbench.benchmark import AnteHoc, Recipe, select
from lapbench.errors import DefinitionError, TrainingError
from lapbench.models import lap_layers, load_weights, put_antehoc
from lapbench.models.weighting import antehoc_layers
from lapbench.models.weights import load_record
from lapbench.models.zoo import build
from lapbench.pipeline.networks import new_network
from lapbench.train import train
from lapbench.train.freezing import only, rest
from tests.pipeline import tiny
from tests.train.squares import CLASSES, DATA, dataset

TUNED = tiny.DEFINITION.replace(
    "[[explainers]]",
    """[[models]]
name = "tuned"
architecture = "resnet18"
parameters = { width = 4, blocks = [1, 1, 1, 1], stem = "3x3", stem_stride = 2, stem_pool = false }

[models.plug]
concepts = [{ name = "three", classes = ["present"], min_area = 0.05, max_area = 0.3, inactive_area = 0.05 }]

[models.recipe]
supervision = "weak"
start = "plain"
learning = ["lap"]
epochs = 1
iterations = 3
batch_size = 16
learning_rate = 3e-3

[[explainers]]""",
    1,
)


def test_only_what_is_named_learns_and_all_is_put_back():
    network = build("resnet18", num_classes=2, parameters={"width": 4}).train()
    first = {name: value.clone() for name, value in network.state_dict().items()}
    with only(network, ("layer4", "fc")):
        rest(network)
        learning = [p for p in network.parameters() if p.requires_grad]
        network(torch.randn(4, 3, 32, 32)).sum().backward()
        torch.optim.SGD(learning, 0.1).step()

    moved = {name for name, value in network.state_dict().items() if not value.equal(first[name])}
    assert moved and all(name.startswith(("layer4", "fc")) for name in moved)
    assert any("running_mean" in name for name in moved)  # batch norm that learns keeps count
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_weighting_network_learns_without_the_pooling_beside_it():
    parameters = {"width": 4, "head": "heat-maps"}
    network = put_antehoc(build("resnet18", num_classes=4, parameters=parameters), AnteHoc())
    (layer,) = antehoc_layers(network).values()
    with only(network, ("antehoc",)):
        learning = {id(p) for p in network.parameters() if p.requires_grad}
    assert list(layer.pool.parameters())
    assert learning == {id(p) for p in layer.weighting.parameters()}


def test_statistics_without_parameters_count_in_what_learns_alone():
    trunk, head = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, affine=False)),
    )
    network = nn.Sequential(*trunk, nn.Dropout(), head, nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    with only(network, ("3",)):
        rest(network, ("3",))
        network(torch.randn(4, 3, 8, 8))
    assert not trunk[1].training and not trunk[1].running_mean.any()
    assert head[1].running_mean.any()
    assert network[2].training  # dropout is no statistic


def test_statistics_without_parameters_rest_in_a_training(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Dropout(), nn.Conv2d(4, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, len(CLASSES)),
    )  # fmt: skip
    recipe = Recipe(epochs=1, batch_size=8, learning=("6",))
    train(network, dataset(), data=DATA, recipe=recipe, device="cpu", workdir=tmp_path)
    assert network[1].num_batches_tracked == 0 and not network[1].running_mean.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer5", r"no module 'layer5'; did you mean 'layer\d'"),
        ("relu", "'relu' has no parameters"),
        ("lap", "'lap' has no parameters"),
    ],
)
def test_names_that_name_nothing_are_refused(name, message):
    network = build("resnet18", num_classes=2, parameters={"width": 4})
    with pytest.raises(TrainingError, match=message), only(network, (name,)):
        pass
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_model_starts_where_another_ended(epochs, tmp_path):
    text = TUNED.replace('learning = ["lap"]\nepochs = 1', f'learning = ["lap"]\nepochs = {epochs}')
    staged = job(tmp_path, text)
    paths = dict(zip(("WS-LAP", "plain", "tuned"), pipeline.train(staged), strict=True))

    plain, tuned = load_weights(paths["plain"]), load_weights(paths["tuned"])
    (model,) = (model for model in staged.benchmark.models if model.name == "tuned")
    laps = tuple(f"{name}." for name in lap_layers(new_network(staged, model)))
    assert all(tuned[name].equal(value) for name, value in plain.items())  # statistics included
    heads = [value for name, value in tuned.items() if name.endswith("scoring.head.weight")]
    assert {name for name in tuned if name not in plain} == {name for name in tuned if name.startswith(laps)}
    assert all(bool(value.any()) == bool(epochs) for value in heads)  # they start at zero
    recipe = load_record(paths["tuned"])["recipe"]
    assert (recipe["start"], recipe["pretrained"]) == ("plain", None)  # and no file of this machine


def job(folder, text):
    return tiny.job(tiny.write_definition(folder, text=text), folder)


def test_where_a_training_starts_names_its_weights(tmp_path):
    texts = TUNED, TUNED.replace("epochs = 1", "epochs = 3", 1), TUNED.replace('start = "plain"\n', "")
    names = []
    for text in texts:
        one = job(tmp_path, text)
        names.append([one.weights(model, 0).stem for model in one.benchmark.models])

    as_is, longer, from_nothing = names
    assert longer[0] == as_is[0] and longer[1] != as_is[1] and longer[2] != as_is[2]
    assert from_nothing[:2] == as_is[:2] and from_nothing[2] != as_is[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('start = "plian"', "tuned starts from 'plian', which is no model further up; did you mean 'plain'"),
        ('start = "plain"\npretrained = "x.pth"', "either start or pretrained"),
        ("# from nothing", "epochs = 0 trains nothing: it needs start or pretrained"),
    ],
)
def test_a_start_that_is_not_there_is_a_fault_of_the_definition(wrong, message, tmp_path):
    with pytest.raises(DefinitionError, match=message):
        job(
            tmp_path,
            TUNED.replace('start = "plain"', wrong).replace('["lap"]\nepochs = 1', '["lap"]\nepochs = 0'),
        )


def test_all_seeds_start_from_an_only_one_but_else_from_their_own(tmp_path):
    text = TUNED.replace('name = "tuned"', 'name = "tuned"\nseeds = [1, 2]')
    one = job(tmp_path, text)
    plain, tuned = (m for m in one.benchmark.models if m.name in ("plain", "tuned"))
    assert {one.start(tuned, seed) for seed in (1, 2)} == {one.weights(plain, 0)}

    with pytest.raises(DefinitionError, match="tuned has seeds that plain, which it starts from, has not"):
        job(tmp_path, text.replace('name = "plain"', 'name = "plain"\nseeds = [0, 1]'))


def test_what_a_model_starts_from_may_not_be_left_out(tmp_path):
    whole = job(tmp_path, TUNED)
    alone = tiny.job(select(whole.benchmark, models=("tuned",)), tmp_path)
    with pytest.raises(DefinitionError, match="tuned starts from plain, which was left out: name it, too"):
        alone.weights(alone.benchmark.models[0], 0)
