"""What must be known of image files before they are decoded: their digest and their size."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lapbench.data.images import read_size
from lapbench.digest import digest_of_file
from lapbench.errors import DataError


@dataclass(frozen=True, slots=True)
class Inspected:
    """The SHA-256 of a file's bytes, and height and width of its displayed image."""

    digest: str
    size: tuple[int, int]


class Inspector:
    """Inspects image files, each once; with a cache folder, once in a life as long as size and time stay."""

    def __init__(self, cache: Path | None) -> None:
        self._file = cache / "image-digests.json" if cache else None
        self._known: dict[str, list[int | str]] = _read(self._file) if self._file else {}
        self._is_new = False
        self._now: dict[Path, Inspected] = {}

    def inspect(self, path: Path) -> Inspected:
        """Return digest and size of an image. Errors: DataError as `lapbench.data.images.read_size`."""
        if path not in self._now:
            self._now[path] = self._inspect(path)
        return self._now[path]

    def _inspect(self, path: Path) -> Inspected:
        try:
            stat = path.stat()
        except OSError:
            raise DataError(
                f"{path}: there is no such image: complete the data folder, or correct the annotation"
            ) from None
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = self._known.get(key)
        if entry is None or entry[:2] != stamp:
            height, width = read_size(path)
            entry = [*stamp, digest_of_file(path), height, width]
            self._known[key] = entry
            self._is_new = True
        return Inspected(str(entry[2]), (int(entry[3]), int(entry[4])))

    def save(self) -> None:
        """Write what was learnt into the cache folder, under a temporary name first."""
        if self._file is None or not self._is_new:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._known))
        temporary.replace(self._file)


def _read(file: Path) -> dict[str, list[int | str]]:
    """Read the cache; a broken or foreign one counts as empty, since everything in it can be had again."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        k: v
        for k, v in found.items()
        if isinstance(v, list) and [type(x) for x in v] == [int, int, str, int, int]
    }
