"""Ante-hoc interpretation maps (reconstruction): a weighting network beside a network's global pooling.

After Guna R T, Okkath Krishnanunni, Benítez (XAI4CV workshop, 2023), who train a CNN together with a
weighting network that makes its maps, for any task. No more than the abstract was at hand: layers, map and
loss are lapbench's, the smallest that do what it says, and bear the name of a reconstruction.
With features A (B, K, h, w) of the last stage:

    a = gate(W(A))                                   W: average → K → K/16 → ReLU → K
    M = minmax(ReLU(Σ_k a_k A_k))                    (B, 1, h, w) in [0, 1]
    L = L_task(head(A)) + λ1 L_task(head(A ⊙ M)) + λ2 mean(M)

The network answers by head(A), as if the maps were not there: what M keeps is only trained to be enough for
the same answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc
from lapbench.models.lap import at_least_float32

REDUCTION = 16
"""Times fewer channels in the middle of the weighting network."""


class WeightingNetwork(nn.Module):
    """Makes a map M (B, 1, h, w) in [0, 1] of features A (B, K, h, w).

    net ``channels``: weights a (B, K) of the channels, from their averages, whose weighted sum is the map;
    ``spatial``: a map a (B, 1, h, w) directly, from each pixel. gate: what makes a of the last layer's
    outputs; ``softmax`` lets the channels, or the pixels, compete.
    """

    def __init__(self, channels: int, spec: AnteHoc) -> None:
        super().__init__()
        self.gate, self.net = spec.gate, spec.net
        narrow = max(1, channels // REDUCTION)
        self.reduce = nn.Conv2d(channels, narrow, 1)
        self.activation = nn.ReLU()
        self.expand = nn.Conv2d(narrow, channels if spec.net == "channels" else 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, K, h, w) → M (B, 1, h, w), at least float32."""
        seen = features.mean((2, 3), keepdim=True) if self.net == "channels" else features
        outputs: Tensor = at_least_float32(self.expand(self.activation(self.reduce(seen))))
        flat = outputs.flatten(1)
        gates = (flat.sigmoid() if self.gate == "sigmoid" else flat.softmax(1)).view_as(outputs)
        if self.net == "channels":
            gates = (gates * features).sum(1, keepdim=True)
        return minmax(gates.relu())


class AnteHocPool(nn.Module):
    """Global pooling as it was, with a weighting network beside it that makes the network's map.

    pool: what the network pools by, (B, K, h, w) → (B, K, 1, 1). Inside `second_pass` the output has 2 B
    rows: the pooled features, and behind them those of the features times the map.
    """

    def __init__(self, channels: int, pool: nn.Module, spec: AnteHoc) -> None:
        super().__init__()
        self.spec = spec
        self.features = nn.Identity()  # a module: so explainers find what is pooled by its name
        self.pool = pool
        self.weighting = WeightingNetwork(channels, spec)
        self.maps: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, h, w) → (B, K, 1, 1), or (2 B, K, 1, 1) inside `second_pass`."""
        features = self.features(x)
        pooled: Tensor = self.pool(features)
        if self.maps is None:
            return pooled
        self.maps[:] = [self.weighting(features)]
        masked: Tensor = self.pool(features * self.maps[0].to(features.dtype))
        return torch.cat([pooled, masked])


def antehoc_layers(model: nn.Module) -> dict[str, AnteHocPool]:
    """The network's global poolings with a weighting network, by name: one or none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AnteHocPool)}


@contextmanager
def second_pass(layer: AnteHocPool) -> Iterator[list[Tensor]]:
    """Let the network's head answer twice while inside: to the features, and to what the map keeps of them.

    The network then returns 2 B rows. Yields a list that holds the map (B, 1, h, w) of the latest forward
    pass, with its graph.
    """
    maps: list[Tensor] = []
    layer.maps = maps
    try:
        yield maps
    finally:
        layer.maps = None


def minmax(maps: Tensor) -> Tensor:
    """Stretch every map (B, 1, h, w) to [0, 1]; one that is constant says nothing, and becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    spread = high - low
    return (maps - low) / spread.masked_fill(spread == 0, 1)
