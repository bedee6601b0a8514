"""Where shards are made: one after the other, here, skipping what is already there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from lapbench.errors import ExplainerError
from lapbench.store import MapStore, Shard

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called with the work done, the work in all, and what the work is: a name, or ``name · state`` where the
state changes while the work goes on."""


@dataclass(frozen=True)
class Task:
    """One shard to make: the name and digest it will have, and the function that computes it."""

    name: str
    digest: str
    size: int  # samples
    compute: Callable[[], Shard]


def make(tasks: Sequence[Task], store: MapStore, progress: Progress, text: str) -> None:
    """Make every missing shard; each is whole on disk before the next begins.

    Errors: whatever a task raises; the shards made before it stay.
    """
    total = sum(task.size for task in tasks)
    done = 0
    for task in tasks:
        if not store.has(task.name, task.digest):
            progress(done, total, text)
            store.write(task.name, task.digest, task.compute())
        done += task.size
    progress(total, total, text)


def in_batches(work: Callable[[int, int], T], n: int, *, batch_size: int) -> list[T]:
    """Apply ``work(start, stop)`` to consecutive ranges of 0 … n, halving the batch when memory runs out.

    Errors: ExplainerError when not even one sample fits.
    """
    results: list[T] = []
    start = 0
    while start < n:
        try:
            results.append(work(start, min(start + batch_size, n)))
            start += batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise ExplainerError("the device's memory does not hold even one sample") from None
            torch.cuda.empty_cache()
            batch_size = max(1, batch_size // 2)
    return results
