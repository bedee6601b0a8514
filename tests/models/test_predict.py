import pytest
import torch
from torch import nn

from lapbench.benchmark import Concept, Plug
from lapbench.models.lap import LAP
from lapbench.models.plug import plug
from lapbench.models.predict import answer, evaluating, predict
from lapbench.models.zoo import build


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_predictions_are_those_of_one_pass_in_evaluation_mode(model, count):
    images = torch.randn(count, 3, 8, 8)
    with torch.no_grad():
        expected = model.eval()(images)

    logits = predict(model.train(), images, batch_size=3)

    assert logits.shape == (count, 2)
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected)


def test_predicting_leaves_no_trace(model):
    model.train()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.get_rng_state()

    predict(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))

    assert [module.training for module in model.modules()] == [True, True, False, True, True, True, True]
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert torch.get_rng_state().equal(generator)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_exception(model):
    model.train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        model(torch.zeros(1, 5, 8, 8))

    assert all(module.training for module in model.modules())


def test_inception_predicts_one_tensor_even_from_training_mode():
    model = build("inception_v3", num_classes=3, parameters={"aux_logits": True}).train()

    assert predict(model, torch.randn(2, 3, 80, 80)).shape == (2, 3)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(), torch.OutOfMemoryError()],
)
def test_out_of_memory_is_one_error_whatever_ran_out(error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    model = nn.Linear(2, 2)
    model.register_forward_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        predict(model, torch.zeros(3, 2))


def test_other_errors_are_the_networks_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(nn.Linear(2, 2), torch.zeros(3, 5))


def test_what_each_lap_says_is_read_off_its_own_logits():
    torch.manual_seed(0)
    concepts = Concept(name="a", classes=("x",)), Concept(name="b")
    spec = Plug(concepts=concepts, aggregation="max", score_init="default")
    model = plug(build("resnet18", num_classes=2), spec, classes=("x", "y"))
    images = torch.randn(3, 3, 64, 64)
    maps = []
    for lap in (module for module in model.eval().modules() if isinstance(module, LAP)):
        lap.scoring.register_forward_hook(lambda _module, _inputs, logits: maps.append(torch.sigmoid(logits)))

    said = answer(model.train(), images)

    with torch.no_grad():
        torch.testing.assert_close(said.logits, model.eval()(images))
    assert said.peaks.shape == said.sums.shape == (3, 4, 2)
    for number, found in enumerate(maps[:4]):
        for image in range(3):
            for head in range(2):
                probabilities = found[image, head].flatten().tolist()
                assert said.peaks[image, number, head] == pytest.approx(max(probabilities))
                assert said.sums[image, number, head] == pytest.approx(sum(probabilities), rel=1e-5)


def test_without_lap_there_are_answers_all_the_same(model):
    said = answer(model, torch.zeros(2, 3, 8, 8))
    assert said.logits.shape == (2, 2) and said.peaks.shape == said.sums.shape == (2, 0, 0)
