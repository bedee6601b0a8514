import math

import pytest
import torch
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc, Bla, Concept, Plug
from lapbench.errors import DefinitionError
from lapbench.models.bla import BLA, SubsetAttention, bla_layers, deciding, record_bla
from lapbench.models.lap import AdaptiveLAP2d, ConceptScoring
from lapbench.models.plug import load_plain, plug, put_antehoc, put_bla
from lapbench.models.pooling import Pooling
from lapbench.models.weights import load_weights, randomise, save_weights
from lapbench.models.zoo import build

PRESETS = ("L2X-F", "BLA", "BLA-T", "BLA-PH")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def features(batch: int = 3, channels: int = 5, side: tuple[int, int] = (4, 3)) -> Tensor:
    return torch.randn(batch, channels, *side, dtype=torch.float64)


def layer(channels: int = 5, **options: object) -> BLA:
    bla = BLA(channels, SubsetAttention(**options)).double().eval()
    nn.init.normal_(bla.score.weight)
    nn.init.normal_(bla.score.bias)
    return bla


# --- a slow reference: the module's formulas, one position at a time


def slow_values(bla: BLA, x: Tensor) -> list[list[float]]:
    """p of every position, row by row, of every sample."""
    weight, bias = bla.score.weight.flatten().tolist(), float(bla.score.bias.detach())
    found = []
    for sample in x:
        pixels = sample.flatten(1).T.tolist()
        z = [sum(w * f for w, f in zip(weight, pixel, strict=True)) + bias for pixel in pixels]
        found.append([-max(value, 0.0) if bla.attention.logits == "bounded" else -value for value in z])
    return found


def slow_softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def slow_soft(bla: BLA, p: list[float]) -> list[float]:
    a = bla.attention
    scale = a.temperature if a.temperature_mode == "multiply" else 1 / a.temperature
    g = slow_softmax([scale * value for value in p])
    g = [max(value - a.threshold / len(p), 0.0) for value in g]
    return [value / sum(g) for value in g] if a.renormalise else g


def slow_hard(bla: BLA, p: list[float]) -> list[float]:
    k = bla.attention.draws
    if not k:
        chosen = [value == max(p) for value in p]
        return [float(one) / sum(chosen) for one in chosen]
    least = sorted(p, reverse=True)[k - 1]
    above, ties = sum(value > least for value in p), sum(value == least for value in p)
    return [1 / k if value > least else (k - above) / ties / k if value == least else 0.0 for value in p]


def slow_pool(x: Tensor, weights: list[list[float]]) -> Tensor:
    out = torch.zeros(*x.shape[:2], 1, 1, dtype=x.dtype)
    for b, sample in enumerate(weights):
        for position, weight in enumerate(sample):
            i, j = divmod(position, x.shape[3])
            out[b, :, 0, 0] += weight * x[b, :, i, j]
    return out


@pytest.mark.parametrize("logits", ["bounded", "linear"])
@pytest.mark.parametrize("mode", ["multiply", "divide"])
@pytest.mark.parametrize("threshold", [0.0, 0.98])
@pytest.mark.parametrize("renormalise", [False, True])
def test_the_soft_output_is_that_of_a_loop_over_positions(logits, mode, threshold, renormalise):
    bla = layer(
        logits=logits, temperature_mode=mode, temperature=0.3, threshold=threshold, renormalise=renormalise
    )
    x = features()
    expected = slow_pool(x, [slow_soft(bla, p) for p in slow_values(bla, x)])
    torch.testing.assert_close(bla(x), expected)


@pytest.mark.parametrize(("logits", "draws"), [("bounded", 0), ("linear", 0), ("linear", 5), ("bounded", 7)])
def test_the_hard_output_is_that_of_a_loop_over_positions(logits, draws):
    bla = layer(logits=logits, draws=draws, output="hard")
    x = features()
    expected = slow_pool(x, [slow_hard(bla, p) for p in slow_values(bla, x)])
    torch.testing.assert_close(bla(x), expected)


@pytest.mark.parametrize("mode", ["multiply", "divide"])
@pytest.mark.parametrize("more", [{}, {"threshold": 0.98, "renormalise": True}])
def test_draws_add_gumbel_noise_before_the_temperature_and_keep_the_largest(mode, more):
    """At evaluation the mean over several such samples, each cut and divided for itself."""
    options = {"logits": "linear", "draws": 3, "temperature_mode": mode, "temperature": 0.5, **more}
    bla, x = layer(**options, evaluation_draws=4), features()
    scale = 0.5 if mode == "multiply" else 2.0
    noise = bla.attention.noisy(torch.zeros(1, 12, dtype=torch.float64))[0]
    assert noise.shape == (4, 3, 12)
    weights = []
    for p in slow_values(bla, x):
        samples = []
        for draws in noise.tolist():
            rows = [
                slow_softmax([scale * (value + gumbel) for value, gumbel in zip(p, draw, strict=True)])
                for draw in draws
            ]
            g = [max(column) for column in zip(*rows, strict=True)]
            g = [max(value - bla.attention.threshold / 12, 0.0) for value in g]
            samples.append([value / sum(g) for value in g] if bla.attention.renormalise else g)
        weights.append([sum(column) / 4 for column in zip(*samples, strict=True)])
    torch.testing.assert_close(bla(x), slow_pool(x, weights))


@pytest.mark.parametrize("training", [True, False])
def test_the_noise_of_the_draws_is_gumbels(training):
    """Its mean is Euler's constant, its variance π²/6; and every training pass has its own."""
    attention = SubsetAttention(logits="linear", draws=50, evaluation_draws=800).train(training)
    p = torch.zeros(40 if training else 1, 100)
    noise = attention.noisy(p)
    assert noise.shape == ((40, 1, 50, 100) if training else (1, 800, 50, 100))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)
    assert torch.equal(noise, attention.noisy(p)) != training


def test_at_evaluation_every_position_meets_the_same_noise_in_another_order():
    noise = SubsetAttention(draws=3).eval().noisy(torch.zeros(1, 20))[0]
    first = sorted(noise[:, :, 0].tolist())
    assert all(sorted(noise[:, :, place].tolist()) == first for place in range(20))
    assert len({tuple(noise[:, 0, place].tolist()) for place in range(20)}) > 15


def test_the_noise_leaves_no_pattern_where_all_positions_are_as_good():
    """A single draw would: weights that differ by a seventh, at the same places of every image."""
    weights = SubsetAttention(logits="linear", draws=8).eval()(torch.zeros(1, 7, 7))
    assert float(weights.std() / weights.mean()) < 0.01


def test_the_mean_of_the_weights_is_the_mean_of_the_logits():
    """Behind a linear head, over the samples that make it."""
    bla, x = layer(logits="linear", draws=3, temperature=1.0, evaluation_draws=5), features()
    head, p = nn.Linear(5, 2).double(), torch.tensor(slow_values(bla, x), dtype=torch.float64)
    samples = bla.attention.noisy(p).softmax(-1).amax(2)  # (B, 5, n)
    answers = [head((x.flatten(2) * one[:, None]).sum(2)) for one in samples.unbind(1)]
    torch.testing.assert_close(head(bla(x).flatten(1)), torch.stack(answers).mean(0))


def test_at_evaluation_all_samples_share_one_noise_and_no_generator_moves():
    attention = SubsetAttention(logits="linear", draws=8).eval()
    z, before = torch.randn(4, 7, 7), torch.get_rng_state()
    weights = attention(z)
    assert torch.equal(weights, attention(z)) and torch.equal(weights[:1], attention(z[:1]))
    assert torch.equal(before, torch.get_rng_state())


# --- limits


def test_with_all_logits_at_the_bound_it_is_mean_pooling():
    x = features()
    for threshold in (0.0, 0.98):
        bla = layer(threshold=threshold)
        nn.init.zeros_(bla.score.weight)
        nn.init.constant_(bla.score.bias, -1.0)  # every z < 0, so every p = 0
        mean = x.mean((2, 3), keepdim=True)
        torch.testing.assert_close(bla(x), (1 - threshold) * mean)
        bla.attention.renormalise = True
        torch.testing.assert_close(bla(x), mean)
        with deciding(bla, "hard"):
            torch.testing.assert_close(bla(x), mean)


def test_with_a_sharp_temperature_soft_and_hard_are_the_one_best_position():
    bla = layer(logits="linear", temperature=1e6)
    x = features()
    best = torch.tensor([p.index(max(p)) for p in slow_values(bla, x)])
    expected = x.flatten(2)[torch.arange(3), :, best][:, :, None, None]
    torch.testing.assert_close(bla(x), expected)
    with deciding(bla, "hard"):
        torch.testing.assert_close(bla(x), expected)


def test_a_map_of_one_position_is_passed_on():
    x = features(side=(1, 1))
    torch.testing.assert_close(layer()(x), x)


def test_the_weights_of_the_threshold_lie_where_the_paper_says():
    """Σ g is 1 − 0.98 for the uniform mask, and 1 − 0.02 for a single position of 49."""
    attention = SubsetAttention(threshold=0.98, temperature=1000.0)
    even, single = -torch.ones(1, 7, 7), torch.ones(1, 7, 7)
    single[0, 3, 3] = 0
    assert float(attention(even).sum()) == pytest.approx(0.02, abs=1e-6)
    assert float(attention(single).sum()) == pytest.approx(0.98, abs=1e-6)


def test_the_set_grows_with_the_positions_at_the_bound():
    attention = SubsetAttention()
    z = torch.ones(3, 4, 4)
    z[0, 0, :3] = torch.tensor([-1.0, 0.0, -5.0])  # three reach the bound
    z[1, 1, 1] = 0.2  # none: the largest alone
    z[2] = -1.0
    assert (attention.hard(z) > 0).flatten(1).sum(1).tolist() == [3, 1, 16]
    assert attention.hard(z)[0, 0, :3].tolist() == pytest.approx([1 / 3] * 3)


def test_l2x_selects_its_number_of_positions_and_ties_divide():
    attention = SubsetAttention(logits="linear", draws=8)
    weights = attention.hard(torch.randn(20, 7, 7))
    assert (weights > 0).flatten(1).sum(1).tolist() == [8] * 20
    assert weights.max() == pytest.approx(1 / 8)
    tied = -torch.arange(9.0).repeat(1, 1)
    tied[0, :3] = -1.0  # below the six best values, for two places
    weights = attention.hard(tied)[0]
    assert weights[:3].tolist() == pytest.approx([2 / 3 / 8] * 3) and weights.sum() == pytest.approx(1)
    assert attention.hard(torch.randn(2, 5)).gt(0).all()  # fewer positions than draws


@pytest.mark.parametrize("draws", [0, 2])
@pytest.mark.parametrize("output", ["soft", "hard"])
def test_nan_stays_nan(draws, output):
    """A single NaN leaves nothing to be selected in its sample, and the others as they are."""
    z = torch.randn(2, 3, 3)
    attention = SubsetAttention(logits="linear", draws=draws, output=output).eval()
    wanted = attention(z)[1]
    z[0, 1, 1] = math.nan
    weights = attention(z)
    assert weights[0].isnan().all() and torch.equal(weights[1], wanted)


def test_the_subset_is_of_anything_not_of_maps_alone():
    z = torch.randn(6, 10)
    as_map = SubsetAttention(threshold=0.5)(z.view(6, 2, 5))
    torch.testing.assert_close(SubsetAttention(threshold=0.5)(z), as_map.view(6, 10))


# --- gradients and numbers


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients(preset):
    bla = layer(**Bla(preset=preset, temperature=1.0).model_dump(exclude={"preset"}))
    x = features(2, 5).requires_grad_()
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in bla.score.parameters())

    def pooled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(bla, {"score.weight": weight, "score.bias": bias}, (x,))

    assert torch.autograd.gradcheck(pooled, (x, weight, bias))


def test_the_hard_output_passes_gradients_to_what_it_averages_alone():
    bla, x = layer(output="hard"), features().requires_grad_()
    bla(x).sum().backward()
    assert torch.equal(x.grad[0, 0] > 0, bla.attention.hard(bla_logits(bla, x))[0] > 0)
    assert bla.score.weight.grad is None


def bla_logits(bla: BLA, x: Tensor) -> Tensor:
    return torch.nn.functional.conv2d(x, bla.score.weight, bla.score.bias)[:, 0].detach()


def test_training_is_soft_whatever_the_output_at_evaluation():
    x = features()
    bla = layer(output="hard")
    assert torch.equal(bla.train()(x), layer_like(bla, "soft")(x))
    assert not torch.allclose(bla.eval()(x), layer_like(bla, "soft")(x))


def layer_like(bla: BLA, output: str) -> BLA:
    other = layer(output=output)
    other.load_state_dict(bla.state_dict())
    return other


def test_half_precision_keeps_its_weights_in_single():
    bla = layer(threshold=0.98).bfloat16()
    x = features().bfloat16()
    assert bla.window_weights(x).dtype == torch.float32 and bla(x).dtype == torch.bfloat16


def test_a_map_without_positions_is_refused():
    with pytest.raises(ValueError, match="needs at least one position, found a map of 0×3"):
        layer()(features(side=(0, 3)))


def test_it_is_lap_with_other_weights():
    """Both pool one window as large as the map by weights that a 1×1 convolution decides."""
    x = features()
    torch.testing.assert_close(
        layer(logits="linear", temperature=1e-9)(x), AdaptiveLAP2d(ConceptScoring(5)).double()(x)
    )


# --- in networks

FAMILIES = {
    "convnext_tiny": "avgpool",
    "densenet121": "bla",
    "efficientnet_b0": "avgpool",
    "googlenet": "avgpool",
    "mnasnet0_5": "bla",
    "mobilenet_v2": "bla",
    "mobilenet_v3_small": "avgpool",
    "regnet_y_400mf": "avgpool",
    "resnet50": "avgpool",
    "shufflenet_v2_x0_5": "bla",
    "squeezenet1_1": "classifier.3",
}


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_at_the_bound_every_network_is_the_plain_one_and_has_its_weights(name):
    plain = build(name, num_classes=3).eval()
    network = put_bla(plain, Bla())
    assert list(bla_layers(network)) == [FAMILIES[name]] and not bla_layers(plain)
    added = set(network.state_dict()) - set(plain.state_dict())
    assert added == {f"{FAMILIES[name]}.score.weight", f"{FAMILIES[name]}.score.bias"}
    load_plain(network, plain.state_dict())
    (bla,) = bla_layers(network).values()
    nn.init.zeros_(bla.score.weight)
    nn.init.constant_(bla.score.bias, -1.0)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg11", "alexnet"])
def test_a_network_without_global_pooling_is_refused(name):
    with pytest.raises(DefinitionError, match="has no global pooling to 1×1, a module"):
        put_bla(build(name, num_classes=2), Bla())


def small() -> nn.Module:
    return build("resnet18", num_classes=2, parameters={"width": 4, "blocks": (1, 1, 1, 1)}).eval()


def test_a_network_that_attends_already_is_refused():
    how, classes = Plug(concepts=(Concept(name="a", classes=("c",)),)), ("b", "c")
    carriers = (
        plug(small(), how, classes=classes),
        plug(small(), Plug(layer="average"), classes=classes),
        put_bla(small(), Bla()),
        put_antehoc(small(), AnteHoc()),
    )
    for network in carriers:
        with pytest.raises(DefinitionError, match="carries LAP, or what stands in its place, already"):
            put_bla(network, Bla())
        with pytest.raises(DefinitionError, match="carries LAP, or what stands in its place, already"):
            plug(network, how, classes=classes)


def test_it_is_a_pooling_whose_window_is_the_whole_map():
    layer, x = BLA(3, SubsetAttention(threshold=0.98)), torch.randn(2, 3, 4, 5)
    weights = layer.window_weights(x)
    assert isinstance(layer, Pooling) and layer.is_global and weights.shape == (2, 20, 1, 1)
    expected = (x * weights.view(2, 1, 4, 5)).sum((2, 3), keepdim=True)
    torch.testing.assert_close(layer(x), expected)


def test_the_weights_survive_a_file(tmp_path):
    network = put_bla(small(), Bla(preset="BLA-T"))
    save_weights(tmp_path / "x.safetensors", network.state_dict(), {})
    again = put_bla(small(), Bla(preset="BLA-T"))
    again.load_state_dict(load_weights(tmp_path / "x.safetensors"))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), network(x))
    assert not torch.equal(randomise(again, 1)(x), network(x))


@torch.no_grad()
def test_what_a_pass_says_is_recorded():
    network, x = put_bla(small(), Bla(preset="BLA-T")), torch.randn(3, 3, 64, 96)
    with record_bla(network) as records:
        soft = network(x)
        (one,) = records
        with deciding(network, "hard"):
            hard = network(x)
        (other,) = records  # of the latest pass
    (bla,) = bla_layers(network).values()
    assert bla.attention.output == "soft" and not bla.attention._forward_hooks
    assert one.name == "avgpool" and one.values.shape == (3, 2, 3)
    assert torch.equal(one.weights, other.weights) and torch.equal(one.selection, other.selection)
    assert torch.equal(one.weights, bla.attention.soft(-one.values))
    assert torch.equal(one.selected, one.values == one.values.amax((1, 2), keepdim=True))
    assert not torch.equal(soft, hard)


def test_the_output_is_put_back_after_an_exception():
    network = put_bla(small(), Bla())
    with pytest.raises(KeyError), deciding(network, "hard"):
        raise KeyError
    assert bla_layers(network)["avgpool"].attention.output == "soft"
