"""Walks back over a recorded pass, held to torch's own automatic differentiation, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from explain.networks import images, network, plugged, small_resnet
from explain.test_canonical import FAST, SLOW
from lapbench.errors import NotApplicableError
from lapbench.explain.canonical import Canonical, canonical
from lapbench.explain.derivatives import gradient, passed_on, strided_input
from lapbench.explain.tape import Operation, Tape, after, one_hot

TARGET = torch.tensor([0, 3])


def by_autograd(model: nn.Module, batch: Tensor, layer: str | None = None) -> Tensor:
    """The gradient of the target's logit by the images, or by what a layer returned when last called."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    model.requires_grad_(False)
    x = batch.clone().requires_grad_()
    handle = model.get_submodule(layer).register_forward_hook(keep) if layer else None
    chosen = model(x.clone()).gather(1, TARGET[:, None]).sum()
    if handle:
        handle.remove()
    return torch.autograd.grad(chosen, kept[-1] if layer else x)[0]


def walked(tape: Tape, until: fx.Node | None = None) -> Tensor:
    return tape.walk_back(one_hot(tape.logits, TARGET), gradient, until=until)


def assert_walks_are_gradients(model: nn.Module, batch: Tensor, layers: tuple[str, ...] = ()) -> None:
    model, batch = model.double().eval(), batch.double()
    form = canonical(model)
    tape = Tape(form, batch)
    expected, found = by_autograd(model, batch), walked(tape)
    assert expected.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(tape.logits, model(batch), rtol=0, atol=1e-13)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    for layer in layers:
        node = form.output_of(layer)
        expected, found = by_autograd(model, batch, layer), walked(tape, node)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
        assert torch.equal(found, walked(Tape(form, batch, node), node))


def layers_of(model: nn.Module) -> tuple[str, ...]:
    """Some of a network's parts that put out one tensor, from near the image to near the logits."""
    nodes = canonical(model).outputs
    names = [name for name, part in model.named_modules() if name in nodes and list(part.children())]
    return tuple(names[:: max(1, len(names) // 2)])


# --- whole networks


@pytest.mark.parametrize("name", FAST + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW])
def test_torchvisions_networks(name: str) -> None:
    model = network(name)
    assert_walks_are_gradients(model, images(2, 107 if name == "inception_v3" else 64), layers_of(model))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"branch_mode": "separate", "aggregation": "max", "sites": "all"},
        {"branch_mode": "post_add", "aggregation": "trainable", "hidden": None},
        {"lap_position": "post_act", "aggregation": "trainable", "aggregate_positive": "softplus"},
        {"branch_scores": "concat", "score_activation": "leaky_relu", "alpha_init": 30.0},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())) or "default",
)
def test_networks_with_lap(settings: dict[str, object]) -> None:
    assert_walks_are_gradients(plugged(small_resnet(), **settings), images(2), ("layer1", "layer3", "layer4"))


@pytest.mark.slow
def test_inception_with_lap() -> None:
    assert_walks_are_gradients(plugged(network("inception_v3")), images(2, 107), ("Mixed_5d", "Mixed_7c"))


# --- every kind of operation, between a convolution and a linear layer


class Around(nn.Module):
    """A convolution, whatever is under test, and a linear layer: every feature receives something else."""

    def __init__(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.function = nn.Conv2d(3, 6, 3, padding=1), function
        if isinstance(function, nn.Module):
            function.eval()
        with torch.no_grad():
            self.out = nn.Linear(self.function(self.into(batch)).flatten(1).shape[1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.function(self.into(x)).flatten(1))


def assert_right(function: Callable[[Tensor], Tensor]) -> None:
    batch = images(2, 8)
    assert_walks_are_gradients(Around(function, batch), batch, ("into",))


MODULES: list[nn.Module] = [
    nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(6, 5, 3, padding=2, padding_mode="circular", stride=2),
    nn.Conv2d(6, 5, 4, padding="same", dilation=2),
    nn.Conv2d(6, 5, 3, padding="valid"),
    nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=3, bias=False),
    nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.BatchNorm2d(6),
    nn.BatchNorm2d(6, affine=False),
    nn.BatchNorm2d(6, track_running_stats=False),
    nn.GroupNorm(3, 6),
    nn.InstanceNorm2d(6),
    nn.LocalResponseNorm(2),
    nn.LeakyReLU(0.3, inplace=True),
    nn.PReLU(6),
    nn.SELU(inplace=True),  # torch's, in place, and unknown to the canonical form
    nn.Sequential(nn.Identity(), nn.Threshold(0.1, 0.2, inplace=True)),
    nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Dropout2d(), nn.AlphaDropout()),
    nn.MaxPool2d(3, stride=2, padding=1, dilation=1, ceil_mode=True),
    nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    nn.AdaptiveMaxPool2d(3),
    nn.LPPool2d(2, 2),
    nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.PixelUnshuffle(2),
    nn.Softmax2d(),
    nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 3)),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module).replace("\n", " ")[:60])
def test_modules(module: nn.Module) -> None:
    if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
        module.running_mean, module.running_var = torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)
    assert_right(module)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional layers": lambda x: F.max_pool2d(F.relu(F.conv2d(x, torch.ones(2, 6, 3, 3).to(x))), 2),
    "named arguments": lambda x: F.relu(input=F.max_pool2d(input=x, kernel_size=2, stride=1)),
    "methods in place": lambda x: x.add_(1).mul_(0.5).neg_().clamp_(-0.6, 0.2).sub_(x.mean()).relu_(),
    "functions in place": lambda x: F.leaky_relu_(F.celu(x, inplace=True).exp() - 0.9) + torch.neg_(x * 2),
    "a += b": lambda x: plus_equals(x),
    "in place, result dropped": lambda x: dropping(x),
    "tuples and negative indices": lambda x: x.chunk(3, 1)[-1] * x.split([2, 4], 1)[0].sigmoid(),
    "slices of a tuple": lambda x: torch.cat(x.chunk(3, 1)[1:], 1) + torch.cat(x.chunk(3, 1)[:-1], dim=1),
    "slices of a tensor": lambda x: x[:, 1:4, ::2] - x[:, -3:, 1::2] + x[:, 2:3, ..., :2, :].mean(),
    "indices": lambda x: x[:, [0, 2, 2]] + x[:, None, -1] * x[..., -1:].mean((1, 2, 3))[:, None, None, None],
    "unpacking": lambda x: unpacked(x),
    "winners and their places": lambda x: x.max(1)[0] + x.topk(2, 1).values.sum(1) + x.sort(1)[0][:, 2],
    "nested tuples": lambda x: x.var(1, keepdim=True) + torch.var_mean(x, (2, 3), keepdim=True)[1],
    "concatenations": lambda x: torch.cat([x, x.exp(), x], -1) + torch.cat(tensors=[x, x, 2 * x], dim=-1),
    "permutations": lambda x: x.permute(0, 2, 3, 1).contiguous().transpose(1, 2).unsqueeze(1).squeeze(1),
    "shapes": lambda x: x.view(x.size(0), 2, -1, x.shape[-1]).transpose(1, 2).reshape(x.shape).flatten(2),
    "padding": lambda x: F.pad(x, (1, 2, 0, 1)) - F.pad(x, (2, 1, 1, 0), mode="replicate"),
    "broadcasts": lambda x: 1 - x + x.mean(1, keepdim=True) + x.mean((0, 2, 3)).view(1, -1, 1, 1) * x[:1],
    "sums with a factor": lambda x: torch.add(x, x.sigmoid(), alpha=2) - torch.sub(x, x.tanh(), alpha=3),
    "products": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) + torch.einsum("bchw,bdhw->bcd", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.relu(), x),
    "choices": lambda x: torch.where(x > 0, x, x.exp() - 1).masked_fill(x > 0.5, 0.5).maximum(-x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) * F.dropout2d(x, 0.3, False),
    "numbers of the shape": lambda x: x * (x.shape[2] / 10) + torch.arange(x.shape[3]).to(x),
    "a view": lambda x: x.relu().view(x.shape)[:, :4],
}


def plus_equals(x: Tensor) -> Tensor:
    y = 3 * x
    y += x.sigmoid()
    y -= 1
    y *= 2
    return y


def dropping(x: Tensor) -> Tensor:
    """What is done in place counts, although nobody takes what it returns."""
    same = x
    x.add_(0.2)
    F.relu(x, inplace=True)
    return x.exp() + same


def unpacked(x: Tensor) -> Tensor:
    first, second, third = x.chunk(3, 1)
    return first * third.exp() + second


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert_right(FUNCTIONS[name])


class Indices(nn.Module):
    """A pool that returns two tensors, and an attention that returns one and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.attention = nn.MultiheadAttention(192, 2, batch_first=True)
        self.memory = nn.LSTM(192, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        pooled, places = self.pool(x)
        sequence = self.back(pooled, places).flatten(2)
        attended, _ = self.attention(sequence, sequence, sequence, need_weights=False)
        return self.memory(attended)[1][0].transpose(0, 1)


def test_modules_that_return_tuples() -> None:
    assert_right(Indices())


class Reused(nn.Module):
    """The same layers twice, of which a layer's name means the last call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.again, self.relu = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(True)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.into(x))
        x = self.relu(self.again(x)) + x
        self.relu(x)
        x = self.relu(self.again(x) - 0.1) * x
        return self.out(x.mean((2, 3)))


def test_layers_that_are_used_twice() -> None:
    assert_walks_are_gradients(Reused(), images(2, 8), ("into", "again", "relu"))


class Logits(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.answer = nn.Conv2d(3, 8, 3), answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.into(x).mean((2, 3)))


@pytest.mark.parametrize(
    "answer",
    [lambda y: y[:, :4], lambda y: y.view(-1, 2, 4)[:, 1], lambda y: y, lambda y: y.log_softmax(1)],
    ids=["part", "view", "features", "softmax"],
)
def test_networks_that_return_views_and_networks_without_a_linear_layer(
    answer: Callable[[Tensor], Tensor],
) -> None:
    assert_walks_are_gradients(Logits(answer), images(2, 8))


# --- what a tape keeps


def test_nothing_below_the_layer_is_kept() -> None:
    form = canonical(small_resnet())
    node = form.output_of("layer4")
    tape = Tape(form, images(2), node)
    below = [n for n in form.module.graph.nodes if n not in after(node)]
    sources = {s for n in after(node) - {node} for s in n.all_input_nodes}
    assert len(below) > 20
    assert not set(tape.values) & (set(below) - sources)
    assert set(Tape(form, images(2)).values) >= set(below)


def test_beside_a_layer_only_what_the_walk_needs_is_kept() -> None:
    """The skip connection around a layer, which meets it again in a sum."""
    form = canonical(small_resnet())
    node = form.output_of("layer4.0.bn2")
    tape = Tape(form, images(2), node)
    kept = [n.name for n in tape.values if n not in after(node)]
    assert len(kept) == 1 and kept[0].startswith("layer4_0_downsample")
    assert walked(tape, node).shape == (2, 64, 2, 3)


def test_no_graph_is_built_and_the_images_stay_as_they_are() -> None:
    model, batch = small_resnet().requires_grad_(True), images(2)
    before = batch.clone()
    tape = Tape(canonical(model), batch)
    assert not any(value.requires_grad for value in tape.values.values() if isinstance(value, Tensor))
    found = walked(tape)
    assert not found.requires_grad and torch.equal(batch, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_winners_of_a_pool_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Tape(canonical(small_resnet()), images(2))
    first = walked(tape)
    assert len(tape.winners) == 1
    found = dict(tape.winners)
    assert torch.equal(first, walked(tape))
    assert all(tape.winners[node] is found[node] for node in found)


# --- walking by rules of one's own


def test_rules_are_asked_for_each_operation_on_the_way_from_back_to_front() -> None:
    form = canonical(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    asked: list[str] = []

    def rules(operation: Operation) -> Any:
        asked.append(operation.name)
        return gradient(operation)

    tape = Tape(form, images(2, 8))
    tape.walk_back(torch.ones_like(tape.logits), rules)
    assert asked == ["Flatten", "AdaptiveAvgPool2d", "ReLU", "isolated", "Conv2d"]


def test_what_a_value_receives_from_several_sides_adds_up() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x.relu() + x).mean((2, 3))

    form = canonical(Sum())
    tape = Tape(form, images(2, 8).abs())
    ones = torch.ones(2, 3)
    torch.testing.assert_close(tape.walk_back(ones, gradient), torch.full((2, 3, 8, 24), 3 / 192))


def test_a_rule_about_differences_needs_a_reference() -> None:
    form = canonical(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    tape = Tape(form, torch.rand(2, 3, 2, 2))

    def rule(operation: Operation, received: Tensor) -> tuple[Tensor, ...]:
        assert operation.before is not operation
        return passed_on(operation, received)

    with pytest.raises(ValueError, match="this walk has no reference"):
        tape.walk_back(torch.ones(2, 4), lambda _: rule)


def test_logits_that_do_not_depend_on_the_layer_say_so() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.shown, self.out = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.used(x).mean((2, 3)) + 0 * self.shown(x).mean((2, 3)).shape[1])

    form: Canonical = canonical(Aside())
    node = form.output_of("shown")
    tape = Tape(form, images(2, 8), node)
    with pytest.raises(NotApplicableError, match="nothing reaches 'shown': the logits do not depend on it"):
        walked(tape, node)


@pytest.mark.parametrize("kernel", [(7, 7), (3, 3), (1, 1), (2, 4)])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (3, 3), (0, 2)])
def test_the_input_of_a_strided_convolution(
    kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> None:
    weight = torch.randn(5, 3, *kernel, dtype=torch.float64)
    for size in ((16, 19), (17, 16), (23, 16)):
        shape = F.conv2d(torch.zeros(2, 3, *size), weight.float(), stride=stride, padding=padding).shape
        received = torch.randn(shape, dtype=torch.float64)
        expected = conv2d_input((2, 3, *size), weight, received, stride, padding)
        found = strided_input(size, weight, received, stride, padding)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
