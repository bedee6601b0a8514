import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from explain.networks import images, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import Maps, explain
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])


def gradient(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch.requires_grad_()
    logits = model(batch)[torch.arange(len(batch)), target]
    return torch.autograd.grad(logits.sum(), batch)[0].sum(1)


def test_maps_come_out_as_float32_without_a_graph() -> None:
    def wide(model: nn.Module, batch: Tensor, target: Tensor) -> Maps:
        values = batch.sum(1).double().requires_grad_() * 2
        return Maps(values, {"error": values.sum((1, 2))})

    maps = explain(wide, small_resnet(), images(), TARGET)
    assert maps.values.dtype == torch.float32
    assert not maps.values.requires_grad
    assert not maps.diagnostics["error"].requires_grad


def test_the_callers_images_are_not_touched() -> None:
    batch = images().requires_grad_()
    explain(gradient, small_resnet(), batch, TARGET)
    assert batch.requires_grad
    assert batch.grad is None

    def wipe(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        target.zero_()
        return batch.zero_().sum(1)

    explain(wipe, small_resnet(), batch, target := TARGET.clone())
    assert batch.detach().abs().sum() > 0
    assert torch.equal(target, TARGET)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x.sum((1, 2, 3)), r"must return maps of shape \(3, h, w\), found \(3,\)"),
        (lambda x: x, r"must return maps of shape \(3, h, w\), found \(3, 3, 32, 48\)"),
        (lambda x: x[:2].sum(1), r"must return maps of shape \(3, h, w\), found \(2, 32, 48\)"),
        (lambda x: x[:, 0, :0], r"must return maps of shape \(3, h, w\), found \(3, 0, 48\)"),
        (lambda x: x.sum(1).long(), "must return floating-point maps, found torch.int64"),
        (
            lambda x: x.sum(1).to("meta"),
            "must return dense tensors on the images' device, cpu, or on the CPU, found strided on meta",
        ),
        (lambda x: x.sum(1).to_sparse(), "must return dense tensors on .*, found sparse_coo on cpu"),
        (lambda x: Maps(x.sum(1), {"error": torch.empty(3, device="meta")}), "found strided on meta"),
        (lambda x: Maps(x.sum(1), {"error": 0.5}), r"diagnostic 'error' .* must be \(3,\), found float"),
        (lambda x: x.sum(1).numpy(), "must return a tensor or Maps, found ndarray"),
        (
            lambda x: Maps(x.sum(1), {"error": x.sum()}),
            r"diagnostic 'error' of .* must be \(3,\), found \(\)",
        ),
    ],
)
def test_anything_but_maps_is_refused(result: object, message: str) -> None:
    def odd(model: nn.Module, batch: Tensor, target: Tensor) -> object:
        return result(batch)  # type: ignore[operator]

    with pytest.raises(ExplainerError, match="explainer 'odd'") as caught:
        explain(odd, small_resnet(), images(), TARGET)
    assert caught.match(message)


def test_a_failure_names_the_explainer() -> None:
    def broken(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError("nothing to divide by")

    with pytest.raises(
        ExplainerError, match="explainer 'broken' failed: ZeroDivisionError: nothing to divide"
    ):
        explain(broken, small_resnet(), images(), TARGET)


def test_what_has_no_meaning_passes_through() -> None:
    with pytest.raises(NotApplicableError, match="has no LAP layers"):
        explain(explainers.get("lap_all"), small_resnet(), images(), TARGET)


@pytest.mark.parametrize(
    ("batch", "target", "message"),
    [
        (torch.zeros(3, 32, 32), TARGET, r"images must be \(B, C, H, W\), found \(3, 32, 32\)"),
        (images(), TARGET[:2], r"target must be \(3,\) int64.*found \(2,\) int64"),
        (images(), TARGET.float(), r"target must be \(3,\) int64.*found \(3,\) float32"),
        (images(), torch.tensor([0, 1, 9]), "explainer 'grad_cam' failed: .*"),
    ],
)
def test_wrong_arguments_are_named(batch: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ExplainerError, match=message):
        explain(explainers.get("grad_cam"), small_resnet(), batch, target)


def test_parameters_are_validated() -> None:
    with pytest.raises(ValidationError, match="layr"):
        explain(explainers.get("grad_cam"), small_resnet(), images(), TARGET, {"layr": "layer3"})


def test_missing_masks_and_ids_are_named() -> None:
    with pytest.raises(ExplainerError, match="'oracle' needs the masks of all 3 samples, found 0"):
        explain(explainers.get("oracle"), small_resnet(), images(), TARGET)
    with pytest.raises(ExplainerError, match="'random' needs the ids of all 3 samples, found 2"):
        explain(explainers.get("random"), small_resnet(), images(), TARGET, ids=["a", "b"])
