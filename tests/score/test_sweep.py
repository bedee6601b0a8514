import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score

from lapbench.errors import ScoreError
from lapbench.score import Sweep, iou_by_size, iou_by_threshold, iou_top_k, localise, sweep_thresholds
from lapbench.score.pixels import rank
from lapbench.score.sweep import EDGES, THRESHOLDS

from . import reference

SIZE = (7, 5)
values = st.one_of(
    st.floats(-4, 4, width=32), st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.25, 0.3, 1.0]), st.just(1e-30)
)


def stacks(elements=values, dtype=np.float32, n=2):
    return st.tuples(hnp.arrays(dtype, (n, *SIZE), elements=elements), hnp.arrays(np.bool_, (n, *SIZE)))


def some(n=6, size=(11, 7), seed=0):
    """Random maps and masks (never empty, never full)."""
    random = np.random.default_rng(seed)
    masks = random.random((n, *size)) < 0.3
    masks[:, 2, 1], masks[:, 0, 0] = True, False
    return random.standard_normal((n, *size)).astype(np.float32), masks


# --- pixels in order


@given(stacks(), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=80)
def test_pixels_in_order_are_those_of_a_plain_sort(stack, dtype):
    for image, mask in zip(*stack, strict=True):
        ranked = rank(image.ravel().astype(dtype), mask.ravel(), image.min(), image.max())
        pixels = sorted(
            (float(v) + 0.0, not within) for v, within in zip(image.ravel(), mask.ravel(), strict=True)
        )
        assert ranked.values.tolist() == [v for v, _ in pixels] and ranked.values.dtype == dtype
        assert ranked.inside.tolist() == [i for i, (_, outside) in enumerate(pixels) if not outside]
        runs = [i for i, (a, b) in enumerate(pairwise(pixels)) if a[0] == b[0] and a[1] < b[1]]
        assert ranked.tied.tolist() == runs


# --- all thresholds


@given(stacks(), st.sampled_from([1, -1]))
@settings(max_examples=80)
def test_the_sweep_equals_loops_over_pixels(stack, orientation):
    maps, masks = stack
    found = sweep_thresholds(maps, masks, orientation=orientation)
    for i, (image, mask) in enumerate(zip(maps, masks, strict=True)):
        if not mask.any():
            assert np.isnan([found.oracle[i], found.auc[i], *found.by_threshold[i]]).all()
            continue
        assert found.oracle[i] == pytest.approx(reference.best_iou(image, mask, orientation), abs=1e-12)
        if mask.all():
            assert math.isnan(found.auc[i])
        else:
            assert found.auc[i] == pytest.approx(reference.area_under_curve(image, mask), abs=1e-12)
            assert found.auc[i] == pytest.approx(roc_auc_score(mask.ravel(), image.ravel()), abs=1e-12)
        for k in (0, 25, 30, 100):  # 0.25 and float32's own 0.3 are among the values
            cut = THRESHOLDS[k]
            chosen = np.float64(image) > cut if orientation == 1 else np.float64(image) < cut
            assert found.by_threshold[i, k] == reference.iou(chosen, mask)


@given(stacks())
@settings(max_examples=15)
def test_pixel_average_precision_equals_a_loop(stack):
    maps, masks = stack
    masks[0, 0, 0] = True
    scored = masks.any(axis=(1, 2))
    wanted = reference.pixel_average_precision(maps[scored], masks[scored])
    assert sweep_thresholds(maps, masks).pixel_average_precision == pytest.approx(wanted, abs=1e-12)


def test_a_perfect_map_reaches_everything_and_its_negative_nothing():
    _, masks = some()
    found = sweep_thresholds(masks.astype(np.float32), masks)
    assert np.all(found.oracle == 1) and np.all(found.auc == 1) and found.pixel_average_precision == 1
    assert np.all(found.by_threshold[:, :100] == 1) and np.all(found.by_threshold[:, 100] == 0)
    below = sweep_thresholds(-masks.astype(np.float32), masks, orientation=-1)
    assert np.all(below.oracle == 1) and np.all(below.auc == 0)


def test_a_constant_map_says_nothing():
    _, masks = some()
    found = sweep_thresholds(np.ones(masks.shape, np.float32), masks)
    share = masks.mean(axis=(1, 2))
    assert found.oracle == pytest.approx(share)  # everything selected
    assert np.all(found.auc == 0.5)
    assert found.pixel_average_precision == pytest.approx(masks.mean())


def test_a_ramp_has_known_scores():
    """100 rising pixels with the highest 20 in the truth but for the very last."""
    maps = (np.arange(1, 101, dtype=np.float32).reshape(1, 10, 10) - 0.5) / 100
    masks = (maps > 0.79) & (maps < 0.99)
    found = sweep_thresholds(maps, masks)
    assert found.oracle[0] == 20 / 21
    assert found.auc[0] == 79 / 80
    assert found.by_threshold[0, 0] == 20 / 100 and found.by_threshold[0, 79] == 20 / 21


def test_the_oracle_bounds_every_selection():
    maps, masks = some(40)
    found = sweep_thresholds(maps, masks)
    for threshold in (-1, 0, 0.3, 2):
        assert np.all(found.oracle >= iou_by_threshold(maps, masks, threshold).iou)
    assert np.all(found.oracle >= iou_top_k(maps, masks).iou)
    assert np.all(found.oracle >= np.nanmax(found.by_threshold, axis=1))


def test_ignored_pixels_are_as_if_they_were_not_there():
    maps, masks = some(3, size=(6, 8))
    ignore = np.zeros(masks.shape, bool)
    ignore[:, :, 5:] = True  # what is left is a smaller image
    cut, ways = (slice(None), slice(None), slice(5)), ("threshold", "top-k", "native")
    settings = {
        "selections": ways,
        "threshold": 0.2,
        "native_threshold": 0.4,
        "tolerance": 2.0,
        "sign": "relu",
    }
    maps[:, :, 5:] = maps[cut].max(axis=(1, 2), keepdims=True)  # so that both are scaled alike
    whole = localise(maps, masks, ignore=ignore, **settings)
    part = localise(np.where(ignore, 0, maps)[cut].copy(), masks[cut], **settings)
    for name in ways:
        assert np.array_equal(whole.iou[name].selected, part.iou[name].selected)
        assert np.array_equal(whole.iou[name].iou, part.iou[name].iou)
    for name in ("pointing", "tolerant_pointing", "energy"):
        assert np.array_equal(getattr(whole, name), getattr(part, name))
    assert np.array_equal(whole.sweep.auc, part.sweep.auc)
    assert np.array_equal(whole.sweep.true, part.sweep.true)


def test_the_scale_of_a_map_is_that_of_its_ignored_pixels_too():
    """The evaluator of PxAP brings a map to [0, 1] before it leaves pixels out."""
    maps = np.array([[[0.25, 0.5, 1.0, 0.0]]], np.float32)
    masks = np.array([[[False, True, False, False]]])
    found = sweep_thresholds(maps, masks, ignore=np.array([[[False, False, True, True]]]))
    assert found.true[500] == 1 and found.true[501] == 0
    assert found.false[250] == 1 and found.false[251] == 0
    maps[0, 0, 2] = np.inf  # a map is broken wherever it is
    assert math.isnan(sweep_thresholds(maps, masks, ignore=~masks).oracle[0])


def test_pixels_that_rounding_moves_over_an_edge_are_counted_there():
    """Scaled as the evaluator of PxAP scales it, what lies a little below the middle is in the middle."""
    maps = np.array([[[-1.0, -1e-30, -1e-3, 1.0]]], np.float32)
    found = sweep_thresholds(maps, np.ones(maps.shape, bool))
    assert found.true[499:502].tolist() == [3, 2, 1]


def test_regions_to_ignore_must_fit_and_leave_something():
    maps, masks = some(2)
    with pytest.raises(ScoreError, match="must have the shape of the masks"):
        sweep_thresholds(maps, masks, ignore=masks[:1])
    with pytest.raises(ScoreError, match="image 1 is ignored as a whole: leave it out"):
        sweep_thresholds(maps, masks, ignore=np.stack([masks[0], np.ones_like(masks[0])]))


def test_failed_maps_and_images_without_truth_count_nowhere():
    maps, masks = some(4)
    maps[1, 0, 0], maps[2, 3, 3] = np.nan, -np.inf
    masks[3] = False
    found = sweep_thresholds(maps, masks)
    assert np.isnan(found.oracle).tolist() == np.isnan(found.auc).tolist() == [False, True, True, True]
    alone = sweep_thresholds(maps[:1], masks[:1])
    assert np.array_equal(found.true, alone.true) and np.array_equal(found.false, alone.false)
    assert math.isnan(sweep_thresholds(maps[1:], masks[1:]).pixel_average_precision)


def test_shards_join_in_any_division():
    maps, masks = some(9)
    whole = sweep_thresholds(maps, masks)
    for parts in (2, 4):
        pieces = [sweep_thresholds(maps[p], masks[p]) for p in np.array_split(np.arange(9), parts)]
        joined = Sweep.join(pieces)
        for name in ("oracle", "auc", "by_threshold", "true", "false"):
            assert np.array_equal(getattr(joined, name), getattr(whole, name))
    with pytest.raises(ScoreError, match="there are no sweeps to join"):
        Sweep.join([])


def test_the_edges_are_those_of_the_foreign_evaluator():
    assert len(EDGES) == 1001 and EDGES[-1] == 1 and EDGES[7] == np.arange(0, 1, 0.001)[7]


# --- IoU by size


def test_iou_by_size_is_over_equally_full_bins():
    area = np.array([50, 10, 20, 40, 30, 60, 5])
    iou = np.array([0.5, 0.1, 0.2, 0.4, 0.3, 0.6, np.nan])
    size, mean, n = iou_by_size(iou, area, bins=3)
    assert (
        size.tolist() == [15, 35, 55]
        and mean == pytest.approx([0.15, 0.35, 0.55])
        and n.tolist() == [2, 2, 2]
    )
    size, mean, n = iou_by_size(iou, area, bins=20)
    assert size.tolist() == [10, 20, 30, 40, 50, 60] and n.tolist() == [1] * 6
    assert all(not len(part) for part in iou_by_size(np.full(3, np.nan), area[:3]))
