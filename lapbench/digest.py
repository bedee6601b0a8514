"""Names for results: the SHA-256 of everything that could change them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any


def digest_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a value made of JSON types, independent of key order.

    Errors: TypeError for anything that JSON cannot hold, so that nothing is hashed by its address.
    """
    text = json.dumps(
        plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def digest_of_code(package: Path = Path(__file__).parent) -> str:
    """Return the hexadecimal SHA-256 of a package's Python files and their names; if not given, lapbench's.

    A record says by it which code wrote it. No file is named by it: what draws and scores maps has versions
    of its own, so that a change elsewhere remakes nothing.
    """
    files = {path.relative_to(package).as_posix(): digest_of_file(path) for path in package.rglob("*.py")}
    return digest_of(files)


def plain(value: Any) -> Any:
    """Turn tuples, mappings and pydantic models into JSON types; everything else is left to json."""
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value
