"""Boxes in a table: one row a box, the columns and the convention declared in the manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveFloat

from lapbench.data.boxes import Base, Convention, to_half_open
from lapbench.data.paths import inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_rows
from lapbench.errors import DataError, DefinitionError
from lapbench.registry import reader
from lapbench.types import Box


@dataclass
class _Image:
    """What the rows of one image say so far."""

    where: str
    facts: tuple[str, str, str]  # raw label, split, group
    boxes: list[Box] = field(default_factory=list)


@reader("csv-boxes")
def read_csv_boxes(
    root: Path,
    *,
    file: str,
    image: str,
    id_column: str,
    box_columns: tuple[str, str, str, str],
    convention: Convention,
    base: Base,
    label_column: str | None = None,
    labels: dict[str, str] | None = None,
    labels_by_boxes: tuple[str, str] | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    images_without_boxes: str | None = None,
    box_scale: PositiveFloat = 1.0,
    delimiter: str = ",",
) -> list[Record]:
    """Return one record for every image that the rows name; rows with four empty box cells hold no box.

    file: the table. image: the path of an image, with ``{id}`` in the place of the id. box_columns: four
    columns in the order of the convention. The class comes from ``label_column`` (``labels`` renames its
    values), or from whether there are boxes: ``labels_by_boxes`` names the class of images without and with.
    group_column: what splits keep together, by default the image. images_without_boxes: a second table, with
    the same id, label, split and group columns, of images that may have no row in the first. box_scale:
    multiplies coordinates where the boxes were drawn on images of another size (1/16 for 64-pixel copies of
    images of 1024; the side, where boxes are fractions of square images of one size). Errors: DataError
    naming file and line; DefinitionError where the source of the label is not declared once.
    """
    if (label_column is None) == (labels_by_boxes is None):
        raise DefinitionError("reader 'csv-boxes': give either label_column or labels_by_boxes")
    if "{id}" not in image:
        raise DefinitionError(f"reader 'csv-boxes': image must hold {{id}}, found {image!r}")
    facts = (label_column, split_column, group_column)
    images: dict[str, _Image] = {}
    for where, name, row in _rows(root, file, id_column, (*box_columns, *facts), delimiter):
        entry = _entry(images, name, row, facts, where)
        cells = [row[column] for column in box_columns]
        if any(cells):
            values = numbers(cells, where=where)
            entry.boxes.append(to_half_open(values, convention, base, where=where, factor=box_scale))
    if images_without_boxes:
        for where, name, row in _rows(root, images_without_boxes, id_column, facts, delimiter):
            _entry(images, name, row, facts, where)
    return [
        Record(
            name,
            entry.facts[1],
            labels_by_boxes[bool(entry.boxes)]
            if labels_by_boxes
            else (labels or {}).get(entry.facts[0], entry.facts[0]),
            inside(root, image.replace("{id}", name), where=entry.where),
            tuple(entry.boxes),
            group=entry.facts[2],
            where=entry.where,
        )
        for name, entry in images.items()
    ]


def _rows(
    root: Path, file: str, id_column: str, columns: Sequence[str | None], delimiter: str
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (``file:line``, id, row). Errors: DataError for an empty id or a missing column."""
    wanted = [id_column, *(column for column in columns if column is not None)]
    for where, row in read_rows(inside(root, file, where="reader 'csv-boxes'"), wanted, delimiter=delimiter):
        if not row[id_column]:
            raise DataError(f"{where}: the column {id_column!r} is empty")
        yield where, row[id_column], row


def _entry(
    images: dict[str, _Image], name: str, row: dict[str, str], columns: Sequence[str | None], where: str
) -> _Image:
    """Return the image of a row. Errors: DataError where the row contradicts an earlier one."""
    label, split, group = (row[column] if column else "" for column in columns)
    entry = images.setdefault(name, _Image(where, (label, split, group)))
    for what, found, earlier in zip(
        ("label", "split", "group"), (label, split, group), entry.facts, strict=True
    ):
        if found != earlier:
            raise DataError(f"{where}: the {what} of {name!r} is {found!r}, but {earlier!r} at {entry.where}")
    return entry
