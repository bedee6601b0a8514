import functools
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA
from torchvision.models.resnet import BasicBlock
from torchvision.models.squeezenet import Fire

from explain.networks import attending, images, network, plugged, relative, small_resnet, unsettled, weighted
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import check_explainer, passes_of, run_checks
from lapbench.explain.checks import CHECKS
from lapbench.registry import Card, ExplainerSpec, explainer, explainers

TARGET = torch.tensor([0, 3])
SHORT: dict[str | tuple[str, str], dict[str, object]] = {
    "rise": {"count": 20},
    "lime": {"cells": 2, "samples": 20},
    "occlusion": {"window": 0.5, "stride": 0.25},
    "integrated_gradients": {"steps": 5},
    "smoothgrad": {"samples": 5},
    ("inception_v3", "score_cam"): {"layer": "Conv2d_2b_3x3"},  # 64 channels instead of 2048
}
"""Parameters that make the dearest explainers cheap: the contract does not depend on them."""
OF_LAYERS = {"lap", "lap_all", "lap_average", "lap_geometric", "lip", "bla", "bla_selection", "antehoc"}


def narrow_resnet() -> nn.Module:
    """ResNet's kind: a sum of two branches, and a ReLU that is called twice."""
    torch.manual_seed(0)
    downsample = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
    stem = [nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return unsettled(nn.Sequential(*stem, BasicBlock(6, 8, 2, downsample), *head), side=24)


def narrow_squeezenet() -> nn.Module:
    """SqueezeNet's kind: concatenations, and a classifier that is a convolution."""
    torch.manual_seed(0)
    fires = [Fire(6, 4, 4, 4), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8, 4, 6, 6)]
    features = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(inplace=True), *fires)
    head = [nn.Dropout(), nn.Conv2d(12, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(OrderedDict(features=features, classifier=nn.Sequential(*head)))
    nn.init.ones_(model.classifier[1].bias)  # no logit is 0: its ReLU would cut off everything
    return model.eval()


def narrow_inception() -> nn.Module:
    """Inception's kind: branches that pool, and functional ReLUs and pools."""
    torch.manual_seed(0)
    stages = [
        BasicConv2d(3, 8, kernel_size=3, stride=2),
        InceptionA(8, 4),
        BasicConv2d(228, 12, kernel_size=1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)]
    return unsettled(nn.Sequential(*stages, *head), seed=1, side=24)


NARROW = {
    "resnet": narrow_resnet,
    "lap-resnet": lambda: plugged(narrow_resnet(), sites="all"),
    "lip-resnet": lambda: relative(narrow_resnet(), "lip", sites="all"),
    "bla-resnet": lambda: attending(narrow_resnet(), preset="BLA-T"),
    "antehoc-resnet": lambda: weighted(narrow_resnet()),
    "antehoc-squeezenet": lambda: weighted(narrow_squeezenet(), gate="softmax", net="spatial"),
    "squeezenet": narrow_squeezenet,
    "inception": narrow_inception,
}
WHOLE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: network("resnet18"), 64),
    "lap-resnet18": (lambda: plugged(network("resnet18")), 64),
    "bla-resnet18": (lambda: attending(network("resnet18")), 96),
    "squeezenet1_1": (lambda: network("squeezenet1_1"), 64),
    # in single precision its gradient is not settled to 1e-3: rounding turns units on and off
    "inception_v3": (lambda: network("inception_v3").double(), 107),
}


@functools.cache
def built(kind: str) -> nn.Module:
    return NARROW[kind]() if kind in NARROW else WHOLE[kind][0]()


def applicable(kinds: Iterable[str]) -> list[tuple[str, str]]:
    return [(kind, spec.name) for kind in kinds for spec in explainers if all(x in kind for x in spec.layers)]


@pytest.mark.parametrize(("kind", "name"), applicable(NARROW))
def test_every_explainer_keeps_its_contract(kind: str, name: str) -> None:
    held(kind, name, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), applicable(WHOLE))
def test_every_explainer_keeps_its_contract_on_torchvisions_networks(kind: str, name: str) -> None:
    held(kind, name, WHOLE[kind][1])


NOT_APPLICABLE = {
    ("squeezenet", "cam"): "has no linear layer on its last feature map",
    ("antehoc-squeezenet", "cam"): "has no linear layer on its last feature map",
    ("squeezenet1_1", "cam"): "has no linear layer on its last feature map",
}


def held(kind: str, name: str, side: int) -> None:
    batch = images(2, side).to(next(built(kind).parameters()).dtype)
    case = explainers.get(name), built(kind), batch, TARGET, SHORT.get((kind, name), SHORT.get(name))
    if (kind, name) in NOT_APPLICABLE:
        with pytest.raises(NotApplicableError, match=NOT_APPLICABLE[kind, name]):
            check_explainer(*case)
    else:
        check_explainer(*case)


@pytest.mark.parametrize("name", sorted(OF_LAYERS))
@pytest.mark.parametrize("kind", ["resnet", "lap-resnet", "lip-resnet", "bla-resnet", "antehoc-resnet"])
def test_maps_of_layers_do_not_apply_to_networks_without(name: str, kind: str) -> None:
    lacks = {
        "lap": "has no LAP layers",
        "lip": "has no LIP layers",
        "bla": r"has no bounded logit attention \(BLA\)",
        "antehoc": "has no weighting network",
    }
    (layer,) = explainers.get(name).layers
    if layer not in kind:
        with pytest.raises(NotApplicableError, match=lacks[layer]):
            check_explainer(explainers.get(name), built(kind), images(2, 24), TARGET)


# --- a right explainer, and what each check must catch


def gradient(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch = batch.clone().requires_grad_()
    rows = torch.arange(len(batch))
    return torch.autograd.grad(model(batch)[rows, target].sum(), batch)[0].sum(1)


def probability(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return model(batch)[torch.arange(len(batch)), target][:, None, None].expand(-1, 2, 2)


def four_dimensions(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target)[:, None]


def not_a_tensor(model: nn.Module, batch: Tensor, target: Tensor) -> object:
    return gradient(model, batch, target).numpy()


def double(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target).double()


def infinite(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target) / (batch.sum(1) > 0)


def moody(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    noise = np.random.default_rng().normal(size=(len(batch), 24, 40)).astype(np.float32)
    return gradient(model, batch, target) + torch.from_numpy(noise)


def drawn_once(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    """The same noise for every image, decided by whoever seeds the global generator."""
    return gradient(model, batch, target) * torch.rand(1)


def of_the_threads(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target) / torch.get_num_threads()


def whole_numbers(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return (1e6 * gradient(model, batch, target)).long()


def constant(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return torch.zeros(len(batch), 5, 5)


def of_the_batch(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    maps = gradient(model, batch, target)
    return maps / maps.abs().max()


def of_the_order(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    maps = gradient(model, batch, target)
    return maps * torch.arange(1, len(maps) + 1)[:, None, None]


def of_no_class(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, torch.zeros_like(target))


def of_no_weights(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return batch.sum(1) * (1 + target[:, None, None])


def training(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        model.fc.weight.data.mul_(1.01)
    return gradient(model, batch, target)


def failing_once(counter: itertools.count) -> Callable[..., Tensor]:  # type: ignore[type-arg]
    def sometimes(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        if next(counter) == 3:
            raise KeyError("the fourth call")
        return gradient(model, batch, target)

    return sometimes


CAUGHT: list[tuple[Callable[..., object], str, str]] = [
    (four_dimensions, "shape", r"must return maps of shape \(2, h, w\), found \(2, 1, 24, 40\)"),
    (not_a_tensor, "shape", "must return a tensor or Maps, found ndarray"),
    (double, "dtype", "wanted float32, found float64"),
    (infinite, "finite", "values are not finite"),
    (moody, "repeatable", "a second call, with the .* in another state, gave maps that differ by"),
    (drawn_once, "repeatable", "a second call, with the .* in another state, gave maps that differ by"),
    (whole_numbers, "shape", "must return floating-point maps, found torch.int64"),
    (of_the_batch, "alone as in a batch", "calls with one image each gave maps that differ by"),
    (of_the_order, "any order", "a call in reversed order gave maps that differ by"),
    (of_the_threads, "any number of threads", "a call with another number of threads gave maps that differ"),
    (constant, "depends on target", "the maps are the same for every target"),
    (constant, "depends on weights", "the maps are the same for a network with random weights"),
    (of_no_class, "depends on target", "the maps are the same for every target"),
    (of_no_weights, "depends on weights", "the maps are the same for a network with random weights"),
    (training, "leaves all as it was", "the weights changed"),
    (failing_once(itertools.count()), "alone as in a batch", "explainer 'sometimes' failed: KeyError"),
]


def test_right_functions_pass() -> None:
    assert [c.name for c in check_explainer(gradient, small_resnet(), images(2, 24), TARGET)] == list(CHECKS)
    check_explainer(probability, small_resnet(), images(2, 24), TARGET)


@pytest.mark.parametrize(
    ("broken", "check", "fault"), CAUGHT, ids=[f"{row[0].__name__}-{row[1]}" for row in CAUGHT]
)
def test_every_check_catches_its_fault(broken: Callable[..., object], check: str, fault: str) -> None:
    with pytest.raises(ExplainerError, match="breaks its contract") as caught:
        check_explainer(broken, small_resnet(), images(2, 24), TARGET)
    assert caught.match(rf"\n  {check}: .*{fault}")


def test_values_that_are_not_finite_are_one_fault_and_no_other() -> None:
    found = {c.name: c.fault for c in run_checks(infinite, small_resnet(), images(2, 24), TARGET)}
    assert {name for name, fault in found.items() if fault} == {"finite"}


def test_the_number_of_threads_and_the_weights_are_put_back_after_an_exception() -> None:
    threads, seen = torch.get_num_threads(), set()

    def unsteady(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        if torch.get_num_threads() != threads or not torch.equal(model.fc.weight, weight):
            raise ArithmeticError("not as usual")
        return gradient(model, batch, target)

    model = small_resnet()
    weight = model.fc.weight.detach().clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = {c.name: c.fault for c in run_checks(unsteady, model, images(2, 24), TARGET) if c.fault}

    assert found.keys() == {"any number of threads", "depends on weights"}
    assert all("ArithmeticError: not as usual" in fault for fault in found.values())
    assert len(seen) == 2 and torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def seeded(model: nn.Module, batch: Tensor, target: Tensor, *, seed: int = 0) -> Tensor:
    noise = torch.rand(1, generator=torch.Generator().manual_seed(seed))
    return gradient(model, batch, target) * (1 + noise)


def ignoring(model: nn.Module, batch: Tensor, target: Tensor, *, seed: int = 0) -> Tensor:
    return gradient(model, batch, target)


@pytest.mark.parametrize(
    ("function", "randomness", "fault"),
    [
        (seeded, "seeded", ""),
        (seeded, "none", "its card says randomness='none', and it has a parameter seed"),
        (gradient, "none", ""),
        (gradient, "seeded", "its card says randomness='seeded', and it has no parameter seed"),
        (ignoring, "seeded", "another seed gives the same maps"),
    ],
)
@pytest.mark.parametrize("parameters", [{}, {"seed": 1}])
def test_draws_are_declared(registered, function, randomness, fault, parameters) -> None:
    explainer("drawing", version=1, title="Drawing", card=Card(randomness=randomness))(function)
    if function is gradient:
        parameters = {}
    case = explainers.get("drawing"), small_resnet(), images(2, 24), TARGET, parameters
    assert {c.name: c.fault for c in run_checks(*case)}["randomness as declared"] == fault


def test_a_network_of_one_class_and_one_without_layers_can_be_checked() -> None:
    def gradient_of_one(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
        return gradient(model, batch, target) * model.fc.weight.sum()

    none = torch.zeros(2, dtype=torch.int64)
    check_explainer(gradient_of_one, small_resnet(classes=1), images(2, 24), none)

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([[0.5, 2.0], [1.0, 3.0]]))

        def forward(self, batch: Tensor) -> Tensor:
            return batch.square().mean((2, 3))[:, :2] @ self.scale

    check_explainer(gradient, Scale(), images(2, 24), none)


def test_declared_exceptions_are_respected() -> None:
    agnostic = explainers.get("ones")
    found = {c.name: c.passed for c in run_checks(agnostic, small_resnet(), images(2, 24), TARGET)}
    assert all(found.values())
    strict = ExplainerSpec(**{**vars(agnostic), "class_agnostic": False, "control": False})
    faults = [c.name for c in run_checks(strict, small_resnet(), images(2, 24), TARGET) if not c.passed]
    assert faults == ["depends on target", "depends on weights"]


# --- called bare, without the protection of `explain`, every trace is found


def hooking(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model.layer1.register_forward_hook(lambda *_: None)
    return gradient(model, batch, target)


def filling_gradients(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model(batch)[torch.arange(len(batch)), target].sum().backward()
    return gradient(model, batch, target)


def freezing(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model.requires_grad_(False)
    return gradient(model, batch, target)


def switching(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model.train(not model.training), batch, target)


def replacing(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model.relu = nn.ReLU()
    return gradient(model, batch, target)


def marking(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    model.layer2.seen = len(vars(model.layer2))
    return gradient(model, batch, target)


def asking(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch.requires_grad_()
    return gradient(model, batch, target)


def wiping(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    maps = gradient(model, batch, target)
    batch.add_(1)
    return maps


def retargeting(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    maps = gradient(model, batch, target)
    target.add_(1).remainder_(4)
    return maps


def drawing(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target) + 0 * torch.rand(1)


def drawing_from_numpy(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target) + 0 * np.random.rand()  # noqa: NPY002 - that is the fault


def drawing_from_python(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    return gradient(model, batch, target) + 0 * random.random()


def holding_on(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    batch = batch.clone().requires_grad_()
    return (torch.autograd.grad(model(batch)[torch.arange(len(batch)), target].sum(), batch)[0] * batch).sum(
        1
    )


def hooking_weights(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    if model.fc.weight.requires_grad:
        model.fc.weight.register_hook(lambda *_: None)
    return gradient(model, batch, target)


def untidy_after_failure(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    handle = model.layer1.register_forward_hook(lambda *_: None)
    maps = gradient(model, batch, target)
    handle.remove()
    return maps


def untidy_after_late_failure(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    """Tidy as long as the network itself fails, which is where most people look."""
    model(batch)
    return untidy_after_failure(model, batch, target)


def untidy_on_the_way_back(model: nn.Module, batch: Tensor, target: Tensor) -> Tensor:
    """The network does not fail here: torch's own operations do, in a walk that it knows nothing of."""
    passes = passes_of(model, batch, target)
    logits = passes.logits
    torch.set_num_threads(torch.get_num_threads() + 1)
    maps = passes.image_gradient().sum(1) + 0 * logits.sum()
    torch.set_num_threads(torch.get_num_threads() - 1)
    return maps


BARE: list[tuple[Callable[..., Tensor], str]] = [
    (hooking, "leaves all as it was: hooks changed"),
    (filling_gradients, "leaves all as it was: .*gradients of weights changed"),
    (freezing, "leaves all as it was: requires_grad of weights changed"),
    (switching, "leaves all as it was: .*train and eval modes changed"),
    (replacing, "leaves all as it was: the modules changed"),
    (marking, "leaves all as it was: attributes of modules changed"),
    (asking, "leaves all as it was: requires_grad of the images changed"),
    (wiping, "leaves all as it was: the images changed"),
    (retargeting, "leaves all as it was: the targets changed"),
    (drawing, "leaves all as it was: torch's random generator changed"),
    (drawing_from_numpy, "leaves all as it was: NumPy's random generator changed"),
    (drawing_from_python, "leaves all as it was: Python's random generator changed"),
    (hooking_weights, "leaves all as it was: hooks of weights changed"),
    (holding_on, "without a graph: the maps require a gradient, and keep their graph alive"),
    (untidy_after_failure, r"after an exception: hooks changed \(operation \d+ of \d+ failed\)"),
    (
        untidy_after_late_failure,
        r"after an exception: hooks changed \(operation \d+ of \d+ failed\); hooks changed \([^;]*\)$",
    ),
    (untidy_on_the_way_back, "after an exception: the number of threads changed"),
    (gradient, "in train mode: the buffers changed"),
]


@pytest.mark.parametrize(("untidy", "fault"), BARE, ids=[row[0].__name__ for row in BARE])
def test_called_bare_every_trace_is_found(untidy: Callable[..., Tensor], fault: str) -> None:
    model = small_resnet().requires_grad_(True)
    with pytest.raises(ExplainerError) as caught:
        check_explainer(untidy, model, images(2, 24), TARGET.clone(), bare=True)
    assert caught.match(fault)


UNHEALED = (filling_gradients, switching, untidy_on_the_way_back)  # they fail, or change what is torch's
HEALED = [function for function, _ in BARE if function not in UNHEALED]


@pytest.mark.parametrize("untidy", HEALED)
def test_called_by_explain_no_trace_is_left(untidy: Callable[..., Tensor]) -> None:
    check_explainer(untidy, small_resnet(), images(2, 24), TARGET)


def test_one_image_is_not_enough() -> None:
    with pytest.raises(ExplainerError, match="the checks need at least two images, found 1"):
        check_explainer(gradient, small_resnet(), images(1, 24), TARGET[:1])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lap", {"layer": 2}),
        ("lip", {"layer": 1}),
        ("lap_all", {"mode": "strict", "resize": "nearest"}),
        ("relevance_cam", {"layer": "0", "start": "logit"}),
        ("deeplift", {"baseline": 1.0, "reduce": "max_abs"}),
    ],
)
def test_explainers_with_other_parameters_keep_the_contract(name: str, parameters: dict[str, object]) -> None:
    kind = "lip-resnet" if name == "lip" else "lap-resnet"
    check_explainer(explainers.get(name), built(kind), images(2, 24), TARGET, parameters)
