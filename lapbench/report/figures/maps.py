"""Maps of all explainers side by side, image by image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke

from lapbench.report.figures.canvas import figure_at
from lapbench.types import FloatArray, MaskArray, Sample

MAP_COLOURS = "magma"  # perceptually uniform, in order of lightness also without colour vision
SIGNED_COLOURS = "berlin"  # diverging from black, so that zero looks the same in both
MAPS_DPI = 120
SHADES = 64  # of a map; finer ones are not seen and cost bytes
LETTER, LINE, SCALE = 0.055, 0.17, 1.75  # inches: of a letter, between lines, of a scale of colours
Scale: TypeAlias = tuple[str, str, str, str]
"""Colours, what they mean, their ends."""
RELATIVE: Scale = (MAP_COLOURS, "map, 0 to its maximum", "0", "max")
ABSOLUTE: Scale = (MAP_COLOURS, "probability", "0", "1")
SIGNED: Scale = (SIGNED_COLOURS, "signed map", "−max", "max")
TRUE = "✓"  # stands before what is the truth
TRUTH_COLOUR = "#2ee6ff"
PREDICTION_COLOUR = "#ffffff"

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MapColumn:
    """One column of the picture grid: the maps of one explainer for all images.

    maps: (n, h, w), of any resolution up to the image's; NaN where there is none. masks: the predicted ones,
    (n, H, W), at the size of the image. iou: (n,), NaN where there is none. captions: what stands below each
    map in the place of the IoU; one that starts with TRUE is bold. absolute: the maps are
    probabilities, drawn from 0 to 1; otherwise each is divided by its maximum. signed: negative values mean
    something.
    """

    title: str
    maps: FloatArray
    masks: MaskArray | None = None
    iou: Sequence[float] | None = None
    captions: Sequence[str] | None = None
    absolute: bool = False
    signed: bool = False


def draw_maps(
    path: Path,
    samples: Sequence[Sample],
    columns: Sequence[MapColumn],
    *,
    title: str = "",
    predictions: Sequence[str] = (),
) -> None:
    """Draw a grid: one row an image, first the image with its truth, then one column an explainer.

    path: its suffix is the format: .png, .pdf or .svg. The predicted mask keeps the map's colours and all
    else is grey; mask and truth are outlined, and their IoU stands below. predictions: what stands below each
    image. Errors: ValueError without samples, or for a column with another number of maps.
    """
    if not samples:
        raise ValueError("there is no image to draw")
    if predictions and len(predictions) != len(samples):
        raise ValueError(f"{len(predictions)} predictions for {len(samples)} images")
    for column in columns:
        if len(column.maps) != len(samples):
            raise ValueError(f"{column.title!r} has {len(column.maps)} maps for {len(samples)} images")
    with figure_at(path, MAPS_DPI) as figure:
        headings, key = [fill(column.title, 16) for column in columns], _Key.of(columns)
        axes = _grid(figure, samples, headings, title, key)
        for sample, line, said in zip(samples, axes, predictions or [""] * len(samples), strict=True):
            _draw_image(line[0], sample, said)
        for place, column in enumerate(columns, start=1):
            axes[0][place].set_title(headings[place - 1], fontsize=7, pad=3)
            for index, sample in enumerate(samples):
                _draw_map(axes[index][place], sample, column, index)
        _draw_key(figure, key)


def _grid(
    figure: Figure, samples: Sequence[Sample], headings: Sequence[str], title: str, key: "_Key"
) -> list[list[Axes]]:
    """Lay out one cell per image and column, 1 inch wide and without ticks, with room for words around."""
    rows, columns = len(samples), 1 + len(headings)
    height, width = samples[0].mask.shape
    cell = round(MAPS_DPI * height / width) / MAPS_DPI  # whole pixels, as all other lengths
    gap, line, left, right = 0.05, 0.175, 0.2, 0.05
    wide = left + columns * (1 + gap) - gap + right
    bottom = 0.425 + LINE * key.lines_above(wide)
    title = fill(title, int(12 * wide))  # letters that fit into an inch
    top = 0.2 + 0.125 * max((heading.count("\n") for heading in headings), default=0)
    top += 0.15 * (title.count("\n") + 2) if title else 0
    tall = top + rows * (cell + line) + bottom
    figure.set_size_inches(wide, tall)
    if title:
        figure.text(left / wide, 1 - 0.1 / tall, title, fontsize=9, fontweight="bold", va="top")
    edges = {
        "left": left / wide,
        "right": 1 - right / wide,
        "top": 1 - top / tall,
        "bottom": (bottom + line) / tall,
    }
    axes = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={**edges, "wspace": gap, "hspace": line / cell}
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return [list(line) for line in axes]


def _draw_image(axis: Axes, sample: Sample, said: str) -> None:
    image = np.clip(np.moveaxis(sample.image, 0, -1), 0, 1)
    axis.imshow(np.broadcast_to(image, (*image.shape[:2], 3)))
    _outline(axis, sample.mask, TRUTH_COLOUR, 0.9)
    name = "".join(letter if letter.isprintable() else " " for letter in sample.id)
    axis.set_ylabel(name if len(name) <= 22 else f"…{name[-21:]}", fontsize=5.5, labelpad=2)
    axis.set_xlabel(_shortened(said), fontsize=6, labelpad=1.5)


def _draw_map(axis: Axes, sample: Sample, column: MapColumn, index: int) -> None:
    height, width = sample.mask.shape
    values = np.asarray(column.maps[index], dtype=np.float64)
    mask = None if column.masks is None else column.masks[index]
    if np.isfinite(values).all():
        pixels = _colour(values if column.absolute else _scale_by_max(values), column.signed)
        if mask is not None:
            pixels = np.where(
                mask[..., None], _resize(pixels, mask.shape), _grey(_resize(pixels, mask.shape))
            )
        axis.imshow(pixels, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        _outline(axis, sample.mask, TRUTH_COLOUR, 0.9)
        if mask is not None and _is_coherent(mask):
            _outline(axis, mask, PREDICTION_COLOUR, 0.7)
    else:
        axis.imshow(np.full((height, width, 3), 0.93))
        axis.text(0.5, 0.5, "no map", ha="center", va="center", color="#777777", transform=axis.transAxes)
    if column.captions is not None:
        caption = column.captions[index]
        weight = "bold" if caption.startswith(TRUE) else "normal"
        axis.set_xlabel(_shortened(caption), fontsize=6, fontweight=weight, labelpad=1.5)
    elif column.iou is not None:
        iou = column.iou[index]
        axis.set_xlabel("–" if np.isnan(iou) else f"{iou:.2f}", fontsize=6, labelpad=1.5)


def _shortened(text: str) -> str:
    """Cut the middle out of a text that is wider than a cell; a number at its end stays."""
    return text if len(text) <= 24 else f"{text[:17].rstrip()}… {text.split()[-1][-5:]}"


def _scale_by_max(values: Numbers) -> Numbers:
    """Divide by the maximum; a map without a positive value is drawn as zero, which is how it is scored."""
    largest = values.max()
    return values / largest if largest > 0 else np.zeros_like(values)


def _colour(values: Numbers, signed: bool) -> Numbers:
    """Turn values in [0, 1], or [−1, 1] if signed, into colours (h, w, 3)."""
    name, unit = (SIGNED_COLOURS, (values + 1) / 2) if signed else (MAP_COLOURS, values)
    shades = np.round(np.clip(unit, 0, 1) * SHADES) / SHADES
    return np.asarray(colormaps[name](shades))[..., :3]


def _grey(colours: Numbers) -> Numbers:
    """Take the colour out and leave the lightness (ITU-R BT.709)."""
    return np.broadcast_to((colours @ (0.2126, 0.7152, 0.0722))[..., None], colours.shape)


def _resize(colours: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Repeat pixels up to a larger size."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, colours.shape[:2], strict=True))
    return np.asarray(colours[rows][:, columns])


def _is_coherent(mask: MaskArray) -> bool:
    """Whether a mask is made of areas rather than of specks, which their own outlines would cover."""
    border = np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1])
    return bool(border <= 16 * math.sqrt(np.count_nonzero(mask)))  # the border of 16 squares of the same area


def _outline(axis: Axes, mask: MaskArray, colour: str, width: float) -> None:
    """Draw the borders between selected and other pixels, and those along the edge of the image."""
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([x, y, x, y + 1], axis=-1)
    y, x = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([x, y, x + 1, y], axis=-1)
    # pixel i covers [i − 0.5, i + 0.5), as pixel centres are whole numbers
    ends = np.concatenate([upright, level]).reshape(-1, 2) - 0.5
    border = Outline(ends, np.tile([Outline.MOVETO, Outline.LINETO], len(ends) // 2))
    for thickness, shade in ((width + 1.0, "#00000090"), (width, colour)):  # on a halo, visible on any colour
        line = PathPatch(border, fill=False, edgecolor=shade, linewidth=thickness, capstyle="projecting")
        axis.add_artist(line)  # add_patch would measure every segment, for limits that are set


@dataclass(frozen=True)
class _Key:
    """What explains a grid below it: words with their lines, and the scales of colours, at their right.

    Lengths are in inches.
    """

    words: list[Line2D]
    scales: list[Scale]

    @classmethod
    def of(cls, columns: Sequence[MapColumn]) -> "_Key":
        """Say what the columns need."""
        words = [Line2D([], [], color=TRUTH_COLOUR, label="truth", lw=2)]
        if any(column.masks is not None for column in columns):
            rim, label = withStroke(linewidth=2.4, foreground="black"), "predicted mask (in colour)"
            words.append(Line2D([], [], color=PREDICTION_COLOUR, label=label, lw=1.3, path_effects=[rim]))
        if any(column.captions is not None for column in columns):
            words.append(Line2D([], [], lw=0, label=f"below: class, probability; {TRUE} true"))
        elif any(column.iou is not None for column in columns):
            words.append(Line2D([], [], lw=0, label="below: what the network says; IoU of the two"))
        used = {_scale_of(column) for column in columns}
        return cls(words, [scale for scale in (RELATIVE, ABSOLUTE, SIGNED) if scale in used])

    @property
    def length(self) -> float:
        """Of all words in one line."""
        return sum(0.42 + LETTER * len(str(line.get_label())) for line in self.words)

    def lines_above(self, wide: float) -> int:
        """How many lines of words stand above the scales, where a picture is too narrow for both in one."""
        if self.length + SCALE * len(self.scales) <= wide:
            return 0
        return 1 if self.length <= wide else sum(1 + label.count("\n") for label in self.wrapped(wide))

    def wrapped(self, wide: float) -> list[str]:
        """The words, each in as many lines as it needs."""
        return [fill(str(line.get_label()), int((wide - 0.55) / LETTER)) for line in self.words]


def _scale_of(column: MapColumn) -> Scale:
    if column.absolute:
        return ABSOLUTE
    return SIGNED if column.signed else RELATIVE


def _draw_key(figure: Figure, key: _Key) -> None:
    """Explain lines, numbers and colours below the grid, in one line if there is room."""
    wide, tall = figure.get_size_inches()
    above = key.lines_above(wide)
    figure.legend(
        handles=key.words,
        labels=key.wrapped(wide),
        loc="lower left",
        bbox_to_anchor=(0.15 / wide, 0.38 / tall if above else 0),
        ncols=1 if above > 1 else len(key.words),
        frameon=False,
        borderaxespad=0 if above else 0.6,
    )
    step = min(SCALE, (wide - SCALE) / max(1, len(key.scales) - 1))
    for place, (colours, name, low, high) in enumerate(key.scales):
        axis = figure.add_axes((1 - (step * place + 1.45) / wide, 0.24 / tall, 0.9 / wide, 0.09 / tall))
        axis.imshow(np.linspace(0, 1, 256)[None], cmap=colours, aspect="auto")
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(name, fontsize=6, labelpad=1.5)
        axis.text(-0.04, 0.5, low, ha="right", va="center", fontsize=6, transform=axis.transAxes)
        axis.text(1.04, 0.5, high, ha="left", va="center", fontsize=6, transform=axis.transAxes)
