"""The samples of a job: each image is decoded once, whatever asks for it, and none where masks suffice."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lapbench.data import Split
from lapbench.data.decoded import decode, keep_decoded, shape_of_images
from lapbench.pipeline.job import Block, Job
from lapbench.score import boxes_of
from lapbench.types import Box, FloatArray, IntArray, MaskArray

BUDGET = 2**30
"""Bytes of decoded images and masks kept in memory; images beyond are decoded into a file."""


def stack_ignored(regions: Sequence[MaskArray | None]) -> MaskArray | None:
    """Stack the pixels of n images that do not count, (n, H, W); None where all of them do."""
    some = next((region for region in regions if region is not None), None)
    if some is None:
        return None
    return np.stack([np.zeros_like(some) if region is None else region for region in regions])


class Samples:
    """The images, masks, ids and labels of a job's blocks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._opened: dict[Split, Split] = {}
        self._images: dict[Split, tuple[FloatArray, MaskArray]] = {}  # and which of them are decoded
        self._masks: dict[Block, MaskArray] = {}
        self._ignored: dict[Block, MaskArray | None] = {}
        self._bytes = 0

    def images(self, block: Block) -> Tensor:
        """The network's inputs, (n, C, H, W) float32, normalised."""
        data = self.job.benchmark.data
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (data.mean, data.std))
        return torch.from_numpy((self.pixels(block) - mean) / std)

    def pixels(self, block: Block) -> FloatArray:
        """The images as they are, (n, C, H, W) float32 in [0, 1]."""
        split, indices = self._open(block), np.asarray(block.indices)
        if split not in self._images:
            return decode(split, indices)
        images, is_there = self._images[split]
        missing = indices[~is_there[indices]]
        images[missing] = decode(split, missing)
        is_there[missing] = True
        found: FloatArray = images[indices]
        return found

    def masks(self, block: Block) -> MaskArray:
        """The truth, (n, H, W)."""
        if block in self._masks:
            return self._masks[block]
        split = self.job.dataset[block.split]
        masks = np.stack([split.mask(index) for index in block.indices])
        if self._takes(masks.nbytes):
            self._masks[block] = masks
        return masks

    def ignored(self, block: Block) -> MaskArray | None:
        """The pixels that do not count, (n, H, W); None where all of them do."""
        if block in self._ignored:
            return self._ignored[block]
        split = self.job.dataset[block.split]
        ignored = stack_ignored([split.ignore(index) for index in block.indices])
        if ignored is None or self._takes(ignored.nbytes):
            self._ignored[block] = ignored
        return ignored

    def boxes(self, block: Block) -> list[tuple[Box, ...]]:
        """The annotated boxes; where an image has none, those of the parts of its mask."""
        split = self.job.dataset[block.split]
        annotated = [split.boxes(index) for index in block.indices]
        return [own or boxes_of(mask) for own, mask in zip(annotated, self.masks(block), strict=True)]

    def ids(self, block: Block) -> tuple[str, ...]:
        """The sample ids."""
        ids = self.job.dataset[block.split].ids
        return tuple(ids[i] for i in block.indices)

    def labels(self, block: Block) -> IntArray:
        """The labels (n,)."""
        return self.job.dataset[block.split].labels[list(block.indices)]

    def _open(self, block: Block) -> Split:
        """Return the split of a block, no longer than the job goes into it, with room for its images.

        Where memory has no room, they are in a file.
        """
        purposes = [purpose for purpose, name in self.job.split_names.items() if name == block.split]
        known = sorted((self.job.considered(purpose) for purpose in purposes), key=len)
        split = next(part for part in known if len(part) > max(block.indices))
        if split not in self._opened:
            shape = (len(split), *shape_of_images(split))
            if self._takes(4 * math.prod(shape)):
                self._images[split] = np.empty(shape, np.float32), np.zeros(len(split), bool)
                self._opened[split] = split
            else:
                self._opened[split] = keep_decoded(split)
        return self._opened[split]

    def _takes(self, size: int) -> bool:
        """Whether so many more bytes may be kept; they count from now on."""
        if self._bytes + size > BUDGET:
            return False
        self._bytes += size
        return True
