"""An explainer, an architecture and a data reader for lapbench."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lapbench import architecture, explainer, reader
from lapbench.data.record import Drawn, Record
from lapbench.registry import Card
from lapbench.types import Box


@explainer(
    "gradient_energy",
    version=1,  # raise it whenever a map may change: maps in the cache are then made anew
    title="Gradient energy",
    paper="the author's own",
    card=Card(cost="1 forward and 1 backward", limits="Networks that are differentiable."),
)
def gradient_energy(model: nn.Module, images: Tensor, target: Tensor, *, power: float = 2.0) -> Tensor:
    """How strongly the target's logit depends on each pixel, raised to a power and summed over channels."""
    images.requires_grad_()
    score = model(images).gather(1, target[:, None]).sum()
    return torch.autograd.grad(score, images)[0].abs().pow(power).sum(1)


@architecture("two_layers", version=1)
def two_layers(num_classes: int, in_channels: int, *, width: int = 8) -> nn.Module:
    """Two convolutions, and the mean of what they find."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes),
    )  # fmt: skip


@reader("squares", version=1)
def read_squares(root: Path | None, *, count: int = 16) -> list[Record]:
    """Return ``count`` images a split, every other one with a bright square; they are drawn, not read."""
    records = []
    for split in ("train", "val", "test"):
        for number in range(count):
            x, y = 2 + 8 * (number % 3), 2 + 4 * (number % 5)
            boxes = (Box(x, y, x + 8, y + 8),) if number % 2 else ()
            image = Drawn(partial(_draw, boxes), digest=f"squares, version 1: {boxes}", size=(32, 32))
            records.append(Record(f"{split}/{number}", split, "square" if boxes else "empty", image, boxes))
    return records


def _draw(boxes: tuple[Box, ...]) -> np.ndarray:
    canvas = np.full((32, 32), 60, dtype=np.uint8)
    for box in boxes:
        canvas[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = 220
    return canvas
