"""The scored rows in the cache: written once and whole, and set aside where they are damaged."""

import json
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from lapbench.digest import digest_of
from lapbench.pipeline.job import Job, RowSource
from lapbench.report.results import ImageScores, Record, Row, write_file


class ScoredRow(Record):
    """A row and the scores of every image behind it."""

    row: Row
    images: ImageScores | None


class Stored(Record):
    """What is kept of one explainer on one model: a row for every selection.

    digest: of everything that decides the rows, in full. checksum: SHA-256 of the rows.
    """

    digest: str
    checksum: str
    rows: tuple[ScoredRow, ...]


def missing_rows(job: Job) -> list[RowSource]:
    """The rows that no scores are stored for."""
    return [row for row in job.rows() if read_row(job, row) is None]


def write_row(job: Job, row: RowSource, rows: tuple[ScoredRow, ...]) -> None:
    """Store the scored rows of an explainer on a model."""
    stored = Stored(digest=job.row_digest(row), checksum=digest_of(rows), rows=rows)
    content = json.dumps(stored.model_dump(mode="json"), allow_nan=False)
    write_file(job.row_path(row), content.encode())


def read_row(job: Job, row: RowSource) -> tuple[ScoredRow, ...] | None:
    """Return the scored rows of an explainer on a model, or None where there are none.

    A file that is cut short, changed or foreign is renamed to ``*.broken-N``, reported, and counts as
    missing.
    """
    path = job.row_path(row)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = Stored.model_validate_json(content)
    except ValidationError:
        fault = "it is cut short or foreign"
    else:
        if stored.digest != job.row_digest(row):
            fault = "it belongs to another digest"
        elif stored.checksum != digest_of(stored.rows):
            fault = "its content does not match its checksum"
        else:
            return stored.rows
    aside = _set_aside(path)
    job.workspace.notify(
        f"{path} is broken ({fault}); it is set aside as {aside.name} and will be made again"
    )
    return None


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    with suppress(FileNotFoundError):  # another run was faster
        path.rename(aside)
    return aside
