"""CUB-200-2011: photographs of 200 kinds of birds, each with a box around the bird.

Wah, Branson, Welinder, Perona, Belongie: The Caltech-UCSD Birds-200-2011 Dataset (2011), CNS-TR-2011-001.
Five tables tell of the 11,788 images by their number: images.txt, image_class_labels.txt, classes.txt,
train_test_split.txt and bounding_boxes.txt.

A box is left, top, width and height, counted from 0, and left + width is the last pixel that belongs to it:
of the 11,788 boxes none reaches farther than to the image's width − 1, and 156 reach just there (328 below).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from lapbench.data.boxes import Base, to_half_open
from lapbench.data.paths import describe_folder, inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_lines
from lapbench.errors import DataError
from lapbench.registry import reader

_IMAGES, _LABELS, _CLASSES, _SPLITS, _BOXES = TABLES = (
    "images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt",
)  # fmt: skip
_SPLIT_NAMES = {"1": "train", "0": "test"}
Rows = Mapping[str, tuple[str, str]]
"""Of every number of a table, the place of its line and what else stands there."""


@reader("cub")
def read_cub(root: Path, *, base: Base = 0) -> list[Record]:
    """Return one record for every image, of the publishers' splits train and test.

    base: the number of the first pixel in boxes. A class is named as in classes.txt,
    ``001.Black_footed_Albatross``. Errors: DataError for a folder in another layout, for an image or a class
    that a table does not tell of, and for broken rows.
    """
    if not all((root / name).is_file() for name in TABLES):
        raise DataError(
            f"{root}: no CUB-200-2011 here; looked for {', '.join(TABLES)}, found {describe_folder(root)}"
        )
    tables = {name: dict(_rows(root / name)) for name in TABLES}
    return [_record(root, number, tables, base) for number in tables[_IMAGES]]


def _rows(file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    seen: set[str] = set()
    for where, line in read_lines(file):
        number, *rest = line.split(maxsplit=1)
        if not rest:
            raise DataError(f"{where}: wanted a number and what belongs to it, found {line!r}")
        if number in seen:
            raise DataError(f"{where}: number {number} occurs twice")
        seen.add(number)
        yield number, (where, rest[0])


def _record(root: Path, number: str, tables: Mapping[str, Rows], base: Base) -> Record:
    where, image = tables[_IMAGES][number]
    place, label = _told(root, tables, _LABELS, number)
    split_place, split = _told(root, tables, _SPLITS, number)
    if split not in _SPLIT_NAMES:
        raise DataError(f"{split_place}: wanted 1 for train or 0 for test, found {split!r}")
    box_place, cells = _told(root, tables, _BOXES, number)
    x, y, width, height = numbers(cells.split(), where=box_place)
    return Record(
        Path(image).stem,
        _SPLIT_NAMES[split],
        _told(root, tables, _CLASSES, label, asked_by=place)[1],
        inside(root, f"images/{image}", where=where),
        (to_half_open((x, y, x + width, y + height), "xyxy-inclusive", base, where=box_place),),
        where=where,
    )


def _told(
    root: Path, tables: Mapping[str, Rows], name: str, number: str, asked_by: str = ""
) -> tuple[str, str]:
    """Return what a table says of a number. Errors: DataError where it says nothing."""
    if number not in tables[name]:
        where = asked_by or tables[_IMAGES][number][0]
        raise DataError(f"{where}: {root / name} has no line for number {number}")
    return tables[name][number]
