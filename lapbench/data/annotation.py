"""The annotation of a data set: what its reader says of all of its images, held against the manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lapbench.data.captions import check_caption
from lapbench.data.class_list import read_class_list
from lapbench.data.landmarks import check_points
from lapbench.data.manifest import ClassList, Manifest
from lapbench.data.paths import describe_folder, inside
from lapbench.data.record import Record
from lapbench.digest import digest_of_file
from lapbench.errors import DataError, suggest
from lapbench.registry import readers
from lapbench.types import Task


@dataclass(frozen=True, slots=True)
class Annotation:
    """Class names in the order of their labels, the records, and how many were dropped as the manifest wants.

    dropped: records of every label that is no class.
    """

    classes: tuple[str, ...]
    records: tuple[Record, ...]
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """An annotation file that the manifest names by its SHA-256, and the SHA-256 of the one that is there."""

    path: Path
    found: str
    wanted: str


def read_annotation(manifest: Manifest, root: Path | None) -> Annotation:
    """Let the reader read; every label must be a class, or is dropped where the manifest says so.

    root: as `lapbench.data.paths.find_root` gives it. Errors: DataError for missing or contradictory files.
    """
    reader = readers.get(manifest.reader.name)
    given = reader.parameters.model_validate(manifest.reader.parameters)
    records: list[Record] = reader.function(
        root, **{name: getattr(given, name) for name in type(given).model_fields}
    )
    if not records:
        raise DataError(f"the reader {reader.name!r} found no samples under {root}")
    classes = manifest.classes or _listed_classes(manifest.class_list, root)
    known, kept, dropped = frozenset(classes), [], dict[str, int]()
    for record in records:
        if record.label in known:
            _check_answer(record, manifest.task, classes)
            kept.append(record)
        elif manifest.unlisted == "drop":
            dropped[record.label] = dropped.get(record.label, 0) + 1
        else:
            raise DataError(
                f"{record.where or f'data set {manifest.name!r}, sample {record.id!r}'}: the label"
                f" {record.label!r} is no class of the manifest{suggest(record.label, classes)}"
            )
    if not kept:
        raise DataError(
            f"{root}: not one of {len(records)} samples is of a class of the manifest {manifest.name!r};"
            f" the labels found are {', '.join(sorted(dropped)[:6])}"
        )
    return Annotation(classes, tuple(kept), dropped)


def _check_answer(record: Record, task: Task, targets: Sequence[str]) -> None:
    """Errors: DataError where a record does not hold what a network is to answer, or more than that."""
    try:
        if task == "landmarks":
            check_points(record.answer, targets)
        elif task == "captions":
            check_caption(record.answer, targets, record.label)
        elif record.answer:
            raise ValueError(
                "the reader gives more to answer than a class: name its task, landmarks or captions, in the"
                " manifest"
            )
    except ValueError as error:
        raise DataError(f"{record.where or f'sample {record.id!r}'}: {error}") from None


def named_files(manifest: Manifest, root: Path | None) -> list[FileDigest]:
    """Return the annotation files that the manifest names by digest and that are there."""
    if root is None:
        return []
    paths = {inside(root, name, where="[files]"): wanted for name, wanted in manifest.files.items()}
    return [
        FileDigest(path, digest_of_file(path), wanted) for path, wanted in paths.items() if path.is_file()
    ]


def check_named_files(manifest: Manifest, root: Path | None) -> None:
    """Errors: DataError for an annotation file that is not the one of the manifest."""
    for file in named_files(manifest, root):
        if file.found != file.wanted:
            raise DataError(
                f"{file.path}: the file is not the one of the manifest (SHA-256 {file.found}, wanted"
                f" {file.wanted}): fetch it again, or write the new digest into the manifest and raise its"
                " version"
            )


def _listed_classes(listed: ClassList | None, root: Path | None) -> tuple[str, ...]:
    """Return the classes of the first list file that is there.

    Errors: DataError where none is there, and where it holds another number of classes than declared.
    """
    if listed is None or root is None:
        raise DataError("an embedded data set has no list of classes: name them in the manifest")
    paths = [inside(root, name, where="class_list") for name in listed.files]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{root}: no list of the classes here; looked for {' and '.join(listed.files)},"
            f" found {describe_folder(root)}"
        )
    names = read_class_list(path)
    if len(names) != listed.count:
        raise DataError(
            f"{path}: wanted {listed.count} classes, found {len(names)}: complete the file, or name the"
            " classes in a manifest of your own"
        )
    return names
