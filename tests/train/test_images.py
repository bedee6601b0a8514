import threading
import time

import numpy as np
import pytest
import torch

from lapbench.train.images import InMemory, OnDemand, ahead, normalise, tabulate
from tests.train.squares import DATA, SIDE, split


@pytest.mark.parametrize("budget", [0, 2**30])
def test_a_table_gives_the_samples_of_the_split(budget):
    squares = split("train", 0, 20)
    table = tabulate(squares, truth=True, budget=budget)
    assert isinstance(table, InMemory if budget else OnDemand)
    indices = np.array([3, 0, 3, 19])
    batch = table.take(indices)
    for row, index in enumerate(indices):
        sample = squares[int(index)]
        assert np.array_equal(batch.images[row].numpy(), sample.image)
        assert np.array_equal(batch.masks[row].numpy(), sample.mask)
        assert batch.labels[row] == sample.label
        boxes = batch.boxes[row][~batch.boxes[row].isnan().any(1)].tolist()
        assert boxes == [[b.x0, b.y0, b.x1, b.y1] for b in sample.boxes]


def test_a_split_too_large_for_memory_is_decoded_once_into_its_folder(tmp_path):
    squares = split("train", 0, 20)
    wanted = tabulate(squares, truth=True, budget=0).take(np.arange(20))
    squares.keep_in = tmp_path
    table = tabulate(squares, truth=True, budget=0)
    assert isinstance(table, OnDemand)
    [file] = tmp_path.iterdir()
    assert np.array_equal(np.load(file), wanted.images.numpy())
    for found, expected in zip(table.take(np.arange(20)), wanted, strict=True):
        if expected is None:
            assert found is None
        else:
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("budget", [0, 2**30])
def test_truth_is_left_out_when_it_is_not_asked_for(budget):
    batch = tabulate(split("train", 0, 6), truth=False, budget=budget).take(np.arange(6))
    assert batch.masks is None
    assert batch.boxes is None
    assert batch.images.shape == (6, 1, SIDE, SIDE)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_an_image_that_cannot_be_decoded_is_an_error(budget, monkeypatch):
    squares = split("train", 0, 6)

    def broken() -> np.ndarray:
        raise OSError("this file is truncated")

    object.__setattr__(squares.entries[4].record.source, "draw", broken)
    with pytest.raises(OSError, match="truncated"):
        tabulate(squares, truth=False, budget=budget).take(np.arange(6))


def test_images_are_normalised_per_channel():
    colour = DATA.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)})
    result = normalise(torch.full((2, 3, 4, 4), 0.5), colour)
    assert result[1, :, 2, 3].tolist() == pytest.approx([0.4, 0.15, 0.05])


def test_the_next_task_is_done_while_the_last_result_is_used():
    done: list[int] = []

    def task(number: int) -> int:
        done.append(number)
        return number

    results = ahead((lambda n=n: task(n)) for n in range(5))
    assert next(results) == 0
    for _ in range(100):
        if done == [0, 1]:
            break
        time.sleep(0.01)
    assert done == [0, 1]
    assert list(results) == [1, 2, 3, 4]
    assert list(ahead([])) == []


def test_an_abandoned_iteration_leaves_no_thread():
    before = threading.active_count()
    results = ahead((lambda: 1) for _ in range(5))
    next(results)
    results.close()
    assert threading.active_count() == before
