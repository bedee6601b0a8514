"""Tiny-ImageNet: 64×64 images of up to 200 ImageNet classes, each with a box, in its original layout.

The class is the WordNet id. Boxes are inclusive and counted from 0: they reach from 0 to 63 on images of 64.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import PositiveInt

from lapbench.data.boxes import scale, to_half_open
from lapbench.data.paths import describe_folder, inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_lines
from lapbench.errors import DataError
from lapbench.registry import reader

ANNOTATED_SIDE = 64
"""Side in pixels of the published images, on which the boxes were drawn."""
_VAL = "val/val_annotations.txt"


@reader("tiny_imagenet")
def read_tiny_imagenet(root: Path, *, side: PositiveInt = ANNOTATED_SIDE) -> list[Record]:
    """Return one record for every annotated image of train/WNID and val, each with one box.

    side: the images' side in pixels, for copies of another size; boxes are scaled to it from 64. The splits
    are the publisher's "train" and "val"; its test images have no labels and are not read. Which
    classes count, and their order, is the manifest's. Errors: DataError for a folder in another layout and
    for broken rows.
    """
    train = inside(root, "train", where="reader 'tiny_imagenet'")
    folders = sorted(path for path in train.glob("n*") if path.is_dir())
    if not folders or not (root / _VAL).is_file():
        raise DataError(
            f"{root}: no Tiny-ImageNet here; looked for train/WNID/WNID_boxes.txt and {_VAL},"
            f" found {describe_folder(root)}"
        )
    records = [record for folder in folders for record in _train(root, folder.name, side)]
    return [*records, *_val(root, side)]


def _train(root: Path, wnid: str, side: int) -> Iterator[Record]:
    file = inside(root, f"train/{wnid}/{wnid}_boxes.txt", where=f"class {wnid}")
    for where, (image, *cells) in _rows(file, "an image and four numbers", 5):
        path = inside(root, f"train/{wnid}/images/{image}", where=where)
        yield _record("train", path, wnid, cells, side, where)


def _val(root: Path, side: int) -> Iterator[Record]:
    for where, (image, wnid, *cells) in _rows(root / _VAL, "an image, a class and four numbers", 6):
        path = inside(root, f"val/images/{image}", where=where)
        yield _record("val", path, wnid, cells, side, where)


def _rows(file: Path, wanted: str, n_cells: int) -> Iterator[tuple[str, list[str]]]:
    for where, line in read_lines(file):
        cells = line.split()
        if len(cells) != n_cells:
            raise DataError(f"{where}: wanted {wanted}, found {line!r}")
        yield where, cells


def _record(split: str, path: Path, wnid: str, cells: list[str], side: int, where: str) -> Record:
    box = to_half_open(numbers(cells, where=where), "xyxy-inclusive", 0, where=where)
    shown = scale(box, side / ANNOTATED_SIDE, side / ANNOTATED_SIDE)
    return Record(path.stem, split, wnid, path, (shown,), declared_size=(side, side), where=where)
