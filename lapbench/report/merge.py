"""Leaderboards of many: result folders from different people and machines, checked and joined.

A submission is a report folder; ``submission.json`` beside its leaderboard says whose it is. Rows are joined
only where benchmark, version, data and protocol are the same. Where two submissions hold the same row, made
with the same maps, it is one row if its scores agree, and without a rank if they do not. What was joined may
be joined again: its rows say who submitted them, and what was contradicted stays so.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from lapbench.digest import digest_of
from lapbench.errors import ResultError
from lapbench.report.evidence import contradictions
from lapbench.report.leaderboard import write_report
from lapbench.report.page import render_page
from lapbench.report.ranks import rank_leaderboards, render_ranks
from lapbench.report.results import (
    ImageScores,
    Leaderboard,
    ModelSummary,
    Ranking,
    Record,
    Row,
    RowKey,
    faults_of,
    read_image_scores,
    read_leaderboard,
    write_file,
)

AGREEMENT = 1e-3
"""Scores of the same maps may differ by so much on average from machine to machine."""


class Submitter(Record):
    """Who ran a benchmark; the content of submission.json."""

    by: Annotated[str, Field(min_length=1, max_length=100)]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Submission:
    """A report folder that was read and checked. images: of the rows that have scores by image."""

    folder: Path
    submitter: Submitter
    board: Leaderboard
    images: dict[RowKey, ImageScores]

    def who(self, row: Row) -> tuple[str, ...]:
        """Whose row it is: of a joined folder, those who submitted it."""
        return row.submitted_by or (self.submitter.by,)


@dataclass(frozen=True)
class Merged:
    """One leaderboard of many, with the scores by image of its rows, and what joining them found."""

    board: Leaderboard
    images: dict[RowKey, ImageScores]
    notes: tuple[str, ...]

    @property
    def disputed(self) -> bool:
        """Whether submissions contradict each other."""
        return any(row.reason.startswith(_CONTRADICTION) for row in self.board.rows)


_CONTRADICTION = "contradiction: "


def read_submission(folder: Path) -> Submission:
    """Read a report folder and hold its rows to the scores by image that they rest on.

    Errors: ResultError that lists every fault of the folder.
    """
    board = read_leaderboard(folder / "leaderboard.json")
    _check_scores_are_there(folder, board)
    images, faults = {}, []
    for row in board.rows:
        if row.image_scores is not None:
            try:
                images[row.key] = read_image_scores(folder, row)
            except ResultError as error:
                faults.append(str(error))
    faults += contradictions(board, images)
    if faults:
        plural = "fault" if len(faults) == 1 else "faults"
        raise ResultError("\n  ".join([f"{folder}: {len(faults)} {plural}", *faults]))
    return Submission(folder, _submitter(folder), board, images)


def _check_scores_are_there(folder: Path, board: Leaderboard) -> None:
    """Say once, and not of every row, that a report was copied without its scores by image."""
    resting = sum(row.image_scores is not None for row in board.rows)
    if resting and not (folder / "scores").is_dir():
        raise ResultError(
            f"{folder}: there is no folder scores, on which {resting} of its rows rest: copy it from where "
            f"the report was written, or write it again with `lapbench report NAME --out {folder}`, where "
            f"NAME is {board.benchmark}, or the TOML file that defines it"
        )


def _submitter(folder: Path) -> Submitter:
    path = folder / "submission.json"
    if not path.is_file():
        return Submitter(by=folder.resolve().name)
    try:
        return Submitter.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        found = "; ".join(faults_of(error, Submitter))
    except (ValueError, RecursionError) as error:
        found = f"not valid JSON: {error}"
    raise ResultError(f'{path}: wanted {{"by": "who ran it", "note": "anything"}}: {found}')


def merge(submissions: Sequence[Submission]) -> list[Merged]:
    """Join submissions to one leaderboard for each benchmark, version, data and protocol.

    A model of one name that is not the same network everywhere is followed by who ran it.
    """
    groups: dict[str, list[Submission]] = {}
    for submission in submissions:
        groups.setdefault(digest_of(_what_decides(submission.board)), []).append(submission)
    merged = [_merge_alike(group) for group in groups.values()]
    names = [one.board.benchmark for one in merged]
    return [
        replace(one, notes=(*one.notes, f"{name}: several versions, data or protocols, kept apart"))
        if names.count(name) > 1
        else one
        for name, one in zip(names, merged, strict=True)
    ]


def write_merged(folder: Path, merged: Merged) -> Leaderboard:
    """Write a joined leaderboard as a report folder with its page, and return it, ranked."""
    board = write_report(folder, merged.board, merged.images)
    write_file(folder / "index.html", render_page(board).encode())
    return board


def write_ranks(folder: Path, ranks: str) -> None:
    """Write ranks over data sets beside the joined report folders; those of an earlier join do not stay."""
    path = folder / "ranks.md"
    if ranks:
        write_file(path, f"# Ranks over data sets\n\n{ranks}".encode())
    else:
        path.unlink(missing_ok=True)


def ranks_of(joined: Sequence[Merged]) -> str:
    """Return the mean ranks over all benchmarks as Markdown; nothing where `rank_leaderboards` has none."""
    boards = [merged.board for merged in joined]
    sections = []
    titles: tuple[tuple[Ranking, str], ...] = (
        ("thresholding", "By thresholding"),
        ("top-k", "By top-k selection"),
    )
    for ranking, title in titles:
        with suppress(ValueError):
            sections.append(f"## {title}\n\n{render_ranks(rank_leaderboards(boards, ranking))}")
    return "\n".join(sections)


def folder_name(merged: Merged, joined: Sequence[Merged]) -> str:
    """The benchmark's name, followed by a digest where several of them share it."""
    name = merged.board.benchmark
    alone = [one.board.benchmark for one in joined].count(name) == 1
    return name if alone else f"{name}-{digest_of(_what_decides(merged.board))[:8]}"


def _what_decides(board: Leaderboard) -> dict[str, Any]:
    """All that rows of one leaderboard must share."""
    data: Any = board.provenance.get("data") or {}
    return {
        "benchmark": board.benchmark,
        "version": board.benchmark_version,
        "data": data.get("digest"),
        "limit": board.provenance.get("limit"),
        "protocol": board.protocol,
    }


def _merge_alike(group: Sequence[Submission]) -> Merged:
    group = _by_name(group)
    renamed = [_told_apart(submission, group) for submission in group]
    entries: dict[RowKey, list[Submission]] = {}
    for submission in renamed:
        for row in submission.board.rows:
            entries.setdefault(row.key, []).append(submission)
    rows, images, notes = [], {}, []
    for key, submitters in entries.items():
        row, found, dispute = _joined(key, submitters)
        rows.append(row)
        if found is not None:
            images[key] = found
        if dispute:
            notes.append(f"{row.model}, {row.explainer} ({row.selection}): {dispute}")
    models = {model.name: model for submission in reversed(renamed) for model in submission.board.models}
    first = group[0].board
    board = first.model_copy(
        update={
            "models": tuple(models[name] for name in sorted(models)),
            "rows": tuple(rows),
            "provenance": {**first.provenance, "submissions": _credits(group)},
        }
    )
    return Merged(board, images, tuple(notes))


def _joined(key: RowKey, submitters: Sequence[Submission]) -> tuple[Row, ImageScores | None, str]:
    """One row of many: the first complete one, without a rank where any contradicts it, now or before."""
    rows = {one: next(row for row in one.board.rows if row.key == key) for one in submitters}
    complete = [one for one in submitters if rows[one].complete]
    first = (complete or list(submitters))[0]
    row, images = rows[first], first.images.get(key)
    disputes = [
        earlier.reason.removeprefix(_CONTRADICTION)
        for earlier in rows.values()
        if earlier.reason.startswith(_CONTRADICTION)
    ]
    for other in complete[1:]:
        if fault := _contradiction(row, rows[other], images, other.images.get(key)):
            ours, theirs = (", ".join(one.who(rows[one])) for one in (first, other))
            disputes.append(f"{ours} and {theirs} {fault}")
    dispute = "; ".join(dict.fromkeys(disputes))
    who = dict.fromkeys(name for one in submitters for name in one.who(rows[one]))
    update: dict[str, Any] = {"rank": None, "provenance": {**row.provenance, "submitted_by": list(who)}}
    if dispute:
        update |= {"complete": False, "reason": f"{_CONTRADICTION}{dispute}"}
    return row.model_copy(update=update), images, dispute


def _credits(group: Iterable[Submission]) -> list[Any]:
    """Who submitted what was joined, each once, also where parts of it had been joined before."""
    found: list[Any] = []
    for submission in group:
        provenance = submission.board.provenance
        own = {
            "by": submission.submitter.by,
            "note": submission.submitter.note,
            "versions": provenance.get("versions") or {},
        }
        earlier = provenance.get("submissions")
        found += [one for one in (earlier if isinstance(earlier, list) else [own]) if one not in found]
    return found


def _by_name(group: Sequence[Submission]) -> list[Submission]:
    """Number submitters of one name, in the order given, who ran other networks by one name."""
    runs: dict[str, list[Submission]] = {}
    for submission in group:
        runs.setdefault(submission.submitter.by, []).append(submission)
    meant = {by: {item for one in own for item in _networks(one.board).items()} for by, own in runs.items()}
    twofold = {by for by, networks in meant.items() if len(networks) > len({name for name, _ in networks})}

    def numbered(submission: Submission) -> Submission:
        by = submission.submitter.by
        if by not in twofold:
            return submission
        place = next(number for number, one in enumerate(runs[by], start=1) if one is submission)
        return replace(submission, submitter=submission.submitter.model_copy(update={"by": f"{by} {place}"}))

    return [numbered(submission) for submission in group]


def _told_apart(submission: Submission, group: Iterable[Submission]) -> Submission:
    """Let models whose name means another network elsewhere carry who ran them.

    A network that carries it already on a joined board has the same name everywhere.
    """
    ours = _networks(submission.board)
    names: dict[str, str] = {}
    for other in group:
        for name, network in _networks(other.board).items():
            if name in ours and ours[name] != network:
                names.setdefault(name, f"{name} ({submission.submitter.by})")
        for model in other.board.models:
            called = model.provenance.get("called")
            if isinstance(called, str) and ours.get(called) == _network(model):
                names[called] = model.name
    if not names:
        return submission

    def renamed(record: Any, field: str, **update: Any) -> Any:
        name = getattr(record, field)
        return record.model_copy(update={field: names[name], **update}) if name in names else record

    board = submission.board.model_copy(
        update={
            "models": tuple(
                renamed(model, "name", provenance={**model.provenance, "called": model.name})
                for model in submission.board.models
            ),
            "rows": tuple(renamed(row, "model") for row in submission.board.rows),
        }
    )
    images = {
        (names.get(key[0], key[0]), *key[1:]): renamed(found, "model")
        for key, found in submission.images.items()
    }
    return Submission(submission.folder, submission.submitter, board, images)


def _networks(board: Leaderboard) -> dict[str, str]:
    """The networks that a name stands for, as digests."""
    return {model.name: _network(model) for model in board.models}


def _network(model: ModelSummary) -> str:
    return digest_of(model.provenance.get("networks"))


def _contradiction(one: Row, other: Row, ours: ImageScores | None, theirs: ImageScores | None) -> str:
    """Say how two rows of one name differ, or nothing."""
    if ours is None or theirs is None or ours.ids != theirs.ids:
        return "scored other images"
    a, b = (np.array(scores.scores["iou"], np.float64) for scores in (ours, theirs))
    if a.shape == b.shape and float(np.nanmean(np.abs(a - b))) <= AGREEMENT:
        return ""
    same = _explained(one) == _explained(other)
    why = "for the same maps" if same else "with other versions or parameters of the explainer"
    return f"say {one.mean:.4f} and {other.mean:.4f} {why}"


def _explained(row: Row) -> list[tuple[Any, Any]]:
    """The versions and parameters of a row's explainer, seed by seed."""
    maps: Any = row.provenance.get("maps") or []
    return [(source.get("explainer_version"), source.get("parameters")) for source in maps]
