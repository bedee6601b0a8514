"""Networks for the tests of this room: small, random, and with nothing left at a value that hides a fault."""

import torch
import torchvision
from torch import Tensor, nn

from lapbench.benchmark import Concept, Plug
from lapbench.models.plug import plug


def unsettled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give biases, batch-norm statistics and affine parameters random values, and return the network in eval
    mode.

    At initialisation a network without biases is positively homogeneous, and wrong DeepLIFT rules look right.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                draw(module.running_mean, -0.3, 0.3)
                draw(module.running_var, 0.5, 1.5)
                draw(module.weight, 0.6, 1.4)
                draw(module.bias, -0.3, 0.3)
            elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                draw(module.bias, -0.2, 0.2)
    return model.eval()


def network(name: str, classes: int = 5, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return unsettled(torchvision.models.get_model(name, weights=None, num_classes=classes, **extra), seed)


class SmallResNet(torchvision.models.ResNet):
    """A ResNet with one narrow block a stage, for images of 32 to 64 px."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes, width_per_group=64
        )
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)


def small_resnet(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return unsettled(SmallResNet(classes), seed)


def images(count: int = 3, side: int = 48, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side + 16, generator=torch.Generator().manual_seed(seed))


def plugged(model: nn.Module, **settings: object) -> nn.Module:
    """Put LAP into a network of three or more classes, with scoring modules that are not at their zero start."""
    first, others = Concept(name="first", classes=("c0",)), Concept(name="others", classes=("c1", "c2", "c3"))
    concepts = (first, others)
    spec = Plug(concepts=concepts, aggregation="sum", score_init="default")
    torch.manual_seed(5)
    classes = [f"c{number}" for number in range(4)]
    return plug(model, spec.model_copy(update=settings), classes=classes).eval()
