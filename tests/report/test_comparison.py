import math

import numpy as np
import pytest
from scipy import stats

from lapbench.report.comparison import adjusted, compare, detectable_effect

rng = np.random.default_rng(31)


def test_one_training_is_a_paired_bootstrap_and_a_signed_rank_test() -> None:
    ours, theirs = rng.beta(2, 3, (2, 60))
    interval = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        n_resamples=499,
        rng=np.random.default_rng(0),
    ).confidence_interval

    found = compare(ours, theirs, resamples=499)
    assert found.n == 60
    assert found.difference == pytest.approx((ours - theirs).mean(), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-8)
    assert found.p_value == pytest.approx(stats.wilcoxon(ours, theirs).pvalue, rel=1e-12)
    assert found.superiority == np.mean(ours > theirs)


def test_the_signed_rank_test_splits_zeros() -> None:
    ours, theirs = rng.integers(0, 4, (2, 60)) / 3

    found = compare(ours, theirs, resamples=99)
    assert found.p_value == stats.wilcoxon(np.round(ours - theirs, 9), zero_method="zsplit").pvalue
    assert found.superiority == np.mean(ours > theirs) + np.mean(ours == theirs) / 2


def test_swapping_the_rows_turns_the_difference() -> None:
    ours, theirs = rng.beta(2, 3, (2, 3, 40))
    one, other = compare(ours, theirs), compare(theirs, ours)

    assert one.difference == -other.difference
    assert one.p_value == pytest.approx(other.p_value, rel=1e-9)
    assert one.superiority == pytest.approx(1 - other.superiority)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.002)  # other resamples


def test_no_difference_is_no_doubt() -> None:
    ours = rng.random((2, 30))

    for pair in ((ours, ours), (ours[0], ours[0]), ([0.1 + 0.2], [0.3])):
        found = compare(*pair)
        assert (found.difference, found.p_value, found.superiority) == (0, 1, 0.5)
    assert (compare(ours, ours).low, compare(ours, ours).high) == (0, 0)


def test_the_same_difference_in_every_image_is_sure() -> None:
    theirs = rng.random((2, 30))
    found = compare(theirs + 0.25, theirs)

    assert (found.low, found.high, found.p_value) == (0.25, 0.25, 0)
    assert compare(theirs[0] + 0.25, theirs[0]).p_value < 1e-6


def test_images_without_a_score_are_left_out() -> None:
    ours, theirs = rng.random((2, 40))
    with_holes = np.insert(ours, [0, 7], [np.nan, 0.5]), np.insert(theirs, [0, 7], [0.5, np.nan])

    assert compare(*with_holes) == compare(ours, theirs)


def test_one_image_has_a_difference_and_no_interval() -> None:
    found = compare([0.5], [0.25])

    assert (found.n, found.difference, found.p_value) == (1, 0.25, 1)
    assert math.isnan(found.low)


def test_what_cannot_be_compared_says_why() -> None:
    with pytest.raises(ValueError, match=r"the same images, found shapes \(1, 3\) and \(1, 4\)"):
        compare(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"none of 2 images has a score in both rows"):
        compare([0.1, np.nan], [np.nan, 0.1])
    with pytest.raises(ValueError, match="none of 0 images"):
        compare([], [])


def test_trainings_alone_are_a_t_test() -> None:
    per_training = rng.normal(0.1, 0.1, 5)
    ours = np.repeat(per_training[:, None], 30, axis=1)  # all images alike
    slow = stats.ttest_1samp(per_training, 0)

    found = compare(ours, np.zeros((5, 30)))
    assert found.p_value == pytest.approx(slow.pvalue, rel=1e-6)
    wanted = slow.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-8)


def test_other_numbers_of_trainings_are_a_test_of_welch() -> None:
    first, second = rng.normal(0.3, 0.1, 5), rng.normal(0.2, 0.2, 3)
    slow = stats.ttest_ind(first, second, equal_var=False)

    found = compare(np.repeat(first[:, None], 30, axis=1), np.repeat(second[:, None], 30, axis=1))
    assert found.p_value == pytest.approx(slow.pvalue, rel=1e-6)
    wanted = slow.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-8)


def test_equal_trainings_are_no_more_images() -> None:
    ours, theirs = rng.random((2, 40))
    once, thrice = compare(ours, theirs), compare([ours] * 3, [theirs] * 3)

    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=1e-9)
    assert thrice.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-6)


def test_one_training_against_many() -> None:
    ours, theirs = rng.random((3, 40)), rng.random(40)

    assert compare(ours, theirs) == compare(ours, [theirs])
    assert compare(ours, theirs).p_value == pytest.approx(compare(ours, [theirs] * 3).p_value, rel=1e-6)


@pytest.mark.parametrize("trainings", [2, 3, 5])
def test_the_interval_ends_at_zero_where_the_test_has_its_level(trainings: int) -> None:
    ours = rng.normal(0, 0.1, (trainings, 1)) + rng.normal(0, 0.1, (trainings, 4000))
    found = compare(ours, np.zeros_like(ours), resamples=999)
    end = found.low if found.difference > 0 else found.high

    assert compare(ours - end, np.zeros_like(ours), resamples=9).p_value == pytest.approx(0.05, rel=0.05)


def test_many_p_values_are_corrected_by_the_share_of_false_alarms() -> None:
    values = rng.random(20) ** 3
    order = np.argsort(values)
    slow = np.empty(20)
    for place, index in enumerate(order):  # the smallest of m·p(j)/j over all j from here on
        slow[index] = min(20 * values[order[j]] / (j + 1) for j in range(place, 20))

    np.testing.assert_allclose(adjusted(values), np.minimum(slow, 1), rtol=1e-12)
    assert adjusted([]).size == 0


def test_the_detectable_effect_in_closed_form() -> None:
    differences = rng.normal(0, 0.2, 100)
    error = differences.std(ddof=1) / 10
    wanted = (stats.t.ppf(0.975, 99) + stats.t.ppf(0.8, 99)) * error

    assert detectable_effect(differences) == pytest.approx(wanted, rel=1e-9)
    assert detectable_effect([*differences, np.nan]) == pytest.approx(wanted, rel=1e-9)
    assert detectable_effect([differences] * 4) == pytest.approx(wanted, rel=1e-9), "no more images"
    assert detectable_effect(differences, alpha=0.01, power=0.9) > wanted
    assert detectable_effect(np.full(10, 0.3)) == pytest.approx(0, abs=1e-15)
    assert math.isnan(detectable_effect([0.1]))


def scores(trainings: int, images: int, effect: float, own: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Two rows of the same networks: hard images, better and worse trainings, and what is left."""
    image = own.beta(2, 3, images) - 0.4
    pair = []
    for mean in (0.4 + effect, 0.4):
        training = own.normal(0, 0.02, (trainings, 1)) if trainings > 1 else 0
        pair.append(mean + image + training + own.gamma(2, 0.05, (trainings, images)) - 0.1)
    return tuple(pair)


def simulate(trainings: int, effect: float, times: int, resamples: int = 299) -> tuple[float, float]:
    """How often the interval covers the effect, and how often the test finds one at the level 0.05."""
    covered = found = 0
    for seed in range(times):
        own = np.random.default_rng([seed, trainings])
        result = compare(*scores(trainings, 80, effect, own), resamples=resamples, seed=seed)
        covered += result.low <= effect <= result.high
        found += result.p_value <= 0.05
    return covered / times, found / times


@pytest.mark.parametrize("trainings", [1, 3])
def test_without_an_effect_there_are_no_more_alarms_than_said(trainings: int) -> None:
    covered, alarms = simulate(trainings, 0.0, 500)

    assert 0.93 <= covered <= 0.97
    assert alarms <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1, 3, 5, 10])
def test_without_an_effect_there_are_no_more_alarms_than_said_in_many_draws(trainings: int) -> None:
    covered, alarms = simulate(trainings, 0.01, 4000, resamples=999)
    assert 0.93 <= covered <= 0.97

    covered, alarms = simulate(trainings, 0.0, 4000, resamples=999)
    assert 0.93 <= covered <= 0.97
    assert alarms <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 4000)


def test_the_detectable_effect_is_found_as_often_as_said() -> None:
    """Over 60 images with the spread of the simulation, by Student's t and by the signed-rank test alike."""
    spread = math.sqrt(2 * 2 * 0.05**2)  # of the difference of two gamma(2, 0.05)
    effect = detectable_effect(np.array([-1, 1] * 30) * spread * math.sqrt(59 / 60))
    found = 0
    for seed in range(400):
        ours, theirs = scores(1, 60, effect, np.random.default_rng(seed))
        found += stats.ttest_rel(ours[0], theirs[0]).pvalue <= 0.05
    assert 0.75 <= found / 400 <= 0.85

    _, by_rank = simulate(1, effect * math.sqrt(60 / 80), 300, resamples=9)
    assert by_rank >= 0.75
