"""Maps of networks with bounded logit attention, and the post-hoc methods on such networks."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.networks import attending, images, small_resnet
from lapbench.explain import bla as bla_module
from lapbench.explain import check_explainer, derivatives, explain, passes_of
from lapbench.explain.lrp import lrp_rules
from lapbench.explain.relevance import Ledger
from lapbench.explain.tape import one_hot
from lapbench.models.bla import bla_layers, deciding, record_bla
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])
KINDS = {
    "BLA": {},
    "BLA-T": {"preset": "BLA-T"},
    "L2X-F": {"preset": "L2X-F", "draws": 2},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return attending(small_resnet(), **KINDS[request.param])


def maps(name: str, model: nn.Module, batch: Tensor, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, TARGET, parameters).values


def test_the_maps_are_what_the_network_says(model: nn.Module) -> None:
    batch = images(side=64)
    with torch.no_grad(), record_bla(model) as records:
        model(batch)
    (record,) = records
    assert torch.equal(maps("bla", model, batch), record.weights)
    selection = maps("bla_selection", model, batch)
    assert torch.equal(selection, record.selected.float()) and selection.shape == (3, 4, 5)
    draws = bla_layers(model)["avgpool"].attention.draws
    assert (selection.sum((1, 2)) == draws).all() if draws else (selection.sum((1, 2)) >= 1).all()


@pytest.mark.parametrize("name", ["bla", "bla_selection"])
def test_the_maps_keep_the_contract(name: str, model: nn.Module) -> None:
    check_explainer(explainers.get(name), model, images(side=48), TARGET)


def test_a_network_that_says_nan_draws_no_clean_selection(model: nn.Module, monkeypatch) -> None:
    with torch.no_grad():
        bla_layers(model)["avgpool"].score.bias.fill_(float("nan"))
        with record_bla(model) as records:
            model(images())
    monkeypatch.setattr(bla_module, "passes_of", lambda *_: SimpleNamespace(bla=records))
    for name in ("bla", "bla_selection"):
        assert explainers.get(name).function(model, images(), TARGET).isnan().all()


def test_the_maps_are_the_same_whichever_output_decides(model: nn.Module) -> None:
    batch = images()
    soft = [maps(name, model, batch) for name in ("bla", "bla_selection")]
    with deciding(model, "hard"):
        assert all(map(torch.equal, soft, (maps(name, model, batch) for name in ("bla", "bla_selection"))))


def test_the_selection_averages_to_the_hard_decision(model: nn.Module) -> None:
    """Zeroing what is not selected and rescaling what is gives the hard answer."""
    if bla_layers(model)["avgpool"].attention.draws:
        pytest.skip("ties divide")
    batch = images()
    kept = maps("bla_selection", model, batch)
    features = passes_of(model, batch, TARGET).activation("last")
    pooled = (features * (kept / kept.sum((1, 2), keepdim=True))[:, None]).sum((2, 3))
    with torch.no_grad(), deciding(model, "hard"):
        torch.testing.assert_close(model.fc(pooled), model(batch))


def test_gradients_flow_through_the_attention(model: nn.Module) -> None:
    """Against autograd on the same function, written out: plain, and with the guided ReLUs of the trunk."""
    batch = images()
    leaf = batch.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(leaf).gather(1, TARGET[:, None]).sum(), leaf)
    torch.testing.assert_close(passes_of(model, batch, TARGET).image_gradient(), plain, rtol=1e-4, atol=1e-6)
    cam = maps("grad_cam", model, batch, relu_attributions=False)
    features = passes_of(model, batch, TARGET).activation("last").clone().requires_grad_()
    score = model.fc(bla_layers(model)["avgpool"](features).flatten(1)).gather(1, TARGET[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()
    torch.testing.assert_close(cam, expected, rtol=1e-4, atol=1e-6)


def test_guided_gradients_of_the_features_by_hand() -> None:
    """One layer of BLA alone: what its own ReLU receives is let through where it is positive."""
    network = attending(small_resnet(), preset="BLA", temperature=1.0)
    layer = bla_layers(network)["avgpool"]
    batch = images()
    passes = passes_of(network, batch, TARGET)
    features = passes.activation("last").clone().requires_grad_()
    weight, bias = layer.score.weight, layer.score.bias

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)  # type: ignore[attr-defined]
            return x.relu()

        @staticmethod
        def backward(ctx: object, received: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return received.clamp_min(0) * (x > 0)

    p = -Guided.apply(F.conv2d(features, weight, bias))
    pooled = (p.flatten(2).softmax(2) * features.flatten(2)).sum(2)
    score = network.fc(pooled).gather(1, TARGET[:, None]).sum()
    (expected,) = torch.autograd.grad(score, features)
    found = passes._walked(derivatives.guided, passes._node("last"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_relevance_is_conserved_and_scores_receive_none(model: nn.Module) -> None:
    batch, ledger = images(), Ledger()
    passes = passes_of(model, batch, TARGET)
    start = one_hot(passes.logits, TARGET) * passes.logits
    relevance = passes.relevance(start, lrp_rules(ledger, "epsilon", 0.0), "layer4")
    torch.testing.assert_close(
        relevance.flatten(1).sum(1) + ledger.bias + ledger.epsilon, start.sum(1), rtol=1e-4, atol=1e-5
    )
    features = passes.activation("last")
    weights = bla_layers(model)["avgpool"].window_weights(features).view(3, 1, *features.shape[2:])
    expected = features * weights * model.fc.weight[TARGET][:, :, None, None]
    torch.testing.assert_close(relevance, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["guided_backprop", "deeplift", "relevance_cam", "lrp", "cam", "layer_cam"])
def test_post_hoc_methods_explain_it(name: str, model: nn.Module) -> None:
    found = explain(explainers.get(name), model, images(), TARGET)
    assert torch.isfinite(found.values).all() and found.values.std() > 0
    assert float(found.diagnostics.get("completeness_error", torch.zeros(1)).max()) < 1e-3


def test_cam_of_the_hard_decision_has_its_weights() -> None:
    network = attending(small_resnet(), output="hard")
    assert torch.isfinite(maps("cam", network, images())).all()
