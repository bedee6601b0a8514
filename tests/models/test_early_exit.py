import numpy as np
import pytest
import torch

from lapbench.benchmark import Concept, Plug
from lapbench.errors import DefinitionError
from lapbench.models import plug
from lapbench.models.early_exit import cost, cut
from lapbench.models.plug import lap_heads
from lapbench.models.predict import answer
from lapbench.models.zoo import build
from lapbench.score.predictivity import stand_alone

BINARY = Plug(concepts=(Concept(name="ill", classes=("b",)),), score_init="default")
THREE = Plug(
    concepts=(
        Concept(name="no", classes=("b",)), Concept(name="yes", classes=("a",)), Concept(name="both"),
    ),
    aggregation="sum", score_init="default",
)  # fmt: skip


def network(architecture="resnet18", spec=BINARY, classes=("a", "b"), **parameters):
    torch.manual_seed(0)
    return plug(
        build(architecture, num_classes=len(classes), parameters=parameters), spec, classes=classes
    ).eval()


@pytest.mark.parametrize("spec", [BINARY, THREE], ids=["one head", "three heads"])
@pytest.mark.parametrize(
    ("architecture", "parameters", "side"),
    [("resnet18", {"width": 8}, 64), ("squeezenet1_1", {}, 64), ("inception_v3", {"aux_logits": False}, 107)],
)
def test_what_is_cut_off_is_not_missed(architecture, parameters, side, spec):
    model, images = network(architecture, spec, **parameters), torch.randn(6, 3, side, side)
    said = answer(model, images)
    alone = stand_alone(said.peaks.numpy(), said.sums.numpy(), lap_heads(model), 2)
    whole = sum(parameter.numel() for parameter in model.parameters())
    sizes = []
    for layer in range(1, said.peaks.shape[1] + 1):
        exit_ = cut(model, layer, n_classes=2)
        with torch.no_grad():
            scores = exit_(images)
        assert np.array_equal(scores.argmax(1), alone[:, layer - 1])
        sizes.append(sum(parameter.numel() for parameter in exit_.parameters()))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] < whole
    torch.testing.assert_close(
        answer(model, images).logits, said.logits, rtol=0, atol=0
    )  # nothing was taken away


def test_layers_are_counted_as_they_run():
    """In each branch of Inception's reductions the pooling runs first, and is held last."""
    spec = THREE.model_copy(update={"mixed_mode": "per_branch", "concepts": THREE.concepts[:2]})
    model, images = network("inception_v3", spec, aux_logits=False), torch.randn(2, 3, 107, 107)
    said = answer(model, images)
    for layer in range(1, said.sums.shape[1] + 1):
        with torch.no_grad():
            scores = cut(model, layer, n_classes=2)(images)
        torch.testing.assert_close(scores[:, [1, 0]], said.sums[:, layer - 1])


def test_the_network_is_left_as_it_was():
    model = network(width=8).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    stopped = cut(model, 2, n_classes=2)
    with torch.no_grad():
        for parameter in stopped.parameters():
            parameter.zero_()

    assert all(module.training for module in model.modules())
    assert all(value.equal(state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in stopped.modules())


def test_one_half_names_nothing():
    model = network(spec=BINARY.model_copy(update={"score_init": "zero"}), width=8)
    assert cut(model, 1, n_classes=2)(torch.zeros(2, 3, 64, 64)).argmax(1).tolist() == [0, 0]
    other = BINARY.model_copy(
        update={"score_init": "zero", "concepts": (Concept(name="ill", classes=("a",)),)}
    )
    assert cut(network(spec=other, width=8), 1, n_classes=2)(torch.zeros(2, 3, 64, 64)).argmax(
        1
    ).tolist() == [1, 1]


def test_the_cost_is_that_of_the_textbook():
    """LAP 1 of ResNet-18 sees the stem, layer1, and conv1 of layer2 at stride 1."""
    model = network()
    found = cost(cut(model, 1, n_classes=2), torch.zeros(1, 3, 224, 224))

    stem = 64 * 3 * 49 * 112**2
    layer1 = 4 * 64 * 64 * 9 * 56**2
    conv1 = 128 * 64 * 9 * 56**2
    scoring = (128 * 8 + 8) * 56**2
    assert found.multiply_adds == stem + layer1 + conv1 + scoring
    norms = 2 * 64 * 5
    assert found.parameters == 64 * 3 * 49 + 4 * 64 * 64 * 9 + 128 * 64 * 9 + norms + 128 * 8 + 8 + 8 + 1


def test_what_cannot_decide_is_refused():
    with pytest.raises(DefinitionError, match="LAP layers 1 to 4, there is no layer 5"):
        cut(network(width=8), 5, n_classes=2)
    with pytest.raises(DefinitionError, match="a head for every class"):
        cut(network(classes=("a", "b", "c"), width=8), 1, n_classes=3)
