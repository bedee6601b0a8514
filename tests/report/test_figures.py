import io
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from lapbench.report import Leaderboard, MapColumn, draw_maps, draw_ranking
from lapbench.report.figures.maps import TRUTH_COLOUR, _grey, _is_coherent, _scale_by_max, _shortened
from lapbench.types import Box, Sample
from tests.report.examples import make_leaderboard, make_row

rng = np.random.default_rng(5)


def make_sample(number: int, height: int = 64, width: int = 64, channels: int = 3) -> Sample:
    mask = np.zeros((height, width), bool)
    mask[10:30, 20:50] = True
    image = np.full((channels, height, width), 0.5, np.float32)
    return Sample(f"board/{number}", image, 1, (Box(20, 10, 50, 30),), mask)


def blob(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.exp(-((x - 35) ** 2 + (y - 20) ** 2) / 150).astype(np.float32)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("form", ["png", "pdf", "svg"])
def test_the_same_maps_give_the_same_bytes_whatever_the_users_style(tmp_path: Path, form: str) -> None:
    import matplotlib as mpl

    samples = [make_sample(0), make_sample(1)]
    column = MapColumn(
        "Grad-CAM", np.stack([blob(8, 8)] * 2), np.stack([s.mask for s in samples]), [0.5, math.nan]
    )
    said = ["present 0.98", "absent 0.51"]
    first, second = tmp_path / f"a.{form}", tmp_path / f"b.{form}"
    draw_maps(first, samples, [column], title="digits", predictions=said)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        draw_maps(second, samples, [column], title="digits", predictions=said)
        assert mpl.rcParams["font.size"] == 20, "the user's own settings are put back"

    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[form])


def test_what_the_network_says_stands_below_its_image(tmp_path: Path) -> None:
    column = MapColumn("LAP", np.stack([blob(8, 8)]), absolute=True)
    for name, said in (("plain", ()), ("said", ("present 0.98",)), ("long", ("a class " * 9,))):
        draw_maps(tmp_path / f"{name}.png", [make_sample(0)], [column], predictions=said)
    plain, short, long = (pixels(tmp_path / f"{name}.png") for name in ("plain", "said", "long"))

    assert plain.shape == short.shape == long.shape
    rows, columns = np.nonzero((plain != short).any(axis=2))
    assert rows.min() > plain.shape[0] // 4 and columns.max() < plain.shape[1] * 0.6  # below the first column
    assert (short != long).any()
    with pytest.raises(ValueError, match="2 predictions for 1 images"):
        draw_maps(tmp_path / "a.png", [make_sample(0)], [column], predictions=["a", "b"])


def test_captions_stand_below_their_maps_and_a_true_one_is_bold(tmp_path: Path) -> None:
    def drawn(caption: str) -> np.ndarray:
        maps = np.stack([blob(8, 8)])
        column = MapColumn("first", maps, captions=[caption], absolute=True)
        draw_maps(tmp_path / "a.png", [make_sample(0)], [column])
        return pixels(tmp_path / "a.png")

    false, true, other = drawn("three 0.85"), drawn("✓ three 0.85"), drawn("three 0.12")
    assert false.shape == true.shape
    top, left = int(0.2 * 120) + 120, round((0.2 + 1.05) * 120)  # below the map, beside the image
    line = (slice(top, top + 21), slice(left, None))
    assert (true[line] < 128).sum() > 1.3 * (false[line] < 128).sum(), "more ink"
    differing = np.nonzero((false != other).any(axis=2))
    assert differing[0].min() >= top and differing[1].min() >= left


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 9])
def test_no_word_of_the_key_lies_on_another_or_on_a_map(columns: int, tmp_path: Path, monkeypatch) -> None:
    """However narrow the picture, also where it needs all three scales of colours."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    kinds = [{}, {"signed": True}, {"absolute": True}]
    given = [
        MapColumn(str(i), np.stack([blob(8, 8)]), np.ones((1, 64, 64), bool), [0.5], **kinds[i % 3])
        for i in range(columns)
    ]
    draw_maps(tmp_path / "a.svg", [make_sample(0)], given)
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    grid = figure.axes[: columns + 1]
    words = [*figure.legends[0].get_texts(), *(axis.xaxis.label for axis in figure.axes)]
    words += [text for axis in figure.axes[columns + 1 :] for text in axis.texts]
    boxes = [word.get_window_extent(renderer) for word in words if word.get_text()]
    boxes += [axis.get_window_extent(renderer) for axis in (*grid, *figure.axes[columns + 1 :])]
    for one, other in combinations(boxes, 2):
        assert not one.padded(-0.5).overlaps(other.padded(-0.5)), (one, other)
    assert all(figure.bbox.padded(1).containsx(x) for box in boxes for x in (box.x0, box.x1))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("present 0.98", "present 0.98"),
        ("black-and-tan coonhound 0.87", "black-and-tan coo… 0.87"),
        ("a class " * 9 + "0.10", "a class a class a… 0.10"),
        ("x" * 30, "x" * 17 + "… " + "x" * 5),
    ],
)
def test_a_long_class_name_leaves_room_for_its_probability(text: str, shown: str) -> None:
    assert _shortened(text) == shown
    assert len(shown) <= 24


def test_the_predicted_mask_is_in_colour_and_all_else_grey(tmp_path: Path) -> None:
    sample = make_sample(0)
    selected = np.zeros((1, 64, 64), bool)
    selected[0, :, :32] = True
    flat = np.full((1, 64, 64), 0.6, np.float32)
    column = MapColumn("LAP", flat, selected, absolute=True)
    draw_maps(tmp_path / "a.png", [sample], [column])
    picture = pixels(tmp_path / "a.png")

    # the column's cell: 120 pixels wide, behind the margin, the image and the gap
    top, left = int(0.2 * 120), round((0.2 + 1.05) * 120)
    cell = picture[top : top + 120, left : left + 120]
    inside, outside = cell[100, 20], cell[100, 100]
    assert np.ptp(inside) > 60
    assert np.ptp(outside) == 0
    assert outside[0] == pytest.approx(inside @ (0.2126, 0.7152, 0.0722), abs=1.5), "as light as in colour"


def test_the_truth_is_outlined_where_it_is(tmp_path: Path) -> None:
    sample = make_sample(0, 60, 120)
    draw_maps(tmp_path / "a.png", [sample], [MapColumn("zero", np.zeros((1, 1, 1), np.float32))])
    picture = pixels(tmp_path / "a.png")
    colour = [int(TRUTH_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    top, left = int(0.2 * 120), round((0.2 + 1.05) * 120)
    cell = picture[top : top + 60, left : left + 120]  # one pixel of the picture is one of the map

    rows, columns = np.nonzero(np.abs(cell - colour).max(axis=-1) < 40)
    assert (rows.min(), rows.max()) == (pytest.approx(10, abs=1.5), pytest.approx(30, abs=1.5))
    assert (columns.min(), columns.max()) == (pytest.approx(20, abs=1.5), pytest.approx(50, abs=1.5))


@pytest.mark.parametrize("shape", [(40, 90, 3), (90, 40, 1), (64, 64, 1)])
def test_any_shape_channel_and_content_is_drawn(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    samples = [make_sample(n, height, width, channels) for n in range(3)]
    maps = np.stack([np.full((height, width), np.nan), np.zeros((height, width)), -np.ones((height, width))])
    nothing, everything = np.zeros((3, height, width), bool), np.ones((3, height, width), bool)
    columns = [
        MapColumn("nothing selected", maps.astype(np.float32), nothing, [math.nan, 0.0, 0.0]),
        MapColumn("all $selected_{2 and signed", maps.astype(np.float32), everything, signed=True),
        MapColumn("coarse", rng.random((3, 2, 3)).astype(np.float32), absolute=True),
    ]
    draw_maps(tmp_path / "a.png", samples, columns, title="$x^2 \u6570\u5b57 \x1b[2J")

    assert pixels(tmp_path / "a.png").shape[1] == pytest.approx(120 * (0.25 + 4 * 1.05 - 0.05), abs=1)


def test_a_title_longer_than_the_figure_goes_on_in_another_line(tmp_path: Path) -> None:
    column = MapColumn("LAP", np.stack([blob(8, 8)]), absolute=True)
    for name, title in (("short", "Digits"), ("long", "Handwritten digits on canvases: " * 2)):
        draw_maps(tmp_path / f"{name}.png", [make_sample(0)], [column] * 2, title=title)
    short, long = (pixels(tmp_path / f"{name}.png") for name in ("short", "long"))

    assert long.shape[1] == short.shape[1] and len(long) > len(short)
    above = long[: len(long) - len(short) + 20]  # nothing but the title is so high
    assert (above < 128).any() and (above[:, -4:] == 255).all()


def test_six_images_by_fourteen_columns_stay_below_a_megabyte(tmp_path: Path) -> None:
    samples = []
    for number in range(6):
        noise = gaussian_filter(rng.random((3, 128, 128)), (0, 2, 2))
        image = ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)
        samples.append(Sample(str(number), image, 0, (), gaussian_filter(image[0], 9) > 0.5))
    columns = []
    for number in range(14):
        maps = rng.normal(size=(6, 128, 128)) if number < 3 else rng.random((6, 8, 8))
        masks = gaussian_filter(rng.random((6, 128, 128)), (0, 6, 6)) > 0.5
        columns.append(
            MapColumn(f"Explainer {number}", maps.astype(np.float32), masks, [0.5] * 6, signed=number < 3)
        )
    draw_maps(tmp_path / "a.png", samples, columns)

    assert (tmp_path / "a.png").stat().st_size < 1_000_000


def test_wrong_numbers_of_maps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no image to draw"):
        draw_maps(tmp_path / "a.png", [], [])
    with pytest.raises(ValueError, match="'Grad-CAM' has 2 maps for 1 images"):
        draw_maps(
            tmp_path / "a.png", [make_sample(0)], [MapColumn("Grad-CAM", np.zeros((2, 4, 4), np.float32))]
        )
    assert list(tmp_path.iterdir()) == []


def test_maps_are_scaled_as_they_are_scored() -> None:
    np.testing.assert_array_equal(_scale_by_max(np.array([[-2.0, 4.0]])), [[-0.5, 1.0]])
    np.testing.assert_array_equal(_scale_by_max(np.array([[-2.0, -1.0]])), [[0.0, 0.0]])
    np.testing.assert_allclose(_grey(np.array([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]))[0, :, 0], [1.0, 0.2126])


def test_specks_are_told_from_areas() -> None:
    disc = blob(64, 64) > 0.5
    assert _is_coherent(disc)
    assert _is_coherent(np.roll(disc, 20) | disc)
    assert not _is_coherent(rng.random((64, 64)) < 0.3)
    assert not _is_coherent(disc & (rng.random((64, 64)) < 0.5))


def test_the_ranking_is_drawn_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_ranking(tmp_path / name, make_leaderboard())

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert np.ptp(pixels(tmp_path / "a.png")) > 200


def test_a_ranking_shows_each_mean_at_its_place(tmp_path: Path) -> None:
    """The dot's distance from the axis grows in proportion to the mean."""
    places = []
    for mean in (0.2, 0.4):
        anchor = make_row("z", 0.8, ci_low=None, ci_high=None)
        rows = (make_row("a", mean, ci_low=None, ci_high=None), anchor)
        draw_ranking(tmp_path / "a.png", Leaderboard(benchmark="x", benchmark_version=1, rows=rows))
        picture = pixels(tmp_path / "a.png")
        blue = np.abs(picture - (0x00, 0x72, 0xB2)).max(axis=-1) < 30
        height = len(blue)
        lanes = blue[: height - int(0.5 * 160)]  # above the key
        upper, lower = (
            np.nonzero(half.any(axis=0))[0].mean() for half in np.array_split(lanes[_span(lanes)], 2)
        )
        places.append((lower, upper))
    (low, far), (high, same) = places
    zero = 2 * low - high
    assert far == same
    assert (far - zero) / (low - zero) == pytest.approx(4, rel=0.03)


def _span(marked: np.ndarray) -> slice:
    rows = np.nonzero(marked.any(axis=1))[0]
    return slice(rows[0], rows[-1] + 1)


@pytest.mark.parametrize("models", [1, 7, 8, 20])
def test_every_model_of_a_ranking_is_told_apart_inside_the_picture(
    models: int, tmp_path: Path, monkeypatch
) -> None:
    """However many there are, and however long their names."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    rows = tuple(make_row("a", 0.5, model=f"a network with a long name {n}") for n in range(models))
    draw_ranking(tmp_path / "a.svg", Leaderboard(benchmark="x", benchmark_version=1, rows=rows))
    (figure,) = figures
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    (key,) = figure.legends
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in key.get_lines()}
    assert len(looks) == len(key.get_texts()) == models
    extent = key.get_window_extent(renderer)
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and extent.y0 >= 0
    for axis in figure.axes:
        assert extent.y1 < axis.xaxis.label.get_window_extent(renderer).y0


def test_a_ranking_of_zeros_is_drawn(tmp_path: Path) -> None:
    row = make_row("a", 0.0, ci_low=0.0, ci_high=0.0)
    draw_ranking(tmp_path / "a.png", Leaderboard(benchmark="x", benchmark_version=1, rows=(row,)))

    assert np.ptp(pixels(tmp_path / "a.png")) > 200


def test_a_ranking_without_a_rank_is_refused(tmp_path: Path) -> None:
    control = Leaderboard(benchmark="x", benchmark_version=1, rows=(make_row("Oracle", 1.0, control=True),))

    with pytest.raises(ValueError, match="there is no ranked row to draw"):
        draw_ranking(tmp_path / "a.png", control)


def test_pyplot_and_its_global_figures_are_not_used() -> None:
    code = "import sys, lapbench.report.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=False)

    assert found.returncode == 0


def test_the_picture_is_a_png_without_a_date(tmp_path: Path) -> None:
    draw_maps(tmp_path / "a.png", [make_sample(0)], [])

    assert Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).text == {}  # type: ignore[attr-defined]
