"""The rules of relevance, each by a closed form or a sum that is written out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.lrp import RuleName, lrp_rules
from lapbench.explain.passes import passes_of
from lapbench.explain.relevance import Ledger
from lapbench.models.lap import ConceptScoring, LAP2d

SIGNS: dict[str, tuple[float, float]] = {"z_plus": (1, 0), "alpha_beta": (2, 1)}


class Here(nn.Module):
    """An identity with a name, and what comes after it."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.here, self.after = nn.Identity(), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.here(x))


def back(
    after: Callable[[Tensor], Tensor],
    x: Tensor,
    relevance: Tensor,
    rule: RuleName = "epsilon",
    **options: float,
) -> tuple[Tensor, Ledger]:
    """What arrives at x, and what was kept on the way; ε is 0 unless given."""
    ledger = Ledger()
    rules = lrp_rules(ledger, rule, **{"epsilon": 0.0} | options)
    passes = passes_of(Here(after).to(x.dtype), x, torch.zeros(len(x), dtype=torch.long))
    return passes.relevance(relevance, rules, "here").detach(), ledger


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- layers with weights


def by_loops(rule: str, x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """One image, a matrix (out, in), and each contribution on its own."""
    weight, bias = weight.detach(), bias.detach()
    found = torch.zeros_like(x)
    for j, received in enumerate(relevance):
        parts = [float(weight[j, i] * x[i]) for i in range(len(x))]
        if rule == "epsilon":
            z = sum(parts) + float(bias[j])
            for i, part in enumerate(parts):
                found[i] += part / (z + (0.25 if z >= 0 else -0.25)) * received
        elif rule == "flat":
            found += received / len(x)
        else:
            for factor, sign in zip(SIGNS[rule], (1, -1), strict=True):
                chosen = [max(0, sign * part) for part in parts]
                z = sum(chosen) + max(0, sign * float(bias[j]))
                for i, part in enumerate(chosen):
                    found[i] += sign * factor * part / z * received
    return found


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "flat"])
def test_a_linear_layer_against_loops(rule: RuleName) -> None:
    layer, x, relevance = nn.Linear(5, 3).double(), normal(2, 5), normal(2, 3)
    expected = [by_loops(rule, a, layer.weight, layer.bias, r) for a, r in zip(x, relevance, strict=True)]
    found, _ = back(layer, x, relevance, rule, epsilon=0.25)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta"])
@pytest.mark.parametrize("functional", [False, True])
def test_a_convolution_is_a_linear_layer_and_takes_in_the_batch_norm_behind_it(
    rule: RuleName, functional: bool
) -> None:
    convolution = Convolution(4, 6, 3, stride=2, padding=1, groups=2) if functional else None
    convolution = convolution or nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    norm = unsettled_norm(6)
    chain, x = nn.Sequential(convolution, norm, nn.ReLU()).double().eval(), normal(2, 4, 5, 4)
    relevance = normal(2, 6, 3, 2)

    unit = torch.eye(80, dtype=torch.float64).view(80, 4, 5, 4)
    bias = norm(convolution(torch.zeros_like(unit[:1])))
    matrix = (norm(convolution(unit)) - bias).flatten(1).T
    expected = [
        by_loops(rule, a.flatten(), matrix, bias.flatten(), r.flatten())
        for a, r in zip(x, relevance, strict=True)
    ]
    found, _ = back(chain, x, relevance, rule, epsilon=0.25)
    torch.testing.assert_close(found.flatten(1), torch.stack(expected))


class Convolution(nn.Conv2d):
    """A convolution of the user's own, of which torch.fx sees the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.weight, self.bias, padding=self.padding, stride=self.stride, groups=self.groups
        )


def unsettled_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).double().eval()
    for values in (norm.weight, norm.running_var):
        nn.init.uniform_(values, 0.5, 1.5)
    for values in (norm.bias, norm.running_mean):
        nn.init.uniform_(values, -0.5, 0.5)
    return norm


def test_a_batch_norm_alone_is_affine_and_its_shift_is_a_bias() -> None:
    norm, x, relevance = unsettled_norm(3), normal(2, 3, 4, 4), normal(2, 3, 4, 4)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
    shift = norm.bias[:, None, None] - norm.running_mean[:, None, None] * scale
    found, ledger = back(norm, x, relevance, "z_plus")
    torch.testing.assert_close(found, (x * scale / (x * scale + shift) * relevance).detach())
    expected = (shift / (x * scale + shift) * relevance).flatten(1).sum(1)
    torch.testing.assert_close(ledger.bias, expected.detach())


def test_a_convolution_whose_output_another_takes_keeps_its_batch_norm_out() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(2, 2, 1, bias=False), unsettled_norm(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convolution(x)
            return torch.cat([x, self.norm(x)], 1)

    two, x, relevance = Two().double(), normal(1, 2, 3, 3), normal(1, 4, 3, 3)
    inner = two.convolution(x).detach()
    alone, _ = back(two.norm, inner, relevance[:, 2:])
    expected, _ = back(two.convolution, x, relevance[:, :2] + alone)
    found, _ = back(two, x, relevance)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rule", ["epsilon", "z_plus", "alpha_beta", "flat"])
def test_what_is_kept_is_the_bias_and_epsilon_times_their_ratio(rule: RuleName) -> None:
    """Two inputs and one unit, by hand: x = (2, 1), W = (3, −1), b = −1, R = 12, ε = 2."""
    layer = nn.Linear(2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -1.0]]))
        layer.bias.fill_(-1)
    x, relevance = torch.tensor([[2.0, 1.0]]).double(), torch.tensor([[12.0]]).double()
    found, ledger = back(layer, x, relevance, rule, epsilon=2)
    by_hand = {  # z = 6 − 1 − 1
        "epsilon": ([12, -2], -2, 4),
        "z_plus": ([12, 0], 0, 0),
        "alpha_beta": ([24, -6], -6, 0),
        "flat": ([6, 6], 0, 0),
    }
    values, bias, epsilon = by_hand[rule]
    assert found.tolist() == [values]
    assert float(torch.as_tensor(ledger.bias)) == bias
    assert float(torch.as_tensor(ledger.epsilon)) == epsilon


def test_a_unit_that_nothing_adds_up_in_keeps_its_relevance() -> None:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, -1)
    found, ledger = back(layer, torch.ones(1, 2), torch.tensor([[5.0]]), "z_plus")
    assert found.tolist() == [[0, 0]]
    assert torch.as_tensor(ledger.epsilon).tolist() == [5]


# --- operations without weights


def test_summands_share_by_sign_and_a_constant_is_a_bias() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            return left - right + 3

    x = torch.tensor([[6.0, 1.0, 2.0, 1.0]]).view(1, 4, 1, 1)  # 6 − 2 + 3, 1 − 1 + 3
    found, ledger = back(Sum(), x, torch.tensor([[14.0, 3.0]]).view(1, 2, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([12.0, 0.0, -4.0, 0.0]))
    torch.testing.assert_close(ledger.bias, torch.tensor([9.0]))
    torch.testing.assert_close(ledger.epsilon, torch.tensor([0.0]))


def test_summands_that_cancel_keep_their_relevance() -> None:
    class Cancelled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = x.split(1, 1)
            return left + right

    x = torch.tensor([[2.0, -2.0]]).view(1, 2, 1, 1)
    found, ledger = back(Cancelled(), x, torch.ones(1, 1, 1, 1))
    assert found.flatten().tolist() == [0, 0]
    assert torch.as_tensor(ledger.epsilon).tolist() == [1]


@pytest.mark.parametrize(
    "average", [nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), lambda x: x.mean((2, 3), keepdim=True)]
)
def test_averages_share_by_signed_values(average: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[[[1.0, 3.0], [-2.0, 0.0]]]])
    found, _ = back(average, x, torch.tensor([[[[8.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[[[4.0, 12.0], [-8.0, 0.0]]]]))


def test_the_winner_of_a_maximum_takes_all_also_of_zeros() -> None:
    x = torch.tensor([[[[-1.0, 0.0, 2.0, 1.0]]]])
    found, _ = back(nn.MaxPool2d((1, 2)), x, torch.tensor([[[[5.0, 7.0]]]]))
    torch.testing.assert_close(found, torch.tensor([[[[0.0, 5.0, 7.0, 0.0]]]]))


def test_lap_shares_by_signed_values_times_their_weights() -> None:
    lap, x, relevance = (
        LAP2d(ConceptScoring(3, init="default"), 2).double(),
        normal(1, 3, 4, 6),
        normal(1, 3, 2, 3),
    )
    weights, expected = lap.window_weights(x), torch.zeros_like(x)
    for k in range(3):
        for i in range(2):
            for j in range(3):
                places = [(0, k, 2 * i + m, 2 * j + n) for m in range(2) for n in range(2)]
                parts = [x[place] * weights[0, c, i, j] for c, place in enumerate(places)]
                for place, part in zip(places, parts, strict=True):
                    expected[place] = part / sum(parts) * relevance[0, k, i, j]
    found, _ = back(lap, x, relevance)
    torch.testing.assert_close(found, expected.detach())


class LayerNorm(nn.LayerNorm):
    """A layer norm of the user's own, of which torch.fx sees the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, bias=self.bias, eps=self.eps)


def test_layer_norm_is_a_matrix_with_constant_statistics() -> None:
    norm, x, relevance = nn.LayerNorm(5).double(), normal(1, 5), normal(1, 5)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    deviation = (x.var(correction=0) + norm.eps).sqrt()
    matrix = norm.weight[:, None] / deviation * (torch.eye(5) - 1 / 5)
    expected = by_loops("epsilon", x[0], matrix, norm.bias, relevance[0])
    functional = LayerNorm(5).double()
    functional.load_state_dict(norm.state_dict())
    for layer in (norm, functional):
        found, ledger = back(layer, x, relevance, epsilon=0.25)
        torch.testing.assert_close(found[0], expected)
        kept = torch.as_tensor(ledger.bias) + torch.as_tensor(ledger.epsilon)
        torch.testing.assert_close(kept + expected.sum(), relevance.sum(1))


class Gated(nn.Module):
    def __init__(self, gate: Callable[[Tensor], Tensor], gate_first: bool) -> None:
        super().__init__()
        self.gate, self.gate_first = gate, gate_first

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * x if self.gate_first else x * self.gate(x)


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),  # smaller
        torch.sigmoid,
        lambda x: F.hardsigmoid(x).reshape(-1, 3, 4, 4),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    ],
)
@pytest.mark.parametrize("gate_first", [False, True])
def test_the_signal_takes_all_and_its_gate_nothing(
    gate: Callable[[Tensor], Tensor], gate_first: bool
) -> None:
    relevance = normal(2, 3, 4, 4)
    found, _ = back(Gated(gate, gate_first), normal(2, 3, 4, 4), relevance)
    assert torch.equal(found, relevance)


def test_two_signals_cannot_be_told_apart() -> None:
    with pytest.raises(NotApplicableError, match=r"a product \('mul'\) of two features of the same size"):
        back(Gated(torch.relu, False), normal(2, 3, 4, 4), normal(2, 3, 4, 4))


def test_what_is_divided_takes_all() -> None:
    relevance = normal(2, 3, 4, 4)
    found, _ = back(Normalised(), normal(2, 3, 4, 4), relevance)
    assert torch.equal(found, relevance)
    with pytest.raises(NotApplicableError, match="no rule for a constant that is divided by features"):
        back(Inverse(), normal(2, 3, 4, 4), relevance)


class Normalised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.mean((1, 2, 3), keepdim=True)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 / x


def test_constants_factors_and_rearrangements_pass_all_on() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.silu(2 * x / torch.tensor(3.0)).permute(0, 2, 3, 1)
            return F.dropout(F.hardswish(x), training=False).transpose(1, 3).reshape(2, -1)

    relevance = normal(2, 48)
    found, _ = back(Moved(), normal(2, 3, 4, 4), relevance)
    torch.testing.assert_close(found, relevance.view(2, 3, 4, 4).transpose(2, 3))


def test_operations_without_a_rule_are_named() -> None:
    with pytest.raises(NotApplicableError, match="LRP has no rule for 'exp': leave this network out"):
        back(torch.exp, normal(1, 2), normal(1, 2))
