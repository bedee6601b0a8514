"""Golden maps: a few maps of every explainer, kept in files that are committed, so that none changes unseen.

A mean over images hides small changes of maps; a map itself does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lapbench.digest import digest_of
from lapbench.errors import ResultError
from lapbench.pipeline.explaining import explain
from lapbench.pipeline.job import Job, RowSource, slug
from lapbench.report.results import Record, read_record, write_file
from lapbench.types import FloatArray

TOLERANCE = 1e-3
"""How far a map may lie from its golden one, as a share of the golden map's largest absolute value."""
_MEND = "make it with `lapbench check golden … --update`"


class GoldenMaps(Record):
    """What the maps in a folder are of. tolerances: by row, to be edited by hand where one needs another."""

    schema_version: Literal[1] = 1
    benchmark: Annotated[str, Field(min_length=1)]
    benchmark_version: Annotated[int, Field(ge=1)]
    data: str  # digest
    images: tuple[str, ...]
    tolerances: dict[str, Annotated[float, Field(gt=0)]]


@dataclass(frozen=True)
class Finding:
    """How one explainer's maps compare with its golden ones.

    distance: the largest difference as a share of the golden maps' largest absolute value; None where there
    is nothing to compare. fault: in a sentence; empty where the maps are the golden ones.
    """

    row: str
    tolerance: float
    distance: float | None
    fault: str


def check_golden(job: Job, folder: Path) -> list[Finding]:
    """Draw the maps of all rows of a job, and compare them with the golden ones in a folder.

    Errors: ResultError where the folder's files are missing, broken, or of other images.
    """
    golden = read_record(folder / "golden.json", GoldenMaps, mend=_MEND)
    now = _described(job, golden)
    for what in ("benchmark", "benchmark_version", "data", "images"):
        if (wanted := getattr(golden, what)) != (found := getattr(now, what)):
            raise ResultError(f"{folder / 'golden.json'}: {what} {wanted} wanted, {found} found; " + _MEND)
    explain(job)
    findings = [
        _finding(name, _file(folder, row), golden.tolerances.get(name), maps, reason)
        for row, name, maps, reason in _drawn(job)
    ]
    gone = golden.tolerances.keys() - {finding.row for finding in findings}
    return findings + [
        Finding(name, golden.tolerances[name], None, "is not drawn any more") for name in sorted(gone)
    ]


def update_golden(job: Job, folder: Path) -> list[str]:
    """Write the maps of all rows of a job as the golden ones; return the rows. Tolerances are kept."""
    path = folder / "golden.json"
    old = read_record(path, GoldenMaps, mend=_MEND) if path.is_file() else None
    stale = list(folder.glob("*/*.npy"))
    if stale and old is None:
        raise ResultError(
            f"{folder}: there are arrays, such as {stale[0]}, and no golden.json calls them golden maps: "
            "name another folder"
        )
    explain(job)
    for file in stale:
        file.unlink()
    tolerances = {}
    for row, name, maps, _ in _drawn(job):
        if maps is not None:
            tolerances[name] = old.tolerances.get(name, TOLERANCE) if old else TOLERANCE
            file = _file(folder, row)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, maps)
    golden = _described(job, old).model_copy(update={"tolerances": tolerances})
    write_file(path, (golden.model_dump_json(indent=1) + "\n").encode())
    return list(tolerances)


def _described(job: Job, old: GoldenMaps | None) -> GoldenMaps:
    split = job.considered("score")
    return GoldenMaps(
        benchmark=job.benchmark.name,
        benchmark_version=job.benchmark.version,
        data=job.dataset.digest,
        images=tuple(split.ids[index] for block in job.blocks("score") for index in block.indices),
        tolerances=old.tolerances if old else {},
    )


def _drawn(job: Job) -> Iterator[tuple[RowSource, str, FloatArray | None, str]]:
    """Yield every row with its name and its raw maps (n, h, w), or None and the reason why it has none.

    Errors: ResultError where no image has a truth.
    """
    if not job.blocks("score"):
        raise ResultError(
            f"no image of the split {job.considered('score').name!r} has a truth: ask for more images"
        )
    for row in job.rows():
        source = row.sources[0]
        shards = [job.store.read(*job.map_key(source, block)) for block in job.blocks("score")]
        failure = job.failure_path(source)
        if None in shards and failure.is_file():
            yield row, source.text, None, failure.read_text(encoding="utf-8")
            continue
        yield row, source.text, np.concatenate([shard.maps for shard in shards if shard is not None]), ""


def _file(folder: Path, row: RowSource) -> Path:
    network = slug(row.model.name) + "-random" * row.randomised if row.model else "controls"
    name = row.explainer.row  # whose slug may be that of another: Grad-CAM, Grad-CAM++
    return folder / network / f"{slug(name)}-{digest_of(name)[:8]}.npy"


def _finding(row: str, path: Path, tolerance: float | None, maps: FloatArray | None, reason: str) -> Finding:
    """Compare the maps of one row with the golden ones."""
    if maps is None:
        fault = f"draws no maps any more: {reason}" if tolerance else ""
        return Finding(row, tolerance or TOLERANCE, None, fault)
    if tolerance is None:
        return Finding(row, TOLERANCE, None, "has no golden maps: look at them, then --update")
    golden = _read_maps(path)
    if golden.shape != maps.shape:
        return Finding(row, tolerance, None, f"maps of shape {golden.shape} then, {maps.shape} now")
    largest = float(np.abs(golden).max())
    distance = float(np.abs(maps.astype(np.float64) - golden).max()) / (largest or 1.0)
    fault = "" if distance <= tolerance else "maps have moved further than the tolerance"
    return Finding(row, tolerance, distance, fault)


def _read_maps(path: Path) -> FloatArray:
    try:
        maps = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ResultError(f"{path}: there are no such maps; {_MEND}") from None
    except (OSError, ValueError, EOFError) as error:
        raise ResultError(f"{path}: not an array: {error}; {_MEND}") from None
    if not isinstance(maps, np.ndarray) or maps.dtype != np.float32 or maps.ndim != 3:
        raise ResultError(f"{path}: wanted maps (n, h, w) of float32; {_MEND}")
    return maps
