"""Where data lies: the data root, and paths in annotations that may not leave it."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from lapbench.data.manifest import Manifest
from lapbench.errors import DataError

VARIABLE = "LAPBENCH_DATA"


def find_root(manifest: Manifest, given: Path | None) -> Path | None:
    """Return the folder of the data set: under the given root, else $LAPBENCH_DATA, else the manifest's.

    A root may be the folder of the data set itself, or hold it under the manifest's ``folder``. None for an
    embedded data set. Errors: DataError saying what was looked for and where.
    """
    if manifest.embedded:
        return None
    from_environment = os.environ.get(VARIABLE)
    base, said_by = next(
        (
            (Path(base).expanduser(), said_by)
            for base, said_by in (
                (given, "the data option"),
                (from_environment or None, f"the environment variable {VARIABLE}"),
                (manifest.root, "the manifest"),
            )
            if base is not None
        ),
        (None, ""),
    )
    source = f"; the data set is published at {manifest.url}" if manifest.url else ""
    if base is None:
        raise DataError(
            f"data set {manifest.name!r} needs files, and no data root is named: give --data DIR, or set"
            f" {VARIABLE}{source}"
        )
    inside = base / manifest.folder
    if not inside.is_dir() and not base.is_dir():
        raise DataError(
            f"data set {manifest.name!r}: there is no folder {base}, which {said_by} names as the data"
            f" root: give"
            f" --data DIR, or set {VARIABLE}, to a folder that holds the data set{source}"
        )
    return inside if inside.is_dir() else base


def inside(root: Path, path: str, *, where: str) -> Path:
    """Return root / path. Errors: DataError naming ``where`` for a path that is empty or leaves the root."""
    posix, windows = PurePosixPath(path.replace("\\", "/")), PureWindowsPath(path)
    if not path or "\0" in path or posix.is_absolute() or windows.drive or ".." in posix.parts:
        raise DataError(f"{where}: the path {path!r} must be relative and stay inside the data root {root}")
    full = root / posix
    if not full.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{where}: the path {path!r} leaves the data root {root} through a link: put the files inside,"
            f" or name as"
            " data root the folder that holds them"
        )
    return full
