"""Coordinates as the centres of heat maps, for networks that place landmarks.

"Integral Human Pose Regression" (Sun et al., ECCV 2018, arXiv 1711.08229): a map of each landmark, made a
distribution over its cells by a softmax, of which the expected position is the answer. Unlike the average of
the last features it keeps where they are, and unlike a layer that reads every cell it finds a face wherever
it stands.
"""

import torch
from torch import Tensor, nn

from lapbench.models.lap import at_least_float32


class HeatMaps(nn.Module):
    """Features (B, K, h, w) → coordinates (B, 2 L, 1, 1): x and y of L landmarks, in fractions of the image.

    A cell's position is that of its middle, so that no answer lies nearer to the edge than half a cell.
    The gradient of a coordinate by a channel sums to 0 over the cells, whatever the features: Grad-CAM, which
    weighs channels by that sum, has nothing to say of it.
    """

    def __init__(self, channels: int, landmarks: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, landmarks, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the expected positions."""
        logits = at_least_float32(self.maps(x))
        shares = logits.flatten(2).softmax(2).view_as(logits)
        down, across = ((torch.arange(n, device=x.device) + 0.5) / n for n in logits.shape[2:])
        places = [(shares.sum(2) * across).sum(2), (shares.sum(3) * down).sum(2)]
        return torch.stack(places, dim=2).flatten(1)[..., None, None].to(x.dtype)
