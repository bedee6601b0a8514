"""What a page shows beside the leaderboard: images, and for each row its maps, thresholds and scores."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lapbench.report.page.levels import Levels, Numbers
from lapbench.report.results import Row
from lapbench.types import Array, Box

NO_IOU = 65535
"""Stands for an IoU that does not exist, in the table of a block."""


@dataclass(frozen=True, eq=False)
class Panel:
    """How one row is shown: its maps, and its score at every threshold.

    row: of the leaderboard. maps: which maps of an image's block are its own. grid: (k,) ascending
    thresholds. own: which of them is the row's, None where it has none. orientation: −1 selects below.
    scale: (n,) what a map of the block must be multiplied by to be on the grid's scale, None for 1.
    curve: (k,) mean IoU over the row's images. iou, top_k: (n,) of the shown images, by the row's threshold
    and by top-k; NaN where the row has none. signed: negative values mean something. seed: which training
    is shown, where there are several.
    """

    row: Row
    maps: int
    grid: Numbers
    own: int | None
    orientation: int
    scale: Numbers | None
    curve: Numbers
    iou: Numbers
    top_k: Numbers
    signed: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Picture:
    """One image of the viewer.

    label: of its class. boxes: the truth, in pixels of the image; empty where the truth is a mask. truth:
    pixels of the truth. image: a JPEG file. block: its truth, maps and tables, as `pack` makes it.
    """

    id: str
    label: str
    boxes: tuple[Box, ...]
    truth: int
    image: bytes
    block: str


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images of a page and the rows that are shown on them.

    size: height and width of the images. shown: those of the maps in the blocks. grids: of each maps of a
    block, the thresholds that its levels count. n: images that the rows are over; the page may show fewer.
    """

    size: tuple[int, int]
    shown: tuple[int, int]
    grids: tuple[Numbers, ...]
    panels: tuple[Panel, ...]
    pictures: tuple[Picture, ...]
    n: int


def pack(truth: Levels, maps: Sequence[Levels], tables: Sequence[Numbers]) -> str:
    """Return an image's block: its truth (h, w) 0 or 1, maps (h, w) and IoU tables as compressed text.

    Planes are stored as differences, first from pixel to pixel and then from row to row, which halves smooth
    maps. Tables are uint16, little-endian: the IoU times 65534, and `NO_IOU` where there is none.
    """
    planes = [_differences(plane).tobytes() for plane in (truth, *maps)]
    numbers = [np.where(np.isnan(t), NO_IOU, np.rint(t * (NO_IOU - 1))).astype("<u2") for t in tables]
    content = b"".join([*planes, *(number.tobytes() for number in numbers)])
    deflate = zlib.compressobj(level=4, strategy=zlib.Z_FILTERED)  # made for differences: fast, and smaller
    return base64.b64encode(deflate.compress(content) + deflate.flush()).decode("ascii")


def shrink(planes: Array, shown: tuple[int, int]) -> Array:
    """Return planes (n, H, W) at a smaller size, by the pixel nearest to each new pixel's centre.

    Means would blunt the peaks of fine maps: what a threshold selects would be another share of the image.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(shown, planes.shape[1:], strict=True)
    )
    return planes[:, rows[:, None], columns]


def _differences(plane: Levels) -> Levels:
    across = np.diff(plane, axis=1, prepend=np.uint8(0))
    return np.diff(across, axis=0, prepend=np.uint8(0))
