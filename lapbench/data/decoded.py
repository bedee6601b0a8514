"""Many images decoded at once, and in one file where they are read many times and do not fit into memory.

The file holds the very pixels of the samples, float32: bytes would take a quarter of the room, but they would
round every pixel that resizing has made, and so change results.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lapbench.data.dataset import Split
from lapbench.digest import digest_of
from lapbench.types import FloatArray, IntArray

SHARE_OF_DISK = 0.25
"""The largest part of the free room on the disk that one split may take."""
WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode: Pillow and NumPy let go of the interpreter while they work."""
_MODULES = {"pillow": "PIL", "pydicom": "pydicom"}


def decode(split: Split, indices: IntArray) -> FloatArray:
    """Return the images of a split at these indices, (n, C, H, W), several being decoded at a time."""
    images = np.empty((len(indices), *shape_of_images(split)), np.float32)

    def read(own: Split, row: int) -> None:
        images[row] = own.image(int(indices[row]))

    in_threads(split, len(indices), read)
    return images


def shape_of_images(split: Split) -> tuple[int, int, int]:
    """Return channels, height and width of every image of a split; nothing is decoded."""
    return (split.view.channels, *split.view.image_size)


def in_threads(split: Split, n: int, visit: Callable[[Split, int], None]) -> None:
    """Call visit with the split and every number below n, several at a time; the first error is raised."""

    def share(numbers: IntArray) -> None:
        own = split[:]  # a split keeps its last files open, so threads must not share one
        for number in numbers.tolist():
            visit(own, number)

    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for _ in pool.map(share, np.array_split(np.arange(n), WORKERS)):
            pass  # asked for one by one, so that the first error surfaces


def keep_decoded(split: Split) -> Split:
    """Return the split with its images in one file, which is written where it is missing.

    The file lies in the split's folder for such files, named by the digest of the split and of what decodes
    it, written under a temporary name and renamed when whole. The split itself is returned where it has no
    such folder, and where the file would take more than SHARE_OF_DISK. Errors: DataError as for samples.
    """
    folder = split.keep_in
    if folder is None or split.decoded is not None:
        return split
    shape = (len(split), *shape_of_images(split))
    decoders = {name: version(name) for name in ("pillow", "pydicom") if find_spec(_MODULES[name])}
    path = folder / f"{digest_of([split.digest, decoders])[:32]}.npy"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if 4 * math.prod(shape) > SHARE_OF_DISK * shutil.disk_usage(folder).free:
            return split
        _write(split, path, shape)
    return Split(split.name, split.entries, split.view, decoded=np.load(path, mmap_mode="r"), keep_in=folder)


def _write(split: Split, path: Path, shape: Sequence[int]) -> None:
    """Decode all images, several at a time, into a file that appears when it is whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    images: np.memmap[Any, np.dtype[np.float32]] = np.lib.format.open_memmap(
        temporary, mode="w+", dtype=np.float32, shape=tuple(shape)
    )

    def read(own: Split, row: int) -> None:
        images[row] = own.image(row)

    try:
        in_threads(split, len(split), read)
        images.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
