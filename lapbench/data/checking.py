"""Whether a copy of a data set is whole: every file read, every box and every split looked at."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from lapbench.data.annotation import named_files, read_annotation
from lapbench.data.boxes import clip
from lapbench.data.images import read_image, read_mask, read_size
from lapbench.data.landmarks import outside
from lapbench.data.manifest import Manifest
from lapbench.data.paths import describe_folder, find_root
from lapbench.data.record import Drawn, MaskFile, Record, corners
from lapbench.data.splits import assign, mixed, torn_units
from lapbench.digest import digest_of, digest_of_file
from lapbench.errors import DataError
from lapbench.types import Box

State: TypeAlias = Literal["ok", "note", "fault"]
Divided: TypeAlias = Mapping[str, Sequence[Record]]
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Count:
    """What one split holds of one class; groups are what splits may not tear apart (patients, boards)."""

    split: str
    label: str
    samples: int
    groups: int
    with_truth: int
    boxes: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and what was found: in order, worth knowing, or a fault."""

    state: State
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """A copy in numbers; digests: by split, of all files, labels, boxes and windows in it."""

    name: str
    version: int
    folder: Path | None
    counts: tuple[Count, ...]
    digests: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def has_fault(self) -> bool:
        """Whether anything is wrong with the copy."""
        return any(finding.state == "fault" for finding in self.findings)

    def totals(self, most: int) -> tuple[Count, ...]:
        """Return the counts by split and class, or by split alone where there are more classes than most."""
        if len({count.label for count in self.counts}) <= most:
            return self.counts
        return tuple(_sum([c for c in self.counts if c.split == name]) for name in self.digests)


def _sum(counts: Sequence[Count]) -> Count:
    """Return the counts of all classes of one split; a group with several classes counts in each."""
    fields = ("samples", "groups", "with_truth", "boxes")
    numbers = (sum(getattr(count, field) for count in counts) for field in fields)
    present = sum(count.samples > 0 for count in counts)
    return Count(counts[0].split, f"{present} of {len(counts)} classes", *numbers)


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was found out about one image: its digest and size, or why it cannot be read.

    empty: whether it is a mask without a pixel of any object; None: no mask, or not looked for.
    """

    digest: str = ""
    size: tuple[int, int] = (0, 0)
    fault: str = ""
    empty: bool | None = None


Pictures: TypeAlias = Mapping[Path | Drawn, _Looked]


def check_data(
    manifest: Manifest,
    *,
    root: Path | None = None,
    decode: bool = True,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> Report:
    """Read every file of a data set and report counts, digests and faults.

    root: as for `open_dataset`. decode: whether images are decoded whole, which alone finds what is broken
    inside; else only their headers are read. progress: called with images done and wanted.
    Errors: DataError for a folder without the data set and for an annotation that cannot be read.
    """
    folder = find_root(manifest, root)
    annotation = read_annotation(manifest, folder)
    divided = assign(annotation.records, manifest.splits, folder)
    there, missing = _by_presence(divided)
    if not there:
        raise DataError(
            f"{folder}: not one of the {len(missing)} images is here; looked for {missing[0].source} first,"
            f" found {describe_folder(folder) if folder else 'nothing'}"
        )
    pictures = _look_at(there, decode=decode, progress=progress)
    findings = [
        *_files(manifest, folder),
        _dropped(annotation.dropped),
        _missing(missing, len(there), manifest.may_miss),
        _unreadable(pictures, decode=decode),
        *_empty_masks(pictures),
        _sizes(there, pictures),
        *_boxes(there, pictures),
        *([_landmarks(there, pictures)] if manifest.task == "landmarks" else []),
        count_rows(divided),
        _torn(divided),
        *_duplicates(divided, pictures),
    ]
    return Report(
        manifest.name, manifest.version, folder, tuple(_counts(divided, annotation.classes)),
        {name: _digest(mixed(records, annotation.classes), pictures) for name, records in divided.items()},
        tuple(findings),
    )  # fmt: skip


def _by_presence(divided: Divided) -> tuple[list[Record], list[Record]]:
    """Return the records whose image is there, and those whose image is not."""
    there: list[Record] = []
    missing: list[Record] = []
    for record in (record for records in divided.values() for record in records):
        is_there = isinstance(record.source, Drawn) or record.source.is_file()
        (there if is_there else missing).append(record)
    return there, missing


def _look_at(
    records: Sequence[Record], *, decode: bool, progress: Callable[[int, int], object]
) -> dict[Path | Drawn, _Looked]:
    """Look at every image and mask once, several at a time."""
    masks: dict[Path, set[MaskFile]] = {}
    for record in records:
        if record.mask:
            masks.setdefault(record.mask.path, set()).add(record.mask)
    sources = list(dict.fromkeys([*(record.source for record in records), *masks]))
    looked = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        look = partial(_look, masks=masks, decode=decode)
        for done, found in enumerate(pool.map(look, sources), start=1):
            looked[sources[done - 1]] = found
            progress(done, len(sources))
    return looked


def _look(source: Path | Drawn, *, masks: Mapping[Path, Iterable[MaskFile]], decode: bool) -> _Looked:
    if isinstance(source, Drawn):
        return _Looked(source.digest, source.size)
    try:
        if decode and source in masks:
            found = [read_mask(source, mask.value, ignore=mask.ignore) for mask in masks[source]]
            size = (found[0].shape[0], found[0].shape[1])
            return _Looked(digest_of_file(source), size, empty=not np.any(found))
        if decode:
            _, height, width = read_image(source).shape
        else:
            height, width = read_size(source)
        return _Looked(digest_of_file(source), (height, width))
    except (DataError, OSError) as error:
        return _Looked(fault=str(error))


def _counts(divided: Divided, classes: Sequence[str]) -> Iterator[Count]:
    for name, records in divided.items():
        by_class: dict[str, list[Record]] = {label: [] for label in classes}
        for record in records:
            by_class[record.label].append(record)
        for label, own in by_class.items():
            with_truth = sum(bool(record.boxes) or record.mask is not None for record in own)
            groups = len({record.unit for record in own})
            yield Count(name, label, len(own), groups, with_truth, sum(len(record.boxes) for record in own))


def _digest(records: Iterable[Record], pictures: Pictures) -> str:
    """Return the name of all that a split holds; an image that is missing or unreadable counts as ""."""
    return digest_of(
        [
            [
                r.id, r.label, pictures[r.source].digest if r.source in pictures else "",
                corners(r.boxes), r.window,
                [pictures[r.mask.path].digest, r.mask.value] if r.mask and r.mask.path in pictures else "",
                *r.younger,
            ]
            for r in records
        ]
    )  # fmt: skip


def _files(manifest: Manifest, folder: Path | None) -> Iterator[Finding]:
    """Compare the annotation files with the digests that the manifest names."""
    for file in named_files(manifest, folder):
        is_same = file.found == file.wanted
        detail = f"{file.path}, SHA-256 {file.found}" + ("" if is_same else f", wanted {file.wanted}")
        yield Finding("ok" if is_same else "fault", "annotation file", detail)


def _dropped(dropped: Mapping[str, int]) -> Finding:
    told = ", ".join(f"{n:,} {label!r}" for label, n in sorted(dropped.items())[:_EXAMPLES])
    more = f" and {len(dropped) - _EXAMPLES} classes more" if len(dropped) > _EXAMPLES else ""
    if not dropped:
        return Finding("ok", "classes", "every label is a class of the manifest")
    return Finding("note", "classes", f"left out as no class of the manifest: {told}{more}")


def _missing(missing: Sequence[Record], there: int, may_miss: float) -> Finding:
    if not missing:
        return Finding("ok", "missing images", "none")
    share = len(missing) / (there + len(missing))
    return Finding(
        "fault" if share > may_miss else "note", "missing images",
        f"{len(missing):,} of {there + len(missing):,} (the manifest allows {may_miss:.1%}), such as"
        f" {missing[0].source}, named by {missing[0].where}",
    )  # fmt: skip


def _unreadable(pictures: Pictures, *, decode: bool) -> Finding:
    faults = [looked.fault for looked in pictures.values() if looked.fault]
    if faults:
        return Finding("fault", "unreadable images", _some(faults))
    how = "decoded whole" if decode else "by their headers; what is broken inside was not looked for"
    return Finding("ok" if decode else "note", "unreadable images", f"none of {len(pictures):,}, {how}")


def _empty_masks(pictures: Pictures) -> Iterator[Finding]:
    """Find the masks without a pixel of an object: some may be of images without one, all of them cannot."""
    masks = {source: looked.empty for source, looked in pictures.items() if looked.empty is not None}
    empty = [str(source) for source, is_empty in masks.items() if is_empty]
    state: State = "fault" if len(empty) == len(masks) else "note" if empty else "ok"
    if masks:
        yield Finding(state, "empty masks", _some(empty))


def _sizes(records: Sequence[Record], pictures: Pictures) -> Finding:
    """Compare the sizes of the images with those that annotation and masks claim."""
    wrong = [
        f"{record.where}: {record.source} has {found[0]}×{found[1]} pixels (height × width), wanted"
        f" {wanted[0]}×{wanted[1]}"
        for record in records
        for found, wanted in _claims(record, pictures)
        if found != wanted
    ]
    if wrong:
        return Finding("fault", "sizes", _some(wrong))
    return Finding("ok", "sizes", "as annotation and masks claim, where they claim any")


def _claims(record: Record, pictures: Pictures) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the size of an image beside each that is claimed for it."""
    looked = pictures[record.source]
    if not looked.fault and record.declared_size is not None:
        yield looked.size, record.declared_size
    if not looked.fault and record.mask is not None and not pictures[record.mask.path].fault:
        yield looked.size, pictures[record.mask.path].size


def _boxes(records: Sequence[Record], pictures: Pictures) -> Iterator[Finding]:
    """Find the boxes that lie outside of their images, and those that reach beyond."""
    outside, beyond = [], []
    for record in records:
        looked = pictures[record.source]
        for box in () if looked.fault else (*record.boxes, *record.ignored):
            height, width = looked.size
            cut = clip(box, 0, 0, width, height)
            told = f"{record.where}: {_corners(box)} in an image {width} wide and {height} high"
            if cut is None:
                outside.append(told)
            elif cut != box:
                beyond.append(told)
    state: State = "fault" if outside else "ok"
    ignored = sum(len(record.ignored) for record in records)
    if ignored:
        yield Finding("note", "boxes to ignore", f"{ignored:,}, whose pixels count neither way")
    yield Finding(state, "boxes outside their images", _some(outside))
    if beyond:
        yield Finding("note", "boxes cut at the border", _some(beyond))


def _landmarks(records: Sequence[Record], pictures: Pictures) -> Finding:
    """Find the landmarks that lie outside of their images."""
    beyond = [
        f"{record.where or record.id}: ({x:g}, {y:g})"
        for record in records
        if not pictures[record.source].fault
        for x, y in outside(record.answer, pictures[record.source].size)
    ]
    return Finding("fault" if beyond else "ok", "landmarks outside their images", _some(beyond))


def count_rows(divided: Divided) -> Finding:
    """Say how many images the boxes are, and how many groups the images: neither is counted by rows."""
    records = [record for members in divided.values() for record in members]
    boxes, shown = sum(len(r.boxes) for r in records), sum(bool(r.boxes) for r in records)
    groups = len({record.unit for record in records})
    several = "; rows of boxes are not images, and no split may go by rows" if boxes > shown else ""
    return Finding(
        "note" if boxes > shown else "ok", "rows and images",
        f"{boxes:,} boxes in {shown:,} images, {len(records):,} images in {groups:,} groups{several}",
    )  # fmt: skip


def _torn(divided: Divided) -> Finding:
    torn = [f"{unit} in {' and '.join(names)}" for unit, names in torn_units(divided).items()]
    return Finding("fault" if torn else "ok", "groups across splits", _some(torn))


def _duplicates(divided: Divided, pictures: Pictures) -> Iterator[Finding]:
    """Find files of the same bytes: across splits they are a leak, with two labels a contradiction."""
    places: dict[str, list[tuple[str, Record]]] = {}
    for name, records in divided.items():
        for record in records:
            looked = pictures.get(record.source)
            if looked is not None and not looked.fault:
                places.setdefault(looked.digest, []).append((name, record))
    several = [found for found in places.values() if len({record.source for _, record in found}) > 1]
    leaks = [f for f in places.values() if len({name for name, _ in f}) > 1]
    contradictions = [f for f in several if len({record.label for _, record in f}) > 1]
    yield Finding("fault" if leaks else "ok", "same image in several splits", _some(map(_told, leaks)))
    state: State = "fault" if contradictions else "ok"
    yield Finding(state, "same image with several labels", _some(map(_told, contradictions)))
    if several:
        yield Finding("note", "same bytes in several files", _some(map(_told, several)))


def _corners(box: Box) -> str:
    return f"[{box.x0:g}, {box.x1:g}) × [{box.y0:g}, {box.y1:g})"


def _told(found: Sequence[tuple[str, Record]]) -> str:
    return " = ".join(f"{record.id} ({name}, {record.label})" for name, record in found[:_EXAMPLES])


def _some(found: Iterable[str]) -> str:
    """Return how many there are and the first of them."""
    all_of_them = list(found)
    if not all_of_them:
        return "none"
    more = "; …" if len(all_of_them) > _EXAMPLES else ""
    return f"{len(all_of_them):,}: {'; '.join(all_of_them[:_EXAMPLES])}{more}"
