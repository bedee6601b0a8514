"""Networks for the tests of this room: small, random, and with nothing left at a value that hides a fault."""

import torch
import torchvision
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc, Bla, Concept, Plug
from lapbench.models.bla import bla_layers
from lapbench.models.plug import plug, put_antehoc, put_bla
from lapbench.models.zoo import build


def unsettled(model: nn.Module, seed: int = 0, side: int = 139) -> nn.Module:
    """Give biases, batch-norm statistics and affine parameters random values, and return it in eval mode.

    At initialisation a network without biases is positively homogeneous, and wrong DeepLIFT rules look right.
    The statistics are first those of random images, so that features neither vanish nor explode.
    """
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.uniform_(-0.2, 0.2)
        for norm in norms:
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.uniform_(-0.3, 0.3)
            norm.momentum = None  # the statistics of this one batch
        if norms:
            model.train()(torch.randn(6, 3, side, side))
        for norm in norms:
            norm.running_mean.add_(
                norm.running_var.sqrt() * torch.empty_like(norm.running_mean).uniform_(-0.3, 0.3)
            )
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
    return model.eval()


def network(name: str, classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    auxiliary = {"init_weights": True, "aux_logits": False}
    extra = auxiliary if name in ("googlenet", "inception_v3") else {}
    return unsettled(torchvision.models.get_model(name, weights=None, num_classes=classes, **extra), seed)


def small_resnet(classes: int = 4, seed: int = 0) -> nn.Module:
    """A ResNet with one narrow block a stage and max pooling in its stem, for images of 24 px and more."""
    torch.manual_seed(seed)
    parameters = {"width": 8, "blocks": (1, 1, 1, 1), "stem": "3x3", "stem_stride": 1}
    return unsettled(build("resnet18", num_classes=classes, parameters=parameters), seed, side=48)


def images(count: int = 3, side: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side + 16, generator=torch.Generator().manual_seed(seed))


def plugged(model: nn.Module, **settings: object) -> nn.Module:
    """Put LAP into a network of four classes, with scoring modules that have left their zero start."""
    concepts = (Concept(name="a", classes=("c0",)), Concept(name="b", classes=("c1", "c2", "c3")))
    spec = Plug(concepts=concepts, aggregation="sum", score_init="default")
    torch.manual_seed(5)
    classes = [f"c{number}" for number in range(4)]
    return plug(model, spec.model_copy(update=settings), classes=classes).eval()


def attending(model: nn.Module, **settings: object) -> nn.Module:
    """Put BLA into a network, whose logits spread about the bound, with temperatures that tell them apart."""
    torch.manual_seed(6)
    network = put_bla(model, Bla.model_validate({"temperature": 2.0} | settings)).eval()
    (layer,) = bla_layers(network).values()
    nn.init.normal_(layer.score.weight)
    return network


def relative(model: nn.Module, layer: str, **settings: object) -> nn.Module:
    """Put a relative of LAP into a network, with logit modules that have left their zero start."""
    if layer == "lip":
        settings = {"score_init": "default", **settings}
    torch.manual_seed(5)
    return plug(model, Plug.model_validate({"layer": layer, **settings}), classes=()).eval()


def weighted(model: nn.Module, **settings: object) -> nn.Module:
    """Put a weighting network for ante-hoc maps beside a network's global pooling."""
    torch.manual_seed(5)
    return put_antehoc(model, AnteHoc.model_validate(settings)).eval()


class Untraceable(nn.Module):
    """A network as users write them: what it does depends on what it sees, so torch.fx cannot trace it."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(3, 2))
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x) if float(x.detach().sum()) > 1e9 else self.body(x) * 2
        return 3 * self.head((x + x**2).mean((2, 3)))


class Counter(nn.Module):
    """Notes how many inputs a network is given in each forward pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.given: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(len(x))
        return self.network(x)
