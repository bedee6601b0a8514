import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapbench.data.boxes import clip, from_half_open, move, rasterise, scale, to_half_open
from lapbench.errors import DataError
from lapbench.types import Box

CONVENTIONS = st.sampled_from(["xyxy", "xyxy-inclusive", "xywh"])
BASES = st.sampled_from([0, 1])
STARTS = st.integers(-50, 50)
SIDES = st.integers(1, 60)


@pytest.mark.parametrize(
    ("values", "convention", "base", "wanted"),
    [
        ((0, 0, 1, 1), "xyxy", 0, Box(0, 0, 1, 1)),  # torchvision
        ((2, 3, 5, 9), "xyxy-inclusive", 0, Box(2, 3, 6, 10)),
        ((1, 1, 1, 1), "xyxy-inclusive", 1, Box(0, 0, 1, 1)),  # VOC: the first pixel alone
        ((48, 240, 195, 371), "xyxy-inclusive", 1, Box(47, 239, 195, 371)),
        ((10, 20, 30, 40), "xywh", 0, Box(10, 20, 40, 60)),  # COCO
        ((1, 1, 5, 5), "xywh", 1, Box(0, 0, 5, 5)),
        ((1, 1, 6, 6), "xyxy", 1, Box(0, 0, 5, 5)),
    ],
)
def test_conventions_end_at_the_door(values, convention, base, wanted):
    assert to_half_open(values, convention, base, where="x") == wanted


@given(STARTS, STARTS, SIDES, SIDES, CONVENTIONS, BASES)
def test_conversion_and_back_is_the_identity(x, y, width, height, convention, base):
    box = Box(x, y, x + width, y + height)
    assert to_half_open(from_half_open(box, convention, base), convention, base, where="x") == box


@given(STARTS, STARTS, SIDES, SIDES, CONVENTIONS, BASES)
def test_a_box_has_as_many_pixels_as_its_area(x, y, width, height, convention, base):
    """The half-open law: whole boxes mark width × height pixels, whatever convention they came in."""
    values = from_half_open(Box(x, y, x + width, y + height), convention, base)
    box = move(to_half_open(values, convention, base, where="x"), 50, 50)
    assert rasterise([box], 200, 200).sum() == width * height == box.width * box.height


@pytest.mark.parametrize(
    ("values", "convention"),
    [((5, 5, 5, 9), "xyxy"), ((9, 5, 5, 9), "xyxy-inclusive"), ((1, 1, 0, 4), "xywh")],
)
def test_empty_and_inverted_boxes_name_their_place(values, convention):
    with pytest.raises(
        DataError, match=r"boxes\.csv:7: the box .* pixels wide .* convention in the manifest"
    ):
        to_half_open(values, convention, 0, where="boxes.csv:7")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(DataError, match="a: a box needs four finite numbers"):
        to_half_open((0, bad, 3, 3), "xyxy", 0, where="a")


@pytest.mark.parametrize(
    ("values", "convention", "base"),
    [
        ((0.25, 0.5, 0.75, 1), "xyxy", 0),
        ((0.0, 0.0, 0.5, 1.0), "xywh", 0),
        ((0.1, 0.2, 0.3, 0.4), "xyxy-inclusive", 1),
    ],
)
def test_fractions_of_the_image_are_no_pixels(values, convention, base):
    with pytest.raises(DataError, match=r"boxes\.csv:7: .* fractions .*: multiply them by the image's width"):
        to_half_open(values, convention, base, where="boxes.csv:7")


def test_a_factor_may_be_the_side_of_the_image():
    assert to_half_open((0.25, 0.5, 0.75, 1), "xyxy", 0, where="x", factor=16) == Box(4, 8, 12, 16)
    assert to_half_open((0, 0, 8, 4), "xywh", 0, where="x", factor=1 / 16) == Box(0, 0, 0.5, 0.25)
    with pytest.raises(DataError, match="fractions"):
        to_half_open((0.25, 0.5, 0.75, 1), "xyxy", 0, where="x", factor=1 / 16)


def test_rows_are_y_and_columns_are_x():
    mask = rasterise([Box(1, 2, 4, 3)], height=5, width=7)
    wanted = np.zeros((5, 7), bool)
    wanted[2, 1:4] = True
    np.testing.assert_array_equal(mask, wanted)


PLACES = st.floats(-5, 25)
LENGTHS = st.floats(0.01, 20)
COUNTS = st.integers(1, 20)


@given(PLACES, PLACES, LENGTHS, LENGTHS, COUNTS, COUNTS)
def test_rasterising_is_the_rule_of_pixel_centres(x, y, width, height, rows, columns):
    box = Box(x, y, x + width, y + height)
    centres = [
        [box.x0 <= j + 0.5 < box.x1 and box.y0 <= i + 0.5 < box.y1 for j in range(columns)]
        for i in range(rows)
    ]
    mask = rasterise([box], rows, columns)
    if np.array(centres).any():
        np.testing.assert_array_equal(mask, centres)
    inside = clip(box, 0, 0, columns, rows)
    if inside is not None and inside == box:
        assert mask.any(), "a box inside the image is never lost"
        assert mask[
            min(math.floor((box.y0 + box.y1) / 2), rows - 1),
            min(math.floor((box.x0 + box.x1) / 2), columns - 1),
        ]
    if inside is None:
        assert not mask.any()


def test_a_box_smaller_than_a_pixel_marks_the_pixel_of_its_middle():
    mask = rasterise([Box(2.6, 1.1, 2.9, 1.3)], 4, 4)
    assert mask.sum() == 1
    assert mask[1, 2]


def test_overlapping_boxes_are_a_union():
    assert rasterise([Box(0, 0, 3, 3), Box(2, 2, 5, 5)], 6, 6).sum() == 9 + 9 - 1


@given(
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_enlarging_by_whole_numbers_multiplies_the_mask(x, y, width, height, fx, fy):
    box = Box(x, y, x + width, y + height)
    small = rasterise([box], 40, 40)
    large = rasterise([scale(box, fx, fy)], 40 * fy, 40 * fx)
    np.testing.assert_array_equal(large, np.kron(small, np.ones((fy, fx), bool)))


@given(
    st.integers(0, 100),
    st.integers(0, 100),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(20, 300),
    st.integers(20, 300),
)
def test_resizing_keeps_the_area_but_for_the_border(x, y, width, height, new_width, new_height):
    box = scale(Box(x, y, x + width, y + height), new_width / 160, new_height / 160)
    marked = rasterise([box], new_height, new_width).sum()
    assert (max(box.width, 1) + 1) * (max(box.height, 1) + 1) >= marked >= (box.width - 1) * (box.height - 1)


def test_clip_keeps_what_is_inside():
    assert clip(Box(-3, 2, 5, 50), 0, 0, 10, 8) == Box(0, 2, 5, 8)
    assert clip(Box(10, 2, 12, 4), 0, 0, 10, 8) is None
