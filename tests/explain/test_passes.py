"""What explainers of one batch share, what they do not, and what is left when one of them misbehaves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from explain.networks import Untraceable, images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, LapbenchError, NotApplicableError
from lapbench.executor import in_batches
from lapbench.explain import Maps, Prepared, Request, explain, explain_together, passes_of
from lapbench.explain.passes import sharing
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])
SUITE = ("lap_all", "grad_cam", "relevance_cam", "guided_backprop", "guided_grad_cam", "deeplift")
LAYERS = ("lap_all", "grad_cam", "grad_cam_pp", "layer_cam", "cam", "relevance_cam")


def request(name: str, **parameters: object) -> Request:
    return Request(explainers.get(name), parameters)


def drawn(results: list[Maps | LapbenchError]) -> list[Tensor]:
    for result in results:
        assert isinstance(result, Maps), result
    return [result.values for result in results if isinstance(result, Maps)]


def together(requests: list[Request], prepared: Prepared, batch: Tensor | None = None) -> list[Tensor]:
    return drawn(explain_together(requests, prepared, images() if batch is None else batch, TARGET))


def alone(requests: list[Request], model: nn.Module) -> list[Tensor]:
    return [explain(r.explainer, model, images(), TARGET, r.parameters).values for r in requests]


# --- the same maps, from fewer passes


@pytest.mark.parametrize("model", [small_resnet(), plugged(small_resnet()), network("squeezenet1_1")])
def test_together_they_say_what_each_says_alone(model: nn.Module) -> None:
    laps = any("lap" in type(part).__name__.lower() for part in model.modules())
    names = [
        "gradient", "input_x_gradient", "guided_backprop", "deeplift", "grad_cam", "guided_grad_cam",
        "grad_cam_pp", "layer_cam", "relevance_cam", *(("lap", "lap_all", "cam") if laps else ()),
    ]  # fmt: skip
    if not isinstance(model, type(small_resnet())):
        names.remove("relevance_cam")  # another layer's name than the ResNets'
    requests = [request(name) for name in names]
    for one, other in zip(together(requests, Prepared(model)), alone(requests, model), strict=True):
        assert torch.equal(one, other)


def test_the_order_of_requests_does_not_matter() -> None:
    model = plugged(small_resnet())
    requests = [request("grad_cam"), request("guided_backprop"), request("relevance_cam", layer="layer2")]
    expected = alone(requests, model)
    prepared = Prepared(model)
    for order in permutations(range(3)):
        found = together([requests[number] for number in order], prepared)
        assert all(torch.equal(maps, expected[number]) for maps, number in zip(found, order, strict=True))


@contextmanager
def counted(prepared: Prepared) -> Iterator[dict[str, list[int]]]:
    """The batch sizes that the first and the last layer of a network's canonical form are given."""
    form = prepared.canonical(images(1)).module
    called = [form.get_submodule(str(n.target)) for n in form.graph.nodes if n.op == "call_module"]
    layers = [layer for layer in called if isinstance(layer, nn.Conv2d | nn.Linear)]
    given: dict[str, list[int]] = {"first": [], "last": []}
    handles = [
        layer.register_forward_pre_hook(lambda _module, inputs, key=key: given[key].append(len(inputs[0])))
        for key, layer in zip(given, (layers[0], layers[-1]), strict=True)
    ]
    try:
        yield given
    finally:
        for handle in handles:
            handle.remove()


def test_the_papers_suite_takes_one_pass_of_the_images_and_one_of_the_baseline() -> None:
    prepared = Prepared(plugged(small_resnet()))
    together([request(name) for name in SUITE], prepared)  # traces, and finds the last layer
    with counted(prepared) as given:
        together([request(name) for name in SUITE], prepared)
    assert given == {"first": [3, 1], "last": [3, 1]}


def test_explainers_at_layers_take_one_pass() -> None:
    prepared = Prepared(plugged(small_resnet()))
    together([request(name) for name in LAYERS], prepared)
    with counted(prepared) as given:
        together([request(name) for name in LAYERS], prepared)
    assert given == {"first": [3], "last": [3]}


def test_a_shallower_layer_asked_for_later_takes_a_pass_of_its_own() -> None:
    """What would be needed of the first one was not kept."""
    prepared = Prepared(small_resnet())
    requests = [
        request("grad_cam"),
        request("grad_cam", layer="layer2"),
        request("layer_cam", layer="layer3"),
    ]
    with counted(prepared) as given:
        together(requests, prepared)
    assert given["first"] == [3, 3]
    with counted(prepared) as given:
        together([*reversed(requests[:2]), requests[2]], prepared)
    assert given["first"] == [3]


def test_the_network_itself_runs_only_to_be_prepared() -> None:
    model, given = small_resnet(), []
    model.conv1.register_forward_pre_hook(lambda _module, inputs: given.append(len(inputs[0])))
    prepared = Prepared(model)
    together([request("grad_cam"), request("deeplift")], prepared)
    assert set(given) == {1}  # one image, to find the last layer and to try the traced form
    given.clear()
    together([request("grad_cam"), request("deeplift")], prepared)
    assert given == []


def test_layers_alone_keep_nothing_below_them() -> None:
    prepared, held = Prepared(plugged(small_resnet())), []

    def look(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        passes = passes_of(model, batch, target)
        held.extend(len(tape.values) for tape in passes._tapes)
        return passes.activation().sum(1)

    together([request("grad_cam"), Request(look)], prepared)
    together([request("grad_cam"), request("gradient"), Request(look)], prepared)
    assert len(held) == 2 and held[0] < held[1] / 4


# --- whose passes they are


def sees(shared: list[bool], change: Callable[..., tuple[Any, ...]]) -> Callable[..., Tensor]:
    """An explainer that asks for passes of something, and notes whether they are the batch's."""

    def asking(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        batchs = passes_of(model, batch, target)
        passes = passes_of(*change(model, batch, target))
        shared.append(passes is batchs)
        return passes.image_gradient().sum(1)

    return asking


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        (lambda m, x, t: (m, x, t), True),
        (lambda m, x, t: (m, x.clone(), t), False),
        (lambda m, x, t: (m, x + 0, t), False),
        (lambda m, x, t: (m, x[:], t), False),
        (lambda m, x, t: (m, x, t.clone()), False),
        (lambda _, x, t: (small_resnet(), x, t), False),
        (lambda m, x, t: (m, x.mul_(2), t), False),
        (lambda m, x, t: (m, x, t.add_(1).remainder_(4)), False),
    ],
    ids=["same", "clone", "sum", "view", "targets", "network", "images in place", "targets in place"],
)
def test_passes_are_shared_for_the_very_tensors_of_the_batch_only(
    change: Callable[..., tuple[Any, ...]], shares: bool
) -> None:
    shared: list[bool] = []
    model, asking = small_resnet(), sees(shared, change)
    found = together(
        [request("gradient", reduce="sum"), Request(asking), request("gradient")], Prepared(model)
    )
    assert shared == [shares]
    assert torch.equal(found[1], explain(asking, model, images(), TARGET).values)
    assert torch.equal(found[2], explain(explainers.get("gradient"), model, images(), TARGET).values)


def test_changed_images_are_what_is_explained() -> None:
    def doubled(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        return passes_of(model, batch.mul_(2), target).image_gradient().abs().amax(1)

    model = small_resnet()
    found = together([request("gradient"), Request(doubled), request("gradient")], Prepared(model))
    expected = explain(explainers.get("gradient"), model, 2 * images(), TARGET).values
    assert torch.equal(found[1], expected)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_nothing_is_shared_once_the_batch_is_done() -> None:
    model, batch = small_resnet(), images()
    passes = passes_of(model, batch, TARGET)
    with sharing(model, batch, TARGET, passes):
        assert passes_of(model, batch, TARGET) is passes
        with sharing(model, batch, TARGET, None):  # an explainer that calls `explain`
            assert passes_of(model, batch, TARGET) is not passes
        assert passes_of(model, batch, TARGET) is passes
    assert passes_of(model, batch, TARGET) is not passes
    with pytest.raises(KeyError), sharing(model, batch, TARGET, passes):
        raise KeyError
    assert passes_of(model, batch, TARGET) is not passes


def test_another_batch_has_passes_of_its_own() -> None:
    prepared = Prepared(small_resnet())
    first, second = (together([request("gradient")], prepared, images(seed=seed))[0] for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, together([request("gradient")], prepared)[0])


# --- neighbours


def raising(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    raise KeyError("not today")


def wiping(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch.zero_(), target.zero_()
    return model(batch)[:, :1, None]


def hooking(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    for part in model.modules():
        part.register_forward_hook(lambda _m, _i, output: output * 0)
    return batch.sum(1)


def training(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return model.train()(batch)[:, :1, None]


def replacing(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model.fc = nn.Linear(model.fc.in_features, 7)
    raise RuntimeError("and now this")


def drawing(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    torch.manual_seed(torch.seed() % 7)
    return torch.rand(len(batch), 3, 3)


@pytest.mark.parametrize("neighbour", [raising, wiping, hooking, training, replacing, drawing])
def test_a_neighbour_disturbs_nobody(neighbour: Callable[..., Tensor]) -> None:
    model, batch, target = plugged(small_resnet()), images(), TARGET.clone()
    requests = [request("grad_cam"), request("deeplift"), request("smoothgrad", samples=2)]
    expected = alone(requests, model)
    asked = [requests[0], Request(neighbour), requests[1], Request(neighbour), requests[2]]
    found = explain_together(asked, Prepared(model), batch, target)
    assert [type(result) for result in found[1::2]] == [type(found[1])] * 2
    for maps, expectation in zip(drawn(found[::2]), expected, strict=True):
        assert torch.equal(maps, expectation)
    assert torch.equal(batch, images()) and torch.equal(target, TARGET)


def test_errors_are_results_with_the_explainers_name() -> None:
    found = explain_together(
        [request("lap"), Request(raising), request("grad_cam", layer="layr1"), request("gradient")],
        Prepared(small_resnet()), images(), TARGET,
    )  # fmt: skip
    assert isinstance(found[0], NotApplicableError)
    assert str(found[1]) == "explainer 'raising' failed: KeyError: 'not today'"
    assert "did you mean 'layer1'" in str(found[2])
    assert isinstance(found[3], Maps)


def test_a_caller_in_inference_mode_gets_the_same_maps() -> None:
    model = plugged(small_resnet())
    requests = [request(name) for name in (*SUITE, "gradient", "cam")] + [request("smoothgrad", samples=2)]
    expected = alone(requests, model)
    with torch.inference_mode():
        batch = images()
        found = together(requests, Prepared(model), batch)
        single = explain(explainers.get("smoothgrad"), model, batch, TARGET, {"samples": 2}).values
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(single, expected[-1])


# --- networks that cannot be traced, or whose trace is not the whole of them


def with_lap() -> nn.Module:
    """A plugged network whose way forward depends on what it sees."""
    model = plugged(small_resnet())
    kind = type(model)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return kind.forward(self, x if float(x.detach().sum()) < 1e9 else -x)

    model.__class__ = type("Branching", (kind,), {"forward": forward})
    return model


def hooked() -> nn.Module:
    model = small_resnet()
    model.layer3.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return model


class WritesToAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = small_resnet()

    def forward(self, x: Tensor) -> Tensor:
        x = 1 * x
        x[:, 0].mul_(3)
        return self.network(x)


class WritesToItsImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = small_resnet()

    def forward(self, x: Tensor) -> Tensor:
        x[:, :2] = x[:, :2] * 3
        return self.network(x.sub_(0.1))


class Straight(torch.autograd.Function):
    """The sign, whose gradient is taken for that of the identity."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_: Any, received: Tensor) -> Tensor:
        return received


class Binary(nn.Module):
    """A network with a backward pass of its own: the graph shows a sign, whose gradient is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Straight.apply(self.first(x)).relu().mean((2, 3)))


class Gated(Binary):
    """A network with a gate that nothing is learned from, and that the graph shows like any other."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        with torch.no_grad():
            gate = (3 * features).sigmoid()
        return self.last((features * gate).mean((2, 3)))


UNTRACED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (Untraceable, "body", "cannot be traced by torch.fx"),
    (with_lap, "layer4", "cannot be traced by torch.fx"),
    (hooked, "layer3", "as torch.fx traces it, answers otherwise than it does itself: hooks that change"),
    (WritesToAView, "network.layer4", "as torch.fx traces it, answers otherwise"),
    (WritesToItsImages, "network.layer4", "cannot be traced by torch.fx"),
    (Binary, "first", "as torch.fx traces it, has another gradient than itself"),
    (Gated, "first", "as torch.fx traces it, has another gradient than itself"),
]


@pytest.mark.parametrize(("build", "layer", "reason"), UNTRACED, ids=[row[0].__name__ for row in UNTRACED])
def test_networks_without_a_trace_are_explained_by_hooks(
    build: Callable[[], nn.Module], layer: str, reason: str
) -> None:
    model, kept = build().requires_grad_(False), []
    x = images().requires_grad_()
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    logits = model(x.clone())
    handle.remove()
    by_layer, by_image = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), (kept[-1], x))
    activation = kept[-1].detach()
    cam = (by_layer.mean((2, 3), keepdim=True) * activation).sum(1).relu()

    batch = images()
    found = together(
        [request("gradient", reduce="sum"), request("grad_cam", layer=layer)], Prepared(model), batch
    )
    for maps, expected in zip(found, (by_image.sum(1), cam), strict=True):
        torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    passes = passes_of(model, batch, TARGET)
    torch.testing.assert_close(passes.logits, logits.detach())
    torch.testing.assert_close(passes.activation(layer), activation)
    assert torch.equal(batch, images())

    for name in ("guided_backprop", "deeplift", "relevance_cam", "guided_grad_cam"):
        with pytest.raises(NotApplicableError, match=f"{type(model).__name__}.*({reason})"):
            explain(explainers.get(name), model, images(), TARGET)


def test_maps_of_lap_need_no_trace() -> None:
    for name in ("lap", "lap_all"):
        models = with_lap(), plugged(small_resnet())
        found, expected = (explain(explainers.get(name), model, images(), TARGET).values for model in models)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("make", [prune.random_unstructured, prune.l1_unstructured, nn.utils.spectral_norm])
def test_weights_that_hooks_make_are_those_of_now(make: Callable[..., Any], asked_before: bool) -> None:
    model = small_resnet()
    layer = model.layer3[0].conv1
    make(layer, "weight", *((0.5,) if make.__module__.endswith("prune") else ()))
    model.eval()
    if asked_before:
        with torch.no_grad():
            model(images())
    with torch.no_grad():
        layer.weight_orig.mul_(
            torch.linspace(0.1, 3, layer.weight_orig.numel()).view(layer.weight_orig.shape)
        )
    x = images().requires_grad_()
    expected = torch.autograd.grad(model(x).gather(1, TARGET[:, None]).sum(), x)[0].sum(1)
    found = explain(explainers.get("gradient"), model, images(), TARGET, {"reduce": "sum"}).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_hooks_that_only_look_do_not_matter() -> None:
    model, seen = small_resnet(), []
    model.layer3.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    found = explain(explainers.get("guided_backprop"), model, images(), TARGET).values
    assert torch.equal(
        found, explain(explainers.get("guided_backprop"), small_resnet(), images(), TARGET).values
    )


def test_a_network_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from lapbench.explain import passes

    calls: list[int] = []
    trace = passes.canonical
    monkeypatch.setattr(passes, "canonical", lambda model: calls.append(1) or trace(model))
    for model in (small_resnet(), Untraceable()):
        calls.clear()
        prepared = Prepared(model)
        for seed in range(2):
            explain_together([request("gradient"), request("deeplift")], prepared, images(seed=seed), TARGET)
        assert calls == [1]


@pytest.mark.parametrize("untraceable", [False, True])
def test_a_network_that_returns_more_than_logits_says_so(untraceable: bool) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.mean((2, 3))
            return (y, -y) if not untraceable or float(y.detach().sum()) > 0 else (y, y)

    with pytest.raises(NotApplicableError, match=r"must return logits \(B, N\) alone, .* tuple"):
        explain(explainers.get("gradient"), Two(), images(), TARGET)


# --- memory


ON_CPU = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried …"


def limited(most: int, error: Exception) -> Callable[..., Tensor]:
    def hungry(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        if len(batch) > most:
            raise error
        return passes_of(model, batch, target).image_gradient().sum(1)

    return hungry


@pytest.mark.parametrize("error", [RuntimeError(ON_CPU), MemoryError(), torch.OutOfMemoryError("CUDA …")])
def test_out_of_memory_is_one_error_whatever_ran_out(error: Exception) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        explain(limited(2, error), small_resnet(), images(), TARGET)
    with pytest.raises(torch.OutOfMemoryError):
        explain_together([Request(limited(2, error))], Prepared(small_resnet()), images(), TARGET)


def test_other_runtime_errors_are_the_explainers() -> None:
    with pytest.raises(ExplainerError, match="failed: RuntimeError: shapes"):
        explain(limited(0, RuntimeError("shapes")), small_resnet(), images(), TARGET)


def test_batches_that_do_not_fit_are_halved_and_the_maps_stay() -> None:
    model, batch, target = plugged(small_resnet()), images(11, 24), torch.arange(11) % 4
    requests = [request(name) for name in SUITE]
    sizes: list[int] = []

    def hungry(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        sizes.append(len(batch))
        return limited(3, RuntimeError(ON_CPU))(model, batch, target)

    prepared = Prepared(model)

    def work(start: int, stop: int) -> list[Tensor]:
        part = slice(start, stop)
        return drawn(explain_together([*requests, Request(hungry)], prepared, batch[part], target[part]))

    parts = in_batches(work, len(batch))
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    whole = drawn(explain_together(requests, prepared, batch, target))
    for one, other in zip(map(torch.cat, zip(*parts, strict=True)), whole, strict=False):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


def test_running_out_in_the_middle_of_a_pass_leaves_nothing_half_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pass fails for all explainers of the batch, and the next, smaller one is made anew."""
    model, ordinary = small_resnet(), F.linear

    def failing(x: Tensor, *weights: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError(ON_CPU)
        return ordinary(x, *weights)

    prepared, requests = Prepared(model), [request("grad_cam"), request("deeplift")]
    expected = alone(requests, model)
    with monkeypatch.context() as patch:
        patch.setattr(F, "linear", failing)
        parts = in_batches(
            lambda start, stop: drawn(
                explain_together(requests, prepared, images()[start:stop], TARGET[start:stop])
            ),
            3,
        )
    for one, other in zip(map(torch.cat, zip(*parts, strict=True)), expected, strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()
