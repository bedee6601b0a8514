"""Shards are made once and whole; batches shrink where memory ends."""

from itertools import chain

import numpy as np
import pytest
import torch

from lapbench.errors import ExplainerError
from lapbench.executor import Task, in_batches, make
from lapbench.store import MapStore, Shard

DIGESTS = [f"{number:016x}" for number in range(4)]


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

    return [Task(f"x/test-{n}", d, 2, lambda n=n: compute(n)) for n, d in enumerate(DIGESTS)]


def test_make_skips_what_is_there_and_tells_how_far_it_is(store):
    made, told = [], []
    store.write("x/test-1", DIGESTS[1], shard(1))
    make(tasks(made), store, lambda *state: told.append(state), "draw")

    assert made == [0, 2, 3] and all(store.has(t.name, t.digest) for t in tasks([]))
    assert told == [(0, 8, "draw"), (4, 8, "draw"), (6, 8, "draw"), (8, 8, "draw")]
    make(tasks(made), store, lambda *state: told.append(state), "again")
    assert made == [0, 2, 3] and told[4:] == [(8, 8, "again")]


def test_make_keeps_what_was_made_before_an_error(store):
    made = []
    with pytest.raises(ExplainerError, match="cannot"):
        make(tasks(made, fail=2), store, lambda *_: None, "draw")

    assert made == [0, 1]
    assert [store.has(t.name, t.digest) for t in tasks([])] == [True, True, False, False]


def test_make_makes_a_broken_shard_again(tmp_path):
    notes, made = [], []
    store = MapStore(tmp_path, warn=notes.append)
    store.write("x/test-0", DIGESTS[0], shard(0)).write_bytes(b"no shard")
    make(tasks(made)[:1], store, lambda *_: None, "draw")

    assert made == [0] and len(notes) == 1 and store.has("x/test-0", DIGESTS[0])


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 20])
def test_batches_cover_everything_once(n, batch_size):
    parts = in_batches(lambda start, stop: list(range(start, stop)), n, batch_size=batch_size)

    assert [*chain(*parts)] == list(range(n)) and all(0 < len(part) <= batch_size for part in parts)


@pytest.mark.parametrize("fits", [1, 2, 3, 5, 8, 100])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(fits):
    tried = []

    def work(start, stop):
        tried.append(stop - start)
        if stop - start > fits:
            raise torch.OutOfMemoryError("no room")
        return list(range(start, stop))

    parts = in_batches(work, 21, batch_size=8)
    assert [*chain(*parts)] == list(range(21))
    assert max(len(part) for part in parts) == max(s for s in (1, 2, 4, 8) if s <= fits)
    assert tried[: tried.index(len(parts[0])) + 1] == [s for s in (8, 4, 2, 1) if s >= len(parts[0])]


def test_memory_that_does_not_hold_one_sample_is_said():
    def work(start, stop):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(ExplainerError, match="the device's memory does not hold even one sample"):
        in_batches(work, 5, batch_size=8)


def test_other_errors_are_not_held_back():
    def work(start, stop):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_batches(work, 5, batch_size=8)
