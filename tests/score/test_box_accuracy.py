import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lapbench.errors import ScoreError
from lapbench.score import BoxSweep, boxes_of, sweep_boxes, upsample
from lapbench.score.box_accuracy import IOUS, LEVELS, box_ious
from lapbench.types import Box

# --- a slow reference: every threshold by itself, flooded pixel by pixel


def flood(mask, steps):
    """The connected parts of a mask, each a list of (row, column), by their first pixel in reading order."""
    left, parts = set(map(tuple, np.argwhere(mask).tolist())), []
    for start in sorted(left):
        if start in left:
            left.remove(start)
            part, front = [], [start]
            while front:
                y, x = front.pop()
                part.append((y, x))
                near = {(y + dy, x + dx) for dy, dx in steps} & left
                left -= near
                front += near
            parts.append(part)
    return parts


CROSS = [(0, 1), (1, 0), (0, -1), (-1, 0)]
AROUND = [*CROSS, (1, 1), (1, -1), (-1, 1), (-1, -1)]


def box(part):
    ys, xs = zip(*part, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def contour_area(part, shape):
    """Of the polygon through the centres of the outermost pixels: squares of 2×2 within, halves by three."""
    filled = np.ones((shape[0] + 2, shape[1] + 2), bool)
    outside = np.ones_like(filled)
    for y, x in part:
        outside[y + 1, x + 1] = False
    for y, x in next(p for p in flood(outside, CROSS) if (0, 0) in p):
        filled[y, x] = False
    inside = sum(
        filled[dy : dy + shape[0] + 1, dx : dx + shape[1] + 1].astype(int) for dy in (0, 1) for dx in (0, 1)
    )
    return (inside == 4).sum() + (inside == 3).sum() / 2


def iou(a, b):
    """The IoU of boxes whose ends are read as the last pixels."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def slow_ious(values, truth):
    """The IoU of the largest component's box and the highest of all, at each level."""
    height, width = values.shape
    scaled = values.astype(np.float64) - values.min()
    levels = (scaled / (scaled.max() or 1) * 255).astype(np.uint8)
    wanted = [tuple(int(v) for v in (b.x0, b.y0, b.x1, b.y1)) for b in truth]
    largest, best = [], []
    for level in range(LEVELS):
        parts = flood(levels > level, AROUND)
        framed = np.pad(levels <= level, 1, constant_values=True)
        holes = [[(y - 1, x - 1) for y, x in p] for p in flood(framed, CROSS) if (0, 0) not in p]
        boxes = [box(p) for p in parts] or [(0, 0, 0, 0)]
        boxes += [(x0 - 1, y0 - 1, x1 + 1, y1 + 1) for x0, y0, x1, y1 in map(box, holes)]
        found = [
            max(iou((*b[:2], min(b[2], width - 1), min(b[3], height - 1)), w) for w in wanted) for b in boxes
        ]
        areas = [contour_area(p, values.shape) for p in parts] or [0]
        largest.append(found[max(range(len(areas)), key=lambda i: (areas[i], i))])
        best.append(max(found))
    return largest, best


@st.composite
def pictures(draw):
    """A map, small, of few values or of many, smooth or not, and boxes."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    elements = draw(st.sampled_from([st.integers(0, 3), st.integers(-2, 9), st.floats(0, 1, width=32)]))
    values = draw(hnp.arrays(np.float32, (height, width), elements=elements))
    if draw(st.booleans()):
        values = upsample(values[None, :4, :4], (height, width))[0]
    edges = st.tuples(*(st.integers(0, end) for end in (width, height, width, height)))
    boxes = draw(st.lists(edges, min_size=1, max_size=3))
    truth = [
        Box(*(min(b[i], b[i + 2]) for i in (0, 1)), *(max(b[i], b[i + 2]) for i in (0, 1))) for b in boxes
    ]
    return values, truth


@given(pictures())
@settings(max_examples=40)
def test_boxes_of_all_thresholds_equal_floods_of_each(picture):
    values, truth = picture
    largest, best = box_ious(values, truth)
    wanted = slow_ious(values, truth)
    assert largest.tolist() == wanted[0] and best.tolist() == wanted[1]


def test_contours_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    random = np.random.default_rng(0)
    for number in range(60):
        size = tuple(random.integers(2, 40, 2).tolist())
        values = random.random(size, dtype=np.float32)
        if number % 2:
            values = upsample(values[None, :5, :5], size)[0]
        levels = (((v := values.astype(np.float64) - values.min()) / v.max()) * 255).astype(np.uint8)
        truth = [Box(0, 0, size[1] // 2, size[0] // 2), Box(size[1] // 3, 1, size[1], size[0])]
        ours, ours_best = box_ious(values, truth)
        for level in range(0, LEVELS, 7):
            contours, _ = cv2.findContours(
                (levels > level).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
            )
            found = []
            for contour in contours:
                x, y, w, h = cv2.boundingRect(contour)
                edges = x, y, min(x + w, size[1] - 1), min(y + h, size[0] - 1)
                found.append(max(iou(edges, (b.x0, b.y0, b.x1, b.y1)) for b in truth))
            areas = [cv2.contourArea(contour) for contour in contours]
            assert ours[level] == found[areas.index(max(areas))] and ours_best[level] == max(found)


# --- known answers


def blob(*boxes, size=(20, 30)):
    values = np.zeros(size, np.float32)
    for height, (x0, y0, x1, y1) in enumerate(boxes, 1):
        values[y0:y1, x0:x1] = height
    return values


def test_a_map_of_the_box_hits_at_every_threshold():
    found = sweep_boxes(blob((4, 6, 14, 12))[None], [[Box(4, 6, 14, 12)]])
    assert found.largest.all() and found.any.all() and found.scored.all()
    assert found.hits().tolist() == [1] and found.hits_v2().tolist() == [1]


def test_the_largest_box_and_any_box_differ():
    """A large faint box, and inside the truth a small bright one elsewhere."""
    values = blob((2, 2, 15, 18), (20, 5, 26, 11))
    largest, best = box_ious(values, [Box(20, 5, 26, 11)])
    assert largest[0] == 0 and best[0] == 1  # both stand, the faint one is larger
    assert largest[200] == best[200] == 1  # above the faint one
    assert box_ious(values, [Box(2, 2, 15, 18)])[0][127] == 0


def test_a_hole_has_a_box_and_belongs_to_its_component():
    values = blob((2, 2, 22, 18))
    values[5:12, 6:12] = 0
    largest, best = box_ious(values, [Box(5, 4, 13, 13)])  # the ring around the hole
    assert best[0] == 1 and largest[0] < 0.5
    values[4:14, 4:14] = 0  # what is left is a thin ring around a block that is larger than it
    values[5:13, 5:13] = 1
    assert box_ious(values, [Box(2, 2, 22, 18)])[0][0] == 1


def test_the_widened_boxes_of_the_published_evaluator_are_kept():
    """A perfect map of an inclusive box 10 pixels wide has an IoU of 100 / 121."""
    largest, _ = box_ious(blob((4, 6, 14, 16)), [Box(4, 6, 13, 15)])
    assert largest[0] == 100 / 121


def test_rows_and_columns_are_not_exchanged():
    values = blob((20, 2, 29, 5))
    assert sweep_boxes(values[None], [[Box(20, 2, 29, 5)]]).hits().tolist() == [1]
    assert sweep_boxes(values[None], [[Box(2, 20, 5, 29)]]).hits().tolist() == [0]


def test_a_flat_map_has_the_first_pixel_as_its_box():
    for values in (np.zeros((6, 8)), np.full((6, 8), -3.0)):
        largest, best = box_ious(values, [Box(0, 0, 1, 1)])
        assert np.all(largest == 1 / 4) and np.all(best == 1 / 4)


def test_accuracy_takes_the_best_threshold_for_all_images():
    """Two images that are hit at thresholds apart: together one of them at most."""
    faint = blob((2, 2, 10, 10), (20, 5, 26, 11))
    maps = np.stack([faint, faint, faint])
    truth = [[Box(2, 2, 10, 10)], [Box(20, 5, 26, 11)], [Box(20, 5, 26, 11)]]
    found = sweep_boxes(maps, truth)
    assert found.hits().mean() == 2 / 3 and found.hits().tolist() == [0, 1, 1]
    assert found.hits_v2().mean() == 1  # any box: at low thresholds both stand
    assert np.array_equal(found.any.sum(axis=1).max(axis=1), [3, 3, 3]) and len(IOUS) == 3


def test_images_without_boxes_and_failed_maps_do_not_count():
    maps = np.stack([blob((4, 6, 14, 12))] * 3)
    maps[1, 0, 0] = np.nan
    found = sweep_boxes(maps, [[Box(4, 6, 14, 12)], [Box(4, 6, 14, 12)], []])
    assert found.scored.tolist() == [True, False, False]
    for hits in (found.hits(), found.hits_v2()):
        assert hits[0] == 1 and math.isnan(hits[1]) and math.isnan(hits[2])


def test_shards_join():
    random = np.random.default_rng(0)
    maps, truth = random.random((6, 12, 9)), [[Box(1, 2, 6, 9)]] * 6
    whole = sweep_boxes(maps, truth)
    joined = BoxSweep.join([sweep_boxes(maps[:2], truth[:2]), sweep_boxes(maps[2:], truth[2:])])
    for name in ("largest", "any", "scored"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name))
    with pytest.raises(ScoreError, match="there are no sweeps to join"):
        BoxSweep.join([])


def test_each_map_needs_its_boxes():
    with pytest.raises(ScoreError, match="2 maps need the boxes of as many images, found 1"):
        sweep_boxes(np.zeros((2, 3, 3)), [[]])


def test_loops_are_compiled_where_nothing_can_be_kept():
    """As in a container whose folders are all read-only."""
    code = """
import numba.core.caching
numba.core.caching.FunctionCache._impl_class._locator_classes = []
from lapbench.score.components import components
import numpy
print(len(components(numpy.eye(4, dtype=numpy.uint8), False)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr


def test_boxes_of_a_mask_are_those_of_its_parts():
    mask = np.zeros((8, 9), bool)
    mask[1:3, 2:4] = mask[3, 4] = mask[6, 0] = True
    assert boxes_of(mask) == (Box(2, 1, 5, 4), Box(0, 6, 1, 7))
    assert boxes_of(np.zeros((3, 3), bool)) == ()
