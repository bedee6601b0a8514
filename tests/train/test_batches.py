import numpy as np
import pytest

from lapbench.benchmark import Recipe
from lapbench.errors import TrainingError
from lapbench.train.batches import batches_of_epoch, check_classes, epoch_shape, uniform

LABELS = np.array([0] * 50 + [1] * 7 + [2] * 20)


def recipe(**fields) -> Recipe:
    return Recipe(epochs=1, **{"batch_size": 12, **fields})


def test_balanced_batches_hold_every_class_equally_often():
    batches = batches_of_epoch(LABELS, 3, recipe(), seed=0, epoch=0)
    assert batches.shape == (13, 12)  # ceil(3 · 50 / 12)
    for batch in LABELS[batches]:
        assert np.bincount(batch).tolist() == [4, 4, 4]


def test_processes_that_share_a_batch_get_the_same_classes():
    batch = batches_of_epoch(LABELS, 3, recipe(), seed=0, epoch=0)[0]
    for rank in range(2):
        assert np.bincount(LABELS[batch[rank::2]]).tolist() == [2, 2, 2]


def test_a_batch_that_the_classes_do_not_divide_becomes_smaller():
    assert epoch_shape(LABELS, 3, recipe(batch_size=64)) == (3, 63)


def test_draws_are_made_with_replacement_and_reach_every_sample():
    drawn = np.concatenate(
        [batches_of_epoch(LABELS, 3, recipe(), seed=0, epoch=e).ravel() for e in range(20)]
    )
    assert set(drawn.tolist()) == set(range(len(LABELS)))
    rare = batches_of_epoch(LABELS, 3, recipe(), seed=0, epoch=0)[:, 4:8]
    assert rare.size > len(np.unique(rare)), "52 draws from 7 samples"


def test_the_epoch_and_the_seed_decide_the_batches():
    def drawn(seed: int, epoch: int):
        return batches_of_epoch(LABELS, 3, recipe(), seed=seed, epoch=epoch).tolist()

    assert drawn(0, 3) == drawn(0, 3)
    assert drawn(0, 3) != drawn(0, 4)
    assert drawn(0, 3) != drawn(1, 3)
    assert drawn(-1, 0) != drawn(1, 0)


def test_unbalanced_batches_are_a_shuffle_without_an_incomplete_batch():
    batches = batches_of_epoch(LABELS, 3, recipe(balanced=False), seed=0, epoch=0)
    assert batches.shape == (6, 12)
    assert len(np.unique(batches)) == 72
    assert batches.ravel().tolist() != sorted(batches.ravel().tolist())
    assert batches_of_epoch(LABELS, 3, recipe(balanced=False, batch_size=500), seed=0, epoch=0).shape == (
        1,
        77,
    )


@pytest.mark.parametrize("balanced", [True, False])
def test_iterations_can_be_demanded(balanced):
    batches = batches_of_epoch(LABELS, 3, recipe(balanced=balanced, iterations=40), seed=0, epoch=0)
    assert batches.shape == (40, 12)
    if not balanced:
        assert np.bincount(batches.ravel(), minlength=77).min() >= 6, "480 draws, shuffle after shuffle"


def test_a_missing_class_is_named():
    with pytest.raises(TrainingError) as error:
        check_classes(np.array([0, 0, 2]), ("healthy", "ill", "unsure"), recipe(), split="train")
    assert str(error.value) == (
        "split 'train' holds no sample of class 'ill', but the network is to tell 3 classes apart: "
        "add samples or drop the class"
    )


def test_a_batch_too_small_for_all_classes_is_refused():
    with pytest.raises(TrainingError) as error:
        check_classes(np.arange(20), [str(c) for c in range(20)], recipe(), split="train")
    assert str(error.value) == (
        "a balanced batch needs at least one sample of each of 20 classes, but batch_size is 12: "
        "raise it, or set balanced = false"
    )
    check_classes(np.arange(20), [str(c) for c in range(20)], recipe(balanced=False), split="train")


def test_numbers_for_positions_are_uniform_and_independent_of_the_cut():
    positions = np.arange(20_000)
    drawn = uniform(5, 2, positions, stream=1)
    assert np.array_equal(drawn[100:200], uniform(5, 2, positions[100:200], stream=1))
    assert 0 <= drawn.min() < drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(950), "five standard deviations"
    others = [
        uniform(5, 2, positions, stream=0),
        uniform(5, 3, positions, 1),
        uniform(6, 2, positions, 1),
        drawn[::-1],
    ]
    for other in others:
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 5 / np.sqrt(len(drawn))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / np.sqrt(len(drawn))
