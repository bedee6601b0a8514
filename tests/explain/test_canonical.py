import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.networks import images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain.canonical import ACTIVATIONS, canonical, isolated, twin_of

FAST = ["squeezenet1_1", "mobilenet_v2", "shufflenet_v2_x0_5", "mnasnet0_5"]
SLOW = [
    "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn", "vgg16", "alexnet",
    "densenet121", "googlenet", "inception_v3", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s",
    "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny",
]  # fmt: skip


def assert_canonical(model: nn.Module, batch: Tensor) -> None:
    form = canonical(model).module
    with torch.no_grad():
        assert torch.equal(model.eval()(batch), form(batch))
    own = {id(p) for p in (*model.parameters(), *model.buffers())}
    assert all(id(p) in own for p in (*form.parameters(), *form.buffers()))
    assert not {id(m) for m in model.modules()} & {id(m) for m in form.modules()}
    calls = [str(node.target) for node in form.graph.nodes if node.op == "call_module"]
    hooked = [c for c in calls if isinstance(form.get_submodule(c), (*ACTIVATIONS, nn.MaxPool2d))]
    assert len(set(hooked)) == len(hooked)
    assert not any(getattr(form.get_submodule(c), "inplace", False) for c in hooked)
    for node in form.graph.nodes:
        if str(node.target) in hooked:
            assert node.args[0].target is isolated
            assert len(node.args[0].users) == 1


@pytest.mark.parametrize("name", FAST + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW])
def test_outputs_are_bit_identical_and_parameters_shared(name: str) -> None:
    assert_canonical(network(name), torch.randn(2, 3, 107, 91))


@pytest.mark.parametrize("mode", ["shared", "separate", "post_add"])
@pytest.mark.parametrize("position", ["pre_norm", "post_act"])
def test_lap_networks_keep_their_laps_whole(mode: str, position: str) -> None:
    model = plugged(small_resnet(), branch_mode=mode, lap_position=position, sites="all")
    assert_canonical(model, images())


def test_inception_with_lap() -> None:
    assert_canonical(plugged(network("inception_v3")), images(2, 107))


def test_a_network_in_train_mode_is_traced_in_eval_mode_and_stays_in_train_mode() -> None:
    model = small_resnet().train()
    before = copy.deepcopy(model.state_dict())
    form = canonical(model).module
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(form(images()), copy.deepcopy(model).eval()(images()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Awkward(nn.Module):
    """Everything at once: methods, functions, sums in place, a shared ReLU, and an argument nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.relu = nn.ReLU(inplace=True)
        self.prelu = nn.PReLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        if more is not None:
            x = x + more
        x = self.relu(self.convolution(x))
        x = F.max_pool2d(x, 3, stride=2, padding=1) - F.avg_pool2d(x, kernel_size=3, stride=2, padding=1)
        x += F.leaky_relu(x, 0.3)
        x = self.relu(x - 0.1).sigmoid().add_(F.gelu(x)) * torch.tanh(self.prelu(x))
        x = F.relu(input=x, inplace=True)
        return self.head(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


def test_an_awkward_network() -> None:
    torch.manual_seed(0)
    assert_canonical(Awkward(), images())


def test_a_twin_shares_tensors_but_neither_modules_nor_hooks() -> None:
    model = small_resnet()
    model.layer1.register_forward_hook(lambda *_: pytest.fail("a hook of the user was called"))
    twin = twin_of(model)
    assert twin.fc.weight is model.fc.weight
    assert twin.layer1 is not model.layer1
    twin(images())
    assert len(model.layer1._forward_hooks) == 1


def test_outputs_are_found_by_the_users_names() -> None:
    form = canonical(small_resnet())
    assert form.output_of("layer4") is form.output_of("layer4.0")
    with pytest.raises(ExplainerError, match=r"the network calls no module 'layr4'; did you mean 'layer4'"):
        form.output_of("layr4")


def test_what_cannot_be_traced_says_so() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NotApplicableError, match=r"Branching cannot be traced by torch\.fx"):
        canonical(Branching())
