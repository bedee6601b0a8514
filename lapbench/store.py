"""The cache of what models say: maps and predictions, one HDF5 file a shard, written once, never changed.

A shard is a fixed block of samples of one split. Its file is named by the digest of everything that decides
its content, so asking again finds it; it gets that name only when it is whole, so a process that dies at any
moment leaves nothing that could be taken for a result. What else lies under such a name is set aside.

Layout of a file (data sets contiguous and unfiltered; strings in UTF-8, of fixed length)::

    attributes          format = "lapbench-maps", version = 1, digest (of the key),
                        complete (SHA-256 of the content, written last)
    ids                 (n,) strings
    targets             (n,) int64
    arrays/<name>       (n, ...) float32: maps (n, h, w), raw, at the explainer's own resolution;
                        logits (n, classes)
    diagnostics/<name>  (n,) float64
    provenance          one string of JSON
"""

import hashlib
import io
import json
import math
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import numpy.typing as npt

from lapbench.errors import StoreError
from lapbench.types import Array, FloatArray, IntArray

FORMAT = "lapbench-maps"
VERSION = 1
ABANDONED_AFTER = 3600.0
"""Seconds after which an unfinished file belongs to a dead process: writing one takes well under a minute."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Shard:
    """A block of samples and what a model or an explainer says about each.

    ids: unique. targets: (n,) int64, the class explained, or the label. arrays: name → (n, ...) float32.
    diagnostics: name → (n,) float64, such as ``completeness_error``. provenance: made of JSON types.
    Errors: StoreError when names, lengths, dtypes or ids do not fit.
    """

    ids: tuple[str, ...]
    targets: IntArray
    arrays: Mapping[str, FloatArray]
    diagnostics: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        if len(set(self.ids)) < n:
            raise StoreError(f"sample ids must differ: {n - len(set(self.ids))} of {n} repeat another")
        if any("\0" in sample for sample in self.ids):
            raise StoreError("a sample id may not hold a NUL character")
        _check_array("targets", self.targets, np.int64, n)
        for name, array in self.arrays.items():
            _check_array(name, array, np.float32, n)
        for name, values in self.diagnostics.items():
            _check_array(name, values, np.float64, n)
            if values.ndim != 1:
                raise StoreError(
                    f"diagnostic {name!r} must be one number a sample, (n,); found shape {values.shape}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def maps(self) -> FloatArray:
        """The raw maps, (n, h, w) float32. Errors: StoreError where the shard holds none."""
        if "maps" not in self.arrays:
            raise StoreError(f"this shard holds no maps, only {', '.join(self.arrays) or 'no arrays at all'}")
        return self.arrays["maps"]


@dataclass(frozen=True)
class Entry:
    """One file of the store: size in bytes, samples, shapes of its arrays, and its fault where it has one."""

    path: Path
    bytes: int
    n: int = 0
    shapes: Shapes = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    fault: str = ""


class MapStore:
    """A folder of shards that any number of processes may read and write at once.

    A shard is asked for by name and digest: the name is for people, a path below the root such as
    ``maps/resnet18-1f0c22ab/grad_cam/test-0003``; the digest, in hexadecimal, stands for everything that
    could change the content. warn: told in one sentence of every file that is set aside. No file stays open
    between two calls.
    """

    def __init__(self, root: Path, *, warn: Callable[[str], object] = warnings.warn) -> None:
        self.root = Path(root)
        self.warn = warn

    def path(self, name: str, digest: str) -> Path:
        """Return where a shard lies, whether it exists or not; unusual characters of a name become ``-``."""
        if not re.fullmatch(r"[0-9a-f]{16,}", digest):
            raise StoreError(f"a shard needs a hexadecimal digest of at least 16 digits (found {digest!r})")
        *folders, stem = [_readable(part) for part in name.split("/") if part] or ["shard"]
        return self.root.joinpath(*folders, f"{stem}-{digest[:16]}.h5")

    def has(self, name: str, digest: str) -> bool:
        """Say whether `read` returns this shard: the file is there, whole, and matches its checksum."""
        return self.read(name, digest) is not None

    def read(self, name: str, digest: str) -> Shard | None:
        """Return a shard, or None where there is none yet.

        A file that is truncated, foreign, changed or of another digest is renamed to ``*.broken-N``,
        reported, and counts as missing. Errors: StoreError where the file system refuses.
        """
        path = self.path(name, digest)
        while (seen := _identity(path)) is not None:
            try:
                return _load(path, digest)
            except FileNotFoundError:
                continue
            except _BrokenFileError as fault:
                self._set_aside(path, seen, str(fault))
        return None

    def write(self, name: str, digest: str, shard: Shard) -> Path:
        """Store a shard and return its path; a shard that is already there stays untouched.

        The file appears under its name whole or not at all. Errors: StoreError where it cannot be written.
        """
        path = self.path(name, digest)
        image = _file_image(digest, shard)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path.parent)
            while not _publish(image, path):
                if self.has(name, digest):
                    break  # another run was faster; otherwise a broken file lay there and is set aside now
        except OSError as error:
            raise StoreError(
                f"cannot write {path}: {error.strerror}; give another cache folder or make room"
            ) from error
        return path

    def entries(self, *, verify: bool = False) -> Iterator[Entry]:
        """Describe every file in order of path, from its headers or, to verify, from all of it."""
        for path in sorted(self.root.rglob("*.h5")):
            if path.is_file():
                yield _describe(path, verify=verify)

    def export(self, entries: Iterable[Entry], folder: Path) -> list[Path]:
        """Write every array as ``<shard>.<array>.npy`` and the rest of the shard as ``<shard>.json``.

        The folders of the store are kept. Returns the files written. Errors: StoreError for a faulty entry
        or a folder that cannot be written.
        """
        written: list[Path] = []
        for entry in entries:
            try:
                stem = Path(folder) / entry.path.relative_to(self.root).with_suffix("")
                written += _export(_load(entry.path), stem)
            except (_BrokenFileError, OSError) as fault:
                raise StoreError(f"cannot export {entry.path}: {fault}") from None
        return written

    def _set_aside(self, path: Path, seen: tuple[int, ...], fault: str) -> None:
        """Rename a broken file, unless another process has replaced or moved it since it was looked at."""
        if _identity(path) != seen:
            return
        number = 1
        while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
            number += 1
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(
                f"{path} is broken ({fault}) and cannot be set aside: {error.strerror}"
            ) from error
        self.warn(f"{path} is broken ({fault}); it is set aside as {aside.name} and will be made again")


class _BrokenFileError(Exception):
    """A file that is no whole shard; the text says why."""


def _load(path: Path, digest: str | None = None) -> Shard:
    """Read all of a file and verify it. Errors: FileNotFoundError, StoreError (refused), _BrokenFileError."""
    with _opened(path) as (file, datasets):
        provenance = _text(datasets["provenance"])
        shard = Shard(
            ids=tuple(item.decode() for item in datasets["ids"][()].tolist()),
            targets=datasets["targets"][()],
            arrays={name: data[()] for name, data in _within("arrays/", datasets)},
            diagnostics={name: data[()] for name, data in _within("diagnostics/", datasets)},
            provenance=_provenance(provenance),
        )
        found = str(file.attrs["digest"])
        if digest is not None and found != digest:
            raise _BrokenFileError(f"it belongs to another digest, {found[:16]}")
        if file.attrs["complete"] != _content_digest(found, provenance, shard):
            raise _BrokenFileError("its content does not match its checksum")
        return shard


def _describe(path: Path, *, verify: bool) -> Entry:
    """Describe a file from its headers, after reading all of it where it is to be verified."""
    size = path.stat().st_size
    try:
        if verify:
            _load(path)
        with _opened(path) as (_, datasets):
            shapes = {name: data.shape for name, data in _within("arrays/", datasets)}
            return Entry(path, size, len(datasets["ids"]), shapes, _provenance(_text(datasets["provenance"])))
    except (_BrokenFileError, FileNotFoundError, StoreError) as fault:
        return Entry(path, size, fault=str(fault))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, dict[str, h5py.Dataset]]]:
    """Open a file and check its header; whatever HDF5 stumbles over inside is the file's fault.

    Errors: FileNotFoundError, StoreError (the file system refuses), _BrokenFileError.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    with stream:
        try:
            with h5py.File(stream, "r") as file:
                if file.attrs.get("format") != FORMAT:
                    raise _BrokenFileError(f"it is not a file of format {FORMAT}")
                if file.attrs["version"] != VERSION:
                    raise _BrokenFileError(f"its version is {file.attrs['version']}, wanted {VERSION}")
                if "complete" not in file.attrs:
                    raise _BrokenFileError("it was never completed")
                yield file, _datasets(file, os.fstat(stream.fileno()).st_size)
        except (_BrokenFileError, MemoryError):
            raise
        except Exception as error:  # HDF5 raises half a dozen kinds on files from strangers
            raise _BrokenFileError(" ".join(str(error).split()) or type(error).__name__) from error


def _datasets(file: h5py.File, size: int) -> dict[str, h5py.Dataset]:
    """Return the data sets of a file by name after checking that they lie in it and fill at most its size.

    Nothing is read yet: a declared shape that the bytes cannot hold never reaches an allocation, and a link
    or external storage that would read another file is refused.
    """
    names = ["ids", "targets", "provenance"]
    for group in ("arrays", "diagnostics"):
        _local(file, group)
        names += [f"{group}/{name}" for name in file[group]]
    datasets = {name: _local(file, name) for name in names}
    total = 0
    for name, dataset in datasets.items():
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype.hasobject:
            raise _BrokenFileError(f"{name} is no plain data set")
        plain = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and not dataset.external
        total += math.prod(dataset.shape) * dataset.dtype.itemsize
        if not plain or total > size:
            raise _BrokenFileError(f"{name} {dataset.shape} does not lie in the file's {size} bytes")
    return datasets


def _local(file: h5py.File, name: str) -> h5py.Dataset | h5py.Group:
    """Return an object that the file itself holds under a name; links elsewhere are refused."""
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise _BrokenFileError(f"{name} is {'missing' if link is None else 'a link elsewhere'}")
    return file[name]


def _within(group: str, datasets: dict[str, h5py.Dataset]) -> Iterator[tuple[str, h5py.Dataset]]:
    """Give the data sets of a group with their names in it."""
    return ((name.removeprefix(group), data) for name, data in datasets.items() if name.startswith(group))


def _text(dataset: h5py.Dataset) -> str:
    """Read a data set that holds one string."""
    return bytes(dataset[()]).decode()


def _provenance(text: str) -> dict[str, Any]:
    """Parse the JSON record of where the content came from."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise _BrokenFileError("its provenance is no JSON object")
    return record


def _file_image(digest: str, shard: Shard) -> bytes:
    """Return the bytes of a shard's HDF5 file; the same shard gives the same bytes.

    Built in memory, so that HDF5 never holds a file open for writing and the disk sees one plain write.
    """
    provenance = _json(shard.provenance)
    memory = io.BytesIO()
    with h5py.File(memory, "w", track_order=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["digest"] = digest
        file["ids"] = _encoded([sample.encode() for sample in shard.ids])
        file["targets"] = shard.targets
        file["provenance"] = _encoded([provenance.encode()]).reshape(())
        for group, members in (("arrays", shard.arrays), ("diagnostics", shard.diagnostics)):
            file.create_group(group)
            for name in sorted(members):
                file[group][name] = members[name]
        file.attrs["complete"] = _content_digest(digest, provenance, shard)
    return memory.getvalue()


def _encoded(strings: list[bytes]) -> Array:
    """Return byte strings as an array that HDF5 stores as UTF-8 of fixed length.

    Fixed, because strings of variable length lie outside their data set, where no size can be checked.
    """
    longest = max((len(string) for string in strings), default=1)
    return np.array(strings, dtype=h5py.string_dtype("utf-8", max(longest, 1)))


def _content_digest(digest: str, provenance: str, shard: Shard) -> str:
    """Return the SHA-256 of everything in a shard, shapes included: mark of completeness and checksum."""
    sha = hashlib.sha256(_json([FORMAT, VERSION, digest, provenance, shard.ids]).encode())
    members: list[tuple[str, Array]] = [("targets", shard.targets)]
    members += [*sorted(shard.arrays.items()), *sorted(shard.diagnostics.items())]
    for name, array in members:
        sha.update(_json([name, array.shape, array.dtype.str]).encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _publish(image: bytes, path: Path) -> bool:
    """Write bytes to a temporary file and give it its name, unless that is taken (False). Errors: OSError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(image)
            file.flush()
            os.fsync(
                file.fileno()
            )  # before the name appears, else a power cut could leave a name without content
        try:
            os.link(temporary, path)  # unlike a rename, never replaces a finished file
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished files of processes that died long ago."""
    for leftover in folder.glob(".*.part"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER:
                leftover.unlink()


def _identity(path: Path) -> tuple[int, ...] | None:
    """Return what tells this very file from another of the same name, or None where there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_array(name: str, array: Array, dtype: type[np.generic], n: int) -> None:
    """Raise StoreError unless the array has a plain name, the dtype wanted, and one row a sample."""
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name):
        raise StoreError(f"an array's name may hold letters, digits and _ only (found {name!r})")
    if array.dtype != dtype:
        raise StoreError(f"{name} must be {np.dtype(dtype)} (found {array.dtype})")
    if array.ndim < 1 or array.shape[0] != n:
        raise StoreError(f"{name} must have one row for each of {n} sample ids (found shape {array.shape})")


def _readable(part: str) -> str:
    """Return a part of a path that every file system takes and that cannot lead out of the store."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", part).strip(".-")[:100] or "_"


def _json(value: Any) -> str:
    """Return JSON that depends on the value alone. Errors: StoreError for what JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the provenance of a shard must be made of JSON types: {error}") from error


def _export(shard: Shard, stem: Path) -> list[Path]:
    """Write a shard's arrays and record beside each other and return the files. Errors: OSError."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    arrays = {stem.with_name(f"{stem.name}.{name}.npy"): array for name, array in shard.arrays.items()}
    for path, array in arrays.items():
        np.save(path, array, allow_pickle=False)
    record = stem.with_name(f"{stem.name}.json")
    record.write_text(_record(shard), encoding="utf-8")
    return [*arrays, record]


def _record(shard: Shard) -> str:
    """Return ids, targets, diagnostics and provenance as JSON; a number that is not finite becomes null."""
    diagnostics = {
        name: [value if math.isfinite(value) else None for value in values.tolist()]
        for name, values in shard.diagnostics.items()
    }
    record = {"ids": shard.ids, "targets": shard.targets.tolist(), "diagnostics": diagnostics}
    return json.dumps(
        record | {"provenance": shard.provenance}, indent=1, ensure_ascii=False, allow_nan=False
    )
