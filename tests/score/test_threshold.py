import math
import pickle
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import RidgeClassifier

from lapbench.errors import ScoreError
from lapbench.score import StreamingFit, fit_ridge, fit_threshold, iou_by_threshold
from lapbench.score import threshold as room
from lapbench.score.pixels import without_ignored

from . import reference

DIAGONAL = np.broadcast_to(np.eye(3, 4, dtype=bool), (2, 3, 4))
SAME = "no separation: the mean score is {} inside the truth and outside"


def brighter_inside(n=6, size=(13, 9), area=0.2, contrast=0.5, noise=0.15, seed=0, dtype=np.float32):
    """Maps of noise that are brighter inside a box, their masks, non-square."""
    random = np.random.default_rng(seed)
    masks = np.zeros((n, *size), bool)
    side = math.sqrt(area)
    for mask in masks:
        h, w = max(1, round(size[0] * side)), max(1, round(size[1] * side))
        y, x = random.integers(0, size[0] - h + 1), random.integers(0, size[1] - w + 1)
        mask[y : y + h, x : x + w] = True
    return (0.3 + contrast * masks + noise * random.standard_normal(masks.shape)).astype(dtype), masks


def sklearn_threshold(maps, masks, *, class_weight="balanced", alpha=0.01, max_iter=100):
    """Scikit-learn asked directly, in float64."""
    ridge = RidgeClassifier(
        solver="lsqr", tol=1e-3, alpha=alpha, max_iter=max_iter, class_weight=class_weight
    )
    ridge.fit(maps.reshape(-1, 1).astype(np.float64), masks.reshape(-1))
    return float(-np.ravel(ridge.intercept_)[0] / np.ravel(ridge.coef_)[0]), float(np.ravel(ridge.coef_)[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("area", [0.02, 0.2, 0.8])
def test_both_fits_equal_scikit_learn_and_the_plain_means(seed, area):
    maps, masks = brighter_inside(seed=seed, area=area)
    wanted, slope = sklearn_threshold(maps, masks)
    for fit in (fit_ridge(maps, masks), StreamingFit().update(maps, masks).compute()):
        assert fit.threshold == pytest.approx(wanted, rel=1e-12)
        assert fit.threshold == pytest.approx(reference.threshold(maps, masks), rel=1e-12)
        assert fit.orientation == np.sign(slope) == 1
        assert fit.exists and not fit.inverted and fit.reason == ""
        assert (
            fit.n_maps == 6 and fit.n_pixels == maps.size and fit.n_inside == masks.sum() and fit.n_nan == 0
        )
        assert fit.mean_inside == pytest.approx(maps[masks].mean(dtype=np.float64))
        assert fit.mean_outside == pytest.approx(maps[~masks].mean(dtype=np.float64))


def test_the_penalty_and_the_iterations_do_not_matter():
    maps, masks = brighter_inside()
    ours = StreamingFit().update(maps, masks).compute().threshold
    for alpha, max_iter in [(1e-6, 100), (1.0, 1), (1e3, 100)]:
        assert sklearn_threshold(maps, masks, alpha=alpha, max_iter=max_iter)[0] == pytest.approx(
            ours, rel=1e-12
        )


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e20])
def test_the_fit_is_free_of_scale_where_the_unbalanced_one_is_not(scale):
    maps, masks = brighter_inside(area=0.02, size=(40, 30))
    scaled = maps.astype(np.float64) * scale
    expected = StreamingFit().update(maps.astype(np.float64), masks).compute().threshold * scale
    assert StreamingFit().update(scaled, masks).compute().threshold == pytest.approx(expected, rel=1e-12)
    if (
        scale == 1e-6
    ):  # raw gradients: without balance the cut leaves the range of the maps, so nothing is selected
        unbalanced, _ = sklearn_threshold(scaled, masks, class_weight=None, alpha=1.0)
        assert unbalanced > scaled.max()
        assert iou_by_threshold(scaled, masks, unbalanced).n_empty == len(maps)
        assert iou_by_threshold(scaled, masks, expected).n_empty == 0


def test_small_objects_keep_a_threshold_inside_the_range():
    # maps in [0, 1], an object brighter by 0.5 on 2 % of the area: 0.46 with balance, beyond all without
    random = np.random.default_rng(0)
    masks = np.zeros((200, 50, 50), bool)
    masks[:, 20:27, 20:27] = True  # 49 of 2,500 pixels: 2 %
    maps = np.clip(0.2 + 0.5 * masks + 0.15 * random.standard_normal(masks.shape), 0, 1).astype(np.float32)
    assert StreamingFit().update(maps, masks).compute().threshold == pytest.approx(0.46, abs=0.02)
    assert sklearn_threshold(maps, masks, class_weight=None)[0] > 1


@given(st.integers(1, 7), st.integers(0, 10_000))
@settings(max_examples=30)
def test_shards_in_any_order_and_division_give_the_same_bits(parts, seed):
    random = np.random.default_rng(seed)
    maps, masks = brighter_inside(n=9, size=(7, 5), seed=seed)
    maps *= np.float32(10.0) ** random.integers(
        -20, 20, size=(9, 1, 1)
    )  # sums that plain addition would lose
    whole = StreamingFit().update(maps, masks).compute()
    order = random.permutation(9)
    shards = [StreamingFit().update(maps[part], masks[part]) for part in np.array_split(order, parts)]
    left = StreamingFit()
    for shard in shards:
        left = left.merge(shard)
    right = StreamingFit()
    for shard in reversed(shards):
        right = shard.merge(right)
    assert asdict(left.compute()) == asdict(right.compute()) == asdict(whole)
    assert asdict(pickle.loads(pickle.dumps(left)).compute()) == asdict(whole)


@given(hnp.arrays(np.float64, (3, 4, 5), elements=st.floats(-1, 1)), hnp.arrays(np.bool_, (3, 4, 5)))
@settings(max_examples=60)
def test_streaming_equals_ridge_on_anything(maps, masks):
    ridge, streaming = fit_ridge(maps, masks), StreamingFit().update(maps, masks).compute()
    assert ridge.reason == streaming.reason
    if not ridge.exists:
        assert math.isnan(streaming.threshold)
    elif (
        abs(ridge.mean_inside - ridge.mean_outside) > 1e-6
    ):  # closer means leave scikit-learn's slope to rounding
        assert streaming.threshold == pytest.approx(ridge.threshold, rel=1e-9, abs=1e-12)
        assert streaming.orientation == ridge.orientation


def test_an_inverted_map_is_marked_and_either_selects_below_or_above():
    maps, masks = brighter_inside(contrast=-0.5)
    for method in ("ridge", "streaming"):
        literal = fit_threshold([(maps, masks)], method=method)
        assert literal.orientation == -1 and literal.inverted and literal.exists
        assert sklearn_threshold(maps, masks)[1] < 0
        above = fit_threshold([(maps, masks)], method=method, orientation="always-above")
        assert above.orientation == 1 and above.inverted and above.threshold == literal.threshold


@pytest.mark.parametrize("fit", [fit_ridge, lambda maps, masks: StreamingFit().update(maps, masks).compute()])
@pytest.mark.parametrize(
    ("maps", "masks", "reason"),
    [
        (np.full((2, 3, 4), 0.1, np.float32), DIAGONAL, SAME.format("0.1")),
        (np.zeros((2, 3, 4), np.float32), DIAGONAL, SAME.format("0")),
        (
            np.ones((2, 3, 4), np.float32),
            DIAGONAL & False,
            "no pixel of the fitting split lies inside the truth",
        ),
        (
            np.ones((2, 3, 4), np.float32),
            DIAGONAL | True,
            "every pixel of the fitting split lies inside the truth",
        ),
        (np.zeros((0, 3, 4), np.float32), DIAGONAL[:0], "no map to fit on"),
        (np.full((2, 3, 4), np.nan, np.float32), DIAGONAL, "no map to fit on: all 2 hold NaN or infinity"),
    ],
)
def test_where_no_threshold_exists_the_fit_is_nan_and_says_why(fit, maps, masks, reason):
    found = fit(maps, masks)
    assert math.isnan(found.threshold) and not found.exists and not found.inverted
    assert found.reason == reason


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_with_one_bad_pixel_is_left_out_whole_and_counted(bad):
    maps, masks = brighter_inside()
    spoilt = maps.copy()
    spoilt[2, 0, 0] = bad
    if np.isinf(bad):
        spoilt[4, 1, 1], spoilt[4, 2, 2] = bad, -bad
    kept = np.isfinite(spoilt).all(axis=(1, 2))
    wanted = fit_ridge(maps[kept], masks[kept])
    for fit in (fit_ridge(spoilt, masks), StreamingFit().update(spoilt, masks).compute()):
        assert fit.n_nan == (~kept).sum() and fit.n_maps == kept.sum() and fit.n_pixels == wanted.n_pixels
        assert fit.threshold == pytest.approx(wanted.threshold, rel=1e-12)


@pytest.mark.parametrize("method", ["ridge", "streaming"])
def test_pixels_that_do_not_count_are_as_if_they_were_not_there(method):
    maps, masks = brighter_inside()
    ignore = np.random.default_rng(1).random(maps.shape) < 0.3
    ignore[2], maps[3, 0, 0] = True, np.nan  # an image of which nothing counts, and a map that fails
    ignore[3, 0, 0] = True
    counted = [(maps[i][~ignore[i]], masks[i][~ignore[i]]) for i in (0, 1, 4, 5)]
    values, inside = (np.concatenate(part) for part in zip(*counted, strict=True))

    fit = fit_threshold(without_ignored(maps, masks, ignore), method=method)
    assert fit.threshold == pytest.approx(reference.threshold(values, inside), rel=1e-6)
    assert (fit.n_pixels, fit.n_inside, fit.n_nan) == (values.size, inside.sum(), 1)
    [(values, inside)] = without_ignored(maps, masks, None)
    assert values is maps and inside is masks
    with pytest.raises(ScoreError, match=r"regions to ignore .* must have the shape of the masks"):
        list(without_ignored(maps, masks, ignore[:2]))


def test_auto_changes_over_at_the_named_size(monkeypatch):
    maps, masks = brighter_inside(n=10)
    parts = [(maps[:5], masks[:5]), (maps[5:], masks[5:])]
    monkeypatch.setattr(room, "RIDGE_PIXELS", maps.size)
    small = fit_threshold(parts)
    monkeypatch.setattr(room, "RIDGE_PIXELS", maps.size - 1)
    large = fit_threshold(iter(parts))
    assert (small.method, large.method) == ("ridge", "streaming")
    assert large.threshold == pytest.approx(small.threshold, rel=1e-12)
    assert fit_threshold(parts, method="ridge").method == "ridge"
    assert fit_threshold(parts[:1], method="streaming").method == "streaming"
    assert fit_threshold([]).reason == "no map to fit on"


def test_images_without_truth_enter_unless_positives_are_asked_for():
    maps, masks = brighter_inside(n=4)
    masks[1] = False
    everything = fit_threshold([(maps, masks)])
    positives = fit_threshold([(maps, masks)], images="positives")
    assert everything.threshold == pytest.approx(sklearn_threshold(maps, masks)[0], rel=1e-12)
    rest = [0, 2, 3]
    assert positives.threshold == pytest.approx(sklearn_threshold(maps[rest], masks[rest])[0], rel=1e-12)
    assert (everything.n_maps, positives.n_maps) == (4, 3)


def test_shapes_that_do_not_fit_are_named():
    maps, masks = brighter_inside(n=2)
    with pytest.raises(
        ScoreError, match=r"maps \(2, 13, 9\) and masks \(2, 9, 13\) must have the same shape"
    ):
        fit_threshold([(maps, masks.transpose(0, 2, 1))])
    with pytest.raises(ScoreError, match=r"masks must be bool \(n, H, W\); found uint8 \(2, 13, 9\)"):
        StreamingFit().update(maps, masks.astype(np.uint8))
    with pytest.raises(
        ScoreError, match=r"maps must be floating-point numbers \(n, H, W\); found float32 \(13, 9\)"
    ):
        fit_ridge(maps[0], masks[0])


def test_memory_does_not_grow_with_pixels():
    def peak(parts):
        maps, masks = brighter_inside(n=5, size=(100, 90))
        fit = StreamingFit()
        tracemalloc.start()
        for _ in range(parts):
            fit.update(maps, masks)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(40) < 1.1 * peak(4)
