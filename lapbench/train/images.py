"""Samples as tensors: a split decoded once where it fits into memory, image by image where it does not."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lapbench.benchmark import Data
from lapbench.data import Split
from lapbench.data.decoded import keep_decoded
from lapbench.types import Box, IntArray

MEMORY_BUDGET = 2 * 2**30
"""Bytes that the decoded images and masks of one split may take."""

T = TypeVar("T")


class Batch(NamedTuple):
    """Samples of one step.

    images (B, C, H, W) float32; labels (B,) int64; masks (B, H, W) bool and boxes (B, m, 4) float32 as x0,
    y0, x1, y1 in pixels, NaN where a sample has fewer than m: both None where the truth is not asked for.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor | None
    boxes: Tensor | None


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

    readers: tuple[Split, ...]
    truth: bool

    def take(self, indices: IntArray) -> Batch:
        """Return the samples at these indices, images in [0, 1]; readers share the decoding in threads."""
        return _decode(self.readers, indices, truth=self.truth)


def tabulate(split: Split, *, truth: bool, budget: int = MEMORY_BUDGET) -> Table:
    """Return a split ready for random access, decoded at once when that takes at most budget bytes.

    A larger one is decoded once into a file, where the split has a folder for it and the disk has the room.
    """
    first = split[0]
    bytes_each = first.image.nbytes + (first.mask.nbytes if truth else 0)
    fits = bytes_each * len(split) <= budget
    source = split if fits else keep_decoded(split)
    # a split keeps its last files open for the next sample, so threads must not share one
    readers = tuple(source[:] for _ in range(min(8, os.cpu_count() or 1)))
    if not fits:
        return OnDemand(readers, truth)
    return InMemory(_decode(readers, np.arange(len(split)), truth=truth))


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


def _decode(readers: tuple[Split, ...], indices: IntArray, *, truth: bool) -> Batch:
    first = readers[0][int(indices[0])]
    images = np.empty((len(indices), *first.image.shape), np.float32)
    masks = np.empty((len(indices) if truth else 0, *first.mask.shape), np.bool_)
    boxes: list[tuple[Box, ...]] = [()] * len(indices)

    def fill(reader: Split, rows: IntArray) -> None:
        for row in rows.tolist():
            sample = reader[int(indices[row])]
            images[row], boxes[row] = sample.image, sample.boxes
            if truth:
                masks[row] = sample.mask

    with ThreadPoolExecutor(max_workers=len(readers)) as pool:
        shares = np.array_split(np.arange(len(indices)), len(readers))
        for _ in pool.map(fill, readers, shares):
            pass  # asked for one by one, so that the first error surfaces
    labels = torch.from_numpy(readers[0].labels[indices])
    if not truth:
        return Batch(torch.from_numpy(images), labels, None, None)
    return Batch(torch.from_numpy(images), labels, torch.from_numpy(masks), _pad(boxes))


def _pad(boxes: list[tuple[Box, ...]]) -> Tensor:
    """Return boxes as (n, m, 4), m being the largest number in one image, at least 1; NaN fills the rest."""
    padded = torch.full((len(boxes), max(1, *map(len, boxes)), 4), torch.nan)
    for row, found in enumerate(boxes):
        for column, box in enumerate(found):
            padded[row, column] = torch.tensor([box.x0, box.y0, box.x1, box.y1])
    return padded
