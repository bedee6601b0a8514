import pytest
import torch
from torch import Tensor, nn

from lapbench.errors import NotApplicableError
from lapbench.explain import explain
from lapbench.explain.canonical import canonical
from lapbench.explain.differences import differences
from lapbench.explain.lap_differences import _log, _log_weight
from lapbench.explain.multipliers import given_to_winners, rescaled, softmax
from lapbench.explain.tape import Tape, one_hot
from lapbench.models.bla import BLA, SubsetAttention
from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d
from lapbench.registry import explainers


def values(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low


def error(model: nn.Module, batch: Tensor, baseline: float = 0.4) -> float:
    """By how much DeepLIFT's contributions miss the difference that they explain."""
    target = torch.zeros(len(batch), dtype=torch.int64)
    found = explain(explainers.get("deeplift"), model.double(), batch, target, {"baseline": baseline})
    return float(found.diagnostics["completeness_error"].max())


class On(nn.Module):
    """A function between two linear layers, so that its inputs' multipliers differ."""

    def __init__(self, function: object, batch: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.function = nn.Conv2d(3, 6, 1), function
        with torch.no_grad():
            self.out = nn.Linear(self.function(self.into(batch.float())).flatten(1).shape[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.into(x)).flatten(1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.sigmoid(),
        lambda x: x.mean((2, 3), keepdim=True).sigmoid() * x,
        lambda x: torch.mul(x.tanh(), x.mean(1, keepdim=True)),
        lambda x: torch.nn.functional.max_pool2d(x, 3, 1, 1),
        lambda x: torch.nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2),
        lambda x: torch.nn.functional.layer_norm(
            x, normalized_shape=(6, 5, 4), weight=torch.linspace(-1, 2, 120).view(6, 5, 4).to(x.dtype)
        ),
        lambda x: 3 * x - x.transpose(2, 3).reshape(x.shape) / 2,
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1).relu(),
        lambda x: (
            torch.nn.functional.hardswish(x) + torch.nn.functional.silu(x) + torch.nn.functional.gelu(x)
        ),
    ],
    ids=[
        "x·σ(x)",
        "gate",
        "product",
        "overlap",
        "norm of channels",
        "norm of all",
        "linear",
        "pieces",
        "smooth",
    ],
)
def test_contributions_through_every_kind_of_operation_add_up(function: object) -> None:
    batch = values(3, 3, 5, 4, low=-2, high=2)
    assert error(On(function, batch), batch) < 1e-10


def test_an_operation_without_a_rule_shows_in_the_diagnostic() -> None:
    batch = values(3, 3, 5, 4, low=-2, high=2)
    assert error(On(torch.exp, batch), batch) > 1e-3


def laps() -> dict[str, LAP]:
    def scoring(**settings: object) -> ConceptScoring:
        return ConceptScoring(6, init="default", **settings)  # type: ignore[arg-type]

    torch.manual_seed(0)
    return {
        "tiles": LAP2d(scoring(), 2),
        "overlap": LAP2d(scoring(heads=3, aggregation="sum"), 3, 2),
        "max": LAP2d(scoring(heads=3, aggregation="max", hidden=None), 3, 2, padding=1),
        "trainable": LAP2d(scoring(heads=4, aggregation="trainable", hidden=None), 2, alpha_init=5.0),
        "softplus": LAP2d(scoring(heads=4, aggregation="trainable", positive="softplus"), 2, ceil_mode=False),
        "adaptive": AdaptiveLAP2d(scoring()),
    }


@pytest.mark.parametrize("kind", laps())
def test_contributions_through_lap_add_up(kind: str) -> None:
    batch = values(3, 3, 9, 7, low=-2, high=2)
    assert error(On(laps()[kind], batch), batch) < 1e-10


BLAS: dict[str, dict[str, object]] = {
    "bounded": {},
    "threshold": {"threshold": 0.98},
    "renormalised": {"threshold": 0.7, "renormalise": True},
    "linear": {"logits": "linear", "temperature_mode": "divide"},
    "draws": {"logits": "linear", "draws": 3},
    "all": {"draws": 2, "threshold": 0.5, "renormalise": True},
}


def bla(**settings: object) -> BLA:
    torch.manual_seed(0)
    layer = BLA(6, SubsetAttention(**({"temperature": 1.5} | settings)))  # type: ignore[arg-type]
    nn.init.normal_(layer.score.weight)
    return layer.eval()


@pytest.mark.parametrize("kind", BLAS)
def test_contributions_through_bla_add_up(kind: str) -> None:
    batch = values(3, 3, 9, 7, low=-2, high=2)
    assert error(On(bla(**BLAS[kind]), batch).eval(), batch) < 1e-10


@pytest.mark.parametrize("kind", BLAS)
def test_multipliers_of_bla_become_derivatives_where_nothing_changes(kind: str) -> None:
    batch = values(1, 3, 5, 4, low=-2, high=2)
    network = On(bla(**BLAS[kind]), batch).double().eval()
    x = batch.clone().requires_grad_()
    (plain,) = torch.autograd.grad(network(x)[0, 0], x)
    tape = Tape(canonical(network), batch)
    found = tape.walk_back(one_hot(tape.logits, torch.tensor([0])), differences, reference=tape)
    torch.testing.assert_close(found, plain)


def test_the_hard_output_of_bla_has_no_multipliers() -> None:
    batch = values(3, 3, 5, 4)
    with pytest.raises(NotApplicableError, match="the hard output of BLA does not: explain the soft output"):
        error(On(bla(output="hard"), batch).eval(), batch)


def test_multipliers_of_the_maximum_of_two_numbers_by_hand() -> None:
    """Image (3, 1), reference (0, 2): of 3 − 2 = 1 the image's winner gets all, the reference's nothing."""
    x, x_ = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    (y, winner), (y_, winner_) = x.max(1, keepdim=True), x_.max(1, keepdim=True)
    found = given_to_winners(torch.ones(1, 1), x, x_, y, y_, winner, winner_, 1)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 0.0]]))


def test_the_rescale_rule_becomes_the_derivative_where_nothing_changes() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    x_ = torch.tensor([1.0, 0.0, 3.0])
    found = rescaled(torch.ones(3), x, x_, x**2, x_**2, lambda: 2 * x)
    torch.testing.assert_close(found, torch.tensor([2.0, 2.0, 6.0]))


@pytest.mark.parametrize("high", [1.0, 1e-5])
def test_multipliers_of_the_window_weight_are_exact(high: float) -> None:
    lap = LAP2d(ConceptScoring(6), alpha_init=1.7).double()
    v, v_ = (values(3, 4, 5, 1, seed=seed, high=high) for seed in (0, 1))
    m, m_ = (values(3, 1, 5, 1, seed=seed, low=high, high=2 * high) for seed in (2, 3))
    received = values(3, 4, 5, 1, seed=4, low=-1)
    with torch.no_grad():
        to_v, to_m = _log_weight(received, lap, v, v_, m, m_)
        change = received * (_log(lap, v, m) - _log(lap, v_, m_))
    torch.testing.assert_close(to_v * (v - v_) + to_m * (m - m_), change)


def test_multipliers_of_the_window_weight_become_derivatives_where_nothing_changes() -> None:
    lap = LAP2d(ConceptScoring(6), alpha_init=1.7).double()
    v, m = values(3, 4, 5, 1).requires_grad_(), values(3, 4, 5, 1, seed=1, low=1, high=2).requires_grad_()
    plain = torch.autograd.grad(_log(lap, v, m).sum(), (v, m))
    with torch.no_grad():
        found = _log_weight(torch.ones_like(v), lap, v, v, m, m)
    for secant, derivative in zip(found, plain, strict=True):
        torch.testing.assert_close(secant, derivative)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 25.0])
def test_multipliers_of_softmax_are_exact_and_bounded(spread: float) -> None:
    x, x_ = (values(3, 4, 5, 1, seed=seed, low=-spread, high=spread) for seed in (0, 1))
    received = values(3, 4, 5, 1, seed=2, low=-1)
    change = (received * (x.softmax(1) - x_.softmax(1))).sum(1)
    torch.testing.assert_close((softmax(received, x, x_) * (x - x_)).sum(1), change)
    for one in torch.eye(4, dtype=torch.float64):
        assert softmax(one.view(1, 4, 1, 1).expand_as(x), x, x_).abs().max() <= 1


def test_softmax_without_a_difference_has_its_plain_gradient() -> None:
    x, received = values(3, 4, 5, 1).requires_grad_(), values(3, 4, 5, 1, seed=2)
    (plain,) = torch.autograd.grad(x.softmax(1), x, received)
    torch.testing.assert_close(softmax(received, x.detach(), x.detach()), plain)
