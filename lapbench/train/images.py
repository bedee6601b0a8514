"""Samples as tensors: a split decoded once where it fits into memory, image by image where it does not."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lapbench.benchmark import Data
from lapbench.data import Split
from lapbench.data.decoded import decode, in_threads, keep_decoded, shape_of_images
from lapbench.types import Box, IntArray

MEMORY_BUDGET = 2 * 2**30
"""Bytes that the decoded images and masks of one split may take."""

T = TypeVar("T")


class Batch(NamedTuple):
    """Samples of one step.

    images (B, C, H, W) float32; labels (B,) int64; masks (B, H, W) bool and boxes (B, m, 4) float32 as x0,
    y0, x1, y1 in pixels, NaN where a sample has fewer than m: both None where the truth is not asked for.
    answers (B, m) float32, as `lapbench.data.Split.answers`: None of classification, unless probabilities of
    the classes take the place of the labels.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None
    boxes: Tensor | None
    answers: Tensor | None = None


class Table(Protocol):
    """A split from which samples are taken by index."""

    def take(self, indices: IntArray) -> Batch:
        """Return the samples at these indices, images in [0, 1]."""


@dataclass(frozen=True)
class InMemory:
    """A split whose samples are all decoded."""

    samples: Batch

    def take(self, indices: IntArray) -> Batch:
        """Return the samples at these indices, images in [0, 1]."""
        chosen = torch.from_numpy(indices)
        return Batch(*(None if column is None else column[chosen] for column in self.samples))  # type: ignore[arg-type]


@dataclass(frozen=True)
class OnDemand:
    """A split that is too large for memory; truth: whether masks and boxes are wanted."""

    split: Split
    truth: bool

    def take(self, indices: IntArray) -> Batch:
        """Return the samples at these indices, images in [0, 1]."""
        return _decode(self.split, indices, truth=self.truth)


def tabulate(split: Split, *, truth: bool, budget: int = MEMORY_BUDGET) -> Table:
    """Return a split ready for random access, decoded at once when that takes at most budget bytes.

    A larger one is decoded once into a file, where the split has a folder for it and the disk has the room.
    """
    channels, height, width = shape_of_images(split)
    bytes_each = (4 * channels + truth) * height * width
    if bytes_each * len(split) > budget:
        return OnDemand(keep_decoded(split), truth)
    return InMemory(_decode(split, np.arange(len(split)), truth=truth))


def normalise(images: Tensor, data: Data) -> Tensor:
    """Return images (B, C, H, W) from [0, 1] as the network takes them: (image − mean) / std per channel."""
    mean, std = (
        torch.tensor(v, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        for v in (data.mean, data.std)
    )
    return (images - mean) / std


def ahead(tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield the results of the tasks in order, the next one being done in the background meanwhile."""
    with ThreadPoolExecutor(max_workers=1) as background:
        previous = None
        for task in tasks:
            coming = background.submit(task)
            if previous is not None:
                yield previous.result()
            previous = coming
        if previous is not None:
            yield previous.result()


def _decode(split: Split, indices: IntArray, *, truth: bool) -> Batch:
    images = torch.from_numpy(decode(split, indices))
    labels = torch.from_numpy(split.labels[indices])
    answers = torch.from_numpy(split.answers[indices]) if split.view.answer_size else None
    if not truth:
        return Batch(images, labels, None, None, answers)
    masks = np.empty((len(indices), *split.view.image_size), np.bool_)

    def read(own: Split, row: int) -> None:
        masks[row] = own.mask(int(indices[row]))

    in_threads(split, len(indices), read)
    boxes = _pad([split.boxes(i) for i in indices.tolist()])
    return Batch(images, labels, torch.from_numpy(masks), boxes, answers)


def _pad(boxes: list[tuple[Box, ...]]) -> Tensor:
    """Return boxes as (n, m, 4), m being the largest number in one image, at least 1; NaN fills the rest."""
    padded = torch.full((len(boxes), max(1, *map(len, boxes)), 4), torch.nan)
    for row, found in enumerate(boxes):
        for column, box in enumerate(found):
            padded[row, column] = torch.tensor([box.x0, box.y0, box.x1, box.y1])
    return padded
