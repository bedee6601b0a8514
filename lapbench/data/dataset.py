"""A data set opened at the size that a network sees: splits of samples, decoded when asked for."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import numpy as np

from lapbench.data import boxes as _boxes
from lapbench.data.annotation import check_named_files, read_annotation
from lapbench.data.captions import padded
from lapbench.data.images import fit, from_bytes, read_image, read_mask, read_resized, reduction, resize_mask
from lapbench.data.inspection import Inspector
from lapbench.data.landmarks import fractions, outside
from lapbench.data.manifest import Manifest
from lapbench.data.paths import find_root
from lapbench.data.record import Drawn, MaskFile, Record, corners
from lapbench.data.splits import divide, mixed
from lapbench.digest import digest_of
from lapbench.errors import DataError, UnknownNameError
from lapbench.types import Box, FloatArray, IntArray, MaskArray, Sample, Task

PIXELS_VERSION = 1
"""Raised whenever decoding, resizing or rasterising changes a pixel."""
_KEPT_IMAGES = (
    8  # windows of one board follow each other in no split, but neighbours in a batch may share one
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A record whose files were inspected: boxes clipped to the image, size and digest known."""

    record: Record
    size: tuple[int, int]
    digest: str


@dataclass(frozen=True)
class View:
    """How samples are shown: height and width, 1 or 3 channels, and the class names that give labels.

    task: what is to be answered, in answer_size numbers an image; 0 where that is the label alone.
    """

    image_size: tuple[int, int]
    channels: Literal[1, 3]
    classes: tuple[str, ...]
    task: Task = "classification"
    answer_size: int = 0


class Split(Sequence[Sample]):
    """The samples of one split in their fixed order; each is decoded when it is asked for.

    decoded: the images (n, C, H, W) of these samples, where they are known already. keep_in: a folder for
    decoded images; see `lapbench.data.decoded`.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[Entry],
        view: View,
        *,
        decoded: FloatArray | None = None,
        keep_in: Path | None = None,
    ) -> None:
        self.name = name
        self.entries = tuple(entries)
        self.view = view
        self.decoded = decoded
        self.keep_in = keep_in
        self._images: OrderedDict[Path, FloatArray] = OrderedDict()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The sample ids."""
        return tuple(entry.record.id for entry in self.entries)

    @cached_property
    def labels(self) -> IntArray:
        """The class indices (n,)."""
        numbers = {name: number for number, name in enumerate(self.view.classes)}
        return np.array([numbers[entry.record.label] for entry in self.entries], np.int64)

    @cached_property
    def answers(self) -> FloatArray:
        """What a network is to answer (n, m), without decoding images.

        Landmarks x0, y0, x1, y1 and so on as fractions of the network's image; the numbers of a caption's
        words, filled up with 0; m = 0 of classification.
        """
        own = [entry.record.answer for entry in self.entries]
        if self.view.task == "landmarks":
            pairs = zip(own, self.entries, strict=True)
            return np.stack([fractions(answer, _window(entry)) for answer, entry in pairs])
        return padded(own, self.view.answer_size)

    @cached_property
    def first_of_image(self) -> IntArray:
        """The positions of the first sample of every image (k,): other tasks have several for one image."""
        first: dict[tuple[Path | str, object], int] = {}
        for position, entry in enumerate(self.entries):
            source = entry.record.source
            shown = source.digest if isinstance(source, Drawn) else source
            first.setdefault((shown, entry.record.window), position)
        return np.array(list(first.values()), np.int64)

    def by_image(self) -> "Split":
        """Return the split with the first sample of every image alone."""
        positions = self.first_of_image
        known = None if self.decoded is None else self.decoded[positions]
        entries = [self.entries[position] for position in positions.tolist()]
        return Split(self.name, entries, self.view, decoded=known, keep_in=self.keep_in)

    @cached_property
    def has_truth(self) -> MaskArray:
        """Whether the mask holds a pixel (n,), known without decoding images; mask files are decoded once."""
        return np.array([_has_truth(entry) for entry in self.entries], bool)

    @cached_property
    def digest(self) -> str:
        """The name of everything that decides the pixels, labels and masks of this split, in order."""
        view = [PIXELS_VERSION, self.view.image_size, self.view.channels, self.view.classes]
        task = [self.view.task, self.view.answer_size] if self.view.answer_size else []
        reductions = [self._reduction(entry) for entry in self.entries]
        decoding = [reductions] if any(divisor > 1 for divisor in reductions) else []
        return digest_of(["split", view, [entry.digest for entry in self.entries], *decoding, *task])

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Split": ...
    def __getitem__(self, index: int | slice) -> "Sample | Split":
        if isinstance(index, slice):
            known = None if self.decoded is None else self.decoded[index]
            return Split(self.name, self.entries[index], self.view, decoded=known, keep_in=self.keep_in)
        return Sample(
            self.entries[index].record.id,
            self.image(index),
            int(self.labels[index]),
            self.boxes(index),
            self.mask(index),
            self.ignore(index),
        )

    def image(self, index: int) -> FloatArray:
        """Return the image of a sample (C, H, W) in [0, 1]."""
        if self.decoded is not None:
            return np.array(self.decoded[index])
        entry, size, channels = self.entries[index], self.view.image_size, self.view.channels
        source = entry.record.source
        if isinstance(source, Path) and entry.record.window is None:
            return read_resized(source, size, channels, reduce=self._reduction(entry))
        x0, y0, x1, y1 = _window(entry)
        pixels = from_bytes(source.draw()) if isinstance(source, Drawn) else self._whole(source)
        return fit(pixels[:, y0:y1, x0:x1], size, channels)

    def mask(self, index: int) -> MaskArray:
        """Return the truth of a sample (H, W), for which no image is decoded, but for an annotated mask."""
        entry = self.entries[index]
        height, width = self.view.image_size
        if entry.record.mask is None:
            return _boxes.rasterise(self.boxes(index), height, width)
        x0, y0, x1, y1 = _window(entry)
        return resize_mask(_whole_mask(entry.record.mask)[y0:y1, x0:x1], (height, width))

    def ignore(self, index: int) -> MaskArray | None:
        """Return the pixels of a sample (H, W) that do not count; None where all do, as truth always does."""
        entry, size = self.entries[index], self.view.image_size
        record = entry.record
        if not record.ignores:
            return None
        region = _boxes.rasterise(self._shown(entry, record.ignored), *size)
        if record.mask is not None and record.mask.ignore is not None:
            x0, y0, x1, y1 = _window(entry)
            region |= resize_mask(read_mask(record.mask.path, record.mask.ignore)[y0:y1, x0:x1], size)
        region &= ~self.mask(index)
        return region if region.any() else None

    def boxes(self, index: int) -> tuple[Box, ...]:
        """Return the boxes of a sample in pixels of the size that the network sees; nothing is decoded."""
        entry = self.entries[index]
        return self._shown(entry, entry.record.boxes)

    def _shown(self, entry: Entry, boxes: Sequence[Box]) -> tuple[Box, ...]:
        """Bring boxes of the whole image to the size that the network sees, cut to the window."""
        x0, y0, x1, y1 = window = _window(entry)
        height, width = self.view.image_size
        fx, fy = width / (x1 - x0), height / (y1 - y0)
        return tuple(_boxes.scale(_boxes.move(box, -x0, -y0), fx, fy) for box in seen(boxes, window))

    def _reduction(self, entry: Entry) -> int:
        """What the sides of an image are divided by while decoded; windows are cut from whole images."""
        source = entry.record.source
        if isinstance(source, Drawn) or entry.record.window is not None:
            return 1
        return reduction(source, entry.size, self.view.image_size)

    def _whole(self, source: Path) -> FloatArray:
        """Return the whole image that windows are cut from; the last few files stay in memory."""
        if source not in self._images:
            self._images[source] = read_image(source)
            if len(self._images) > _KEPT_IMAGES:
                self._images.popitem(last=False)
        self._images.move_to_end(source)
        return self._images[source]


@dataclass(frozen=True)
class Dataset:
    """A data set at one size. digest: the name of everything that decides its pixels and truth.

    task: what a network answers. answer_size: in how many numbers, where that is not a class: two a landmark,
    or the words of the longest caption and its end.
    n_missing: annotated images that were not there and were left out, as the manifest allows. n_clipped:
    boxes that reached beyond their image and were cut. n_outside: boxes wholly outside, which are left out.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    digest: str
    parts: dict[str, Split]
    task: Task = "classification"
    answer_size: int = 0
    n_missing: int = 0
    n_clipped: int = 0
    n_outside: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return tuple(self.parts)

    def __getitem__(self, name: str) -> Split:
        if name not in self.parts:
            raise UnknownNameError(f"split in data set {self.name}", name, self.parts)
        return self.parts[name]


def open_dataset(
    manifest: Manifest,
    *,
    root: Path | None = None,
    image_size: tuple[int, int],
    channels: Literal[1, 3] = 3,
    limit: int | None = None,
    digest_cache: Path | None = None,
    decoded_cache: Path | None = None,
) -> Dataset:
    """Open a data set: read the annotation, divide it into splits, and inspect every image that is kept.

    root: the data root; see `lapbench.data.paths.find_root`. image_size: height and width of every sample.
    limit: keeps the first samples of each split. digest_cache: a folder where digests of image files are
    kept. decoded_cache: a folder where images of splits that are too large for memory may be kept, decoded.
    Errors: DataError for missing or contradictory files, DefinitionError for contradictory parameters.
    """
    if min(image_size) < 1 or (limit is not None and limit < 1):
        raise ValueError(f"image_size and limit must be positive, found {image_size} and {limit}")
    folder = find_root(manifest, root)
    check_named_files(manifest, folder)
    annotation = read_annotation(manifest, folder)
    divided, n_missing = _present(divide(annotation.records, manifest.splits, folder), manifest.may_miss)
    longest = max(len(record.answer) for record in annotation.records)
    answer_size = longest + (manifest.task == "captions")
    view = View(image_size, channels, annotation.classes, manifest.task, answer_size)
    counts = {"n_missing": n_missing, "n_clipped": 0, "n_outside": 0}
    inspector = Inspector(digest_cache)
    parts = {}
    for name, records in divided.items():
        kept = mixed(records, annotation.classes)[:limit]
        if not kept:
            raise DataError(
                f"data set {manifest.name!r}: not one image of split {name!r} is there, looked under {folder}"
            )
        entries = [_inspect(record, manifest.task, inspector, counts) for record in kept]
        parts[name] = Split(name, entries, view, keep_in=decoded_cache)
    inspector.save()
    digest = digest_of([manifest.name, manifest.version, {name: part.digest for name, part in parts.items()}])
    return Dataset(
        manifest.name,
        manifest.version,
        annotation.classes,
        digest,
        parts,
        manifest.task,
        answer_size,
        **counts,
    )


def seen(boxes: Sequence[Box], window: tuple[int, int, int, int]) -> list[Box]:
    """Return the parts of boxes that a window shows, in the coordinates of the whole image."""
    return [cut for box in boxes if (cut := _boxes.clip(box, *window)) is not None]


def _present(divided: Mapping[str, Sequence[Record]], may_miss: float) -> tuple[dict[str, list[Record]], int]:
    """Leave out the samples without an image and count them.

    Errors: DataError where they are more than the manifest allows.
    """
    present = {
        name: [r for r in members if isinstance(r.source, Drawn) or r.source.is_file()]
        for name, members in divided.items()
    }
    there = {record.id for members in present.values() for record in members}
    missing = [r for members in divided.values() for r in members if r.id not in there]
    if len(missing) > may_miss * (len(there) + len(missing)):
        allowed = f"; the manifest allows {may_miss:.1%}" if may_miss else ""
        raise DataError(
            f"{len(missing)} of {len(there) + len(missing)} images are not there{allowed}; the first is"
            f" {missing[0].source}, named by {missing[0].where}: complete the data folder, or raise may_miss"
            " in the manifest"
        )
    return present, len(missing)


def _inspect(record: Record, task: Task, inspector: Inspector, counts: dict[str, int]) -> Entry:
    """Learn size and digest of a record's files, clip its boxes to the image and count what was cut."""
    if isinstance(record.source, Drawn):
        size, digest = record.source.size, record.source.digest
    else:
        known = inspector.inspect(record.source)
        size, digest = known.size, known.digest
    _check_size(record, size, inspector)
    if task == "landmarks" and (beyond := outside(record.answer, size)):
        raise DataError(
            f"{record.where or f'sample {record.id!r}'}: the landmark at ({beyond[0][0]:g}, {beyond[0][1]:g})"
            f" lies outside the image {size[1]} wide and {size[0]} high: correct it, or leave the image out"
        )
    boxes, ignored = (seen(own, (0, 0, size[1], size[0])) for own in (record.boxes, record.ignored))
    for own, kept in ((record.boxes, boxes), (record.ignored, ignored)):
        counts["n_outside"] += len(own) - len(kept)
        counts["n_clipped"] += sum(box not in own for box in kept)
    clipped = replace(record, boxes=tuple(boxes), ignored=tuple(ignored))
    mask = [inspector.inspect(record.mask.path).digest, record.mask.value] if record.mask else None
    named = [record.id, record.label, digest, corners(boxes), mask, record.window, *clipped.younger]
    return Entry(clipped, size, digest_of(named))


def _check_size(record: Record, size: tuple[int, int], inspector: Inspector) -> None:
    """Compare the file's size with what the annotation, the mask and the window claim."""
    claims = [("the annotation", record.declared_size)]
    if record.mask:
        claims.append((f"the mask {record.mask.path}", inspector.inspect(record.mask.path).size))
    for who, claimed in claims:
        if claimed is not None and claimed != size:
            raise DataError(
                f"{record.where}: {who} says {claimed[0]}×{claimed[1]} pixels (height × width), the image"
                f" {record.source} has {size[0]}×{size[1]}: they do not belong together"
            )
    if record.window is not None:
        x0, y0, x1, y1 = record.window
        if not (0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]):
            raise DataError(
                f"{record.where}: the window {list(record.window)} leaves the image of {size[0]}×{size[1]}"
                " pixels"
            )


def _window(entry: Entry) -> tuple[int, int, int, int]:
    return entry.record.window or (0, 0, entry.size[1], entry.size[0])


def _has_truth(entry: Entry) -> bool:
    x0, y0, x1, y1 = window = _window(entry)
    if entry.record.mask is not None:
        return bool(_whole_mask(entry.record.mask)[y0:y1, x0:x1].any())
    return bool(seen(entry.record.boxes, window))


def _whole_mask(mask: MaskFile) -> MaskArray:
    return read_mask(mask.path, mask.value, ignore=mask.ignore)
