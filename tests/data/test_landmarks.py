import numpy as np
import pytest

from lapbench.data.landmarks import check_points, fractions, landmark_names, landmark_scores, outside, squares
from lapbench.types import Box

EYES_AND_NOSE = tuple(f"{name}_{axis}" for name in ("left_eye", "right_eye", "nose") for axis in "xy")


def test_names_come_in_pairs():
    assert landmark_names(EYES_AND_NOSE) == ("left_eye", "right_eye", "nose")
    for wrong in ((), ("nose_x",), ("nose_y", "nose_x"), ("nose_x", "chin_y"), ("nose", "chin")):
        with pytest.raises(ValueError, match="landmarks have two targets each, NAME_x and NAME_y"):
            landmark_names(wrong)


def test_squares_are_the_truth_of_both_coordinates():
    box = Box(8, 18, 12, 22)
    assert squares(("nose",), [(10, 20)], 4) == [("nose_x", box), ("nose_y", box)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((1, 2), "wanted 6 coordinates, two a landmark, found 2"),
        ((1, 2, 3, 4, 5, float("nan")), "coordinates must be finite numbers"),
    ],
)
def test_points_that_are_none(answer, message):
    with pytest.raises(ValueError, match=message):
        check_points(answer, EYES_AND_NOSE)


def test_what_lies_outside():
    assert outside((0, 0, 20, 10, 20.5, 3, 4, -1), (10, 20)) == [(20.5, 3), (4, -1)]


def test_fractions_are_those_of_the_window():
    np.testing.assert_allclose(fractions((10, 20, 15, 30), (10, 10, 30, 50)), [0, 0.25, 0.25, 0.5])


@pytest.mark.parametrize("targets", [EYES_AND_NOSE, ("a_x", "a_y", "b_x", "b_y", "c_x", "c_y")])
def test_errors_by_hand(targets):
    """One image after the other, one landmark after the other, in pixels of an image 40 high and 80 wide."""
    rng = np.random.default_rng(0)
    truth, found = rng.random((5, 6), dtype=np.float32), rng.random((2, 5, 6), dtype=np.float32)
    found[0] = truth + rng.normal(0, 0.02, (5, 6))
    scores = landmark_scores(found, truth, targets, (40, 80))
    for seed in range(2):
        for image in range(5):
            w, g = (
                [(v[2 * k] * 80, v[2 * k + 1] * 40) for k in range(3)]
                for v in (truth[image], found[seed, image])
            )
            unit = (
                ((w[0][0] - w[1][0]) ** 2 + (w[0][1] - w[1][1]) ** 2) ** 0.5
                if targets is EYES_AND_NOSE
                else 3200**0.5
            )
            off = [((a - c) ** 2 + (b - d) ** 2) ** 0.5 / unit for (a, b), (c, d) in zip(w, g, strict=True)]
            assert scores["normalised_error"][seed, image] == pytest.approx(sum(off) / 3, rel=1e-5)
            assert scores["landmark_accuracy"][seed, image] == sum(one < 0.1 for one in off) / 3


def test_eyes_at_one_point_have_no_error():
    truth = np.full((1, 6), 0.5, np.float32)
    assert np.isnan(landmark_scores(truth, truth, EYES_AND_NOSE, (8, 8))["normalised_error"]).all()
