import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d, Window, record_laps
from models.reference import slow_pooling


def slow_lap(x: Tensor, V: Tensor, window: Window, alpha: float, eps: float) -> Tensor:
    """Eq. 1 and 4 window by window, pixel by pixel, in Python."""

    def weigh(v: list[float]) -> list[float]:
        return [value * math.exp(-(alpha**2) * (max(v) - value) ** 2) + eps for value in v]

    return slow_pooling(x, V, window, weigh)


@torch.no_grad()
def slow_scores(x: Tensor, scoring: ConceptScoring) -> Tensor:
    """Eq. 2 and 3 with torch's own convolutions; (B, 1, H, W)."""
    y = x
    if scoring.hidden is not None:
        y = F.conv2d(y, scoring.hidden.weight, scoring.hidden.bias)
        y = F.relu(y) if isinstance(scoring.activation, nn.ReLU) else F.leaky_relu(y, 0.2)
    p = 1 / (1 + torch.exp(-F.conv2d(y, scoring.head.weight, scoring.head.bias)))
    if scoring.aggregation == "max":
        return p.max(1, keepdim=True).values
    if scoring.aggregator is not None:
        raw = F.conv2d(p, scoring.aggregator.weight, scoring.aggregator.bias)
        return torch.sigmoid(raw) if isinstance(scoring.positive, nn.Sigmoid) else torch.log1p(torch.exp(raw))
    return p.sum(1, keepdim=True)


def spiky(channels: int, **options) -> ConceptScoring:
    """A scoring module with large random weights: its probabilities differ clearly from pixel to pixel."""
    scoring = ConceptScoring(channels, init="default", **options).double()
    with torch.no_grad():
        for parameter in scoring.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return scoring


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


SCORINGS = [
    {},
    {"hidden": None},
    {"activation": "leaky_relu"},
    {"heads": 3, "aggregation": "max"},
    {"heads": 3, "aggregation": "sum"},
    {"heads": 5, "hidden": None, "aggregation": "trainable"},
    {"heads": 2, "aggregation": "trainable", "positive": "softplus"},
]


@pytest.mark.parametrize("options", SCORINGS, ids=str)
@pytest.mark.parametrize("window", [(2, 2), (3, 2), "adaptive"], ids=str)
def test_lap_is_the_formula(options, window):
    scoring = spiky(4, **options)
    lap = (AdaptiveLAP2d(scoring) if window == "adaptive" else LAP2d(scoring, *window)).double()
    with torch.no_grad():
        lap.alpha.fill_(2.5)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)

    expected = slow_lap(x, slow_scores(x, scoring), lap.window(7, 5), 2.5, 1e-6)

    torch.testing.assert_close(lap(x), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_any_window_is_the_formula(data, seed):
    torch.manual_seed(seed)
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    size = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    lap = LAP2d(spiky(3), kernel, stride, padding=padding, ceil_mode=data.draw(st.booleans())).double()
    scored, x = torch.randn(1, 3, *size).double(), torch.randn(1, 2, *size).double()

    expected = slow_lap(x, slow_scores(scored, lap.scoring), lap.window(*size), 1.0, 1e-6)

    torch.testing.assert_close(lap(x, scored), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("window", "size"),
    [
        ({"kernel": 2}, (6, 4)),
        ({"kernel": 2}, (5, 7)),
        ({"kernel": 2}, (1, 1)),
        ({"kernel": (1, 3)}, (4, 5)),
        ({"kernel": 2, "ceil_mode": False}, (5, 7)),
        ({"kernel": 3, "stride": 2}, (6, 7)),
        ({"kernel": 3, "stride": 2}, (2, 1)),
        ({"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": False}, (6, 5)),
        ({"kernel": 3, "stride": 4, "padding": 1}, (3, 3)),
        ({"kernel": 1, "stride": 2}, (5, 5)),
        (None, (3, 4)),
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(window, size):
    lap = (AdaptiveLAP2d(spiky(3)) if window is None else LAP2d(spiky(3), **window)).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, *_parameters: lap(x), (x, *lap.parameters()))


@pytest.mark.parametrize("kernel", [2, (2, 3)], ids=str)
def test_gradient_reaches_both_the_pooled_and_the_scored_features(kernel):
    lap = LAP2d(spiky(3), kernel).double()
    x = torch.randn(2, 5, 5, 7, dtype=torch.float64, requires_grad=True)
    scored = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lap, (x, scored))


# Limits of the formula.


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 3)], ids=str)
@pytest.mark.parametrize("window", [(2, 2), (3, 2), (3, 3)], ids=str)
def test_constant_scores_pool_the_average_of_the_valid_pixels(window, size):
    x = torch.randn(2, 4, *size)
    # a window larger than the map holds all of it
    small = any(length < window[0] for length in size)
    padded = F.pad(x, (0, max(0, window[0] - size[1]), 0, max(0, window[0] - size[0])))
    ones = F.pad(torch.ones_like(x), (0, max(0, window[0] - size[1]), 0, max(0, window[0] - size[0])))
    expected = F.avg_pool2d(padded, *window, ceil_mode=True, count_include_pad=False)
    if small:
        expected = expected / F.avg_pool2d(ones, *window, ceil_mode=True, count_include_pad=False)

    torch.testing.assert_close(LAP2d(ConceptScoring(4), *window)(x), expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_constant_scores_with_padding_pool_the_average_of_the_valid_pixels(ceil_mode):
    x = torch.randn(2, 4, 11, 8)
    lap = LAP2d(ConceptScoring(4), 3, 2, padding=1, ceil_mode=ceil_mode)

    expected = F.avg_pool2d(x, 3, 2, 1, ceil_mode=ceil_mode, count_include_pad=False)

    torch.testing.assert_close(lap(x), expected, rtol=1e-6, atol=3e-7)


def test_adaptive_lap_at_constant_scores_is_global_average_pooling():
    x = torch.randn(3, 6, 7, 5)

    difference = AdaptiveLAP2d(ConceptScoring(6))(x) - F.adaptive_avg_pool2d(x, 1)

    assert difference.abs().max() < 2e-7


@pytest.mark.parametrize("window", [(2, 2), (3, 2), "adaptive"], ids=str)
def test_large_alpha_passes_the_pixel_with_the_largest_value(window):
    scoring = ConceptScoring(4, hidden=None, init="default")  # no ReLU, so no ties
    lap = (AdaptiveLAP2d(scoring) if window == "adaptive" else LAP2d(scoring, *window)).double()
    with torch.no_grad():
        lap.alpha.fill_(1e4)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    V = slow_scores(x, lap.scoring)
    window = lap.window(6, 6)

    got = lap(x)

    for b in range(2):
        for i, j in torch.cartesian_prod(*map(torch.arange, got.shape[2:])).tolist():
            rows = slice(i * window.stride[0], i * window.stride[0] + window.kernel[0])
            columns = slice(j * window.stride[1], j * window.stride[1] + window.kernel[1])
            best = int(V[b, 0, rows, columns].argmax())
            torch.testing.assert_close(
                got[b, :, i, j], x[b, :, rows, columns].flatten(1)[:, best], atol=2e-4, rtol=0
            )


def test_at_alpha_zero_the_weights_are_the_values_and_alpha_stands_still():
    lap = LAP2d(spiky(4), 2, alpha_init=0.0).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    V = F.unfold(slow_scores(x, lap.scoring), 2, stride=2).view(2, 4, 3, 3) + 1e-6

    weights = lap.window_weights(x)
    (weights * torch.randn_like(weights)).sum().backward()

    torch.testing.assert_close(weights, V / V.sum(1, keepdim=True))
    assert lap.alpha.grad == 0


# Sizes.


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (1, 0)])
def test_lap_after_the_convolution_has_the_size_of_the_strided_convolution(kernel, padding):
    window = Window((2, 2), (2, 2))
    floor = Window((2, 2), (2, 2), ceil_mode=False)
    misfits = 0
    for length in range(5, 80):
        image = torch.empty(1, 1, length, 5, device="meta")
        weight = torch.empty(1, 1, kernel, kernel, device="meta")
        strided = F.conv2d(image, weight, stride=2, padding=padding).shape[2:]
        dense = F.conv2d(image, weight, stride=1, padding=padding).shape[2:]
        assert window.output_size(*dense) == strided
        misfits += floor.output_size(*dense)[0] != strided[0]
    assert misfits > 0  # why ceil mode is the default


@given(
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 2),
    st.booleans(),
)
def test_sizes_are_those_of_torch(length, kernel, stride, padding, ceil_mode):
    padding = min(padding, kernel // 2)
    if length + 2 * padding < kernel:
        return  # torch refuses
    pool = nn.MaxPool2d((kernel, 1), (stride, 1), (padding, 0), ceil_mode=ceil_mode)
    expected = pool(torch.zeros(1, 1, length, 1)).shape[2]

    assert Window((kernel, 1), (stride, 1), (padding, 0), ceil_mode).output_size(length, 1) == (expected, 1)


@pytest.mark.parametrize("batch", [1, 4, 5])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)], ids=str)
def test_a_batch_larger_than_the_cache_is_pooled_alike(monkeypatch, batch, size):
    lap = LAP2d(spiky(3), 2).double()
    x = torch.randn(batch, 3, *size, dtype=torch.float64, requires_grad=True)
    whole = lap(x)
    gradients = torch.autograd.grad(whole.square().sum(), (x, lap.alpha))

    monkeypatch.setattr("lapbench.models.pooling._CACHE", 2 * 3 * size[0] * size[1])  # two samples
    parts = lap(x)

    assert parts.equal(whole)
    for got, expected in zip(
        torch.autograd.grad(parts.square().sum(), (x, lap.alpha)), gradients, strict=True
    ):
        torch.testing.assert_close(got, expected)


# Kinds of input.


def test_an_empty_batch_gives_an_empty_batch():
    assert LAP2d(ConceptScoring(4), 2)(torch.zeros(0, 4, 6, 6)).shape == (0, 4, 3, 3)
    assert LAP2d(ConceptScoring(4), 3, 2)(torch.zeros(0, 4, 6, 6)).shape == (0, 4, 3, 3)
    assert AdaptiveLAP2d(ConceptScoring(4))(torch.zeros(0, 4, 6, 6)).shape == (0, 4, 1, 1)


@pytest.mark.parametrize("kind", [LAP2d, AdaptiveLAP2d])
def test_a_map_without_pixels_is_refused(kind):
    lap = kind(ConceptScoring(4))
    with pytest.raises(ValueError, match="LAP needs at least one pixel, found a map of 0×6"):
        lap(torch.zeros(1, 4, 0, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [(2, 2), (3, 2), "adaptive"], ids=str)
def test_weights_are_float32_and_the_output_has_the_type_of_the_features(dtype, window):
    scoring = ConceptScoring(4, init="default")
    lap = AdaptiveLAP2d(scoring) if window == "adaptive" else LAP2d(scoring, *window)
    x = torch.randn(2, 4, 8, 8)
    expected = lap(x)

    half = lap.to(dtype)
    weights = half.window_weights(x.to(dtype))
    got = half(x.to(dtype))

    assert weights.dtype == torch.float32
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)


def test_under_autocast_the_weights_stay_float32_and_gradients_flow():
    lap = LAP2d(ConceptScoring(4, 3, hidden=None, init="default", aggregation="trainable"), 2)
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lap.window_weights(x).dtype == torch.float32
        lap(x).square().sum().backward()

    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in lap.parameters())


def test_values_that_would_vanish_in_half_precision_still_share_the_weight():
    scoring = ConceptScoring(1, hidden=None)
    with torch.no_grad():
        scoring.head.bias.fill_(-30.0)  # V = 1e-13: only ε is left
    lap = LAP2d(scoring, 2).half()

    assert lap(torch.ones(1, 1, 4, 4, dtype=torch.float16)).eq(1).all()


def test_channels_last_and_strided_inputs_give_the_same():
    lap = LAP2d(spiky(4), 2).double()
    x = torch.randn(2, 4, 8, 6, dtype=torch.float64)

    torch.testing.assert_close(lap(x.contiguous(memory_format=torch.channels_last)), lap(x))
    torch.testing.assert_close(lap(x.transpose(2, 3)), lap(x.transpose(2, 3).contiguous()))


def test_the_input_is_not_changed():
    x = torch.randn(2, 4, 7, 7)
    before = x.clone()

    LAP2d(ConceptScoring(4), 2)(x)
    LAP2d(ConceptScoring(4), 3, 2)(x)

    assert x.equal(before)


# Weights, parts and states.


def test_window_weights_add_up_to_one_and_vanish_beyond_the_border():
    lap = LAP2d(spiky(4), 3, 2, padding=1).double()
    weights = lap.window_weights(torch.randn(2, 4, 6, 6).double())

    assert weights.shape == (2, 9, 4, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, 4).double())
    assert weights[:, 0, 0].eq(0).all()  # the top left place of the windows in the first row
    assert weights[:, 8, -1].eq(0).all()  # the bottom right place of those in the last


def test_one_weight_map_pools_two_branches():
    lap = LAP2d(spiky(4), 2).double()
    main, skip = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 7, 6, 6).double()
    weights = lap.window_weights(main)

    both = lap(torch.cat([main, skip], 1), main)

    torch.testing.assert_close(both, torch.cat([lap.pool(main, weights), lap.pool(skip, weights)], 1))


def test_alpha_is_a_parameter_unless_fixed():
    trainable, fixed = (
        LAP2d(ConceptScoring(4)),
        LAP2d(ConceptScoring(4), alpha_trainable=False, alpha_init=3.0),
    )

    assert "alpha" in dict(trainable.named_parameters())
    assert "alpha" not in dict(fixed.named_parameters())
    assert fixed.state_dict()["alpha"] == 3.0


def test_zero_initialisation_trains_after_one_step():
    lap = LAP2d(ConceptScoring(4), 2)
    x = torch.randn(2, 4, 6, 6)
    lap(x).square().sum().backward()

    assert lap.scoring.hidden.weight.grad.abs().sum() == 0  # only in the first step
    assert lap.scoring.head.weight.grad.abs().sum() > 0


def test_one_head_is_wanted_for_the_identity():
    with pytest.raises(ValueError, match="'identity' needs exactly one concept head, found 3"):
        ConceptScoring(4, 3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"kernel": 0}, "kernel and stride must be at least 1"),
        ({"kernel": 2, "stride": (1, 0)}, "kernel and stride must be at least 1"),
        ({"kernel": 2, "padding": -1}, "padding at least 0"),
        ({"kernel": 3, "padding": 2}, "padding may be at most half the kernel"),
    ],
)
def test_impossible_windows_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        LAP2d(ConceptScoring(4), **sizes)


def test_lap_can_be_a_leaf_of_a_traced_network():
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, LAP) or super().is_leaf_module(module, name)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), LAP2d(ConceptScoring(4), 2), AdaptiveLAP2d(ConceptScoring(4)))
    traced = fx.GraphModule(model, Tracer().trace(model))
    x = torch.randn(1, 3, 9, 8)

    assert traced(x).equal(model(x))


# Recording.


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), LAP2d(ConceptScoring(4), 3, 2), AdaptiveLAP2d(ConceptScoring(4))
    )


def test_records_hold_what_each_lap_saw_in_the_latest_pass(network):
    x = torch.randn(2, 3, 10, 7)
    with record_laps(network) as records:
        network(torch.randn(5, 3, 4, 4))
        network(x)
        first, second = records

    assert (first.name, first.kernel, first.stride, first.output_size) == ("1", (3, 3), (2, 2), (5, 3))
    assert (second.name, second.kernel, second.stride, second.output_size) == ("2", (5, 3), (5, 3), (1, 1))
    assert first.inputs.equal(network[0](x))
    assert first.logits.equal(network[1].scoring(network[0](x)))


def test_recorded_logits_keep_their_graph(network):
    with record_laps(network) as records:
        network(torch.randn(2, 3, 8, 8))
    records[0].logits.sum().backward()

    assert network[1].scoring.head.bias.grad is not None


def test_hooks_are_gone_after_the_block_and_after_an_exception(network):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

    with record_laps(network) as records:
        assert hooks() == 3
    with pytest.raises(RuntimeError, match="on purpose"), record_laps(network):
        raise RuntimeError("on purpose")

    assert hooks() == 0
    network(torch.randn(1, 3, 8, 8))
    assert records == []
