"""Shards are made once and whole; batches shrink where memory ends."""

from itertools import chain

import numpy as np
import pytest
import torch

from lapbench.errors import ExplainerError
from lapbench.executor import Task, in_batches, make
from lapbench.store import MapStore, Shard

DIGESTS = [f"{number:016x}" for number in range(4)]
KEYS = [(f"x/test-{number}", digest) for number, digest in enumerate(DIGESTS)]


def shard(number):
    maps = np.full((2, 3, 3), number, np.float32)
    return Shard(ids=("a", "b"), targets=np.zeros(2, np.int64), arrays={"maps": maps})


@pytest.fixture
def store(tmp_path):
    return MapStore(tmp_path)


def tasks(made, *, fail=None):
    def compute(number):
        if number == fail:
            raise ExplainerError("cannot")
        made.append(number)
        return shard(number)

    return [
        Task((key,), 2, lambda keys, n=n: {key: compute(n) for key in keys}) for n, key in enumerate(KEYS)
    ]


def test_make_skips_what_is_there_and_tells_how_far_it_is(store):
    made, told = [], []
    store.write("x/test-1", DIGESTS[1], shard(1))
    make(tasks(made), store, lambda *state: told.append(state), "draw")

    assert made == [0, 2, 3] and all(store.has(*key) for key in KEYS)
    assert told == [(0, 8, "draw"), (4, 8, "draw"), (6, 8, "draw"), (8, 8, "draw")]
    make(tasks(made), store, lambda *state: told.append(state), "again")
    assert made == [0, 2, 3] and told[4:] == [(8, 8, "again")]


def test_make_keeps_what_was_made_before_an_error(store):
    made = []
    with pytest.raises(ExplainerError, match="cannot"):
        make(tasks(made, fail=2), store, lambda *_: None, "draw")

    assert made == [0, 1]
    assert [store.has(*key) for key in KEYS] == [True, True, False, False]


def test_make_makes_a_broken_shard_again(tmp_path):
    notes, made = [], []
    store = MapStore(tmp_path, warn=notes.append)
    store.write("x/test-0", DIGESTS[0], shard(0)).write_bytes(b"no shard")
    make(tasks(made)[:1], store, lambda *_: None, "draw")

    assert made == [0] and len(notes) == 1 and store.has("x/test-0", DIGESTS[0])


def test_shards_of_one_task_are_made_together_as_far_as_they_are_missing(store):
    store.write(*KEYS[1], shard(1))
    asked = []

    def compute(keys):
        asked.append(keys)
        return {KEYS[0]: shard(0)}  # the third has failed, and is missing still

    make([Task(tuple(KEYS[:3]), 2, compute)], store, lambda *_: None, "draw")
    assert asked == [[KEYS[0], KEYS[2]]]
    assert [store.has(*key) for key in KEYS] == [True, True, False, False]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize(("first", "most"), [(1, 1), (3, 12), (8, 8), (2, 20)])
def test_batches_cover_everything_once_and_grow(n, first, most):
    parts = in_batches(lambda start, stop: list(range(start, stop)), n, first=first, most=most)

    assert [*chain(*parts)] == list(range(n)) and all(0 < len(part) <= most for part in parts)
    for number, part in enumerate(parts[:-1]):
        assert len(part) == min(first * 2**number, most)


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8, 11, 100])
def test_a_batch_that_does_not_fit_is_halved_and_grows_no_more(fits):
    tried = []

    def work(start, stop):
        tried.append(stop - start)
        if stop - start > fits:
            raise torch.OutOfMemoryError("no room")
        return list(range(start, stop))

    parts = in_batches(work, 70, first=8, most=32)
    assert [*chain(*parts)] == list(range(70))
    largest = max(size for size in (1, 2, 4, 8, 16, 32) if size <= fits)
    assert max(len(part) for part in parts) == largest
    assert sum(size > fits for size in tried) == len(
        [s for s in (8, 4, 2) if s > fits] or [s for s in (16,) if s > fits]
    )


def test_memory_that_does_not_hold_one_sample_is_said():
    def work(start, stop):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(ExplainerError, match="the device's memory does not hold even one sample"):
        in_batches(work, 5, first=8)


def test_other_errors_are_not_held_back():
    def work(start, stop):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_batches(work, 5, first=8)
