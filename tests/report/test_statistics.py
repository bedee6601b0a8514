import math

import numpy as np
import pytest
from scipy import stats

from lapbench.report.statistics import BCA_LIMIT, Interval, bootstrap_mean, bootstrap_means, bootstrap_ratio

rng = np.random.default_rng(20)


def by_scipy(values: np.ndarray, **options: object) -> tuple[float, float]:
    """The interval by scipy alone: no counting, no columns, one statistic at a time."""
    settings = {"n_resamples": 999, "rng": np.random.default_rng(0), **options}
    interval = stats.bootstrap((values,), np.mean, **settings).confidence_interval
    return float(interval.low), float(interval.high)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_that_of_scipy(confidence: float) -> None:
    values = rng.beta(0.5, 2, size=80)

    found = bootstrap_mean(values, confidence=confidence, resamples=999)
    assert found.mean == pytest.approx(values.mean(), rel=1e-15)
    assert (found.low, found.high) == pytest.approx(by_scipy(values, confidence_level=confidence), abs=1e-9)
    assert found.n == 80


def test_many_scores_at_once_are_as_each_alone() -> None:
    table = [rng.random(50), rng.random(50), rng.random(30), np.ones(50), rng.random((3, 50))]
    table[1][:7] = np.nan

    together = bootstrap_means(table, resamples=499)
    assert together == [bootstrap_mean(values, resamples=499) for values in table]
    assert [interval.n for interval in together] == [50, 43, 30, 50, 50]


def test_an_image_without_a_score_is_left_out() -> None:
    values = rng.random(40)
    holes = np.insert(values, [0, 11, 40], [np.nan, np.inf, np.nan])

    assert bootstrap_mean(holes, resamples=499) == bootstrap_mean(values, resamples=499)


def test_seeds_are_averaged_image_by_image() -> None:
    table = rng.random((3, 40))
    table[1, 5] = np.nan

    assert bootstrap_mean(table, resamples=499) == bootstrap_mean(
        np.delete(table, 5, axis=1).mean(axis=0), resamples=499
    )


def test_seeds_are_no_further_images() -> None:
    values = rng.random(40)

    once, thrice = bootstrap_mean(values, resamples=499), bootstrap_mean([values] * 3, resamples=499)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-8)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_mean(np.full(20, 0.3)) == Interval(0.3, 0.3, 0.3, 20)


def test_one_image_has_a_mean_and_no_interval() -> None:
    found = bootstrap_mean([0.25])

    assert (found.mean, found.n) == (0.25, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan], np.empty((2, 0))])
def test_no_image_gives_no_number(values: object) -> None:
    found = bootstrap_mean(values)  # type: ignore[arg-type]

    assert found.n == 0
    assert math.isnan(found.mean)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"values are \(images,\) or \(seeds, images\), found shape \(2, 2, 2\)"
    ):
        bootstrap_mean(np.zeros((2, 2, 2)))


def test_hits_and_misses_have_an_interval_inside_zero_and_one() -> None:
    for hits in (1, 5, 19):
        values = np.arange(20) < hits
        found = bootstrap_mean(values, resamples=999)
        assert 0 <= found.low < hits / 20 < found.high <= 1


def test_where_bca_is_not_defined_the_percentile_interval_stands() -> None:
    values = np.array([0.0, 1.0])  # so few resamples may all lie on one side of the mean

    for seed in range(30):
        found = bootstrap_mean(values, resamples=3, seed=seed)
        assert 0 <= found.low <= found.high <= 1


def test_the_same_seed_gives_the_same_interval() -> None:
    values = rng.random(60)

    assert bootstrap_mean(values, resamples=499, seed=3) == bootstrap_mean(values, resamples=499, seed=3)
    assert bootstrap_mean(values, resamples=499, seed=3) != bootstrap_mean(values, resamples=499, seed=4)


def test_very_many_images_take_the_percentile_interval() -> None:
    values = rng.exponential(size=BCA_LIMIT + 1)

    found = bootstrap_mean(values, resamples=200)
    assert (found.low, found.high) == pytest.approx(
        by_scipy(values, n_resamples=200, method="percentile", batch=50), abs=1e-9
    )


def test_a_pooled_ratio_is_that_of_the_sums() -> None:
    union = rng.integers(20, 400, size=60)
    intersection = (union * rng.random(60)).astype(int)

    def pooled(indices: np.ndarray) -> float:
        return float(intersection[indices].sum() / union[indices].sum())

    found = bootstrap_ratio(intersection, union, resamples=499)
    slow = stats.bootstrap(
        (np.arange(60),), pooled, vectorized=False, n_resamples=499, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.mean == pytest.approx(pooled(np.arange(60)), rel=1e-15)
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high), abs=1e-9)


def test_a_pooled_ratio_at_its_limits() -> None:
    assert bootstrap_ratio([1, 2, 4], [2, 4, 8]) == Interval(0.5, 0.5, 0.5, 3)
    assert math.isnan(bootstrap_ratio([], []).mean)
    single = bootstrap_ratio([1], [4])
    assert (single.mean, single.n, math.isnan(single.low)) == (0.25, 1, True)
    with pytest.raises(ValueError, match=r"two vectors of one length, found shapes \(2,\) and \(3,\)"):
        bootstrap_ratio([1, 2], [1, 2, 3])
    for above, below in (([1.0], [0.0]), ([math.nan], [1.0])):
        with pytest.raises(ValueError, match="positive denominators: leave out images without truth"):
            bootstrap_ratio(above, below)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda size: rng.normal(0.5, 0.2, size), 0.5),
        (lambda size: rng.beta(1.5, 3, size), 1 / 3),  # like the IoU of a middling explainer
        (lambda size: rng.random(size) < 0.3, 0.3),  # hits and misses of the pointing game
    ],
    ids=["normal", "skewed", "hits"],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(draw: object, truth: float) -> None:
    data = draw((1500, 200))  # type: ignore[operator]
    found = bootstrap_means(list(data), resamples=999)

    covered = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.93 <= covered <= 0.97


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says() -> None:
    def covers(seed: int) -> bool:
        own = np.random.default_rng(seed)
        union = own.integers(50, 400, size=120)
        found = bootstrap_ratio(union * own.beta(2, 3, size=120), union, resamples=399, seed=seed)
        return found.low <= 0.4 <= found.high

    assert 0.93 <= np.mean([covers(seed) for seed in range(600)]) <= 0.97


@pytest.mark.speed
def test_a_table_of_scores_costs_little_more_than_one() -> None:
    from time import perf_counter

    def seconds(columns: int) -> float:
        table = list(rng.random((columns, 500)))
        start = perf_counter()
        bootstrap_means(table)
        return perf_counter() - start

    seconds(1)
    assert min(seconds(100) for _ in range(3)) < 10 * min(seconds(1) for _ in range(3))
