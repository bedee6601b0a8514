import math

import numpy as np
import pytest
from scipy import stats

from lapbench.report.statistics import (
    BCA_LIMIT,
    Interval,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_ratio,
    spread,
)

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


def test_an_image_without_a_score_in_any_training_is_left_out() -> None:
    table = rng.random((3, 40))
    table[1, 5] = np.nan

    found = bootstrap_mean(table, resamples=499)
    assert found == bootstrap_mean(np.delete(table, 5, axis=1), resamples=499)
    assert (found.mean, found.n) == (pytest.approx(np.delete(table, 5, axis=1).mean()), 39)


def test_trainings_are_no_further_images() -> None:
    values = rng.random(40)

    once, thrice = bootstrap_mean(values, resamples=499), bootstrap_mean([values] * 3, resamples=499)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-8)


def test_where_all_images_are_alike_trainings_have_the_interval_of_student() -> None:
    per_training = rng.random(4)
    wanted = stats.ttest_1samp(per_training, 0).confidence_interval(0.9)

    found = bootstrap_mean(np.repeat(per_training[:, None], 30, axis=1), confidence=0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-8)
    assert found.n == 30


def test_images_and_trainings_add_up_as_in_cochran() -> None:
    """By plain loops, from the mean squares of images × trainings."""
    table = rng.beta(2, 3, 30) + rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 0.05, (3, 30))
    mean, by_image, by_training = table.mean(), table.mean(axis=0), table.mean(axis=1)
    rest = sum(
        (table[s, i] - by_image[i] - by_training[s] + mean) ** 2 for s in range(3) for i in range(30)
    ) / (2 * 29 * 3 * 30)  # fmt: skip
    training = sum((value - mean) ** 2 for value in by_training) / 2 / 3
    over_images = sum((value - mean) ** 2 for value in by_image) / 29 / 30
    images = over_images - rest
    only = bootstrap_mean(by_image)  # with its own, skewed quantiles
    below, above = ((mean - only.low) / over_images**0.5, (only.high - mean) / over_images**0.5)
    t = stats.t.ppf(0.975, 2)
    low = mean - (images * below + training * t) / (images + training) ** 0.5
    high = mean + (images * above + training * t) / (images + training) ** 0.5

    found = bootstrap_mean(table)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-8)
    parts = spread(table)
    assert (parts.images, parts.trainings) == pytest.approx((images, training))
    assert (parts.images_freedom, parts.trainings_freedom) == (29, 2)


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
        ValueError, match=r"values are \(images,\) or \(trainings, images\), found shape \(2, 2, 2\)"
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


def test_a_pooled_ratio_of_several_trainings() -> None:
    union = rng.integers(20, 400, size=60)
    intersection = (union * rng.random(60)).astype(int)
    once, thrice = (
        bootstrap_ratio(above, below, resamples=499)
        for above, below in ((intersection, union), ([intersection] * 3, [union] * 3))
    )
    assert (thrice.mean, thrice.n) == (pytest.approx(once.mean), 60)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-8)

    ratios = np.array([0.2, 0.3, 0.5])[:, None]  # every image has that of its training
    wanted = stats.ttest_1samp(ratios.ravel(), 0).confidence_interval(0.95)
    found = bootstrap_ratio(ratios * np.full(60, 100), np.full((3, 60), 100))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-8)


def test_a_pooled_ratio_at_its_limits() -> None:
    assert bootstrap_ratio([1, 2, 4], [2, 4, 8]) == Interval(0.5, 0.5, 0.5, 3)
    assert math.isnan(bootstrap_ratio([], []).mean)
    single = bootstrap_ratio([1], [4])
    assert (single.mean, single.n, math.isnan(single.low)) == (0.25, 1, True)
    with pytest.raises(ValueError, match=r"two tables of one shape, found shapes \(1, 2\) and \(1, 3\)"):
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


def crossed(trainings: int, images: int, by_training: float, own: np.random.Generator) -> np.ndarray:
    """Scores of mean 0.4, (trainings, images): skewed over images, and with a rest of both."""
    image = own.beta(2, 3, images)
    return image + own.normal(0, by_training, (trainings, 1)) + own.normal(0, 0.1, (trainings, images))


def coverage(trainings: int, by_training: float, times: int, resamples: int) -> float:
    def covers(seed: int) -> bool:
        table = crossed(trainings, 100, by_training, np.random.default_rng([seed, trainings]))
        found = bootstrap_mean(table, resamples=resamples, seed=seed)
        return found.low <= 0.4 <= found.high

    return float(np.mean([covers(seed) for seed in range(times)]))


def test_the_interval_over_trainings_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.93 <= coverage(3, 0.03, times=600, resamples=299) <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [3, 5, 10])
@pytest.mark.parametrize("by_training", [0.0, 0.01, 0.1])
def test_the_interval_over_trainings_covers_the_truth_in_many_draws(
    trainings: int, by_training: float
) -> None:
    assert 0.93 <= coverage(trainings, by_training, times=4000, resamples=999) <= 0.97


@pytest.mark.slow
def test_the_interval_over_two_trainings_is_careful() -> None:
    for by_training in (0.0, 0.01, 0.1):  # with one degree of freedom no interval is exact; too wide is safe
        assert 0.94 <= coverage(2, by_training, times=2000, resamples=999) <= 0.99


def test_resampling_trainings_would_cover_far_too_little() -> None:
    """Why their part is Student's t: three trainings and images drawn again, percentiles of the means."""
    covered = 0
    for seed in range(300):
        own = np.random.default_rng(seed)
        table = crossed(3, 100, 0.1, own)
        drawn = own.integers(0, 3, (999, 3))
        images = own.multinomial(100, [0.01] * 100, 999) / 100
        means = (table.mean(axis=1)[drawn].mean(axis=1)) + images @ table.mean(axis=0) - table.mean()
        low, high = np.percentile(means, [2.5, 97.5])
        covered += low <= 0.4 <= high
    assert covered / 300 < 0.87


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
