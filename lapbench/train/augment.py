"""Random changes of training images, a whole batch at once; masks and boxes move along."""

import numpy as np
import torch
from torch import Tensor

from lapbench.benchmark import Augment
from lapbench.train.batches import uniform
from lapbench.train.images import Batch
from lapbench.types import IntArray, Task


def augment(
    batch: Batch,
    settings: Augment,
    *,
    seed: int,
    epoch: int,
    positions: IntArray,
    task: Task = "classification",
) -> Batch:
    """Return the batch flipped, shifted by whole pixels, and changed in brightness, as the settings say.

    Images are (B, C, H, W) in [0, 1] and stay there. What a shift uncovers repeats the edge of the image
    and holds no truth; a box shifted out of the image becomes NaN. positions: of the samples in their epoch
    (B,); with the seed and the epoch they decide every number drawn. Landmarks are shifted along, also beyond
    the image; flips are for classification alone: they make of the left eye a right one.
    """
    if settings == Augment():
        return batch

    def draw(stream: int) -> Tensor:
        return torch.from_numpy(uniform(seed, epoch, positions, stream))

    height, width = batch.images.shape[2:]
    flip_rows = (draw(0) < 0.5) & settings.vertical_flip
    flip_columns = (draw(1) < 0.5) & settings.horizontal_flip
    down, right = (
        _whole_shift(draw(stream), settings.shift * side) for stream, side in ((2, height), (3, width))
    )
    factor = 1 + settings.brightness * (2 * draw(4) - 1)

    rows, columns = _sources(height, flip_rows, down), _sources(width, flip_columns, right)
    images = _gather(batch.images, rows.clamp(0, height - 1), columns.clamp(0, width - 1))
    if settings.brightness:
        images = (images * factor.float()[:, None, None, None]).clamp_(0, 1)
    masks = boxes = None
    if batch.masks is not None:
        seen = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
        masks = _gather(
            batch.masks.unsqueeze(1), rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        ).squeeze(1)
        masks = masks & seen
    if batch.boxes is not None:
        boxes = _move_boxes(batch.boxes, (height, width), (flip_rows, flip_columns), (down, right))
    answers = batch.answers
    if answers is not None and task == "landmarks":
        answers = answers + torch.stack([right / width, down / height], 1).repeat(1, answers.shape[1] // 2)
    return Batch(images, batch.labels, masks, boxes, answers)


def _whole_shift(drawn: Tensor, most: float) -> Tensor:
    """Return whole pixels from −most to most, each equally likely."""
    reach = int(np.floor(most))
    return (drawn * (2 * reach + 1)).long() - reach


def _sources(side: int, flipped: Tensor, shift: Tensor) -> Tensor:
    """Return which row (or column) each place of the new image shows: flip first, then shift; (B, side)."""
    place = torch.arange(side) - shift[:, None]
    return torch.where(flipped[:, None], side - 1 - place, place)


def _inside(source: Tensor, side: int) -> Tensor:
    return (source >= 0) & (source < side)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return images (B, C, H, W) re-read by rows (B, H) and columns (B, W)."""
    sample = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _move_boxes(
    boxes: Tensor, size: tuple[int, int], flips: tuple[Tensor, Tensor], shifts: tuple[Tensor, Tensor]
) -> Tensor:
    """Return boxes (B, m, 4) flipped, shifted and cut to the image; NaN where nothing is left."""
    moved = []
    for axis, (side, flipped, shift) in enumerate(
        zip(reversed(size), reversed(flips), reversed(shifts), strict=True)
    ):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        mirrored = flipped[:, None]
        start = torch.where(mirrored, side - high, low) + shift[:, None]
        end = torch.where(mirrored, side - low, high) + shift[:, None]
        moved.append((start.clamp(0, side), end.clamp(0, side)))
    (x0, x1), (y0, y1) = moved
    result = torch.stack([x0, y0, x1, y1], dim=2)
    return result.masked_fill(((x1 <= x0) | (y1 <= y0)).unsqueeze(2), torch.nan)
