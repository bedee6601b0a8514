"""Which sample belongs to which split, and in which order a split is read."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lapbench.data.manifest import Part
from lapbench.data.paths import inside
from lapbench.data.record import Record
from lapbench.data.text import read_lines
from lapbench.errors import DataError, suggest


def divide(
    records: Sequence[Record], splits: Mapping[str, Part], root: Path | None
) -> dict[str, list[Record]]:
    """Return the records of every split: as declared, or as the reader yields them where nothing is declared.

    Errors: DataError for an id that occurs twice, a listed id that does not exist, a sample in two splits,
    a group torn apart between splits, and a split without samples.
    """
    divided = assign(records, splits, root)
    for unit, (first, second) in torn_units(divided).items():
        one, other = (next(r for r in divided[name] if r.unit == unit) for name in (first, second))
        raise DataError(
            f"samples {one.id!r} and {other.id!r} belong together (group {unit!r}) but stand in the splits"
            f" {first!r} and {second!r}: the scores would be measured on what was learnt"
        )
    return divided


def assign(
    records: Sequence[Record], splits: Mapping[str, Part], root: Path | None
) -> dict[str, list[Record]]:
    """Return the records of every split as `divide` does, but let groups be torn apart.

    Errors: DataError as `divide`, but for groups.
    """
    _check_ids(records)
    if splits:
        divided = {name: _members(name, part, records, root) for name, part in splits.items()}
    else:
        names = dict.fromkeys(record.split for record in records)
        divided = {name: [r for r in records if r.split == name] for name in names if name}
    if not divided:
        raise DataError("the annotation names no splits and the manifest declares none: declare [splits.…]")
    for name, members in divided.items():
        if not members:
            raise DataError(f"the split {name!r} has no samples{_source_hint(splits.get(name), records)}")
    return divided


def torn_units(divided: Mapping[str, Iterable[Record]]) -> dict[str, tuple[str, str]]:
    """Return the groups that stand in two splits, each with the first and the last of those splits."""
    home: dict[str, str] = {}
    torn = {}
    for name, members in divided.items():
        for record in members:
            first = home.setdefault(record.unit, name)
            if first != name:
                torn[record.unit] = (first, name)
    return torn


def mixed(records: Iterable[Record], classes: Sequence[str]) -> list[Record]:
    """Return records in the fixed order of a split: by the hash of their ids, classes spread evenly.

    Any head at least as long as the number of classes holds every class.
    """
    by_class: dict[str, list[tuple[bytes, Record]]] = {name: [] for name in classes}
    for record in records:
        by_class[record.label].append((hashlib.sha256(record.id.encode()).digest(), record))
    keyed = [
        (rank / len(members), key, record)
        for members in by_class.values()
        for rank, (key, record) in enumerate(sorted(members, key=lambda pair: pair[0]))
    ]
    return [record for _, _, record in sorted(keyed, key=lambda item: item[:2])]


def share_of(group: str, seed: int) -> float:
    """Return the number in [0, 1) that decides the split of a group."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:6], "big") / 2**48


def _members(name: str, part: Part, records: Sequence[Record], root: Path | None) -> list[Record]:
    if part.ids is not None:
        return _listed(name, part.ids, records, root)
    low, high = part.share
    own = [record for record in records if part.source is None or record.split == part.source]
    return [record for record in own if low <= share_of(record.unit, part.seed) < high]


def _listed(name: str, file: str, records: Sequence[Record], root: Path | None) -> list[Record]:
    if root is None:
        raise DataError(f"split {name!r}: an embedded data set has no list file {file!r}")
    path = inside(root, file, where=f"split {name!r}")
    known = {record.id: record for record in records}
    chosen: dict[str, Record] = {}
    for where, sample_id in read_lines(path):
        if sample_id not in known:
            raise DataError(
                f"{where}: there is no sample {sample_id!r} among the {len(known)} of the annotation, such as"
                f" {next(iter(known))!r}"
            )
        chosen[sample_id] = known[sample_id]
    return list(chosen.values())


def _source_hint(part: Part | None, records: Sequence[Record]) -> str:
    found = sorted({record.split for record in records})
    if part is None or part.source is None or part.source in found:
        return ""
    return f": its source {part.source!r} is not among those of the annotation{suggest(part.source, found)}"


def _check_ids(records: Sequence[Record]) -> None:
    seen: dict[str, Record] = {}
    for record in records:
        if record.id in seen:
            raise DataError(
                f"{record.where}: the id {record.id!r} occurs twice, first at {seen[record.id].where}"
            )
        try:
            f"{record.id}{record.unit}{record.source}".encode()
        except UnicodeEncodeError:
            name = ascii(f"{record.source}")
            raise DataError(
                f"{name}: the name is not UTF-8: rename the file (convmv does whole folders)"
            ) from None
        seen[record.id] = record
