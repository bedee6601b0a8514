"""Pascal VOC: one XML file an image, boxes counted from 1 with the last pixel included.

Everingham et al.: The Pascal Visual Object Classes Challenge, IJCV 88 (2010), and its development kit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from xml.etree.ElementTree import Element

import defusedxml
from defusedxml import ElementTree

from lapbench.data.boxes import Base, to_half_open
from lapbench.data.paths import inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_lines, read_text
from lapbench.errors import DataError
from lapbench.registry import reader
from lapbench.types import Box


@reader("voc")
def read_voc(
    root: Path,
    *,
    annotations: str = "Annotations",
    images: str = "JPEGImages",
    lists: dict[str, str] | None = None,
    objects: tuple[str, ...] | None = None,
    labels_by_boxes: tuple[str, str] | None = None,
    difficult: Literal["keep", "drop", "ignore"] = "keep",
) -> list[Record]:
    """Return one record for every XML file of a folder, or of the lists of ids that name the splits.

    lists: text files by split, the id first on each line. objects: the names that count; others are left out.
    The class is the name of the objects, which must agree within an image, or is named by ``labels_by_boxes``
    for images without and with objects. difficult: what is done with objects marked so; those to ignore name
    the class, and their pixels count neither as truth nor as background. Errors: DataError naming the file.
    """
    records = []
    for split, name in _ids(root, annotations, lists):
        path = inside(root, f"{annotations}/{name}.xml", where="reader 'voc'")
        tree = _parse(path)
        found = [
            item for item in tree.iter("object")
            if (objects is None or _text(item, "name", path) in objects)
            and not (difficult == "drop" and _is_difficult(item))
        ]  # fmt: skip
        label = labels_by_boxes[bool(found)] if labels_by_boxes else _label(found, path)
        image = inside(root, f"{images}/{_text(tree, 'filename', path)}", where=str(path))
        out = [difficult == "ignore" and _is_difficult(item) for item in found]
        boxes = [_box(item, path, 1) for item in found]
        records.append(
            Record(
                name,
                split,
                label,
                image,
                tuple(box for box, ignored in zip(boxes, out, strict=True) if not ignored),
                declared_size=_size(tree, path),
                where=str(path),
                ignored=tuple(box for box, ignored in zip(boxes, out, strict=True) if ignored),
            )
        )
    return records


def read_objects(path: Path, *, base: Base) -> list[tuple[str, Box]]:
    """Return class name and box of every object of an XML file, whose boxes include their last pixel.

    Errors: DataError naming the file.
    """
    return [(_text(item, "name", path), _box(item, path, base)) for item in _parse(path).iter("object")]


def _ids(root: Path, annotations: str, lists: dict[str, str] | None) -> Iterator[tuple[str, str]]:
    """Yield (split, id) from the lists, or from the names of the XML files."""
    if lists is None:
        folder = inside(root, annotations, where="reader 'voc'")
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder of annotations: complete the data folder")
        yield from (("", path.stem) for path in sorted(folder.glob("*.xml")))
        return
    for split, file in lists.items():
        for _, line in read_lines(inside(root, file, where="reader 'voc'")):
            yield split, line.split()[0]


def _parse(path: Path) -> Element:
    """Parse an XML file; entities and external references are refused."""
    try:
        tree: Element = ElementTree.fromstring(read_text(path), forbid_dtd=True)
    except defusedxml.DefusedXmlException as error:
        raise DataError(
            f"{path}: XML that defines entities or refers to other files is not read ({error})"
        ) from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: not valid XML: {error}") from None
    return tree


def _text(item: Element, name: str, path: Path) -> str:
    text = (item.findtext(name) or "").strip()
    if not text:
        raise DataError(f"{path}: <{item.tag}> has no <{name}>")
    return text


def _box(item: Element, path: Path, base: Base) -> Box:
    bounds = item.find("bndbox")
    if bounds is None:
        raise DataError(f"{path}: <object> has no <bndbox>")
    cells = [_text(bounds, name, path) for name in ("xmin", "ymin", "xmax", "ymax")]
    return to_half_open(numbers(cells, where=str(path)), "xyxy-inclusive", base, where=str(path))


def _is_difficult(item: Element) -> bool:
    return (item.findtext("difficult") or "0").strip() == "1"


def _size(tree: Element, path: Path) -> tuple[int, int] | None:
    """Return the declared height and width, None where the file declares none."""
    size = tree.find("size")
    if size is None:
        return None
    try:
        return int(_text(size, "height", path)), int(_text(size, "width", path))
    except ValueError:
        raise DataError(f"{path}: <size> does not hold whole numbers") from None


def _label(found: list[Element], path: Path) -> str:
    names = sorted({_text(item, "name", path) for item in found})
    if len(names) != 1:
        raise DataError(
            f"{path}: the class must be one object name, found {names or 'no object'}: name the objects"
            " that count, or labels_by_boxes, in the manifest"
        )
    return names[0]
