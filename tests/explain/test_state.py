import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from explain.networks import images, small_resnet
from lapbench.explain import untouched
from lapbench.explain.state import Weights


def havoc(model: nn.Module) -> None:
    """Do everything that explainers have been seen to leave behind."""
    model.train()
    model(images())
    model.bn1.running_mean = torch.full((8,), 7.0)
    model.bn1.running_var.fill_(9.0)
    model.relu = nn.Sigmoid()
    model.layer1[0].added = "something"
    model.layer2.register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(images()).sum().backward()
    torch.rand(1)
    np.random.rand()  # noqa: NPY002 - strangers do
    random.random()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_havoc_leaves_no_trace(training: bool, fails: bool) -> None:
    model = small_resnet().train(training)
    model.layer3.eval()
    model.fc.weight.requires_grad_(False)
    gradient = model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    handle = model.layer2.register_forward_hook(lambda *_: None)
    relu, statistics, modes = model.relu, model.bn1.running_mean, [m.training for m in model.modules()]
    before, values = copy.deepcopy(model.state_dict()), gradient.clone()
    torch.manual_seed(3)
    draws = torch.rand(2), np.random.RandomState(3).rand(2)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    try:
        with untouched(model):
            havoc(model)
            if fails:
                raise KeyError("planted")
    except KeyError:
        assert fails
    assert [m.training for m in model.modules()] == modes
    assert model.relu is relu
    assert model.bn1.running_mean is statistics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.layer1[0], "added")
    assert [p.requires_grad for p in (model.fc.weight, model.fc.bias)] == [False, True]
    assert model.conv1.weight.grad is gradient
    assert torch.equal(gradient, values)
    assert model.fc.bias.grad is None
    assert len(model.layer2._forward_hooks) == 1
    handle.remove()
    assert not model.layer2._forward_hooks
    assert torch.equal(torch.rand(2), draws[0])
    np.testing.assert_array_equal(np.random.rand(2), draws[1])  # noqa: NPY002


def test_inside_all_is_ready_and_seeded() -> None:
    model, seen = small_resnet().train(), []
    for _ in range(2):
        with torch.no_grad(), untouched(model, seed=5):
            assert torch.is_grad_enabled()
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            seen.append((torch.rand(1).item(), float(np.random.rand()), random.random()))  # noqa: NPY002
    assert seen[0] == seen[1]


def test_gradients_flow_although_the_caller_is_in_inference_mode() -> None:
    model = small_resnet()
    with torch.inference_mode():
        batch = images()
        with untouched(model):
            x = batch.clone().requires_grad_()
            model(x).sum().backward()
            assert x.grad is not None


def test_weights_are_put_back_where_they_were_and_nan_is_no_change():
    model = small_resnet()
    model.fc.bias.data[0] = torch.nan
    weights, before, place = Weights(model), copy.deepcopy(model.state_dict()), model.conv1.weight.data_ptr()
    assert weights.put_back() == []
    model.conv1.weight.data = model.conv1.weight.data.double()
    model.fc.bias.data.mul_(2)
    assert weights.put_back() == ["conv1.weight", "fc.bias"]
    assert model.conv1.weight.data_ptr() == place
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
