"""RSNA pneumonia: chest radiographs with boxes around lung opacities, as the challenge published them.

Shih et al.: Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of
Possible Pneumonia, Radiology: Artificial Intelligence 1 (2019).

A row of the label file is a box, not an image: 30,227 rows are 26,684 patients, and the 9,555 positive rows
are the boxes of 6,012 of them. Counting, or splitting, by row would put one radiograph into several splits.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import PositiveInt

from lapbench.data.boxes import scale, to_half_open
from lapbench.data.paths import describe_folder, inside
from lapbench.data.record import Record
from lapbench.data.text import numbers, read_rows
from lapbench.errors import DataError, DefinitionError
from lapbench.registry import reader
from lapbench.types import Box

LABELS = {"Normal": "healthy", "Lung Opacity": "pneumonia", "No Lung Opacity / Not Normal": "abnormal"}
"""The publisher's classes and ours; the paper leaves the third out."""
ANNOTATED_SIDE = 1024
"""Side in pixels of the published radiographs, on which the boxes were drawn."""
_BOX = ("x", "y", "width", "height")


@dataclass
class _Patient:
    """What the label rows of one patient say so far."""

    where: str
    target: str
    boxes: list[Box] = field(default_factory=list)


@reader("rsna")
def read_rsna(
    root: Path,
    *,
    images: str = "stage_2_train_images/{id}.dcm",
    labels_file: str = "stage_2_train_labels.csv",
    classes_file: str = "stage_2_detailed_class_info.csv",
    side: PositiveInt = ANNOTATED_SIDE,
    subset: bool = False,
) -> list[Record]:
    """Return one record for every patient: healthy, pneumonia with all of its boxes, or abnormal without.

    images: the path of a radiograph, with ``{id}`` in the place of the patientId: DICOM as published, or any
    other image. side: the images' side in pixels; boxes are scaled to it from 1024. subset: the class file
    names only some of the patients, the others are left out. Id and group are the patientId.
    Errors: DataError for a folder in another layout, and for rows that are broken or contradict each other.
    """
    if "{id}" not in images:
        raise DefinitionError(f"reader 'rsna': images must hold {{id}}, found {images!r}")
    for name in (labels_file, classes_file):
        if not inside(root, name, where="reader 'rsna'").is_file():
            raise DataError(
                f"{root}: no RSNA pneumonia data here; looked for {labels_file}, {classes_file} and"
                f" {images}, found {describe_folder(root)}"
            )
    patients = _patients(root / labels_file)
    classes = _classes(root / classes_file)
    _check_both_name(patients, classes, root / labels_file, root / classes_file, subset)
    factor = side / ANNOTATED_SIDE
    return [
        Record(
            name, "", _label(patients[name], *found),
            inside(root, images.replace("{id}", name), where=found[1]),
            tuple(scale(box, factor, factor) for box in patients[name].boxes),
            group=name, declared_size=(side, side), where=patients[name].where,
        )
        for name, found in classes.items()
    ]  # fmt: skip


def _patients(file: Path) -> dict[str, _Patient]:
    """Return the patients of the label file with all their boxes."""
    patients: dict[str, _Patient] = {}
    for where, row in read_rows(file, ("patientId", *_BOX, "Target")):
        name, target, cells = row["patientId"], row["Target"], [row[column] for column in _BOX]
        if target not in ("0", "1"):
            raise DataError(f"{where}: Target must be 0 or 1, found {target!r}")
        if any(cells) != (target == "1"):
            wanted = "a box" if target == "1" else "no box"
            raise DataError(f"{where}: Target {target} needs {wanted}, found {cells}")
        known = patients.get(name)
        patient = patients.setdefault(name, _Patient(where, target))
        if known and "0" in (known.target, target):
            raise DataError(
                f"{where}: patient {name!r} without a box stands in several rows, first at {known.where}:"
                " delete the row that is wrong"
            )
        if target == "1":
            box = to_half_open(numbers(cells, where=where), "xywh", 0, where=where)
            if box in patient.boxes:
                raise DataError(f"{where}: the box {cells} of patient {name!r} stands there twice")
            patient.boxes.append(box)
    return patients


def _classes(file: Path) -> dict[str, tuple[str, str]]:
    """Return the publisher's class of every patient and the row that says so; rows repeat with the boxes."""
    classes: dict[str, tuple[str, str]] = {}
    for where, row in read_rows(file, ("patientId", "class")):
        name, found = row["patientId"], row["class"]
        if found not in LABELS:
            raise DataError(f"{where}: the class must be one of {list(LABELS)}, found {found!r}")
        first, first_where = classes.setdefault(name, (found, where))
        if first != found:
            raise DataError(f"{where}: the class of {name!r} is {found!r}, but {first!r} at {first_where}")
    return classes


def _check_both_name(
    patients: dict[str, _Patient],
    classes: dict[str, tuple[str, str]],
    labels_file: Path,
    classes_file: Path,
    subset: bool,
) -> None:
    """Refuse two files that are not of the same patients."""
    for name, (_, where) in classes.items():
        if name not in patients:
            raise DataError(f"{where}: patient {name!r} has no row in {labels_file}: the files do not fit")
    left_out = [name for name in patients if name not in classes]
    if left_out and not subset:
        raise DataError(
            f"{patients[left_out[0]].where}: patient {left_out[0]!r}, and {len(left_out) - 1} others, have no"
            f" class in {classes_file}: fetch that file again, or set subset = true in the manifest"
        )


def _label(patient: _Patient, found: str, where: str) -> str:
    """Return our class. Errors: DataError where boxes and class contradict each other."""
    if bool(patient.boxes) != (found == "Lung Opacity"):
        raise DataError(
            f"{where}: the class {found!r} contradicts the {len(patient.boxes)} boxes at {patient.where}"
        )
    return LABELS[found]
