"""Post-hoc explainers on networks with LAP's relatives, and the map that LIP itself makes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explain.networks import images, network, relative, small_resnet
from explain.test_canonical import assert_canonical
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import check_explainer, explain, explain_together, passes_of
from lapbench.explain.lrp import lrp_rules
from lapbench.explain.maps import Request
from lapbench.explain.multipliers import softmax
from lapbench.explain.passes import Prepared
from lapbench.explain.relevance import Ledger
from lapbench.explain.tape import one_hot
from lapbench.models.lap import ConceptScoring
from lapbench.models.lip import LIP
from lapbench.models.plug import lip_layers
from lapbench.models.pooling import Window
from lapbench.registry import explainers

RELATIVES = ("lip", "average", "max", "strided")
TARGET = torch.tensor([0, 1, 3])
SUITE = (
    "gradient", "guided_backprop", "deeplift", "lrp", "grad_cam", "grad_cam_pp", "layer_cam", "relevance_cam",
    "guided_grad_cam",
)  # fmt: skip


def maps(name: str, model: nn.Module, batch: Tensor, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, TARGET[: len(batch)], parameters).values


def with_relative(layer: str, **settings: object) -> nn.Module:
    return relative(small_resnet(), layer, sites="all", **settings)


@pytest.mark.parametrize("layer", RELATIVES)
@pytest.mark.parametrize("settings", [{}, {"branch_mode": "separate"}, {"branch_mode": "post_add"}], ids=str)
def test_networks_with_relatives_have_a_canonical_form(layer: str, settings: dict[str, object]) -> None:
    assert_canonical(with_relative(layer, **settings), images())


@pytest.mark.parametrize("layer", RELATIVES)
@pytest.mark.parametrize("name", ["grad_cam", "guided_backprop", "relevance_cam"])
def test_explainers_keep_their_contract_on_relatives(layer: str, name: str) -> None:
    check_explainer(explainers.get(name), with_relative(layer), images(2, 24), TARGET[:2])


@pytest.mark.parametrize("layer", RELATIVES)
def test_the_suite_draws_finite_maps(layer: str) -> None:
    requests = [Request(explainers.get(name)) for name in SUITE]
    for found in explain_together(requests, Prepared(with_relative(layer)), images(), TARGET):
        assert found.values.isfinite().all() and found.values.std() > 0


@pytest.mark.parametrize("layer", RELATIVES)
def test_the_gradient_is_torchs_own(layer: str) -> None:
    model, batch = with_relative(layer).double(), images().double()
    found = passes_of(model, batch, TARGET).image_gradient()
    leaf = batch.clone().requires_grad_()
    model(leaf).gather(1, TARGET[:, None]).sum().backward()

    torch.testing.assert_close(found, leaf.grad)


@pytest.mark.parametrize("layer", RELATIVES)
@pytest.mark.parametrize("settings", [{}, {"branch_mode": "separate", "lap_position": "post_act"}], ids=str)
def test_contributions_add_up(layer: str, settings: dict[str, object]) -> None:
    model = with_relative(layer, **settings).double()
    found = explain(explainers.get("deeplift"), model, images().double(), TARGET, {"baseline": 0.3})

    assert found.diagnostics["completeness_error"].max() < 1e-6


def test_contributions_of_lip_in_other_networks_add_up() -> None:
    for settings in ({"branch_scores": "concat"}, {"hidden": None}, {"score_activation": "leaky_relu"}):
        model = with_relative("lip", **settings).double()
        found = explain(explainers.get("deeplift"), model, images().double(), TARGET)
        assert found.diagnostics["completeness_error"].max() < 1e-6
    model = relative(network("squeezenet1_1"), "lip").double()
    found = explain(explainers.get("deeplift"), model, images(2, 64).double(), TARGET[:2])
    assert found.diagnostics["completeness_error"].max() < 1e-6


@pytest.mark.parametrize("layer", RELATIVES)
def test_relevance_is_conserved(layer: str) -> None:
    model, batch, ledger = with_relative(layer).double(), images().double(), Ledger()
    passes = passes_of(model, batch, TARGET)
    start = one_hot(passes.logits, TARGET) * passes.logits
    found = passes.relevance(start, lrp_rules(ledger, rule="epsilon"))

    total = found.flatten(1).sum(1) + ledger.bias + ledger.epsilon
    torch.testing.assert_close(total, start.sum(1), rtol=1e-6, atol=1e-8)


def test_the_jacobian_of_differences_holds_however_far_apart_the_logits_are() -> None:
    now, before = torch.tensor([[0.0, -500.0, 3.0]]), torch.tensor([[-400.0, 2.0, 3.0]])
    received = torch.tensor([[1.0, -2.0, 0.5]])
    found = softmax(received[..., None], now[..., None], before[..., None])[..., 0]

    change = ((now.softmax(1) - before.softmax(1)) * received).sum()
    torch.testing.assert_close((found * (now - before)).sum(), change)
    same = softmax(received[..., None], now[..., None], now[..., None])[..., 0]
    leaf = now.clone().requires_grad_()
    leaf.softmax(1).backward(received)
    torch.testing.assert_close(same, leaf.grad)


def test_cam_weighs_pixels_as_global_lip_does_and_has_no_meaning_for_maxima() -> None:
    lip = relative(small_resnet(), "lip")
    found, logits = maps("cam", lip, images()), lip(images())
    weights = {}
    lip.avgpool.register_forward_hook(
        lambda layer, args, _out: weights.update(w=layer.window_weights(args[0]), a=args[0])
    )
    lip(images())
    pooled = (found.flatten(1) * weights["w"].flatten(1)).sum(1) + lip.fc.bias[TARGET]
    torch.testing.assert_close(pooled, logits.gather(1, TARGET[:, None])[:, 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(NotApplicableError, match="does more than average its last feature map"):
        maps("cam", relative(small_resnet(), "max"), images())


# LIP as published, whose channels have their own weights.

EACH = ({"branch_mode": "separate"}, {"branch_scores": "concat", "score_activation": "leaky_relu"})


@pytest.mark.parametrize("settings", EACH, ids=str)
def test_explainers_on_lip_of_each_channel(settings: dict[str, object]) -> None:
    """Gradients are torch's own, contributions add up, relevance is conserved, CAM is exact."""
    model, batch = with_relative("lip", channels="each", **settings).double(), images().double()
    assert_canonical(model, batch)
    leaf = batch.clone().requires_grad_()
    logits = model(leaf)
    logits.gather(1, TARGET[:, None]).sum().backward()
    passes, ledger = passes_of(model, batch, TARGET), Ledger()
    torch.testing.assert_close(passes.image_gradient(), leaf.grad)
    found = explain(explainers.get("deeplift"), model, batch, TARGET, {"baseline": 0.3})
    assert found.diagnostics["completeness_error"].max() < 1e-6
    start = one_hot(passes.logits, TARGET) * passes.logits
    total = passes.relevance(start, lrp_rules(ledger, rule="epsilon")).flatten(1).sum(1)
    torch.testing.assert_close(total + ledger.bias + ledger.epsilon, start.sum(1), rtol=1e-6, atol=1e-8)
    assert maps("cam", model, batch).shape == (3, 2, 3)  # else it would not add up to the logit


@pytest.mark.parametrize("name", ["lip", "grad_cam", "deeplift"])
def test_explainers_keep_their_contract_on_lip_of_each_channel(name: str) -> None:
    model = with_relative("lip", channels="each", branch_mode="separate")
    check_explainer(explainers.get(name), model, images(2, 24), TARGET[:2])


def test_the_map_of_lip_of_each_channel_is_the_mean_of_its_weights() -> None:
    model = with_relative("lip", channels="each", branch_mode="separate")
    pool, seen = model.avgpool, []
    pool.register_forward_hook(lambda _layer, args, _out: seen.append(args[0]))
    found = maps("lip", model, images())
    model(images())
    weights = pool.logits(seen[-1]).exp()
    for image, own in zip(found, weights, strict=True):
        mean = torch.stack([channel / channel.sum() for channel in own]).mean(0)
        torch.testing.assert_close(image, mean / mean.max())
    assert found.std() > 0


# LIP's own map.


@pytest.mark.parametrize("layer", [1, 2, 3, 4, "last"])
def test_lips_map_is_its_weights_by_their_maximum(layer: int | str) -> None:
    model = relative(small_resnet(), "lip")
    found = maps("lip", model, images(), layer=layer)
    seen: list[Tensor] = []
    for one in lip_layers(model).values():
        one.scoring.register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    model(images())

    number = 3 if layer == "last" else int(layer) - 1
    scoring = list(lip_layers(model).values())[number].scoring
    x = seen[number]
    hidden = F.relu(F.conv2d(x, scoring.hidden.weight, scoring.hidden.bias))
    logits = F.conv2d(hidden, scoring.head.weight, scoring.head.bias)
    weights = logits.exp()[:, 0]
    torch.testing.assert_close(found, weights / weights.amax((1, 2), keepdim=True))
    assert found.std() > 0


def test_lips_map_says_what_it_cannot_do() -> None:
    model = relative(small_resnet(), "lip")
    with pytest.raises(ExplainerError, match="the network has LIP layers 1 to 4, there is no layer 5"):
        maps("lip", model, images(), layer=5)
    with pytest.raises(NotApplicableError, match="this SizedResNet has no LIP layers"):
        maps("lip", small_resnet(), images())


def test_lips_map_needs_no_graph() -> None:
    class Untraced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
            self.pool = LIP(ConceptScoring(4, init="default"), Window((2, 2), (2, 2)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x) if float(x.sum()) > 1e9 else self.body(x) * 2
            return self.head(self.pool(x).mean((2, 3)))

    assert maps("lip", Untraced().eval(), images()).shape == (3, 30, 46)
