"""Objects with Captum's ``attribute`` are explainers, and held to the same contract."""

import pytest
import torch
from captum.attr import GuidedBackprop, InputXGradient, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from explain.networks import images, plugged, small_resnet
from lapbench.errors import ExplainerError
from lapbench.explain import check_explainer, explain, from_attribute, run_checks

TARGET = torch.tensor([0, 3])
pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks")


class Fixed:
    """An object of nobody's library, which returns what it was made with."""

    def __init__(self, result: object) -> None:
        self.result = result

    def attribute(self, inputs: Tensor, *, target: Tensor) -> object:
        return self.result


def gradient(model: nn.Module, batch: Tensor) -> Tensor:
    batch = batch.clone().requires_grad_()
    return torch.autograd.grad(model(batch)[torch.arange(len(batch)), TARGET].sum(), batch)[0]


@pytest.mark.parametrize(
    "make", [Saliency, InputXGradient, GuidedBackprop, lambda model: LayerGradCam(model, model.layer4)]
)
@pytest.mark.parametrize("network", [small_resnet, lambda: plugged(small_resnet())])
def test_captums_explainers_keep_the_contract(make, network) -> None:
    check_explainer(from_attribute(make), network(), images(2, 24), TARGET)


@pytest.mark.parametrize("make", [InputXGradient, lambda model: LayerGradCam(model, model.layer4)])
def test_an_object_is_held_to_the_whole_contract_on_its_own_network(make) -> None:
    model = small_resnet()
    assert all(check.passed for check in check_explainer(make(model), model, images(2, 24), TARGET))


def test_what_is_found_is_captums_own_attribution_reduced() -> None:
    model, batch = small_resnet(), images(2, 24)
    wanted = gradient(model, batch)
    signed = {"options": {"abs": False}}

    torch.testing.assert_close(explain(Saliency, model, batch, TARGET).values, wanted.abs().sum(1))
    for reduce, by_hand in {
        "sum": wanted[:, 0] + wanted[:, 1] + wanted[:, 2],
        "mean": (wanted[:, 0] + wanted[:, 1] + wanted[:, 2]) / 3,
        "max_abs": wanted.abs().max(1).values,
    }.items():
        maps = explain(from_attribute(Saliency, reduce=reduce, **signed), model, batch, TARGET)
        torch.testing.assert_close(maps.values, by_hand)


def test_a_class_activation_map_keeps_its_size_and_its_sign() -> None:
    model, batch = small_resnet(), images(2, 48)
    method = LayerGradCam(model, model.layer3)
    wanted = method.attribute(batch, TARGET)

    maps = explain(method, model, batch, TARGET).values
    assert wanted.shape == (2, 1, *maps.shape[1:]) and (wanted < 0).any()
    torch.testing.assert_close(maps, wanted[:, 0].detach())


def test_options_reach_the_object() -> None:
    model, batch = small_resnet(), images(2, 24)
    window = {"sliding_window_shapes": (3, 24, 40)}
    maps = explain(from_attribute(Occlusion, reduce="mean", options=window), model, batch, TARGET).values

    rows = torch.arange(2)
    wanted = (model(batch) - model(torch.zeros_like(batch)))[rows, TARGET].detach()
    torch.testing.assert_close(maps, wanted[:, None, None].expand(-1, 24, 40), rtol=1e-4, atol=1e-5)


def test_maps_without_a_channel_are_taken_as_they_are() -> None:
    model, maps = small_resnet(), torch.rand(2, 5, 7)
    assert torch.equal(explain(Fixed(maps), model, images(2, 24), TARGET).values, maps)


def test_an_object_of_another_network_is_refused() -> None:
    method = Saliency(small_resnet(seed=1))
    with pytest.raises(ExplainerError, match=r"this Saliency was made for another network.*from_attribute\("):
        explain(method, small_resnet(), images(2, 24), TARGET)


def test_an_object_that_hides_its_network_is_found_by_the_weights() -> None:
    other = small_resnet(seed=1)
    method = Saliency(lambda batch: other(batch))
    found = {c.name: c.fault for c in run_checks(method, small_resnet(), images(2, 24), TARGET)}
    assert found["depends on weights"].startswith("the maps are the same for a network with random weights")


@pytest.mark.parametrize(
    ("thing", "fault"),
    [
        (Fixed((torch.rand(2, 3, 4, 4),)), r"attribute\(\) must return a tensor, found tuple"),
        (Fixed(torch.rand(2, 8)), r"explainer 'Fixed' must return maps of shape \(2, h, w\), found \(2, 8\)"),
        ("saliency", r"an explainer is a function \(model, images, target\), or has .* found str"),
    ],
)
def test_anything_else_is_refused(thing: object, fault: str) -> None:
    with pytest.raises(ExplainerError, match=fault):
        explain(thing, small_resnet(), images(2, 24), TARGET)


def test_what_it_becomes_can_be_registered(registered) -> None:
    from lapbench.registry import explainer, explainers

    explainer("stock_saliency", version=1, title="Saliency")(from_attribute(Saliency, reduce="max_abs"))
    spec = explainers.get("stock_saliency")

    assert (spec.origin, list(spec.parameters.model_fields)) == ("captum", [])
    assert spec.measures.startswith("A baseline approach for computing input attribution")
    check_explainer(spec, small_resnet(), images(2, 24), TARGET)
