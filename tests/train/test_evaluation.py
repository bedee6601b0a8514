import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lapbench.errors import TrainingError
from lapbench.train import evaluate, metrics
from lapbench.train.images import normalise
from tests.train.squares import DATA, network, split


def logits_for(answers: list[int], classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[answers] * 5


def test_measures_of_two_classes():
    found = metrics(logits_for([1, 1, 0, 0, 1, 0, 0, 0, 0, 1], 2), np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0]))
    assert found == pytest.approx(
        {"accuracy": 0.6, "balanced_accuracy": (0.5 + 4 / 6) / 2, "sensitivity": 0.5, "specificity": 4 / 6}
    )


def test_measures_of_more_classes():
    found = metrics(logits_for([0, 1, 1, 2], 3), np.array([0, 0, 1, 2]))
    assert found == pytest.approx({"accuracy": 0.75, "balanced_accuracy": 2.5 / 3})


@pytest.mark.parametrize(("only", "named"), [(0, "specificity"), (1, "sensitivity")])
def test_a_class_without_samples_has_no_measure(only, named):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics(logits_for([0, 1, 1, 1], 2), np.full(4, only))
    right = 0.75 if only else 0.25
    assert found == pytest.approx({"accuracy": right, "balanced_accuracy": right, named: right})


def test_answers_are_those_of_the_network_in_order():
    squares, model = split("test", 0, 21), network()
    model.train()
    model.layer1.eval()
    found = evaluate(model, squares, DATA, device="cpu", batch_size=8)
    assert model.training
    assert not model.layer1.training, "every module gets its own mode back"
    model.eval()
    with torch.no_grad():
        images = torch.stack([torch.from_numpy(squares[i].image) for i in range(21)])
        expected = model(normalise(images, DATA)).numpy()
    assert np.allclose(found.logits, expected, atol=1e-5)
    assert found.labels.tolist() == squares.labels.tolist()


def test_answers_that_are_not_finite_are_refused():
    class Broken(nn.Module):
        def forward(self, x):
            answers = x.mean((2, 3)).repeat(1, 2)
            answers[0] = torch.nan
            return answers

    with pytest.raises(TrainingError) as error:
        evaluate(Broken(), split("test", 0, 10), DATA, device="cpu", batch_size=5)
    assert str(error.value) == (
        "the network answers NaN or infinity to 2 of 10 images: its weights are unusable"
    )
