"""Epochs on the features of a trunk that does not learn."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from lapbench.benchmark import AnteHoc, Augment, Bla, Recipe
from lapbench.errors import TrainingError
from lapbench.models import bla_layers, build, put_antehoc, put_bla
from lapbench.train import features, seeded, train
from lapbench.train import recipe as recipe_module
from lapbench.train.features import halved
from lapbench.train.freezing import only
from tests.train.squares import DATA, dataset, network

SQUARES = dataset()


def attending(preset: str = "BLA-T", seed: int = 3) -> nn.Module:
    with seeded(seed):
        return put_bla(network(seed, plugged=False), Bla(preset=preset))


def run(workdir, model=None, *, progress=None, **fields):
    model = attending() if model is None else model
    settings = {"learning": ("bla", "fc"), "epochs": 3, "batch_size": 8, "learning_rate": 0.02, **fields}
    record = train(
        model, SQUARES, data=DATA, recipe=Recipe(**settings), device="cpu", workdir=workdir, progress=progress
    )
    return model, record


@contextmanager
def whole(model, material, *_, **__):
    yield model, material


@contextmanager
def counted(module: nn.Module):
    """How many samples went through a module."""
    samples = []
    handle = module.register_forward_hook(lambda _module, args, _out: samples.append(len(args[0])))
    yield samples
    handle.remove()


@pytest.mark.parametrize("learning", [("bla", "fc"), ("bla",), ("fc",), ("layer4", "bla", "fc")])
def test_the_weights_are_those_of_whole_passes(learning, tmp_path, monkeypatch):
    model = attending()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    with counted(model.layer3[0].conv1) as passed:
        on_features, record = run(tmp_path / "a", model, learning=learning)
    assert sum(passed) == 2 + 2 + 64 + 12  # a look at two samples by both ways, and each sample once
    assert not list((tmp_path / "a").glob("*.npy"))
    monkeypatch.setattr(recipe_module, "on_features", whole)
    by_images, slow = run(tmp_path / "b", learning=learning)
    for name, value in by_images.state_dict().items():
        torch.testing.assert_close(on_features.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        learns = name.startswith(tuple("avgpool" if part == "bla" else part for part in learning))
        assert learns or torch.equal(value, first[name])
    assert record.epochs[-1]["val_loss"] == pytest.approx(slow.epochs[-1]["val_loss"], rel=1e-4)


def test_a_head_of_bla_learns_from_features(tmp_path):
    """Behind a trunk that has learnt; the two presets differ in what they end with."""
    trunk, _ = run(tmp_path / "trunk", network(plugged=False), learning=(), epochs=4, learning_rate=0.01)
    ended = []
    for preset in ("BLA-T", "L2X-F"):
        model = put_bla(trunk, Bla(preset=preset, draws=2 if preset == "L2X-F" else 0))
        _, record = run(tmp_path / preset, model)
        assert record.epochs[-1]["train_loss"] < record.epochs[0]["train_loss"]
        ended.append(bla_layers(model)["avgpool"].score.weight)
    assert not torch.equal(*ended)


def test_a_network_teaches_attention_alike_on_features_and_on_images(tmp_path, monkeypatch):
    model = put_bla(network(plugged=False), Bla(preset="L2X", draws=2))
    settings = {"learning": ("bla",), "teacher": "network"}
    fast, record = run(tmp_path / "features", copy.deepcopy(model), **settings)
    monkeypatch.setattr(recipe_module, "on_features", whole)
    slow, other = run(tmp_path / "images", model, **settings)
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert record.epochs[-1]["val_loss"] == pytest.approx(other.epochs[-1]["val_loss"], rel=1e-4)


def test_a_network_teaches_nothing_but_attention(tmp_path):
    with pytest.raises(TrainingError, match="put BLA into the network, and set learning"):
        run(tmp_path, network(plugged=False), teacher="network")


def test_an_interrupted_training_on_features_ends_in_the_same_weights(tmp_path):
    class Interruption(Exception):  # noqa: N818 - it is no error
        pass

    def stop(done: int, _total: int, text: str) -> None:
        if "epoch 3" in text and done == 18:
            raise Interruption

    expected, _ = run(tmp_path / "whole")
    with pytest.raises(Interruption):
        run(tmp_path / "cut", progress=stop)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["last.ckpt"]
    resumed, record = run(tmp_path / "cut", attending(seed=4))  # another trunk, until the checkpoint is read
    assert len(record.epochs) == 3
    assert all(map(torch.equal, resumed.state_dict().values(), expected.state_dict().values()))


def test_another_attention_of_the_same_shape_is_another_training(tmp_path):
    run(tmp_path, attending("BLA-T"), epochs=1)
    _, record = run(tmp_path, attending("BLA"), epochs=1)
    assert (tmp_path / "last.ckpt.broken").exists() and len(record.epochs) == 1


@pytest.mark.parametrize("fields", [{"learning": ()}, {"augment": Augment(horizontal_flip=True)}])
def test_images_are_passed_on_where_features_would_change(fields, tmp_path):
    model = attending()
    with counted(model.layer3) as passed:
        run(tmp_path, model, epochs=2, **fields)
    assert sum(passed) == 2 * (64 + 12)


def test_features_that_do_not_fit_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARE_OF_DISK", 1e-12)
    model = attending()
    with counted(model.layer3[0].conv1) as passed:
        run(tmp_path, model, epochs=2)
    assert sum(passed) == 4 + 2 * (64 + 12)


def test_a_network_whose_head_answers_twice_sees_images(tmp_path):
    """Ante-hoc maps: no graph of one pass through the network shows the second one."""
    with seeded(3):
        model = put_antehoc(network(3, plugged=False), AnteHoc())
    with counted(model.layer3) as passed:
        _, record = run(tmp_path, model, learning=("antehoc", "fc"), epochs=2)
    assert sum(passed) == 2 * (64 + 12)
    assert {"train_masked_cross_entropy", "train_map_area"} <= record.epochs[0].keys()


def shape_behind(name: str, *learning: str, side: int = 64, **parameters: object) -> tuple[int, ...] | None:
    model = put_bla(build(name, num_classes=3, parameters=parameters), Bla())
    with only(model, learning):
        halves = halved(model)
    if halves is None:
        return None
    with torch.no_grad():
        return tuple(halves.trunk.eval()(torch.zeros(2, 3, side, side)).shape[1:])


@pytest.mark.parametrize(
    ("name", "learning", "shape"),
    [
        ("efficientnet_b0", ("bla", "classifier"), (1280, 2, 2)),
        ("densenet121", ("bla",), (1024, 2, 2)),
        ("squeezenet1_1", ("bla",), (512, 3, 3)),  # before the dropout that precedes its last convolution
        ("resnet18", ("bla", "fc"), (512, 2, 2)),
        ("resnet18", ("fc",), (512,)),
        ("resnet18", ("layer4",), (256, 4, 4)),
        ("resnet18", ("conv1",), None),
        ("shufflenet_v2_x0_5", ("bla",), (1024, 2, 2)),
    ],
)
def test_a_network_is_cut_before_what_learns(name, learning, shape):
    assert shape_behind(name, *learning) == shape


def test_auxiliary_classifiers_need_the_whole_network():
    assert shape_behind("googlenet", "bla", side=96) is None
    assert shape_behind("googlenet", "bla", side=96, aux_logits=False) == (1024, 3, 3)


class Drawing(nn.Module):
    """A network with a function in its middle that may draw at random."""

    def __init__(self, function) -> None:
        super().__init__()
        self.body, self.function, self.head = nn.Conv2d(3, 4, 3), function, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.function(self.body(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: nn.functional.dropout(x), (4, 6, 6)),
        (lambda x: nn.functional.dropout(x, training=False), (4,)),
        (lambda x: x * torch.rand_like(x), (4, 6, 6)),
        (lambda x: x * 2, (4,)),
    ],
)
def test_what_is_drawn_anew_is_not_kept(function, shape):
    model = Drawing(function)
    with only(model, ("head",)):
        halves = halved(model)
    assert tuple(halves.trunk(torch.zeros(2, 3, 8, 8)).shape[1:]) == shape


def test_both_halves_are_the_network_and_modes_are_put_back():
    model = put_bla(build("efficientnet_b0", num_classes=3), Bla(preset="BLA-T")).eval()
    model.classifier.train()
    modes = [module.training for module in model.modules()]
    with only(model, ("bla",)):
        halves = halved(model)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(halves.tail(halves.trunk(images)), model(images))
    owned = {id(parameter) for parameter in model.parameters()}
    assert {id(p) for half in (halves.trunk, halves.tail) for p in half.parameters()} <= owned
