import math

import numpy as np
import pytest

from lapbench.errors import ScoreError
from lapbench.score.faithfulness import (
    Faithfulness,
    insert_and_delete,
    removal_correlation,
    removal_drops,
)


def mean_of(mask):
    """A network that answers with the mean of the pixels in a mask."""
    return lambda images: images[:, :, mask].mean(axis=(1, 2))


def test_a_perfect_map_has_known_areas():
    """Its pixels, a share of the image, decide alone: over it the answer falls to 0, or rises to 1."""
    mask = np.zeros((10, 20), bool)
    mask[2:6, 5:15] = True  # a fifth
    found = insert_and_delete(
        [mean_of(mask)], np.ones((1, 3, 10, 20), np.float32), mask[None].astype(np.float32), steps=10
    )
    assert found.fractions.tolist() == [step / 10 for step in range(11)]
    assert found.deletion[0] == pytest.approx([1, 0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert found.insertion[0] == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    assert found.deletion_auc == pytest.approx([0.1]) and found.insertion_auc == pytest.approx([0.9])


def test_any_order_is_the_same_to_a_network_that_averages():
    random = np.random.default_rng(0)
    everywhere = np.ones((6, 8), bool)
    found = insert_and_delete(
        [mean_of(everywhere)] * 4, np.full((4, 1, 6, 8), 3, np.float32), random.random((4, 6, 8)), steps=48
    )
    assert found.deletion == pytest.approx(3 * (1 - np.tile(found.fractions, (4, 1))))
    assert found.deletion_auc == pytest.approx([1.5] * 4) and found.insertion_auc == pytest.approx([1.5] * 4)


def test_curves_equal_a_loop_over_steps():
    random = np.random.default_rng(1)
    images = random.standard_normal((3, 2, 5, 7)).astype(np.float32)
    maps = np.round(random.random((3, 5, 7)), 1).astype(np.float32)  # with ties
    weights = random.standard_normal((3, 2, 5, 7))
    networks = [lambda batch, w=w: (batch * w).sum(axis=(1, 2, 3)) ** 2 for w in weights]
    found = insert_and_delete(networks, images, maps, steps=4, baseline=0.5)
    for i in range(3):
        order = sorted(range(35), key=lambda pixel: (-float(maps[i].ravel()[pixel]), pixel))
        for step in range(5):
            rows, columns = np.divmod(np.array(order[: round(step * 35 / 4)], int), 7)
            without, only = images[i].copy(), np.full_like(images[i], 0.5)
            without[:, rows, columns] = 0.5
            only[:, rows, columns] = images[i][:, rows, columns]
            assert found.deletion[i, step] == pytest.approx(networks[i](without[None])[0])
            assert found.insertion[i, step] == pytest.approx(networks[i](only[None])[0])


def test_a_linear_network_and_its_own_contributions_bound_every_order():
    random = np.random.default_rng(2)
    weights, images = random.random((4, 6)), np.ones((1, 1, 4, 6), np.float32)

    def network(batch):
        return (batch[:, 0] * weights).sum(axis=(1, 2))

    def deletion(values):
        return insert_and_delete([network], images, values[None], steps=24).deletion_auc[0]

    best, worst = deletion(weights), deletion(-weights)
    assert all(best <= deletion(random.random((4, 6))) <= worst for _ in range(50))
    falling = weights.sum() - np.append(0, np.sort(weights.ravel())[::-1].cumsum())
    assert best == pytest.approx((falling[:-1] + falling[1:]).sum() / 48)


def test_a_map_with_nan_has_no_curve():
    maps = np.zeros((2, 3, 3), np.float32)
    maps[1, 0, 0] = np.nan
    found = insert_and_delete(
        [mean_of(np.ones((3, 3), bool))] * 2, np.ones((2, 1, 3, 3), np.float32), maps, steps=3
    )
    assert math.isfinite(found.deletion_auc[0]) and math.isnan(found.deletion_auc[1])
    assert np.isnan(found.insertion[1]).all()


def test_shards_join():
    random = np.random.default_rng(0)
    images, maps = random.random((5, 1, 3, 4), dtype=np.float32), random.random((5, 3, 4), dtype=np.float32)
    networks = [mean_of(np.ones((3, 4), bool))] * 5
    whole = insert_and_delete(networks, images, maps, steps=3)
    parts = [insert_and_delete(networks[p], images[p], maps[p], steps=3) for p in (slice(2), slice(2, None))]
    joined = Faithfulness.join(parts)
    assert np.array_equal(joined.deletion, whole.deletion) and np.array_equal(
        joined.insertion, whole.insertion
    )
    with pytest.raises(ScoreError, match="there are no curves to join"):
        Faithfulness.join([])


@pytest.mark.parametrize(
    ("shape", "networks", "steps", "message"),
    [
        ((2, 1, 3, 5), 2, 3, "must be of the same images and size"),
        ((1, 1, 3, 4), 1, 3, "must be of the same images and size"),
        ((2, 1, 3, 4), 1, 3, "2 images need as many predictions, found 1"),
        ((2, 1, 3, 4), 2, 0, "steps: 0 is not at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(shape, networks, steps, message):
    with pytest.raises(ScoreError, match=message):
        insert_and_delete(
            [np.sum] * networks, np.ones(shape, np.float32), np.ones((2, 3, 4), np.float32), steps=steps
        )


def test_removal_equals_a_loop_over_regions():
    random = np.random.default_rng(3)
    images = random.standard_normal((3, 2, 7, 9)).astype(np.float32)
    maps = random.random((3, 7, 9)).astype(np.float32)
    weights = random.standard_normal((3, 2, 7, 9))
    networks = [lambda batch, w=w: np.tanh((batch * w).sum(axis=(1, 2, 3)) / 9) for w in weights]

    found = removal_correlation(removal_drops(networks, images, grid=3, baseline=0.25), maps)

    for i in range(3):
        means, drops = [], []
        for rows in (slice(0, 3), slice(3, 5), slice(5, 7)):  # floor(pixel · 3 / 7)
            for columns in (slice(0, 3), slice(3, 6), slice(6, 9)):
                without = images[i].copy()
                without[:, rows, columns] = 0.25
                drops.append(networks[i](images[i][None])[0] - networks[i](without[None])[0])
                means.append(maps[i, rows, columns].mean())
        assert found[i] == pytest.approx(np.corrcoef(means, drops)[0, 1])


def test_the_contributions_of_a_linear_network_foretell_its_drops_and_their_opposite_the_contrary():
    random = np.random.default_rng(4)
    weights, image = random.random((8, 8)), random.random((1, 1, 8, 8)).astype(np.float32)

    def network(batch):
        return (batch[:, 0] * weights).sum(axis=(1, 2))

    own = (image[:, 0] * weights).astype(np.float32)
    drops = removal_drops([network], image, grid=4)
    assert removal_correlation(drops, own) == pytest.approx([1])
    assert removal_correlation(drops, -own) == pytest.approx([-1])


def test_removal_says_nothing_where_nothing_differs():
    image = np.ones((1, 1, 4, 4), np.float32)
    ramp = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    broken = np.where(ramp == 3, np.nan, ramp)
    equal = removal_drops([mean_of(np.ones((4, 4), bool))], image, grid=2)
    drops = removal_drops([lambda batch: batch[:, 0, 0, 0]], image, grid=2)
    assert np.isfinite(removal_correlation(drops, ramp))
    for some, maps in ((equal, ramp), (drops, 0 * ramp), (drops, broken)):
        assert np.isnan(removal_correlation(some, maps))


@pytest.mark.parametrize("grid", [1, 5])
def test_regions_have_at_least_a_pixel_and_there_are_several(grid):
    with pytest.raises(ScoreError, match=f"grid: {grid} is not between 2 and the 4 pixels of a side"):
        removal_drops([lambda batch: batch[:, 0, 0, 0]], np.ones((1, 1, 4, 6)), grid=grid)


@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (2, 2, 2)])
def test_drops_that_are_not_those_of_the_maps_are_refused(shape):
    with pytest.raises(ScoreError, match="must be those of a square of regions for 2 maps"):
        removal_correlation(np.ones(shape), np.ones((2, 4, 4)))
