"""Parts of known networks with LAP in place of a stride or a pooling.

Each class takes the place of a torchvision class (`become`): the module stays itself, with its parameters and
their names, and gains children whose names begin with ``lap``; only its forward pass changes. The children
may be relatives of LAP.
"""

# mypy: disallow-subclassing-any=False
# (torchvision ships no types)

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torchvision.models import DenseNet, MNASNet, MobileNetV2, ShuffleNetV2
from torchvision.models.inception import BasicConv2d, InceptionB, InceptionD
from torchvision.models.resnet import BasicBlock, Bottleneck

from lapbench.errors import DefinitionError
from lapbench.models.pooling import Pooling

_COMPUTING = ("forward", "_forward", "_conv_forward", "__call__")


def become(module: nn.Module, kind: type[nn.Module], **children: nn.Module | str | None) -> None:
    """Turn a module into one of another class in place, with further children and settings.

    Errors: DefinitionError for one of a subclass that computes otherwise, which would be lost.
    """
    own = type(module)
    plain = next(c for c in own.__mro__ if c.__module__.partition(".")[0] in ("torch", "torchvision"))
    same = all(getattr(own, name, None) is getattr(plain, name, None) for name in _COMPUTING)
    if not same or is_parametrized(module):
        raise DefinitionError(
            f"a {own.__name__} may compute otherwise than a {plain.__name__}, which would be lost with "
            "LAP inside it: leave this site out, or put LAP behind it in the network's own code"
        )
    module.__class__ = kind
    for name, child in children.items():
        setattr(module, name, child)


class LapConv2d(nn.Conv2d):
    """A convolution at stride 1, then LAP."""

    lap: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and pool."""
        return cast(Tensor, self.lap(super().forward(x)))


class LapBasicConv2d(BasicConv2d):
    """Convolution at stride 1, batch norm, ReLU, then LAP."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify and pool."""
        return cast(Tensor, self.lap(super().forward(x)))


class _TwoBranches:
    """The strided half of a residual block: main and skip branch, pooled by LAP."""

    lap: nn.Module
    lap_skip: nn.Module | None  # none: one weight map pools both branches
    downsample: nn.Sequential
    relu: nn.Module
    lap_position: Literal["pre_norm", "post_act"]
    branch_scores: Literal["conv", "concat"]

    def pool_branches(self, main: Tensor, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the response of the convolution that had the stride, and the skip branch of the input x.

        Both return normalised and at low resolution, the main branch rectified.
        """
        skip_convolution, skip_norm = self.downsample
        skip = skip_convolution(x)
        after = self.lap_position == "post_act"
        if after:
            main, skip = self.relu(norm(main)), skip_norm(skip)
        if self.lap_skip is not None:
            main, skip = self.lap(main), self.lap_skip(skip)
        else:
            both = torch.cat([main, skip], 1)
            scored = both if self.branch_scores == "concat" else main
            pooled = self.lap(both, scored) if isinstance(self.lap, Pooling) else self.lap(both)
            main, skip = pooled.split([norm.num_features, skip_norm.num_features], 1)
        if not after:
            main, skip = self.relu(norm(main)), skip_norm(skip)
        return main, skip


class LapBasicBlock(_TwoBranches, BasicBlock):
    """The first block of a ResNet-18/34 stage; conv1 had the stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/s⌉, ⌈W/s⌉)."""
        main, skip = self.pool_branches(self.conv1(x), self.bn1, x)
        return cast(Tensor, self.relu(self.bn2(self.conv2(main)) + skip))


class LapBottleneck(_TwoBranches, Bottleneck):
    """The first block of a stage of a deeper ResNet; conv2 had the stride."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/s⌉, ⌈W/s⌉)."""
        main = self.relu(self.bn1(self.conv1(x)))
        main, skip = self.pool_branches(self.conv2(main), self.bn2, x)
        return cast(Tensor, self.relu(self.bn3(self.conv3(main)) + skip))


class PostAddBasicBlock(BasicBlock):
    """A whole BasicBlock at stride 1, then LAP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/s⌉, ⌈W/s⌉)."""
        return cast(Tensor, self.lap(super().forward(x)))


class PostAddBottleneck(Bottleneck):
    """A whole Bottleneck at stride 1, then LAP."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H/s⌉, ⌈W/s⌉)."""
        return cast(Tensor, self.lap(super().forward(x)))


class _Mixed:
    """A reduction block of Inception V3: either one LAP after the concatenation, or one in every branch."""

    lap: nn.Module | None  # after the concatenation
    lap_pool: nn.Module | None  # in place of the branch's max pooling; the convolutions then carry their own

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌊(H − 1)/2⌋, ⌊(W − 1)/2⌋)."""
        pooled = F.max_pool2d(x, 3, stride=1) if self.lap_pool is None else self.lap_pool(x)
        y = torch.cat([*self.convolutions(x), pooled], 1)
        return y if self.lap is None else cast(Tensor, self.lap(y))

    def convolutions(self, x: Tensor) -> list[Tensor]:
        """The outputs of the branches that convolve."""
        raise NotImplementedError


class LapInceptionB(_Mixed, InceptionB):
    """Mixed_6a; `strided` names the branches that had the stride."""

    strided = ("branch3x3", "branch3x3dbl_3")

    def convolutions(self, x: Tensor) -> list[Tensor]:
        """The 3×3 branch and the double 3×3 branch."""
        return [self.branch3x3(x), self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))]


class LapInceptionD(_Mixed, InceptionD):
    """Mixed_7a; `strided` names the branches that had the stride."""

    strided = ("branch3x3_2", "branch7x7x3_4")

    def convolutions(self, x: Tensor) -> list[Tensor]:
        """The 3×3 branch and the 7×7×3 branch."""
        deep = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(deep)]


class _PooledByModule:
    """A network whose global pooling is its child of the name `pooled_by`."""

    pooled_by: str

    def pooled(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C)."""
        return torch.flatten(getattr(self, self.pooled_by)(features), 1)


class LapDenseNet(_PooledByModule, DenseNet):
    """DenseNet whose global pooling, a function call in torchvision, is a module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → logits."""
        features = F.relu(self.features(x), inplace=True)
        return cast(Tensor, self.classifier(self.pooled(features)))


class LapMobileNetV2(_PooledByModule, MobileNetV2):
    """MobileNetV2 whose global pooling, a function call in torchvision, is a module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → logits."""
        return cast(Tensor, self.classifier(self.pooled(self.features(x))))


class LapMNASNet(_PooledByModule, MNASNet):
    """MNASNet whose global pooling, a mean in torchvision, is a module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → logits."""
        return cast(Tensor, self.classifier(self.pooled(self.layers(x))))


class LapShuffleNetV2(_PooledByModule, ShuffleNetV2):
    """ShuffleNetV2 whose global pooling, a mean in torchvision, is a module."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → logits."""
        for stage in (self.conv1, self.maxpool, self.stage2, self.stage3, self.stage4, self.conv5):
            x = stage(x)
        return cast(Tensor, self.fc(self.pooled(x)))


GLOBAL_POOL: dict[type[nn.Module], type[nn.Module]] = {
    DenseNet: LapDenseNet,
    MobileNetV2: LapMobileNetV2,
    MNASNet: LapMNASNet,
    ShuffleNetV2: LapShuffleNetV2,
}
"""Networks whose global pooling is no module, and the class that gives them one."""
