"""Where shards are made: one after the other, here, skipping what is already there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from lapbench.errors import ExplainerError
from lapbench.store import MapStore, Shard

MOST = {"cpu": 8, "cuda": 256}
"""Samples asked at once, where memory allows; a CPU's caches hold no more: larger batches are slower."""

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called with the work done, the work in all, and what the work is: a name, or ``name · state`` where the
state changes while the work goes on."""


Key = tuple[str, str]
"""A shard's name, for people, and its digest, which decides."""


@dataclass(frozen=True)
class Task:
    """Shards that are made together: their keys, and what computes those of them that are missing."""

    keys: tuple[Key, ...]
    size: int  # samples
    compute: Callable[[list[Key]], Mapping[Key, Shard]]


def make(tasks: Sequence[Task], store: MapStore, progress: Progress, text: str) -> None:
    """Make every missing shard; those of a task are whole on disk before the next begins.

    Errors: whatever a task raises; the shards made before it stay.
    """
    total = sum(task.size for task in tasks)
    done = 0
    for task in tasks:
        missing = [key for key in task.keys if not store.has(*key)]
        if missing:
            progress(done, total, text)
            for key, shard in task.compute(missing).items():
                store.write(*key, shard)
        done += task.size
    progress(total, total, text)


def in_batches(work: Callable[[int, int], T], n: int, *, first: int = 8, most: int = 8) -> list[T]:
    """Apply ``work(start, stop)`` to consecutive ranges of 0 … n; the batch finds its size.

    It starts with ``first`` and doubles up to ``most``; when memory runs out it is halved, and grows no more.
    Errors: ExplainerError when not even one sample fits.
    """
    results: list[T] = []
    start, size = 0, first
    while start < n:
        try:
            results.append(work(start, min(start + size, n)))
        except torch.OutOfMemoryError:
            if size == 1:
                raise ExplainerError("the device's memory does not hold even one sample") from None
            torch.cuda.empty_cache()
            size = most = size // 2
        else:
            start += size
            size = min(2 * size, most)
    return results
