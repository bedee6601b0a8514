import pytest
import torch
from torch import Tensor, nn

from lapbench.explain.differences import DifferenceLap, _LogWeight, _Maximum, _Product, _Softmax
from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d


def halves(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
    return x.requires_grad_()


def change(x: Tensor) -> Tensor:
    image, reference = x.detach().chunk(2)
    return image - reference


def explained(y: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ Δy, weighted at random, and what the multipliers of the inputs make of it."""
    weight = torch.randn(
        y.shape[0] // 2, *y.shape[1:], generator=torch.Generator().manual_seed(9), dtype=y.dtype
    )
    gradients = torch.autograd.grad(y, inputs, torch.cat([weight, weight]))
    parts = [(g.chunk(2)[0] * change(x)).sum() for g, x in zip(gradients, inputs, strict=True)]
    return (weight * change(y)).sum(), torch.stack(parts).sum()


def test_multipliers_of_a_product_are_exact() -> None:
    a, x = halves(6, 1, 4, 5), halves(6, 3, 4, 5, seed=1, low=-2, high=2)
    torch.testing.assert_close(*explained(_Product.apply(a, x), a, x))


@pytest.mark.parametrize("dim", [1, 2])
def test_multipliers_of_a_maximum_are_exact_and_go_to_the_winners(dim: int) -> None:
    x = halves(6, 3, 4, 5)
    torch.testing.assert_close(*explained(_Maximum.apply(x, dim), x))


def test_multipliers_of_the_maximum_of_two_numbers_by_hand() -> None:
    x = torch.tensor(
        [[3.0, 1.0], [0.0, 2.0]], requires_grad=True
    )  # image (3, 1), reference (0, 2): 3 − 2 = 1
    (gradient,) = torch.autograd.grad(_Maximum.apply(x, 1).sum(), x)
    torch.testing.assert_close(gradient[0], torch.tensor([1 / 3, 0.0]))


@pytest.mark.parametrize("high", [1.0, 1e-5])
def test_multipliers_of_the_window_weight_are_exact(high: float) -> None:
    v, m = halves(6, 1, 4, 5, high=high), halves(6, 1, 4, 5, seed=1, low=high, high=2 * high)
    alpha = torch.tensor(1.7, dtype=torch.float64)
    torch.testing.assert_close(*explained(_LogWeight.apply(v, m, alpha, 1e-6), v, m))


def test_multipliers_of_the_window_weight_become_derivatives_where_nothing_changes() -> None:
    v, m = halves(3, 1, 4, 5), halves(3, 1, 4, 5, seed=1, low=1, high=2)
    alpha = torch.tensor(1.7, dtype=torch.float64)
    twice = [torch.cat([x, x]).detach().requires_grad_() for x in (v, m)]
    secant = torch.autograd.grad(_LogWeight.apply(*twice, alpha, 1e-6).sum(), twice)
    plain = torch.autograd.grad(torch.log(v * torch.exp(-(alpha**2) * (m - v) ** 2) + 1e-6).sum(), (v, m))
    for s, p in zip(secant, plain, strict=True):
        torch.testing.assert_close(s.chunk(2)[0], p)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 25.0])
def test_multipliers_of_softmax_are_exact_and_bounded(spread: float) -> None:
    x = halves(6, 1, 4, 5, low=-spread, high=spread)
    torch.testing.assert_close(*explained(_Softmax.apply(x, 2), x))
    for one in torch.eye(4, dtype=torch.float64):
        (gradient,) = torch.autograd.grad(_Softmax.apply(x, 2), x, one[:, None].expand(6, 1, 4, 5))
        assert gradient.abs().max() <= 1


def test_softmax_without_a_difference_has_its_plain_gradient() -> None:
    x = halves(3, 1, 4, 5)
    twice = torch.cat([x, x]).detach().requires_grad_()
    weight = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    (secant,) = torch.autograd.grad(_Softmax.apply(twice, 2), twice, torch.cat([weight, weight]))
    (plain,) = torch.autograd.grad(x.softmax(2), x, weight)
    torch.testing.assert_close(secant.chunk(2)[0], plain)


def laps() -> list[LAP]:
    def scoring(**settings: object) -> ConceptScoring:
        return ConceptScoring(6, init="default", **settings)  # type: ignore[arg-type]

    torch.manual_seed(0)
    return [
        LAP2d(scoring(), 2),
        LAP2d(scoring(heads=3, aggregation="sum"), 3, 2),
        LAP2d(scoring(heads=3, aggregation="max", hidden=None), 3, 2, padding=1),
        LAP2d(scoring(heads=4, aggregation="trainable", hidden=None), 2, alpha_init=5.0),
        LAP2d(scoring(heads=4, aggregation="trainable", positive="softplus"), 2, ceil_mode=False),
        AdaptiveLAP2d(scoring()),
    ]


@pytest.mark.parametrize("lap", laps(), ids=["tiles", "overlap", "max", "trainable", "softplus", "adaptive"])
def test_forward_is_that_of_lap(lap: nn.Module) -> None:
    x, other = torch.randn(4, 6, 9, 7), torch.randn(4, 6, 9, 7)
    torch.testing.assert_close(DifferenceLap(lap)(x), lap(x))
    torch.testing.assert_close(DifferenceLap(lap)(x, other), lap(x, other))
