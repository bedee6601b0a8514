import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lapbench.benchmark import Bla, Losses, Recipe
from lapbench.errors import TrainingError
from lapbench.models import bla_layers, lap_layers, record_laps
from lapbench.models.plug import put_bla
from lapbench.train import losses
from lapbench.train.images import Batch
from lapbench.train.objective import (
    Objective,
    make_discriminators,
    map_terms,
    own_answers,
    task_loss,
    task_terms,
)
from tests.train.squares import PLUG, SIDE, network

HEADS = ((1,),)


def objective(supervision: str, **switches) -> Objective:
    return Objective(
        Recipe(supervision=supervision, epochs=1, losses=Losses(**switches)), PLUG.concepts, HEADS
    )


def of(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 1), labels, None, None)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(0)
    masks = torch.zeros(6, SIDE, SIDE, dtype=torch.bool)
    masks[1::2, 3:8, 4:9] = True
    boxes = torch.full((6, 1, 4), torch.nan)
    boxes[1::2, 0] = torch.tensor([4.0, 3.0, 9.0, 8.0])
    return Batch(torch.randn(6, 1, SIDE, SIDE), torch.arange(6) % 2, masks, boxes)


@pytest.fixture
def seen(batch):
    """A network with scores off their initial zero, what its LAPs recorded, and their DSMs."""
    model = network()
    discriminators = make_discriminators(lap_layers(model))
    for module in [*lap_layers(model).values(), *discriminators.values()]:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    with record_laps(model) as records:
        model(batch.images)
    return model, list(records), discriminators


@pytest.mark.parametrize(
    ("supervision", "switches", "weights"),
    [
        ("none", {}, {"cross_entropy": 1.0}),
        (
            "weak",
            {},
            {"cross_entropy": 1.0, "concept_discrimination": 0.25, "concordance": 0.25, "dsm": 0.25},
        ),
        (
            "weak",
            {"concept_discrimination": 0.125, "concordance": 0.0, "dsm_weight": 3.0},
            {"cross_entropy": 1.0, "concept_discrimination": 0.125, "concordance": 0.0, "dsm": 3.0},
        ),
        (
            "weak",
            {"rank_source": "self"},
            {"cross_entropy": 1.0, "concept_discrimination": 0.25, "concordance": 0.25},
        ),
        ("boxes", {"boxes": 0.5}, {"cross_entropy": 1.0, "boxes": 0.5, "dsm": 0.5}),
        ("boxes", {"rank_source_iar": "self"}, {"cross_entropy": 1.0, "boxes": 0.25}),
    ],
)
def test_the_terms_of_a_recipe_and_their_weights(supervision, switches, weights, batch, seen):
    aim = objective(supervision, **switches)
    assert aim.weights == weights
    terms = map_terms(aim, seen[1], seen[2], batch)
    assert {"cross_entropy", *terms} == set(weights)
    assert aim.needs_truth == (supervision == "boxes")


def test_terms_are_summed_over_the_laps(batch, seen):
    _, records, discriminators = seen
    presence = losses.concept_presence(batch.labels, HEADS)
    scores = [discriminators[r.name.replace(".", "/")](r.inputs) for r in records]
    assert len(records) == 4
    terms = map_terms(objective("weak"), records, discriminators, batch)
    expected = sum(
        losses.concept_discrimination(r.logits, presence, PLUG.concepts, ranking=q, ranking_inactive=q)
        for r, q in zip(records, scores, strict=True)
    )
    assert terms["concept_discrimination"].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = sum(losses.dsm_loss(q, presence, PLUG.concepts) for q in scores)
    assert terms["dsm"].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = sum(losses.concordance(records[i].logits, records[i + 1].logits) for i in range(3))
    assert terms["concordance"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["concordance"] > 0

    truths = [losses.resize_truth(batch.masks, batch.boxes, tuple(r.logits.shape[2:])) for r in records]
    boxes = map_terms(objective("boxes", rank_source_iar="self"), records, discriminators, batch)["boxes"]
    expected = sum(
        losses.box_supervision(r.logits, presence, t, PLUG.concepts)
        for r, t in zip(records, truths, strict=True)
    )
    assert boxes.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("supervision", "switch", "other", "term"),
    [
        ("weak", "cd_mean_over_pixels", False, "concept_discrimination"),
        ("weak", "k_rounding", "ceil", "concept_discrimination"),
        ("weak", "rank_source", "self", "concept_discrimination"),
        ("weak", "rank_source_iar", "self", "concept_discrimination"),
        ("weak", "js_threshold", 0.6, "concordance"),
        ("weak", "js_resize", "max", "concordance"),
        ("weak", "js_form", "half", "concordance"),
        ("weak", "js_pixels", "high-low", "concordance"),
        ("boxes", "box_resize", "nearest", "boxes"),
        ("boxes", "bb_positive_weight", 1.0, "boxes"),
        ("boxes", "rank_source_iar", "self", "boxes"),
    ],
)
def test_every_switch_reaches_its_term(supervision, switch, other, term, batch, seen):
    _, records, discriminators = seen
    usual = map_terms(objective(supervision), records, discriminators, batch)[term]
    switched = map_terms(objective(supervision, **{switch: other}), records, discriminators, batch)[term]
    assert usual.item() != pytest.approx(switched.item(), rel=1e-6)


def test_the_scoring_modules_own_loss_reaches_nothing_else(batch, seen):
    model, records, discriminators = seen
    map_terms(objective("weak"), records, discriminators, batch)["dsm"].backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in discriminators.parameters())


def test_discriminators_are_made_like_the_scoring_modules_with_weights_of_their_own():
    model = network()
    discriminators = make_discriminators(lap_layers(model))
    assert len(discriminators) == len(lap_layers(model)) == 4
    for (name, module), lap in zip(discriminators.items(), lap_layers(model).values(), strict=True):
        assert "." not in name
        assert str(module) == str(lap.scoring)
        assert not torch.equal(module.hidden.weight, lap.scoring.hidden.weight)
        assert module.hidden.weight.data_ptr() != lap.scoring.hidden.weight.data_ptr()


def test_one_lap_has_nothing_to_concord_with(batch, seen):
    _, records, discriminators = seen
    assert map_terms(objective("weak"), records[:1], discriminators, batch)["concordance"].item() == 0


@pytest.mark.parametrize(("name", "weight"), [("InceptionOutputs", 0.4), ("GoogLeNetOutputs", 0.3)])
def test_auxiliary_classifiers_take_part_in_cross_entropy(name, weight):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 1])
    logits, first, second = torch.randn(3, 3, 2)
    kind = namedtuple(name, ["logits", "first", "second"])
    loss, answer = task_loss(kind(logits, first, second), of(labels))
    expected = F.cross_entropy(logits, labels) + weight * (
        F.cross_entropy(first, labels) + F.cross_entropy(second, labels)
    )
    assert loss.item() == pytest.approx(expected.item())
    assert answer is logits
    loss, _ = task_loss(kind(logits, None, None), of(labels))
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())


def test_another_kind_of_output_is_refused():
    with pytest.raises(TrainingError) as error:
        task_loss((torch.zeros(1, 2), torch.zeros(1, 2)), of(torch.zeros(1, dtype=torch.int64)))
    assert str(error.value) == (
        "in training the network returns tuple, but a tensor of logits was wanted, "
        "or logits with auxiliary ones (InceptionOutputs, GoogLeNetOutputs)"
    )


def test_landmarks_are_taught_by_the_squared_error():
    """Coordinate by coordinate; auxiliary answers take part, as in cross-entropy."""
    found, extra, wanted = torch.rand(3, 2, 4)
    kind = namedtuple("InceptionOutputs", ["logits", "aux"])
    batch = of(torch.zeros(2, dtype=torch.int64))._replace(answers=wanted)

    def mean(answer):
        return sum((answer[i, j] - wanted[i, j]) ** 2 for i in range(2) for j in range(4)) / 8

    assert task_loss(found, batch, "landmarks")[0].item() == pytest.approx(mean(found).item())
    loss, answer = task_loss(kind(found, extra), batch, "landmarks")
    assert loss.item() == pytest.approx((mean(found) + 0.4 * mean(extra)).item())
    assert answer is found


class OfMaps(nn.Module):
    """Answers maps (B, C, H, W) by a linear layer on their average, or on what BLA pools in its place."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.avgpool = nn.Conv2d(channels, channels, 1), nn.AdaptiveAvgPool2d(1)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(channels, classes)
        nn.init.dirac_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(self.first(x)).flatten(1)))


def test_a_network_teaches_what_it_answered_before_bla():
    """In evaluation mode; the loss is −Σ p log q, and the labels have no say."""
    torch.manual_seed(0)
    plain, x = OfMaps(4, 3), torch.randn(5, 4, 3, 3)
    network = put_bla(plain, Bla(preset="BLA-T")).train()
    taught = own_answers(network, x)
    torch.testing.assert_close(taught, plain.eval()(x).softmax(1))
    assert network.training and network.dropout.training and not taught.requires_grad
    (layer,) = bla_layers(network).values()
    assert layer.attention.output == "soft"

    batch = Batch(x, torch.full((5,), -7), None, None, taught)  # a label that no class has
    network.eval()
    terms, answer = task_terms(network, batch)
    wanted = 0.0
    for p, z in zip(taught.tolist(), answer.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in z))
        wanted -= sum(a * (value - log_sum) for a, value in zip(p, z, strict=True)) / 5
    assert terms["cross_entropy"].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("teacher", ["network", "labels"])
def test_l2x_finds_what_a_network_uses_whatever_the_labels_say(teacher):
    """Two of 25 positions bear evidence for a class of the network's; the labels are another class."""
    torch.manual_seed(0)
    network = put_bla(OfMaps(4, 4), Bla(preset="L2X", draws=2))
    with torch.no_grad():
        network.fc.weight.copy_(75 * torch.eye(4))  # sure by the average of all positions
        network.fc.bias.zero_()
    said = torch.randint(0, 4, (512,))
    planted = torch.rand(512, 25).argsort(1).argsort(1) < 2
    x = 0.1 * torch.randn(512, 4, 25)
    x += 2 * F.one_hot(said, 4)[:, :, None] * planted[:, None]
    x = x.view(512, 4, 5, 5)
    (layer,) = bla_layers(network).values()
    optimiser = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(10):
        for rows in torch.randperm(512).split(64):
            answers = own_answers(network, x[rows]) if teacher == "network" else None
            batch = Batch(x[rows], (said[rows] + 1) % 4, None, None, answers)
            terms, _ = task_terms(network, batch)
            optimiser.zero_grad()
            terms["cross_entropy"].backward()
            optimiser.step()
    found = layer.attention.hard(layer.score(x).flatten(1)) > 0
    share = (found == planted).all(1).float().mean()
    assert share > 0.95 if teacher == "network" else share < 0.1


def test_captions_are_taught_word_by_word_up_to_the_first_end():
    logits, tokens = torch.randn(2, 4, 5), torch.tensor([[1, 4, 0, 0], [2, 3, 1, 2]])
    batch = of(torch.zeros(2, dtype=torch.int64))._replace(answers=tokens.float())
    terms = [-logits[0, t].log_softmax(0)[tokens[0, t]] for t in range(3)]
    terms += [-logits[1, t].log_softmax(0)[tokens[1, t]] for t in range(4)]
    loss, answer = task_loss(logits, batch, "captions")
    assert loss.item() == pytest.approx((sum(terms) / 7).item())
    assert answer is logits


def test_captioners_alone_are_told_the_words():
    batch = of(torch.zeros(2, dtype=torch.int64))._replace(answers=torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    told = []

    def say(_images, *tokens):
        told.append(tokens)
        return torch.zeros((2, 2, 3) if tokens else (2, 2))

    terms, _ = task_terms(nn.Identity(), batch, "captions", through=say)
    assert list(terms) == ["token_cross_entropy"]
    task_terms(nn.Identity(), batch, "landmarks", through=say)
    assert told[0][0].tolist() == [[1, 0], [2, 1]]
    assert told[1] == ()
