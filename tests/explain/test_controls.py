import pytest
import torch

from explain.networks import images, small_resnet
from lapbench.errors import ExplainerError
from lapbench.explain import explain
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])
IDS = ["a/1.png", "b/2.png", "a/3.png"]


def maps(name: str, **named: object) -> torch.Tensor:
    parameters = named.pop("parameters", None)
    return explain(explainers.get(name), small_resnet(), images(), TARGET, parameters, **named).values


def test_random_depends_on_seed_and_id_alone() -> None:
    first = maps("random", ids=IDS)
    again = maps("random", ids=IDS[::-1])
    assert torch.equal(first, again.flip(0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, maps("random", ids=IDS, parameters={"seed": 1}))
    assert first.shape == (3, 32, 48)
    assert 0 <= first.min() < 0.01
    assert 0.99 < first.max() < 1
    assert abs(first.mean() - 0.5) < 0.02


def test_random_is_the_same_on_every_machine() -> None:
    expected = torch.tensor([0.05833673, 0.12491852])  # NumPy's PCG64 seeded with SHA-256 of "0:a"
    torch.testing.assert_close(maps("random", ids=["a", "b", "c"])[0, 0, :2], expected)


def test_center_is_a_bell_in_the_middle() -> None:
    bell = maps("center", parameters={"deviation": 0.5})[0]
    assert torch.equal(bell, bell.flip(0))
    assert torch.equal(bell, bell.flip(1))
    y, x = 3, 40  # by hand: exp(−(3 − 15.5)² / 2·16² − (40 − 23.5)² / 2·24²)
    expected = torch.exp(torch.tensor(-((3 - 15.5) ** 2) / 512 - (40 - 23.5) ** 2 / 1152))
    torch.testing.assert_close(bell[y, x], expected)
    assert maps("center", parameters={"deviation": 0.1})[0, 0, 0] < bell[0, 0]


def test_ones() -> None:
    assert torch.equal(maps("ones"), torch.ones(3, 32, 48))


def test_oracle_is_the_truth() -> None:
    truth = torch.rand(3, 32, 48) > 0.7
    assert torch.equal(maps("oracle", masks=truth), truth.float())
    with pytest.raises(ExplainerError, match=r"must have the image's size \(32, 48\), found \(16, 48\)"):
        maps("oracle", masks=truth[:, :16])
