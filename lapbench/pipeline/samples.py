"""The samples of a job, decoded once and kept between explainers as long as memory is cheap."""

import numpy as np
import torch
from torch import Tensor

from lapbench.pipeline.job import Block, Job
from lapbench.score import boxes_of
from lapbench.types import Box, FloatArray, IntArray, MaskArray

BUDGET = 2**30
"""Bytes of decoded images and masks that are kept."""


class Samples:
    """The images, masks, ids and labels of a job's blocks."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._kept: dict[Block, tuple[FloatArray, MaskArray]] = {}
        self._bytes = 0

    def images(self, block: Block) -> Tensor:
        """The network's inputs, (n, C, H, W) float32, normalised."""
        data = self.job.benchmark.data
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (data.mean, data.std))
        return torch.from_numpy((self.pixels(block) - mean) / std)

    def pixels(self, block: Block) -> FloatArray:
        """The images as they are, (n, C, H, W) float32 in [0, 1]."""
        return self._decoded(block)[0]

    def masks(self, block: Block) -> MaskArray:
        """The truth, (n, H, W)."""
        return self._decoded(block)[1]

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

    def _decoded(self, block: Block) -> tuple[FloatArray, MaskArray]:
        if block in self._kept:
            return self._kept[block]
        split = self.job.dataset[block.split]
        samples = [split[i] for i in block.indices]
        decoded = np.stack([s.image for s in samples]), np.stack([s.mask for s in samples])
        size = sum(array.nbytes for array in decoded)
        if self._bytes + size <= BUDGET:
            self._kept[block] = decoded
            self._bytes += size
        return decoded
