"""Landmarks and captions are learnt by the loop that learns classes."""

import numpy as np
import pytest
import torch

from lapbench.benchmark import AnteHoc, Augment, Data, Recipe
from lapbench.data import load_manifest, open_dataset
from lapbench.data.captions import caption_scores
from lapbench.data.landmarks import landmark_scores
from lapbench.errors import TrainingError
from lapbench.models import Captioner, build, put_antehoc, save_weights
from lapbench.models.weighting import antehoc_layers
from lapbench.train import evaluate, seeded, train
from lapbench.train.evaluation import measure
from lapbench.train.images import tabulate
from lapbench.train.objective import task_loss, task_terms

DATA = Data(manifest="drawn", image_size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
SHAPE = {"width": 4, "blocks": (1, 1, 1, 1), "stem": "3x3", "stem_pool": False}


def drawn(name: str):
    manifest = load_manifest(name)
    few = manifest.reader.model_copy(update={"parameters": {"train": 32, "val": 3, "test": 2}})
    return open_dataset(manifest.model_copy(update={"reader": few}), image_size=(32, 32))


@pytest.fixture(scope="module")
def faces():
    return drawn("faces")


@pytest.fixture(scope="module")
def scenes():
    return drawn("scenes")


def network(dataset, seed: int = 0):
    with seeded(seed):
        if dataset.task == "landmarks":
            return build("resnet18", num_classes=10, parameters=SHAPE)
        encoder = build("resnet18", num_classes=8, parameters=SHAPE)
        return Captioner(encoder, vocabulary=17, length=dataset.answer_size, hidden=8)


def recipe(**settings) -> Recipe:
    return Recipe(**{"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, **settings})


@pytest.mark.parametrize("name", ["faces", "scenes"])
def test_training_learns_and_says_how_it_went(name, request, tmp_path):
    dataset = request.getfixturevalue(name)
    model = network(dataset)
    record = train(model, dataset, data=DATA, recipe=recipe(epochs=6), workdir=tmp_path)
    first, last = record.epochs[0], record.epochs[-1]
    term = {"faces": "coordinate_error", "scenes": "token_cross_entropy"}[name]
    assert last[f"train_{term}"] < 0.95 * first[f"train_{term}"]
    assert record.recipe["balanced"] is False
    best = record.epochs[record.best_epoch - 1]
    split = dataset["val"].by_image()
    images = tabulate(split, truth=False).take(np.arange(len(split)))
    assert images.answers.shape == (3, dataset.answer_size)
    with torch.no_grad():
        normalised = (images.images - 0.5) / 0.25
        if name == "faces":
            answers = model(normalised)
            loss = ((answers - images.answers) ** 2).mean()
            error = landmark_scores(answers.numpy(), split.answers, dataset.classes, (32, 32))[
                "normalised_error"
            ]
            assert best["val_normalised_error"] == pytest.approx(error.mean(), rel=1e-4)
            np.testing.assert_allclose(
                evaluate(model, split, DATA).logits, answers.numpy(), rtol=1e-4, atol=1e-5
            )
        else:
            answers = model(normalised, images.answers.long())
            words = [(i, t) for i in range(3) for t in range(9) if t == 0 or images.answers[i, :t].min() > 0]
            each = [-answers[i, t].log_softmax(0)[int(images.answers[i, t])] for i, t in words]
            loss = sum(each) / len(each)
            share = caption_scores(answers.argmax(2).numpy(), split.answers)["word_accuracy"].mean()
            assert best["val_token_accuracy"] == pytest.approx(share)
    assert best["val_loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_an_interrupted_training_ends_in_the_same_weights(scenes, tmp_path):
    whole, halves = network(scenes), network(scenes)
    train(whole, scenes, data=DATA, recipe=recipe(), workdir=tmp_path / "whole")

    def stop(done: int, _total: int, text: str) -> None:
        assert done < 6 or "token accuracy" in text
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves, scenes, data=DATA, recipe=recipe(), workdir=tmp_path / "half", progress=stop)
    train(halves, scenes, data=DATA, recipe=recipe(), workdir=tmp_path / "half")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name


def test_a_captioner_starts_from_a_classifier(scenes, tmp_path):
    """Its encoder takes the weights, but for the last layer, which has other classes."""
    with seeded(5):
        classifier = build("resnet18", num_classes=3, parameters=SHAPE)
    save_weights(tmp_path / "classes.safetensors", classifier.state_dict(), {})
    model = network(scenes)
    start = recipe(epochs=0, pretrained=tmp_path / "classes.safetensors")
    train(model, scenes, data=DATA, recipe=start, workdir=tmp_path / "work")
    assert torch.equal(model.encoder.layer4[0].conv1.weight, classifier.layer4[0].conv1.weight)
    assert torch.equal(model.encoder.fc.weight, network(scenes).encoder.fc.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"supervision": "weak"},
            "supervision 'weak' is for classification, but the task of faces is landmarks: set",
        ),
        ({"teacher": "network"}, "teacher 'network' is for classification, .* set teacher = 'labels'"),
        (
            {"select_epoch": "balanced_accuracy"},
            "select_epoch 'balanced_accuracy' is .* set select_epoch = 'val_loss'",
        ),
        (
            {"augment": Augment(horizontal_flip=True)},
            "flipped images, in which left is right, is .* set no flip in",
        ),
    ],
)
def test_what_other_tasks_do_not_know(faces, settings, message, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train(network(faces), faces, data=DATA, recipe=recipe(**settings), workdir=tmp_path)


def test_measures_of_an_epoch():
    targets = ("a_x", "a_y")
    found, wanted = (
        np.array([[0.5, 0.5], [0.0, 0.0]], np.float32),
        np.array([[0.5, 0.75], [0, 0]], np.float32),
    )
    scores = measure(found, wanted, task="landmarks", targets=targets, size=(10, 10))
    assert scores == {"normalised_error": pytest.approx(0.125), "landmark_accuracy": 0.5}
    logits, tokens = np.eye(3, dtype=np.float32)[[[1, 2, 0], [2, 1, 1]]], np.array([[1, 2, 0], [2, 0, 0]])
    share = measure(logits, tokens, task="captions", targets=("<end>", "a", "b"), size=(10, 10))
    assert share == {"token_accuracy": 0.75}
    classes = measure(logits[:, 0], np.array([1, 1]), task="classification", targets=(), size=(10, 10))
    assert classes["accuracy"] == 0.5


@pytest.mark.parametrize("name", ["faces", "scenes"])
def test_ante_hoc_maps_are_taught_by_the_tasks_own_loss(name, request, tmp_path):
    """Twice: by what the head says of the features, and by what it says of those that the map keeps."""
    dataset = request.getfixturevalue(name)
    model = network(dataset)
    if name == "faces":
        model = put_antehoc(model, AnteHoc())
    else:
        model.encoder = put_antehoc(model.encoder, AnteHoc())
    batch = tabulate(dataset["train"], truth=False).take(np.arange(6))
    model.eval()
    with torch.no_grad():
        terms, answer = task_terms(model, batch, dataset.task)
        ((_, layer),) = antehoc_layers(model).items()
        kept = layer.register_forward_pre_hook(lambda _m, x: (x[0] * layer.weighting(x[0]),))
        masked, _ = one_pass(model, batch, dataset.task)
        kept.remove()
        plain, said = one_pass(model, batch, dataset.task)
    term = {"faces": "coordinate_error", "scenes": "token_cross_entropy"}[name]
    assert set(terms) == {term, f"masked_{term}", "map_area"}
    assert terms[term].item() == pytest.approx(plain.item(), rel=1e-5)
    assert terms[f"masked_{term}"].item() == pytest.approx(masked.item(), rel=1e-5)
    torch.testing.assert_close(answer, said)
    record = train(model, dataset, data=DATA, recipe=recipe(epochs=1), workdir=tmp_path)
    assert f"train_masked_{term}" in record.epochs[0]


def one_pass(model, batch, task):
    """The loss of one pass, as if the pooling had no map."""
    given = (batch.images, batch.answers.long()) if task == "captions" else (batch.images,)
    return task_loss(model(*given), batch, task)
