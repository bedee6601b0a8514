"""ImageNet (ILSVRC 2012, classification and localisation) in the layouts that are in use.

Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 115 (2015). The class is the
WordNet id. Images lie in train/WNID/ and in val/, flat as published or in folders of WordNet ids; both under
the data root, or under ILSVRC/Data/CLS-LOC as in the challenge's archive. What else is known of an image
comes from the first of these that is there:

1. LOC_train_solution.csv and LOC_val_solution.csv: class and boxes;
2. val.txt: the class of each validation image, as WordNet id or as number, from 0, in the list of classes
   (LOC_synset_mapping.txt or imagenet_class_index.json);
3. XML annotations (ILSVRC/Annotations/CLS-LOC, Annotations/CLS-LOC or Annotations, in it train/WNID/ and
   val/): class and boxes; they also give the boxes where val.txt gives the class.

The numbers of the development kit's ILSVRC2012_validation_ground_truth.txt are ids of its own, not the order
of the classes, and are not read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lapbench.data.boxes import Base, to_half_open
from lapbench.data.class_list import read_class_list
from lapbench.data.paths import describe_folder, inside
from lapbench.data.readers.voc import read_objects
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_lines, read_rows
from lapbench.errors import DataError
from lapbench.registry import reader
from lapbench.types import Box

_IMAGES = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", ".")
_ANNOTATIONS = ("ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations")
_CLASS_LISTS = ("LOC_synset_mapping.txt", "imagenet_class_index.json")
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class _Truth:
    """What an annotation says of an image: its class, and the boxes by class name."""

    label: str
    boxes: tuple[tuple[str, Box], ...]
    where: str


@reader("imagenet")
def read_imagenet(root: Path, *, base: Base = 1) -> list[Record]:
    """Return one record for every image of train and val, whichever of the two are there.

    base: the number of the first pixel in boxes, whose last pixel belongs to them. An image without boxes
    (half of train has none) has no truth. Sizes that XML files declare are not checked: they are those of
    images before an EXIF rotation. Errors: DataError for a folder in another layout, for classes that
    contradict each other and for broken rows.
    """
    home = next((path for path in (root / place for place in _IMAGES) if _splits(path)), None)
    if home is None:
        raise DataError(
            f"{root}: no ImageNet here; looked for the folders train or val in {', '.join(_IMAGES[:2])} and"
            f" directly under it, found {describe_folder(root)}"
        )
    readers = {"train": _train, "val": _val}
    return [record for split in _splits(home) for record in readers[split](root, home, base)]


def _splits(folder: Path) -> list[str]:
    return [name for name in ("train", "val") if (folder / name).is_dir()]


def _train(root: Path, home: Path, base: Base) -> Iterator[Record]:
    """Yield the images that lie in folders of classes."""
    known = _solution(root / "LOC_train_solution.csv", base)
    for path in _in_class_folders(home / "train"):
        truth = known.get(path.stem) or _from_xml(root, f"train/{path.parent.name}/{path.stem}.xml", base)
        yield _record(root, "train", path, path.parent.name, truth)


def _val(root: Path, home: Path, base: Base) -> Iterator[Record]:
    """Yield the validation images: those that a table names, else those that are there."""
    folder = home / "val"
    known = _solution(root / "LOC_val_solution.csv", base) or dict(_val_list(root))
    has_folders = any(_WNID.fullmatch(path.name) and path.is_dir() for path in folder.iterdir())
    if known:
        for name, found in known.items():
            place = f"{found.label}/{name}.JPEG" if has_folders else f"{name}.JPEG"
            truth = found if found.boxes else _from_xml(root, f"val/{name}.xml", base) or found
            yield _record(root, "val", inside(folder, place, where=found.where), found.label, truth)
    elif has_folders:
        for path in _in_class_folders(folder):
            truth_or_none = _from_xml(root, f"val/{path.stem}.xml", base)
            yield _record(root, "val", path, path.parent.name, truth_or_none)
    else:
        yield from _flat(root, folder, base)


def _flat(root: Path, folder: Path, base: Base) -> Iterator[Record]:
    """Yield the images of a flat folder; only their XML files say what they show."""
    for path in sorted(folder.glob("*.JPEG")):
        truth = _from_xml(root, f"val/{path.stem}.xml", base)
        if truth is None:
            raise DataError(
                f"{path}: nothing says what this image shows; looked for LOC_val_solution.csv, val.txt and"
                f" val/{path.stem}.xml in {', '.join(_ANNOTATIONS)} under {root}: add one of them"
            )
        yield _record(root, "val", path, truth.label, truth)


def _in_class_folders(folder: Path) -> Iterator[Path]:
    for name in sorted(path.name for path in folder.iterdir() if _WNID.fullmatch(path.name)):
        yield from sorted((folder / name).glob("*.JPEG"))


def _record(root: Path, split: str, path: Path, label: str, truth: _Truth | None) -> Record:
    """Return a record with the boxes of its class. Errors: DataError where folder and annotation disagree."""
    where = truth.where if truth else str(path)
    source = inside(root, path.relative_to(root).as_posix(), where=where)
    if truth is None:
        return Record(path.stem, split, label, source, where=where)
    own = tuple(box for name, box in truth.boxes if name == label)
    if truth.boxes and not own:
        raise DataError(
            f"{where}: the class of {path} is {truth.label!r} here, but {label!r} by its folder or val.txt"
        )
    return Record(path.stem, split, label, source, own, where=where)


def _solution(file: Path, base: Base) -> dict[str, _Truth]:
    """Return what a solution table says of every image; nothing where there is no such file.

    A cell holds ``WNID x0 y0 x1 y1`` once for every box.
    """
    known: dict[str, _Truth] = {}
    if not file.is_file():
        return known
    for where, row in read_rows(file, ("ImageId", "PredictionString")):
        name, cells = row["ImageId"], row["PredictionString"].split()
        if name in known:
            raise DataError(f"{where}: the image {name} occurs twice, first at {known[name].where}")
        if not cells or len(cells) % 5 or len(set(cells[::5])) > 1:
            raise DataError(f"{where}: wanted 'WNID x0 y0 x1 y1' of one class, found {' '.join(cells)!r}")
        corners = [numbers(cells[n + 1 : n + 5], where=where) for n in range(0, len(cells), 5)]
        boxes = [(cells[0], to_half_open(c, "xyxy-inclusive", base, where=where)) for c in corners]
        known[name] = _Truth(cells[0], tuple(boxes), where)
    return known


def _val_list(root: Path) -> Iterator[tuple[str, _Truth]]:
    """Yield name and class of every line of val.txt, without boxes; nothing where there is no such file."""
    if not (root / "val.txt").is_file():
        return
    lists = [root / name for name in _CLASS_LISTS if (root / name).is_file()]
    classes = read_class_list(lists[0]) if lists else ()
    for where, line in read_lines(root / "val.txt"):
        name, _, label = line.partition(" ")
        if label.isdigit() and int(label) < len(classes):
            label = classes[int(label)]
        if not _WNID.fullmatch(label):
            raise DataError(
                f"{where}: wanted 'IMAGE.JPEG WNID', or a number of {' or '.join(_CLASS_LISTS)} from 0, found"
                f" {line!r}: the bare ids of the development kit are not the order of the classes"
            )
        yield Path(name).stem, _Truth(label, (), where)


def _from_xml(root: Path, place: str, base: Base) -> _Truth | None:
    """Return what the XML file of an image says; None where there is none."""
    for folder in _ANNOTATIONS:
        path = inside(root, f"{folder}/{place}", where="reader 'imagenet'")
        if path.is_file():
            boxes = tuple(read_objects(path, base=base))
            if not boxes:
                raise DataError(f"{path}: this annotation holds no <object>")
            return _Truth(boxes[0][0], boxes, str(path))
    return None
