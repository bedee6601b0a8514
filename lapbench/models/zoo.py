"""The networks by name: every convolutional classifier of torchvision; ResNets of any size and stem."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import PositiveInt, ValidationError
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lapbench.errors import DefinitionError
from lapbench.models.heat_maps import HeatMaps
from lapbench.registry import YOUNGER, architecture, architectures

Head: TypeAlias = Literal["classifier", "heat-maps"]
_NOT_CONVOLUTIONAL = ("vit_", "swin_", "maxvit_")  # attention between patches: no pooled maps for LAP
_RESNETS: dict[
    str, tuple[type[nn.Module], tuple[int, ...], int, int]
] = {  # block, blocks, groups, width per group
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnet152": (Bottleneck, (3, 8, 36, 3), 1, 64),
    "resnext50_32x4d": (Bottleneck, (3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": (Bottleneck, (3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": (Bottleneck, (3, 4, 23, 3), 64, 4),
    "wide_resnet50_2": (Bottleneck, (3, 4, 6, 3), 1, 128),
    "wide_resnet101_2": (Bottleneck, (3, 4, 23, 3), 1, 128),
}


def build(
    name: str, *, num_classes: int, in_channels: int = 3, parameters: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a registered architecture with fresh weights, drawn from torch's global generator.

    Errors: UnknownNameError with the nearest right name; DefinitionError for parameters it does not take.
    """
    entry = architectures.get(name)
    if num_classes < 1 or in_channels not in (1, 3):
        raise DefinitionError(
            f"{name} needs at least one class and 1 or 3 channels (found {num_classes} and {in_channels})"
        )
    try:
        table = entry.parameters.model_validate(dict(parameters or {}))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(entry.parameters.model_fields) or "none"
        raise DefinitionError(f"architecture {name}: {faults} (its parameters: {known})") from None
    chosen = {field: getattr(table, field) for field in entry.parameters.model_fields}
    model: nn.Module = entry.function(num_classes, in_channels, **chosen)
    return model


class SizedResNet(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's ResNet with a choice of stem, width (planes of the first stage) and blocks a stage.

    head: what reads the last features: a ``classifier`` their average, ``heat-maps`` where they are (see
    `lapbench.models.heat_maps`), for coordinates.
    """

    def __init__(
        self,
        block: type[nn.Module],
        blocks: tuple[int, ...],
        *,
        num_classes: int,
        width: int,
        groups: int,
        width_per_group: int,
        stem_kernel: int,
        stem_stride: int,
        stem_pool: bool,
        head: Head,
    ) -> None:
        nn.Module.__init__(self)  # ResNet's own would build the fixed sizes first
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, groups, width_per_group
        self.conv1 = nn.Conv2d(3, width, stem_kernel, stem_stride, stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem_pool else nn.Identity()
        self.layer1 = self._make_layer(block, width, blocks[0])
        self.layer2 = self._make_layer(block, 2 * width, blocks[1], stride=2)
        self.layer3 = self._make_layer(block, 4 * width, blocks[2], stride=2)
        self.layer4 = self._make_layer(block, 8 * width, blocks[3], stride=2)
        self.avgpool: nn.Module = nn.AdaptiveAvgPool2d((1, 1))
        self.fc: nn.Module = nn.Linear(self.inplanes, num_classes)
        if head == "heat-maps":
            self.avgpool, self.fc = HeatMaps(self.inplanes, num_classes // 2), nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _resnet(name: str) -> Callable[..., nn.Module]:
    block, usual_blocks, groups, width_per_group = _RESNETS[name]

    def make(
        num_classes: int,
        in_channels: int,
        *,
        width: PositiveInt = 64,
        blocks: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] | None = None,
        stem: Literal["imagenet", "3x3"] = "imagenet",
        stem_stride: Literal[1, 2] = 2,
        stem_pool: bool = True,
        head: Annotated[Head, YOUNGER] = "classifier",
    ) -> nn.Module:
        if head == "heat-maps" and num_classes % 2:
            raise DefinitionError(
                f"{name}: heat-maps answer two coordinates for each landmark, not {num_classes} numbers"
            )
        model = SizedResNet(
            block,
            blocks or usual_blocks,
            num_classes=num_classes,
            width=width,
            groups=groups,
            width_per_group=width_per_group,
            stem_kernel=7 if stem == "imagenet" else 3,
            stem_stride=stem_stride,
            stem_pool=stem_pool,
            head=head,
        )
        return _with_channels(model, in_channels)

    return make


def _with_auxiliaries(name: str) -> Callable[..., nn.Module]:
    def make(
        num_classes: int, in_channels: int, *, aux_logits: bool = True, transform_input: bool = False
    ) -> nn.Module:
        if transform_input and in_channels != 3:
            raise DefinitionError(f"{name}: transform_input needs 3 channels, found {in_channels}")
        options = {"aux_logits": aux_logits, "transform_input": transform_input, "init_weights": True}
        return _with_channels(
            models.get_model(name, weights=None, num_classes=num_classes, **options), in_channels
        )

    return make


def _plain(name: str) -> Callable[..., nn.Module]:
    def make(num_classes: int, in_channels: int) -> nn.Module:
        return _with_channels(models.get_model(name, weights=None, num_classes=num_classes), in_channels)

    return make


def _with_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """Give the first convolution 1 channel instead of 3: it then acts as on a grey image repeated thrice."""
    if in_channels == 1:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
        first.in_channels = 1
    return model


def _register() -> None:
    for name in models.list_models(module=models):
        if name in _RESNETS:
            architecture(name)(_resnet(name))
        elif name in ("inception_v3", "googlenet"):
            architecture(name)(_with_auxiliaries(name))
        elif not name.startswith(_NOT_CONVOLUTIONAL):
            architecture(name)(_plain(name))


_register()
