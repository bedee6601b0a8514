"""Coordinates from heat maps: the expected position, and what follows from it."""

import math

import pytest
import torch
from torch import nn

from lapbench.errors import DefinitionError
from lapbench.explain import explain
from lapbench.models.heat_maps import HeatMaps
from lapbench.models.zoo import build
from lapbench.registry import explainers

torch.manual_seed(4)


@torch.no_grad()
def test_the_answer_is_the_expected_position_of_every_map():
    layer, features = HeatMaps(3, 2), torch.randn(2, 3, 4, 5)
    weight, bias = layer.maps.weight[:, :, 0, 0], layer.maps.bias
    answers = layer(features)
    assert answers.shape == (2, 4, 1, 1)
    for image in range(2):
        for landmark in range(2):
            cells = {
                (i, j): math.exp(float(weight[landmark] @ features[image, :, i, j] + bias[landmark]))
                for i in range(4)
                for j in range(5)
            }
            total = sum(cells.values())
            x = sum(share * (j + 0.5) / 5 for (_, j), share in cells.items()) / total
            y = sum(share * (i + 0.5) / 4 for (i, _), share in cells.items()) / total
            assert answers[image, 2 * landmark : 2 * landmark + 2, 0, 0].tolist() == pytest.approx([x, y])


@torch.no_grad()
def test_what_moves_by_a_cell_is_answered_a_cell_away():
    layer = HeatMaps(1, 1)
    nn.init.constant_(layer.maps.weight, 1.0)
    peaks = torch.zeros(2, 1, 8, 8)
    peaks[0, 0, 2, 3] = peaks[1, 0, 3, 4] = 100
    assert layer(peaks).flatten(1).tolist() == [
        pytest.approx([3.5 / 8, 2.5 / 8]),
        pytest.approx([4.5 / 8, 3.5 / 8]),
    ]


def test_the_gradient_of_a_coordinate_sums_to_nothing():
    """As the shares of the cells always add up to 1; so Grad-CAM's weights of the channels are 0."""
    layer, features = HeatMaps(4, 3).double(), torch.randn(2, 4, 6, 6, dtype=torch.float64)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(layer(features)[:, 1].sum(), features)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient.sum((2, 3)), torch.zeros(2, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(layer, (features,))


@pytest.mark.parametrize("name", ["layer_cam", "guided_backprop", "input_x_gradient"])
def test_a_coordinate_is_explained(name):
    parameters = {"width": 4, "blocks": (1, 1, 1, 1), "head": "heat-maps"}
    network = build("resnet18", num_classes=4, parameters=parameters).eval()
    x, spec = torch.randn(2, 3, 64, 64), explainers.get(name)
    answers = network(x)
    assert answers.shape == (2, 4)
    maps = explain(spec, network, x, torch.tensor([0, 3]), spec.parameters()).values
    assert maps.isfinite().all() and (maps != 0).any()


def test_numbers_that_are_no_coordinates_are_refused():
    with pytest.raises(DefinitionError, match="two coordinates for each landmark, not 3 numbers"):
        build("resnet18", num_classes=3, parameters={"width": 4, "head": "heat-maps"})
