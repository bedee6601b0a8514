"""From a TOML file to validated data: every fault at once, with its line and the nearest right name."""

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lapbench.errors import DefinitionError, suggest

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")

Path_ = tuple[str | int, ...]
M = TypeVar("M", bound="Table")


class Table(BaseModel):
    """A TOML table: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True)
class Source:
    """TOML that is read but not yet validated: its data, and where in which file every key stands.

    where: the file's name. places: ``file:line`` by the path of a table or key.
    """

    where: str
    data: dict[str, Any]
    places: Mapping[Path_, str]

    def place(self, path: Path_) -> str:
        """Where a key stands, or the innermost table around it that is written anywhere."""
        known = (self.places.get(path[:n]) for n in range(len(path), -1, -1))
        return next((place for place in known if place), f"{self.where}:1")


def read_source(path: Path) -> Source:
    """Read a TOML file; DefinitionError where it cannot be read, or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{path}: cannot be read: {error}") from None
    return parse_source(text, where=str(path))


def parse_source(text: str, *, where: str) -> Source:
    """As `read_source`, of text; ``where`` names it in errors."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DefinitionError(f"{where}: not valid TOML: {error}") from None
    return Source(where, data, {path: f"{where}:{line}" for path, line in locate_keys(text).items()})


def read_toml(path: Path, model: type[M]) -> M:
    """Read and validate a TOML file; errors as of `read_source` and `validate`."""
    return validate(read_source(path), model)


def parse_toml(text: str, model: type[M], *, where: str) -> M:
    """As `read_toml`, of text; ``where`` names it in errors."""
    return validate(parse_source(text, where=where), model)


def validate(source: Source, model: type[M]) -> M:
    """Return the data as a model.

    Errors: DefinitionError, listing every fault as ``file:line: field: what was wanted (found …)``.
    """
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        items = [*error.errors(), *_contradictions(error, model, source.data)]
        faults = [_fault(item, model, source) for item in items if not _is_echo(item)]
        plural = "fault" if len(faults) == 1 else "faults"
        raise DefinitionError(
            f"{source.where}: {len(faults)} {plural}\n" + "\n".join(f"  {f}" for f in faults)
        ) from None


def _contradictions(error: ValidationError, model: type[BaseModel], data: Any) -> list[Any]:
    """Return what else is wrong once unknown keys are left out: until then pydantic compares no fields."""
    unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
    rest = copy.deepcopy(data)
    for loc in unknown:
        *tables, key = _real_parts(loc, rest)
        holder = rest
        for part in tables:
            holder = holder[part]
        holder.pop(key, None)
    try:
        model.model_validate(rest)
    except ValidationError as remaining:
        known = {(item["loc"], item["msg"]) for item in error.errors()}
        return [item for item in remaining.errors() if (item["loc"], item["msg"]) not in known]
    return []


def _is_echo(item: Any) -> bool:
    """Whether a list is called too short only because what is in it is wrong, which is said by itself."""
    return bool(item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"])


def locate_keys(text: str) -> dict[Path_, int]:
    """Map the path of every table and key in TOML text to its 1-based line.

    Keys inside inline tables and arrays share the line of the key that opens them.
    """
    lines: dict[Path_, int] = {}
    counts: dict[Path_, int] = {}
    table: Path_ = ()
    inside = ""  # the delimiter of the multi-line string that the scan is in
    for number, line in enumerate(text.splitlines(), start=1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if header := _HEADER.match(line):
            table = _resolve(_split(header[2]), counts, is_array=header[1] == "[[")
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault(table + tuple(_split(key[1])), number)
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2 == 1:
                inside = quotes
    return lines


def _split(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(r"[\w-]+|\"[^\"]*\"|'[^']*'", dotted)]


def _resolve(names: list[str], counts: dict[Path_, int], *, is_array: bool) -> Path_:
    """Turn the names of a table header into a path with array indices, counting arrays of tables."""
    path: Path_ = ()
    for depth, name in enumerate(names, start=1):
        path += (name,)
        if is_array and depth == len(names):
            counts[path] = counts.get(path, -1) + 1
            path += (counts[path],)
        elif path in counts:
            path += (counts[path],)
    return path


def _fault(item: Any, model: type[BaseModel], source: Source) -> str:
    raw: Path_ = item["loc"]
    path = tuple(_real_parts(raw, source.data))
    name = ".".join(str(p) if isinstance(p, str) else str(p + 1) for p in path) or "the file"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = f"unknown field{suggest(str(raw[-1]), _fields_at(model, raw[:-1]))}"
    elif item["type"] == "missing":
        message = "this field is missing"
    else:
        found = repr(item["input"])
        if item["type"] != "value_error" and len(found) <= 80 and not isinstance(item["input"], dict):
            message += f" (found {found})"
    return f"{source.place(path)}: {name}: {message}"


def _real_parts(loc: Path_, data: Any) -> Iterator[str | int]:
    """Drop the parts of a pydantic location that are union branches rather than keys of the file."""
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(data, dict) and isinstance(part, str):
            if part in data:
                data = data[part]
                yield part
            elif last:
                yield part
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
            yield part


def _fields_at(model: type[BaseModel], loc: Path_) -> list[str]:
    """Return the field names of the table that a location leads to."""
    here: Any = model
    for part in loc:
        if isinstance(part, int) or not (isinstance(here, type) and issubclass(here, BaseModel)):
            continue
        field = here.model_fields.get(part)
        here = next(_models_in(field.annotation), here) if field else here
    return list(here.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
