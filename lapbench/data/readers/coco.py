"""COCO: one JSON file, boxes as left, top, width and height counted from 0.

Lin et al.: Microsoft COCO: Common Objects in Context, ECCV 2014, and its data format.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from lapbench.data.boxes import to_half_open
from lapbench.data.paths import inside
from lapbench.data.record import Record
from lapbench.data.text import read_text
from lapbench.errors import DataError, suggest
from lapbench.registry import reader
from lapbench.types import Box

T = TypeVar("T")
Crowds: TypeAlias = Literal["keep", "drop", "ignore"]


class _Image(BaseModel):
    id: int
    file_name: str
    height: int
    width: int


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _File(BaseModel):
    """The part of a COCO file that is read; everything else is ignored."""

    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


@dataclass(frozen=True, slots=True)
class _Object:
    """The category and half-open box of an object, and whether its pixels do not count."""

    name: str
    box: Box
    ignored: bool


@reader("coco")
def read_coco(
    root: Path,
    *,
    files: dict[str, str],
    images: str | dict[str, str] = "images",
    objects: tuple[str, ...] | None = None,
    labels_by_boxes: tuple[str, str] | None = None,
    crowds: Crowds = "drop",
) -> list[Record]:
    """Return one record for every image of the files, which are named by split.

    images: the folder of the images, or one for each split. objects: the categories that count; others are
    left out. The class is the category of the objects, which must agree within an image, or is named by
    ``labels_by_boxes`` for images without and with objects. crowds: what is done with boxes around crowds;
    those to ignore name the class, and their pixels count neither as truth nor as background. Ids are
    SPLIT/ID, since COCO's own count anew in other files. Errors: DataError naming file and annotation.
    """
    records = []
    for split, file in files.items():
        path = inside(root, file, where="reader 'coco'")
        content = _parse(path)
        folder = images if isinstance(images, str) else images.get(split, "")
        found = _objects(content, objects, crowds, path)
        for image in content.images:
            where = f"{path}: image {image.id}"
            names = sorted({item.name for item in found[image.id]})
            if labels_by_boxes is None and len(names) != 1:
                raise DataError(
                    f"{where}: the class must be one category, found {names or 'no object'}: name the"
                    " objects that count, or labels_by_boxes, in the manifest"
                )
            label = labels_by_boxes[bool(names)] if labels_by_boxes else names[0]
            source = inside(root, f"{folder}/{image.file_name}" if folder else image.file_name, where=where)
            records.append(
                Record(
                    f"{split}/{image.id}",
                    split,
                    label,
                    source,
                    tuple(item.box for item in found[image.id] if not item.ignored),
                    declared_size=(image.height, image.width),
                    where=where,
                    ignored=tuple(item.box for item in found[image.id] if item.ignored),
                )
            )
    return records


def _parse(path: Path) -> _File:
    try:
        return _File.model_validate(json.loads(read_text(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{path}: not a COCO file: nested too deeply") from None
    except ValidationError as error:
        faults = error.errors()
        first = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in faults[:5])
        raise DataError(f"{path}: not a COCO file, {len(faults)} faults: {first}") from None


def _objects(
    content: _File, wanted: tuple[str, ...] | None, crowds: Crowds, path: Path
) -> dict[int, list[_Object]]:
    """Return the objects that are wanted, by the id of their image."""
    names = {category.id: category.name for category in content.categories}
    for name in wanted or ():
        if name not in names.values():
            raise DataError(f"{path}: there is no category {name!r}{suggest(name, names.values())}")
    found: dict[int, list[_Object]] = {image.id: [] for image in content.images}
    for item in content.annotations:
        where = f"{path}: annotation {item.id}"
        name = _look_up(names.get, item.category_id, f"{where}: there is no category {item.category_id}")
        objects = _look_up(found.get, item.image_id, f"{where}: there is no image {item.image_id}")
        if (wanted is None or name in wanted) and not (item.iscrowd and crowds == "drop"):
            box = to_half_open(item.bbox, "xywh", 0, where=where)
            objects.append(_Object(name, box, ignored=bool(item.iscrowd) and crowds == "ignore"))
    return found


def _look_up(get: Callable[[int], T | None], key: int, fault: str) -> T:
    value = get(key)
    if value is None:
        raise DataError(fault)
    return value
