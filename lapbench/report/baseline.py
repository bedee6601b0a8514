"""Baselines: what a gate holds new results against, in one file that is made to be committed.

It holds the score of every image of every row, what the maps claimed to be made of, and why it was accepted;
one row a line, so that a review shows which rows were renewed. Scores are kept to six decimals, on both sides
of a comparison: what is equal stays equal.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, JsonValue, StrictBool, model_validator

from lapbench.digest import digest_of
from lapbench.errors import ResultError
from lapbench.report.results import (
    Count,
    Leaderboard,
    Provenance,
    Record,
    Row,
    Selection,
    read_image_scores,
    read_leaderboard,
    read_record,
    write_file,
)

DECIMALS = 6
Score = Annotated[float, Field(strict=True, ge=0, le=1)]


class Acceptance(Record):
    """Why somebody made these results the baseline, and what the gate had said about them."""

    why: Annotated[str, Field(pattern=r"\S")]
    verdicts: dict[str, Count] = Field(
        default_factory=dict
    )  # rows by verdict; none where there was no baseline before


class BaselineRow(Record):
    """The scores of one row.

    images: which of the baseline's lists of ids the scores are over. iou: (seeds, images), empty where the
    row has no number, for a reason. claims: what the maps were said to be made of.
    """

    model: Annotated[str, Field(min_length=1)]
    explainer: Annotated[str, Field(min_length=1)]
    selection: Selection
    randomised: StrictBool = False
    seeds: tuple[int, ...] = ()
    images: Count | None = None
    iou: tuple[tuple[Score, ...], ...] = ()
    reason: str = ""
    claims: Provenance = Field(default_factory=dict)

    @model_validator(mode="after")
    def _scores_or_a_reason(self) -> Self:
        if bool(self.iou) == bool(self.reason):
            raise ValueError("a row has either scores in 'iou' or a 'reason' why it has none")
        if self.iou and (self.images is None or len(self.seeds) != len(self.iou)):
            raise ValueError(
                f"scores need 'images', and one of 'seeds' for every line ({len(self.iou)} lines, "
                f"{len(self.seeds)} seeds)"
            )
        return self

    @property
    def key(self) -> tuple[str, str, str, bool]:
        """What the row is a row of."""
        return (self.model, self.explainer, self.selection, self.randomised)

    @property
    def table(self) -> npt.NDArray[np.float64]:
        """The scores, (seeds, images)."""
        return np.array(self.iou, dtype=np.float64)


class Baseline(Record):
    """All rows of one benchmark as they were accepted; also the form in which a gate reads new results."""

    schema_version: Literal[1] = 1
    kind: Literal["baseline"] = "baseline"
    benchmark: Annotated[str, Field(min_length=1)]
    benchmark_version: Annotated[int, Field(ge=1)]
    provenance: Provenance = Field(default_factory=dict)  # data, protocol, versions: the leaderboard's
    history: tuple[Acceptance, ...] = ()  # the newest last
    images: tuple[tuple[str, ...], ...] = ()
    rows: tuple[BaselineRow, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = []
        for key, times in Counter(row.key for row in self.rows).items():
            if times > 1:
                faults.append(f"found twice: row {key}")
        for number, ids in enumerate(self.images, start=1):
            if len(set(ids)) < len(ids):
                faults.append(f"images.{number}: image ids must differ")
        for row in self.rows:
            if row.images is None or not row.iou:
                continue
            if row.images >= len(self.images):
                faults.append(
                    f"row {row.key}: wants list {row.images} of images, and there are {len(self.images)}"
                )
            elif any(len(line) != len(self.images[row.images]) for line in row.iou):
                wanted, found = len(self.images[row.images]), [len(line) for line in row.iou]
                faults.append(f"row {row.key}: {wanted} scores wanted in every seed, found {found}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def limit(self) -> int | None:
        """How many samples of each split were used; None for all."""
        found = self.provenance.get("limit")
        return found if isinstance(found, int) else None

    def ids(self, row: BaselineRow) -> tuple[str, ...]:
        """The images that the scores of a row are over; none for a row without scores."""
        return self.images[row.images] if row.iou and row.images is not None else ()


def read_baseline(path: Path) -> Baseline:
    """Read a baseline's file, or take a report folder as one.

    Errors: ResultError that names the file, every fault and the mend.
    """
    if path.is_dir():
        return from_report(path)
    if path.name == "leaderboard.json":
        return from_report(path.parent)
    return read_record(path, Baseline, mend="make it with `lapbench baseline accept`")


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, one row a line; the same baseline gives the same bytes."""
    fields = baseline.model_dump(mode="json")
    lines = ",\n".join(f" {json.dumps(name)}: {_listed(value)}" for name, value in fields.items())
    write_file(path, f"{{\n{lines}\n}}\n".encode())


def from_report(folder: Path) -> Baseline:
    """Return the results in a report folder in the form of a baseline.

    Errors: ResultError for files that are missing, changed or contradictory, and for a complete row without
    a score for every image.
    """
    board = read_leaderboard(folder / "leaderboard.json")
    images: dict[tuple[str, ...], int] = {}
    rows = [_row(folder, board, row, images) for row in board.rows]
    return Baseline(
        benchmark=board.benchmark,
        benchmark_version=board.benchmark_version,
        provenance=board.provenance,
        images=tuple(images),
        rows=tuple(rows),
    )


def accepted(new: Baseline, why: str, *, old: Baseline | None, verdicts: Mapping[str, int]) -> Baseline:
    """Return new results as the baseline, with the history of the old one and the reason for this one."""
    history = old.history if old else ()
    return new.model_copy(update={"history": (*history, Acceptance(why=why, verdicts=dict(verdicts)))})


def _row(folder: Path, board: Leaderboard, row: Row, images: dict[tuple[str, ...], int]) -> BaselineRow:
    """Return one row with its scores; number the list of its images."""
    found: dict[str, Any] = {"reason": row.reason}
    if row.complete:
        scores = read_image_scores(folder, row)
        table = np.array(scores.scores["iou"], dtype=np.float64)
        if (scores.benchmark, scores.benchmark_version) != (board.benchmark, board.benchmark_version):
            raise ResultError(
                f"{folder / scores.file}: of {scores.benchmark}, version {scores.benchmark_version}, and the "
                f"leaderboard beside it of {board.benchmark}, version {board.benchmark_version}"
            )
        if lacking := int(np.isnan(table).any(axis=0).sum()):
            raise ResultError(
                f"{folder / scores.file}: {lacking} of {len(scores.ids)} images have no score, "
                "though the row says that it is complete; run the benchmark again to remake it"
            )
        number = images.setdefault(scores.ids, len(images))
        found = {"seeds": scores.seeds, "images": number, "iou": np.round(table, DECIMALS).tolist()}
    return BaselineRow(
        model=row.model,
        explainer=row.explainer,
        selection=row.selection,
        randomised=row.randomised,
        claims=_claims(row.provenance),
        **found,
    )


def _claims(provenance: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Say what decides the maps of a row, as its record claims; empty where it claims nothing."""
    sources = provenance.get("maps")
    if not isinstance(sources, Sequence) or not all(isinstance(source, Mapping) for source in sources):
        return {}
    networks = [dict(source.get("network") or {}) for source in sources]
    weights = [network.pop("weights", None) for network in networks]
    named = {name: [source.get(name) for source in sources][:1] for name in _EXPLAINER}
    return {
        **{name: values[0] for name, values in named.items() if values},
        "network": digest_of(networks),
        "weights": weights,
        "upsample": provenance.get("upsample"),
    }


_EXPLAINER = ("explainer", "explainer_version", "origin", "parameters")


def _listed(value: Any) -> str:
    """Return JSON in which every item of a list stands on its own line."""
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in value)
    return f"[\n{lines}\n ]"
