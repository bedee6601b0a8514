import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.classification import BinaryJaccardIndex

from lapbench.errors import ScoreError
from lapbench.score import (
    ImageScores,
    Localisation,
    apply_sign,
    energy_inside,
    fit_threshold,
    iou_both_ways,
    iou_by_threshold,
    iou_top_k,
    localise,
    normalise,
    pointing_game,
    predict_mask,
    scale_by_max,
    upsample,
)

from . import reference

H, W = 11, 7  # not square: an exchange of rows and columns shows

finite = st.floats(-4, 4, width=32)
coarse = st.sampled_from([-1.0, 0.0, 0.25, 1.0])  # many ties


def some(n=5, size=(H, W), seed=0):
    """Random maps and masks (never empty)."""
    random = np.random.default_rng(seed)
    masks = random.random((n, *size)) < 0.3
    masks[:, 2, 1] = True
    return random.standard_normal((n, *size)).astype(np.float32), masks


def stacks(values):
    """Strategies for maps and masks of one shape."""
    return hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
        lambda shape: st.tuples(hnp.arrays(np.float32, shape, elements=values), hnp.arrays(np.bool_, shape))
    )


# --- IoU


@given(stacks(st.one_of(finite, coarse)), st.floats(-2, 2), st.sampled_from([1, -1]))
@settings(max_examples=80)
def test_iou_by_threshold_equals_the_loop_over_pixels(stack, threshold, orientation):
    maps, masks = stack
    scores = iou_by_threshold(maps, masks, threshold, orientation)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        predicted = np.float64(values) > threshold if orientation == 1 else np.float64(values) < threshold
        if mask.any():
            assert scores.iou[i] == reference.iou(predicted, mask)
            assert (
                scores.selected[i] == predicted.sum() and scores.intersection[i] == (predicted & mask).sum()
            )
            assert scores.union[i] == (predicted | mask).sum()
        else:
            assert math.isnan(scores.iou[i]) and scores.union[i] == 0
    assert np.array_equal(scores.truth, masks.sum(axis=(1, 2)))
    assert not scores.tied.any() and not scores.failed.any()


@given(stacks(st.one_of(finite, coarse)))
@settings(max_examples=80)
def test_top_k_equals_a_stable_sort_of_all_pixels(stack):
    maps, masks = stack
    scores = iou_top_k(maps, masks)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        k = mask.sum()
        if k:
            chosen = reference.top_k_mask(values, k)
            assert scores.iou[i] == reference.iou(chosen, mask)
            assert scores.selected[i] == k
            cut = values[chosen].min()
            by_rule = (chosen & (values == cut)).sum() if (~chosen & (values == cut)).any() else 0
            assert scores.tied[i] == by_rule / k
        else:
            assert math.isnan(scores.iou[i])


@pytest.mark.parametrize("kind", ["dense", "relu", "few", "constant"])
def test_top_k_of_large_maps_equals_argsort_whichever_way_the_cut_is_found(kind):
    random = np.random.default_rng(1)
    maps = random.standard_normal((3, 97, 61)).astype(np.float32)
    maps = {
        "dense": maps,
        "relu": np.maximum(maps, 0),
        "few": np.round(maps),
        "constant": np.ones_like(maps),
    }[kind]
    for area in (1, 500, 97 * 61 - 1, 97 * 61):
        masks = np.zeros(maps.shape, bool)
        masks.reshape(3, -1)[:, random.permutation(97 * 61)[:area]] = True
        scores = iou_top_k(maps, masks)
        for i in range(3):
            first = np.argsort(-maps[i].ravel(), kind="stable")[:area]
            common = masks[i].ravel()[first].sum()
            assert scores.intersection[i] == common and scores.iou[i] == common / (2 * area - common)


def test_iou_equals_torchmetrics():
    maps, masks = some(n=8)
    by_threshold, top_k = iou_both_ways(maps, masks, 0.4)
    for i in range(8):
        metric = BinaryJaccardIndex()
        mask = torch.from_numpy(masks[i])
        assert by_threshold.iou[i] == pytest.approx(
            float(metric(torch.from_numpy(maps[i] > 0.4), mask)), rel=1e-6
        )
        chosen = torch.from_numpy(reference.top_k_mask(maps[i], masks[i].sum()))
        assert top_k.iou[i] == pytest.approx(float(BinaryJaccardIndex()(chosen, mask)), rel=1e-6)
    pooled = BinaryJaccardIndex()(torch.from_numpy(maps > 0.4), torch.from_numpy(masks))
    assert by_threshold.mean("pooled") == pytest.approx(float(pooled), rel=1e-6)
    assert by_threshold.mean() == pytest.approx(by_threshold.iou.mean())


def test_both_ways_in_one_pass_are_the_two():
    maps, masks = some()
    for together, alone in zip(
        iou_both_ways(maps, masks, -0.2, -1),
        (iou_by_threshold(maps, masks, -0.2, -1), iou_top_k(maps, masks)),
        strict=True,
    ):
        for name in ImageScores.__dataclass_fields__:
            assert np.array_equal(getattr(together, name), getattr(alone, name), equal_nan=True)


def test_top_k_iou_follows_from_precision():
    maps, masks = some(n=20)
    scores = iou_top_k(maps, masks)
    precision = scores.intersection / scores.selected
    assert scores.iou == pytest.approx(precision / (2 - precision))


@given(stacks(st.just(0.0)))
@settings(max_examples=40)
def test_the_oracle_scores_one(stack):
    _, masks = stack
    has_truth = masks.any(axis=(1, 2))
    oracle = masks.astype(np.float32)
    for scores in iou_both_ways(oracle, masks, 0.5):
        assert np.all(scores.iou[has_truth] == 1) and np.all(np.isnan(scores.iou[~has_truth]))
    assert np.all(pointing_game(oracle, masks)[has_truth] == 1)
    assert np.all(energy_inside(oracle, masks)[has_truth] == 1)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_random_map_scores_the_floor(share):
    random = np.random.default_rng(0)
    masks = np.zeros((150, 40, 50), bool)
    masks[:, :, : int(50 * share)] = True
    maps = random.random(masks.shape, dtype=np.float32)
    assert iou_top_k(maps, masks).mean() == pytest.approx(share / (2 - share), abs=0.01)
    assert energy_inside(maps, masks).mean() == pytest.approx(share, abs=0.01)


@given(stacks(finite), st.integers(-20, 20))
@settings(max_examples=40)
def test_scores_lie_in_bounds_and_are_free_of_scale(stack, power):
    maps, masks = stack
    scores = iou_top_k(maps, masks)
    scored = np.isfinite(scores.iou)
    assert np.all((scores.iou[scored] >= 0) & (scores.iou[scored] <= 1))
    assert np.array_equal(scored, masks.any(axis=(1, 2)))
    assert np.array_equal(iou_top_k(maps * np.float32(2.0**power), masks).iou, scores.iou, equal_nan=True)
    assume(maps.max() > 1e-3)
    assert np.array_equal(
        scale_by_max(maps.astype(np.float64)), scale_by_max(maps.astype(np.float64) * 2.0**power)
    )  # powers of two, which no rounding touches


@given(stacks(st.one_of(finite, coarse)), st.floats(-2, 2), st.sampled_from([1, -1]))
@settings(max_examples=80)
def test_one_pass_over_ranked_pixels_equals_score_by_score(stack, threshold, orientation):
    maps, masks = stack
    normal = normalise(maps, masks.shape[1:])
    ways = {"selections": ("threshold", "top-k"), "threshold": threshold, "orientation": orientation}
    together = localise(maps, masks, **ways, tolerance=1.5)
    for name, alone in zip(together.iou, iou_both_ways(normal, masks, threshold, orientation), strict=True):
        for part in fields(ImageScores):
            found, wanted = getattr(together.iou[name], part.name), getattr(alone, part.name)
            assert np.array_equal(found, wanted, equal_nan=True), part.name
    assert np.array_equal(together.pointing, pointing_game(normal, masks), equal_nan=True)
    near = pointing_game(normal, masks, tolerance=1.5)
    assert np.array_equal(together.tolerant_pointing, near, equal_nan=True)
    assert np.array_equal(together.energy, energy_inside(normal, masks), equal_nan=True)


@given(stacks(st.one_of(finite, coarse)), st.sampled_from([0.0, 1.0, 1.5, 2.0, 5.0]))
@settings(max_examples=80)
def test_the_tolerant_pointing_game_equals_a_loop(stack, tolerance):
    maps, masks = stack
    for value, image, mask in zip(pointing_game(maps, masks, tolerance=tolerance), maps, masks, strict=True):
        if mask.any():
            assert value == pytest.approx(reference.near(image, mask, tolerance))
        else:
            assert math.isnan(value)


def test_the_order_of_images_does_not_matter_and_shards_join():
    maps, masks = some(n=9)
    masks[3] = False
    maps[5, 0, 0] = np.nan
    whole = localise(
        maps, masks, selections=("threshold", "top-k", "native"), threshold=0.3, native_threshold=0.5
    )
    order = np.random.default_rng(0).permutation(9)
    parts = [
        localise(
            maps[p],
            masks[p],
            selections=("threshold", "top-k", "native"),
            threshold=0.3,
            native_threshold=0.5,
        )
        for p in np.array_split(order, 4)
    ]
    joined = Localisation.join(parts)
    for name in ("threshold", "top-k", "native"):
        assert np.array_equal(joined.iou[name].iou, whole.iou[name].iou[order], equal_nan=True)
        assert np.array_equal(joined.iou[name].failed, whole.iou[name].failed[order])
    assert np.array_equal(joined.pointing, whole.pointing[order], equal_nan=True)
    assert np.array_equal(joined.energy, whole.energy[order], equal_nan=True)
    with pytest.raises(ScoreError, match="there are no scores to join"):
        Localisation.join([])


def test_rows_and_columns_are_not_exchanged():
    maps, masks = np.zeros((1, 4, 9), np.float32), np.zeros((1, 4, 9), bool)
    maps[0, 1, 7] = 1
    masks[0, 1, 7] = True
    assert (
        iou_top_k(maps, masks).iou[0] == pointing_game(maps, masks)[0] == energy_inside(maps, masks)[0] == 1
    )
    wide = upsample(maps, (8, 27), "nearest")
    assert np.array_equal(np.argwhere(wide[0] == 1), [(y, x) for y in (2, 3) for x in (21, 22, 23)])


# --- ties, thresholds, predicted masks


def test_ties_are_cut_in_row_major_order_and_their_share_is_told():
    maps = np.array([[[1, 5, 5], [5, 9, 5]]], np.float32)
    masks = np.array([[[True, True, False], [False, True, False]]])
    scores = iou_top_k(maps, masks)  # k = 3: the 9 and the first two of four 5s
    assert scores.selected[0] == 3 and scores.tied[0] == 2 / 3
    assert scores.intersection[0] == 2 and scores.iou[0] == 2 / 4
    all_ties_fit = np.ones_like(masks)
    assert iou_top_k(maps, all_ties_fit).tied[0] == 0


def test_a_pixel_at_the_threshold_is_outside_even_where_float32_would_round_it_in():
    pixel = np.float32(0.1)  # is 0.100000001490116
    maps = np.full((1, 1, 2), pixel)
    assert not predict_mask(maps, float(pixel)).any() and not predict_mask(maps, float(pixel), -1).any()
    assert predict_mask(maps, 0.1).all() and not predict_mask(maps, 0.1, -1).any()
    above = float(pixel) + 1e-12  # rounds to the pixel's own value in float32
    assert not predict_mask(maps, above).any() and predict_mask(maps, above, -1).all()


def test_no_threshold_predicts_nothing_and_fails_every_map():
    maps, masks = some()
    with pytest.raises(ScoreError, match="there is no threshold to predict a mask with"):
        predict_mask(maps, math.nan)
    scores = iou_by_threshold(maps, masks, math.nan)
    assert scores.failed.all() and scores.n_failed == 5 and scores.n_scored == 0 and math.isnan(scores.mean())
    assert scores.n_empty == 0


def test_an_inverted_fit_scores_with_the_pixels_below():
    maps, masks = some()
    maps[masks] -= 5
    fit = fit_threshold([(maps, masks)])
    assert fit.orientation == -1
    assert iou_by_threshold(maps, masks, fit.threshold, fit.orientation).mean() > 0.9
    assert iou_by_threshold(maps, masks, fit.threshold).mean() < 0.1


# --- what is not a score


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_with_one_bad_pixel_never_scores(bad):
    maps, masks = some()
    maps[1, 3, 3] = bad
    for scores in iou_both_ways(maps, masks, 0.2):
        assert scores.failed.tolist() == [False, True, False, False, False]
        assert (
            math.isnan(scores.iou[1]) and scores.n_failed == 1 and scores.n_scored == 4 and scores.n_flat == 0
        )
        assert math.isfinite(scores.mean()) and math.isfinite(scores.mean("pooled"))
    assert np.array_equal(np.isnan(pointing_game(maps, masks)), scores.failed)
    assert np.array_equal(np.isnan(energy_inside(maps, masks)), scores.failed)
    for mode in ("bilinear", "nearest"):
        for order in ("upsample-scale", "scale-upsample"):
            grown = normalise(maps, (22, 14), mode=mode, order=order)
            assert np.array_equal(~np.isfinite(grown).all(axis=(1, 2)), scores.failed)


def test_a_map_of_nothing_but_minus_infinity_is_not_taken_for_a_flat_one():
    maps = np.full((1, 2, 2), -np.inf, np.float32)
    assert iou_top_k(scale_by_max(maps), np.ones((1, 2, 2), bool)).n_failed == 1


def test_all_maps_nan_leaves_no_mean():
    _, masks = some()
    scores = iou_top_k(np.full(masks.shape, np.nan, np.float32), masks)
    assert scores.n_failed == 5 and math.isnan(scores.mean()) and math.isnan(scores.mean("pooled"))


def test_images_without_truth_are_counted_not_scored():
    maps, masks = some()
    masks[[0, 4]] = False
    maps[4, 0, 0] = np.nan
    for scores in iou_both_ways(maps, masks, 0.2):
        assert scores.n_no_truth == 2 and scores.n_scored == 3 and scores.n_failed == 0
        assert np.array_equal(np.isnan(scores.iou), [True, False, False, False, True])
    assert (
        np.isnan(pointing_game(maps, masks)[[0, 4]]).all()
        and np.isnan(energy_inside(maps, masks)[[0, 4]]).all()
    )


def test_flat_maps_and_empty_predictions_are_counted():
    maps, masks = some()
    maps[2] = 0.7
    maps[3] = -1.0
    scores = iou_by_threshold(scale_by_max(maps), masks, 0.99)
    assert scores.flat.tolist() == [False, False, True, True, False] and scores.n_flat == 2
    assert scores.selected[2] == H * W  # the constant positive map is 1 everywhere
    assert scores.n_empty == 1 and scores.iou[3] == 0
    assert pointing_game(maps, masks)[2] == pytest.approx(
        masks[2].mean()
    )  # every pixel is a peak: ties share
    assert math.isnan(energy_inside(maps, masks)[3])


def test_stacks_without_images_and_images_without_pixels():
    maps, masks = np.zeros((0, 3, 4), np.float32), np.zeros((0, 3, 4), bool)
    scores = iou_top_k(maps, masks)
    assert len(scores) == 0 and math.isnan(scores.mean())
    assert len(pointing_game(maps, masks)) == len(energy_inside(maps, masks)) == 0
    assert normalise(maps, (6, 8)).shape == (0, 6, 8)
    with pytest.raises(ScoreError, match=r"maps \(2, 0, 4\) have no pixels"):
        iou_top_k(np.zeros((2, 0, 4), np.float32), np.zeros((2, 0, 4), bool))


def test_what_does_not_fit_is_named():
    maps, masks = some(n=2)
    with pytest.raises(
        ScoreError, match=r"maps \(2, 11, 7\) and masks \(2, 7, 11\) must have the same shape"
    ):
        iou_top_k(maps, masks.transpose(0, 2, 1))
    with pytest.raises(ScoreError, match=r"maps \(1, 11, 7\) and masks \(2, 11, 7\)"):
        localise(maps[:1], masks, selections=("top-k",))
    with pytest.raises(ScoreError, match=r"masks must be bool \(n, H, W\); found float32 \(2, 11, 7\)"):
        pointing_game(maps, maps)
    with pytest.raises(ScoreError, match=r"floating-point numbers \(n, H, W\); found int64 \(2, 11, 7\)"):
        energy_inside(maps.astype(np.int64), masks)
    with pytest.raises(ScoreError, match=r"maps of \(11, 7\) pixels cannot be brought to \(0, 5\) pixels"):
        upsample(maps, (0, 5))
    with pytest.raises(ScoreError, match=r"masks must be bool \(n, H, W\); found bool \(11, 7\)"):
        localise(maps, masks[0], selections=("top-k",))


# --- pointing game and energy


@given(stacks(coarse))
@settings(max_examples=60)
def test_pointing_game_and_energy_equal_the_loops(stack):
    maps, masks = stack
    hits, energy = pointing_game(maps, masks), energy_inside(maps, masks)
    for i, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        if not mask.any():
            assert math.isnan(hits[i]) and math.isnan(energy[i])
            continue
        assert hits[i] == reference.pointing(values, mask)
        if (values > 0).any():
            assert energy[i] == pytest.approx(reference.energy(values, mask), rel=1e-12)
        else:
            assert math.isnan(energy[i])


# --- up-sampling, sign, scale

SIZES = [((7, 5), (22, 10)), ((3, 9), (64, 31)), ((1, 1), (4, 6)), ((20, 13), (7, 9)), ((8, 8), (224, 160))]


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_upsampling_equals_torch(small, size, mode):
    maps = np.random.default_rng(0).standard_normal((3, *small)).astype(np.float32)
    corners = {"align_corners": False} if mode == "bilinear" else {}
    wanted = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], size, mode=mode, **corners)
    ours = upsample(maps, size, mode)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous
    if mode == "nearest":
        assert np.array_equal(ours, wanted[:, 0].numpy())
    else:
        np.testing.assert_allclose(ours, wanted[:, 0].numpy(), atol=5e-6)
        precise = torch.nn.functional.interpolate(
            torch.from_numpy(maps)[:, None].double(), size, mode=mode, **corners
        )
        np.testing.assert_allclose(upsample(maps.astype(np.float64), size), precise[:, 0].numpy(), atol=1e-12)


def test_nearest_takes_the_pixels_that_torch_takes_at_every_size():
    for n in (1, 2, 3, 5, 7, 10, 14, 33):
        maps = np.arange(n, dtype=np.float32).reshape(1, 1, n)
        for size in range(1, 130):
            wanted = torch.nn.functional.interpolate(torch.from_numpy(maps)[0][None], size, mode="nearest")
            assert np.array_equal(upsample(maps, (1, size), "nearest")[0], wanted[0].numpy())


@pytest.mark.parametrize(("small", "size"), SIZES[:3])
def test_upsampling_equals_the_formula(small, size):
    values = np.random.default_rng(2).standard_normal((1, *small))
    np.testing.assert_allclose(upsample(values, size)[0], reference.bilinear(values[0], *size), atol=1e-12)


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.integers(1, 5), st.integers(1, 40))
def test_upsampling_leaves_a_constant_map_constant(value, n, size):
    grown = upsample(np.full((1, n, 3), value, np.float32), (size, 17))
    assert np.all(grown == np.float32(value))


def test_the_sign_rules():
    maps = np.array([[[-2.0, 0.5, np.nan]]], np.float32)
    assert apply_sign(maps, "keep") is maps
    np.testing.assert_array_equal(apply_sign(maps, "relu"), [[[0, 0.5, np.nan]]])
    np.testing.assert_array_equal(apply_sign(maps, "abs"), [[[2, 0.5, np.nan]]])


def test_scaling_divides_by_the_maximum_and_never_turns_a_map_upside_down():
    maps = np.array(
        [[[1, 2], [-4, 0]], [[-1, -2], [-3, -4]], [[0, 0], [0, 0]], [[-1, 0], [0, 0]]], np.float32
    )
    before = maps.copy()
    np.testing.assert_array_equal(
        scale_by_max(maps), [[[0.5, 1], [-2, 0]], np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))]
    )
    assert np.array_equal(maps, before)


def test_the_order_of_scaling_and_upsampling_is_as_declared():
    maps = np.random.default_rng(3).random((2, 3, 2), dtype=np.float32)
    first = normalise(maps, (10, 9), order="upsample-scale")
    then = normalise(maps, (10, 9), order="scale-upsample")
    np.testing.assert_allclose(first, scale_by_max(upsample(maps, (10, 9))))
    np.testing.assert_allclose(then, upsample(scale_by_max(maps), (10, 9)))
    assert np.all(first.max(axis=(1, 2)) == 1)
    off_grid = normalise(np.array([[[0, 1, 0]]], np.float32), (1, 4), order="scale-upsample")
    assert off_grid.max() < 1  # no new pixel lies on the peak


# --- all together


def test_localise_follows_the_protocol_step_by_step():
    random = np.random.default_rng(4)
    raw = random.random((6, 4, 3), dtype=np.float32)
    masks = np.zeros((6, 16, 15), bool)
    masks[:, 3:9, 5:12] = True
    result = localise(
        raw, masks, selections=("threshold", "top-k", "native"), threshold=0.55, native_threshold=0.5
    )
    assert list(result.iou) == ["threshold", "top-k", "native"]
    for i in range(6):
        grown = upsample(raw, (16, 15))[i]
        normal = grown / grown.max()
        assert result.iou["threshold"].iou[i] == reference.iou(normal > 0.55, masks[i])
        assert result.iou["top-k"].iou[i] == reference.iou(reference.top_k_mask(normal, 42), masks[i])
        assert result.iou["native"].iou[i] == reference.iou(grown > 0.5, masks[i])
        assert result.pointing[i] == reference.pointing(normal, masks[i])
        assert result.energy[i] == pytest.approx(reference.energy(normal, masks[i]), rel=1e-6)
    without = localise(raw, masks, selections=("native", "top-k"))
    assert list(without.iou) == [
        "top-k"
    ]  # an explainer without a threshold of its own has no native selection
