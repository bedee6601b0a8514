"""Where data lies: the data root, and paths in annotations that may not leave it."""

import os
from pathlib import Path

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
    candidates = (
        (given, "the data option"),
        (os.environ.get(VARIABLE) or None, f"the environment variable {VARIABLE}"),
        (manifest.root, "the manifest"),
    )
    named = [(Path(base).expanduser(), who) for base, who in candidates if base is not None]
    source = f"; the data set is published at {manifest.url}" if manifest.url else ""
    if not named:
        raise DataError(
            f"data set {manifest.name!r} needs files, and no data root is named: give --data DIR, or set"
            f" {VARIABLE}{source}"
        )
    base, who = named[0]
    if not base.is_dir():
        raise DataError(
            f"data set {manifest.name!r}: there is no folder {base}, which {who} names as the data root: give"
            f" --data DIR, or set {VARIABLE}, to a folder that holds the data set{source}"
        )
    own = inside(base, manifest.folder, where=f"data set {manifest.name!r}") if manifest.folder else base
    return own if own.is_dir() else base


def describe_folder(folder: Path, most: int = 6) -> str:
    """Say what a folder holds, for the sentence that it is the wrong one: the first names, and how many."""
    if not folder.is_dir():
        return "no such folder"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "an empty folder"


def inside(root: Path, path: str, *, where: str) -> Path:
    """Return root / path. Errors: DataError naming ``where`` for a path that is empty or leaves the root."""
    parts = path.replace("\\", "/").split("/")
    if not path or "\0" in path or parts[0] == "" or ":" in parts[0] or ".." in parts:
        raise DataError(f"{where}: the path {path!r} must be relative and stay inside the data root {root}")
    full = root.joinpath(*parts)
    below_root = (full, *full.parents[: len(parts) - 1])
    has_link = any(step.is_symlink() for step in below_root)
    if has_link and not full.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{where}: the path {path!r} leaves the data root {root} through a link: put the files inside, or"
            " name as data root the folder that holds them"
        )
    return full
