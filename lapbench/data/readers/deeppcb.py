"""DeepPCB: windows around the defects of circuit boards, and the same windows of their defect-free twins.

Tang, He, Huang, Yang: Online PCB Defect Detector On A New PCB Defect Dataset (2019), arXiv:1902.06197: 1500
pairs of 640×640 pixels, binarised, aligned, with boxes around the defects.

The box convention is inclusive, counted from 0: the publishers' annotation tool marks the pixels from
``x − margin − pen`` to ``x + margin + pen`` around the pen at x, stops at the last pixel (``width − 1``), and
draws its boxes with both corners inside; no x2 or y2 exceeds 639. On the boards (test minus twin, 1355 boxes)
the margins around the defects then differ by 0.8 pixels between left and right and by 0.3 between above and
below; read as half-open, by 1.8 and 1.3.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveInt

from lapbench.data.boxes import clip, to_half_open
from lapbench.data.paths import inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_lines, read_rows
from lapbench.errors import DataError
from lapbench.registry import reader
from lapbench.types import Box

Window = tuple[int, int, int, int]
_TRIES = 24  # places tried for a window, of which the one that cuts the fewest boxes is taken
_LISTS = {"trainval": "PCBData/trainval.txt", "test": "PCBData/test.txt"}


@dataclass(frozen=True, slots=True)
class Board:
    """A defective board, its defect-free twin, and the half-open boxes of its defects."""

    pair: str
    split: str
    test: Path
    twin: Path
    boxes: tuple[Box, ...]
    where: str


@reader("deeppcb")
def read_deeppcb(
    root: Path,
    *,
    window: PositiveInt = 128,
    board: PositiveInt = 640,
    windows_per_board: PositiveInt | None = None,
) -> list[Record]:
    """Return two records for every window: "defect" from the board and "good" from its twin.

    A defect that no earlier window of its board holds whole gets a window of its own; its place around the
    defect is drawn by hash so that few other boxes are cut. A cut box counts, clipped, when at least half of
    it is inside: of a smaller part only the margin that the annotators left around the defect shows, as a
    rule. The two layouts read are the published one (PCBData/trainval.txt, test.txt and a text file a board)
    and one table (boxes.csv: pair, split, x1, y1, x2, y2, and images/PAIR_test.png, images/PAIR_temp.png).
    Errors: DataError for a folder in neither layout and for broken rows.
    """
    records = []
    for one in _boards(root):
        for number, place in enumerate(place_windows(one, window, board)[:windows_per_board]):
            name, boxes = f"{one.pair}-{number:02d}", shown_boxes(one.boxes, place)
            for label, source, truth in (("defect", one.test, boxes), ("good", one.twin, ())):
                records.append(
                    Record(
                        f"{name}-{label}", one.split, label, source, truth, window=place, group=one.pair,
                        declared_size=(board, board), where=one.where,
                    )
                )  # fmt: skip
    return records


def place_windows(board: Board, side: int, board_side: int) -> list[Window]:
    """Return the windows of a board; every box that is not larger than a window lies whole in one of them."""
    places: list[Window] = []
    for box in sorted(board.boxes, key=lambda b: (b.y0, b.x0, b.y1, b.x1)):
        if any(_share_inside(box, place) == 1 for place in places):
            continue
        places.append(_place(board, box, side, board_side))
    return places


def _place(board: Board, box: Box, side: int, board_side: int) -> Window:
    """Return, of the places tried in turn, the first that cuts the fewest boxes."""
    tried = []
    for number in range(_TRIES):
        window = _jittered(f"{board.pair}:{box.x0:g}:{box.y0:g}:{number}", box, side, board_side)
        cut = sum(0 < _share_inside(other, window) < 1 for other in board.boxes)
        tried.append((cut, number, window))
        if cut == 0:
            break
    return min(tried)[2]


def shown_boxes(boxes: tuple[Box, ...], window: Window) -> tuple[Box, ...]:
    """Return the boxes of which a window shows at least half, clipped to it, in pixels of the board."""
    return tuple(cut for b in boxes if _share_inside(b, window) >= 0.5 and (cut := clip(b, *window)))


def _share_inside(box: Box, window: Window) -> float:
    cut = clip(box, *window)
    return cut.width * cut.height / (box.width * box.height) if cut else 0.0


def _jittered(key: str, box: Box, side: int, board_side: int) -> Window:
    """Return a window on the board that holds the box, or its middle where that is too large; by hash."""
    chance = hashlib.sha256(key.encode()).digest()
    x0 = _start(int(box.x0), int(box.x1), side, board_side, int.from_bytes(chance[:4], "big"))
    y0 = _start(int(box.y0), int(box.y1), side, board_side, int.from_bytes(chance[4:8], "big"))
    return x0, y0, x0 + side, y0 + side


def _start(low: int, high: int, side: int, board_side: int, chance: int) -> int:
    """Return where the window starts along one axis; chance: 32 bits."""
    first, last = high - side, low
    if first > last:  # the box is longer than the window
        first = last = (low + high - side) // 2
    first, last = max(first, 0), min(last, board_side - side)
    return first + (chance * (last - first + 1) >> 32)


def _boards(root: Path) -> list[Board]:
    if all((root / name).is_file() for name in _LISTS.values()):
        return list(_published(root))
    if (root / "boxes.csv").is_file():
        return list(_table(root))
    raise DataError(
        f"{root}: no DeepPCB here; looked for {' and '.join(_LISTS.values())} (the published layout), then"
        " for boxes.csv: name as data root the folder that holds PCBData"
    )


def _published(root: Path) -> Iterator[Board]:
    """Yield the boards of the published layout.

    A line of the lists is ``GROUP/ID.jpg GROUP_not/ID.txt``; the images are ID_test.jpg and ID_temp.jpg.
    """
    for split, name in _LISTS.items():
        for where, line in read_lines(root / name):
            parts = line.split()
            if len(parts) != 2 or not parts[0].endswith(".jpg"):
                raise DataError(f"{where}: wanted 'image.jpg annotation.txt', found {line!r}")
            image, annotation = (inside(root, f"PCBData/{part}", where=where) for part in parts)
            boxes = tuple(_box(row.split()[:4], row_where) for row_where, row in read_lines(annotation))
            stem = image.stem
            yield Board(
                stem,
                split,
                image.with_name(f"{stem}_test.jpg"),
                image.with_name(f"{stem}_temp.jpg"),
                boxes,
                str(annotation),
            )


def _table(root: Path) -> Iterator[Board]:
    """Yield the boards of the layout with one table."""
    file = root / "boxes.csv"
    rows: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {}
    for where, row in read_rows(file, ("pair", "split", "x1", "y1", "x2", "y2")):
        rows.setdefault((row["pair"], row["split"]), []).append((where, row))
    for (pair, split), found in rows.items():
        where = found[0][0]
        boxes = tuple(_box([row[name] for name in ("x1", "y1", "x2", "y2")], place) for place, row in found)
        test, twin = (inside(root, f"images/{pair}_{kind}.png", where=where) for kind in ("test", "temp"))
        yield Board(pair, split, test, twin, boxes, where)


def _box(cells: list[str], where: str) -> Box:
    return to_half_open(numbers(cells, where=where), "xyxy-inclusive", 0, where=where)
