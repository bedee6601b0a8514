"""The leaderboard as people read it: ranked, and rendered for the terminal, as Markdown and as CSV.

There are two rankings, because the two ways from a map to a mask ask different things: by thresholding (one
cut for all images: is the map's scale right?) and by top-k (as many pixels as the truth has: is its order
right?). Contestants have ranks. Controls stand where their mean puts them, without one. What an explainer
reaches on the same network with random weights stands beside what it reaches on the trained one. Rows that
cannot be told apart share a group.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lapbench.report.groups import POWER, grouped
from lapbench.report.markdown import escape, printable
from lapbench.report.results import (
    Estimate,
    ImageScores,
    Leaderboard,
    ModelSummary,
    Power,
    Ranking,
    Row,
    RowKey,
    write_file,
    write_image_scores,
    write_leaderboard,
)
from lapbench.types import Task

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

NONE = "–"

LEGEND = (
    "IoU: predicted mask against truth. group: rows of one number cannot be told apart from the best of them "
    "(paired test over the same images, corrected for all pairs). random net: IoU of the same explainer on "
    "the network with random weights. threshold: fitted on other images than these, or the map's own; < "
    "selects below it. ties: share of selected pixels left to the tie rule. pointing: how often the highest "
    "pixel lies inside the truth. energy: share of the positive map inside it. cells: pixels of the map "
    "across the median object. Controls have no rank: what does not beat them says nothing. predictivity, "
    "faithfulness: how often a LAP alone names the true class, and that of its network; read by an MLP: by a "
    "two-layer network that learned from what the LAP's concept maps add up to."
)

_MEASURES: dict[Task, tuple[str, ...]] = {
    "landmarks": ("normalised_error", "landmark_accuracy"),
    "captions": ("word_accuracy", "caption_accuracy"),
}
LAP_COLUMNS = ("model", "layer", "predictivity", "faithfulness")
BLA_COLUMNS = {
    "accuracy, soft": "accuracy_soft",
    "accuracy, hard": "accuracy_hard",
    "both agree": "agreement_hard",
    "positions selected": "selected",
}
"""Headings, and the measures below them."""
NEAR_CHANCE = "⚠ near chance: its maps mean little"
BELOW_CHANCE = "⚠ below chance: are the classes in the order of the network's outputs?"


@dataclass(frozen=True)
class Board:
    """One of the two rankings: its rows in reading order, and apart from them those that are not ranked."""

    title: str
    own_column: str  # the heading of the column that only this ranking has
    complete: tuple[Row, ...]
    incomplete: tuple[Row, ...]
    randomised: Mapping[
        tuple[str, str, str], Row
    ]  # by model, explainer, selection; they stand beside the rows
    power: Power | None = None  # None: nothing is known of what can be told apart

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings of the cells of `row_cells`."""
        measured = ("IoU [interval]", "random net", self.own_column, "pointing", "energy")
        places = ("#", "group") if self.power else ("#",)
        return (*places, "model", "explainer", *measured, "notes")

    @property
    def n(self) -> int:
        """The number of images that most rows are over; a row over another number says so."""
        sizes = [row.n for row in self.complete]
        return max(sorted(set(sizes)), key=sizes.count, default=0)


def rank(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the rows in reading order, with ranks.

    Order: by thresholding before top-k; rows that are complete before those that are not; the model with the
    best contestant first; within a model by mean, descending. Equal means share a rank.
    """
    groups: dict[bool, list[Row]] = {False: [], True: []}
    for row in rows:
        groups[row.selection == "top-k"].append(row)
    return tuple(row for group in groups.values() for row in _rank_group(group))


def boards(leaderboard: Leaderboard) -> list[Board]:
    """Split a leaderboard into its rankings, leaving out one without rows."""
    rows = rank(leaderboard.rows)
    found = []
    for ranking, title, own_column in _RANKINGS:
        group = [row for row in rows if row.ranking == ranking]
        complete = [row for row in group if row.complete]
        trained = {row.key[:3] for row in complete if not row.randomised}
        beside = {row.key[:3]: row for row in complete if row.randomised and row.key[:3] in trained}
        alone = tuple(row for row in complete if not row.randomised or row.key[:3] not in beside)
        incomplete = tuple(row for row in group if not row.complete)
        if group:
            power = leaderboard.power.get(ranking)
            found.append(Board(title, own_column, alone, incomplete, beside, power))
    return found


_RANKINGS: tuple[tuple[Ranking, str, str], ...] = (
    ("thresholding", "By thresholding", "threshold"),
    ("top-k", "By top-k selection", "ties"),
)


def write_report(
    folder: Path, leaderboard: Leaderboard, images: Mapping[RowKey, ImageScores] = MappingProxyType({})
) -> Leaderboard:
    """Write leaderboard.json, .md and .csv into a folder, and the scores by image that its rows rest on.

    images: these scores, by the rows' keys; rows without have no group. Returns what was written, ranked and
    grouped.
    """
    rows = tuple(
        row.model_copy(update={"image_scores": write_image_scores(folder, images[row.key])})
        if row.key in images
        else row
        for row in leaderboard.rows
    )
    ranked = ranked_and_grouped(leaderboard.model_copy(update={"rows": rows}), images)
    write_leaderboard(folder / "leaderboard.json", ranked)
    write_file(folder / "leaderboard.md", render_markdown(ranked).encode())
    write_file(folder / "leaderboard.csv", render_csv(ranked).encode())
    return ranked


def ranked_and_grouped(leaderboard: Leaderboard, images: Mapping[RowKey, ImageScores]) -> Leaderboard:
    """Return a leaderboard with all of its rows compared with each other; images: as `write_report`."""
    return grouped(leaderboard.model_copy(update={"rows": rank(leaderboard.rows)}), images)


def render_markdown(leaderboard: Leaderboard) -> str:
    """Return the leaderboard as GitHub-flavoured Markdown; text from outside is escaped."""
    lines = [f"# {escape(_title(leaderboard))}", ""]
    for title, columns, cells in model_tables(leaderboard.models):
        lines += [f"## {title}", "", *_markdown_table(columns, cells), ""]
    for board in boards(leaderboard):
        lines += [f"## {board.title}", "", f"{_caption(leaderboard, board)}.", ""]
        if board.complete:
            cells = [row_cells(row, board) for row in board.complete]
            slanted = [_is_aside(row) for row in board.complete]
            lines += [*_markdown_table(board.columns, cells, slanted), ""]
        if sentence := power_sentence(board):
            lines += [sentence, ""]
        if board.incomplete:
            lines += ["Not ranked:", "", *(f"- {escape(text)}" for text in excuses(board.incomplete)), ""]
    return "\n".join([*lines, escape(LEGEND), ""])


def render_csv(leaderboard: Leaderboard) -> str:
    """Return all rows as CSV, one line each, numbers in full, an empty cell for null."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns: list[str] = []
    for row in rank(leaderboard.rows):
        line = _csv_line(leaderboard, row)
        if not columns:
            columns = list(line)
            writer.writerow(columns)
        writer.writerow(line.values())
    return text.getvalue()


def render_terminal(leaderboard: Leaderboard) -> "RenderableType":
    """Return the leaderboard as something that rich prints; made for 100 columns and more."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(printable(_title(leaderboard)), style="bold"), Text("")]
    for _, columns, cells in model_tables(leaderboard.models):
        table = _plain_table(columns)
        for line in cells:
            table.add_row(*_texts(line), style="yellow" if line[-1].startswith("⚠") else "")
        parts += [table, Text("")]
    for board in boards(leaderboard):
        parts.append(Text.assemble((board.title, "bold"), f": {_caption(leaderboard, board)}"))
        if board.complete:
            parts.append(_BoardTable(board))
        if sentence := power_sentence(board):
            parts.append(Text(sentence, style="dim"))
        parts += [
            Text.assemble(("not ranked ", "bold red"), printable(text)) for text in excuses(board.incomplete)
        ]
        parts.append(Text(""))
    parts.append(Text(LEGEND, style="dim"))
    return Group(*parts)


def model_tables(models: Sequence[ModelSummary]) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Return title, headings and lines of what is said of models, and of LAPs where there are any."""
    further = ("sensitivity", "specificity", "top_5_accuracy")
    two = [name for name in further if any(name in m.measures for m in models)]
    names = (name.replace("_", " ") for name in two)
    columns = ("model", "accuracy", *names, "balanced accuracy", "chance", "images", "seeds", "notes")
    lines = [_model_cells(model, two) for model in models]
    for task, measures in _MEASURES.items():
        if any(model.task == task for model in models):
            columns = ("model", *(name.replace("_", " ") for name in measures), "images", "seeds", "notes")
            lines = [_task_cells(model, measures) for model in models]
    laps = [
        [model.name, f"LAP {number}{how}", interval_text(lap.predictivity), interval_text(lap.faithfulness)]
        for model in models
        for how, found in (("", model.laps), (", read by an MLP", model.laps_read))
        for number, lap in enumerate(found, start=1)
    ]
    both = [
        [model.name, *(interval_text(model.measures[name]) for name in BLA_COLUMNS.values())]
        for model in models
        if "agreement_hard" in model.measures
    ]
    found = [
        ("Models", columns, lines),
        ("LAPs, each alone", LAP_COLUMNS, laps),
        ("BLA, soft and hard", ("model", *BLA_COLUMNS), both),
    ]
    return [(title, headings, cells) for title, headings, cells in found if cells]


def _model_cells(model: ModelSummary, measures: Sequence[str]) -> list[str]:
    accuracy = model.measures.get("accuracy", Estimate(mean=model.accuracy))
    return [
        model.name,
        interval_text(accuracy),
        *(_digits(model.measures.get(name, Estimate()).mean) for name in measures),
        _digits(model.balanced_accuracy),
        _digits(1 / model.classes),
        f"{model.n:,}",
        ", ".join(map(str, model.seeds)) or NONE,
        BELOW_CHANCE if model.below_chance else NEAR_CHANCE if model.near_chance else "",
    ]


def _task_cells(model: ModelSummary, measures: Sequence[str]) -> list[str]:
    """The cells of a model whose task is not classification: it has no level of chance."""
    found = [interval_text(model.measures.get(name, Estimate())) for name in measures]
    note = "" if model.measures else "not asked yet"
    return [model.name, *found, f"{model.n:,}", ", ".join(map(str, model.seeds)) or NONE, note]


def row_cells(row: Row, board: Board) -> list[str]:
    """Return the cells of a complete row, in the order of `Board.columns`."""
    if row.selection == "top-k":
        own = NONE if row.tied_fraction is None else f"{row.tied_fraction:.1%}".replace("%", " %")
    else:
        sign, mark = "< " * (row.orientation == -1), " own" * (row.selection == "native")
        own = f"{sign}{_digits(row.threshold)}{mark}"
    beside = board.randomised.get(row.key[:3])
    return [
        _number(row.rank),
        *([_number(row.group)] if board.power else []),
        row.model,
        _explainer(row),
        interval_text(Estimate(mean=row.mean, ci_low=row.ci_low, ci_high=row.ci_high)),
        _digits(beside.mean if beside else None),
        own,
        _digits(row.pointing_game.mean if row.pointing_game else None),
        _digits(row.energy.mean if row.energy else None),
        "; ".join(_notes(row, board.n)),
    ]


def power_sentence(board: Board) -> str:
    """Say how many pairs of a ranking can be told apart, and how large a difference must be for that."""
    if board.power is None:
        return ""
    told = f"Told apart: {board.power.told_apart:,} of {_count(board.power.pairs, 'pair')} of ranked rows."
    effect = board.power.detectable_effect
    if effect is None:
        return told
    if effect > 1:
        return f"{told} Too few images or trainings to be sure of finding any difference."
    return f"{told} A true difference of {effect:.3f} is found with a probability of {_percent(POWER)}."


def _is_aside(row: Row) -> bool:
    """Whether a row is there to compare with, not to compete."""
    return row.control or row.randomised


def _contested(row: Row) -> float | None:
    """Return the mean with which a row competes for a rank, or None if it does not."""
    return row.mean if row.complete and not _is_aside(row) else None


def _rank_group(rows: Sequence[Row]) -> list[Row]:
    means = [(row, _contested(row)) for row in rows]
    falling = sorted((mean for _, mean in means if mean is not None), reverse=True)
    best: dict[str, float] = {}
    for row, mean in means:
        best[row.model] = max(best.get(row.model, -1.0), -1.0 if mean is None else mean)
    ranked = [
        row.model_copy(update={"rank": None if mean is None else 1 + falling.index(mean)})
        for row, mean in means
    ]
    return sorted(ranked, key=lambda r: (not r.complete, -best[r.model], r.model, -(r.mean or 0.0), r.key))


def _number(value: int | None) -> str:
    return NONE if value is None else str(value)


def _title(leaderboard: Leaderboard) -> str:
    name = f"{leaderboard.benchmark}, version {leaderboard.benchmark_version}"
    return f"{leaderboard.title} ({name})" if leaderboard.title else name


def _caption(leaderboard: Leaderboard, board: Board) -> str:
    """Say what the numbers of a ranking are over."""
    if not board.complete:
        return "no row is complete"
    return f"mean IoU over {_count(board.n, 'image')} [{_percent(leaderboard.confidence)} bootstrap interval]"


def _explainer(row: Row) -> str:
    return row.explainer + (", random net" if row.randomised else "")


def _notes(row: Row, n: int) -> Iterator[str]:
    """Say what a reader must know about a row; n is the number of images of the other rows."""
    if row.control:
        yield "control"
    if row.fitted_threshold is not None:
        yield f"fitted {_digits(row.fitted_threshold)}"
    if row.selection != "top-k" and row.orientation == -1:
        yield "inverted"
    if row.n != n:
        yield _count(row.n, "image")
    counts = {"empty mask": row.counts.n_empty, "flat map": row.counts.n_flat, "NaN map": row.counts.n_nan}
    yield from (_count(number, what) for what, number in counts.items() if number)
    if row.cells_per_object is not None:
        yield f"{row.cells_per_object:.1f} cells"
    error = row.completeness_error
    if error and error.exceeded:
        yield f"completeness error up to {_percent(error.max)} (bound {_percent(error.bound)})"
    means = [seed.mean for seed in row.seeds if seed.mean is not None]
    if len(means) > 1:
        yield f"{len(means)} seeds: {_digits(min(means))} to {_digits(max(means))}"
    if row.submitted_by:
        yield f"by {', '.join(row.submitted_by)}"
    if row.reason:
        yield row.reason


def excuses(rows: Sequence[Row]) -> Iterator[str]:
    """Say why rows have no rank, in one line for all explainers of a model that share the reason."""
    alike: dict[tuple[str, str, str, int, int, tuple[str, ...]], list[str]] = {}
    for row in rows:
        n = row.n + row.n_failed
        key = (row.model, row.selection, row.reason, row.n_failed, n, row.submitted_by)
        alike.setdefault(key, []).append(_explainer(row))
    for (model, selection, reason, lacking, n, who), explainers in alike.items():
        lost = f" ({lacking:,} of {_count(n, 'image')} without a score)" if lacking else ""
        by = f"; by {', '.join(who)}" if who else ""
        yield f"{model}, {selection}, {', '.join(explainers)}: {reason}{lost}{by}"


def _digits(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def interval_text(estimate: Estimate) -> str:
    """Return a mean with its interval; the mean alone where there is none."""
    mean, low, high = map(_digits, (estimate.mean, estimate.ci_low, estimate.ci_high))
    return f"{mean} [{low}, {high}]" if low != NONE else mean


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.3g} %"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _markdown_table(
    columns: Sequence[str], lines: Sequence[Sequence[str]], slanted: Sequence[bool] = ()
) -> list[str]:
    """Return the lines of a table; a slanted line has its explainer in italics."""
    table = [[escape(cell) for cell in line] for line in lines]
    for cells, italic in zip(table, slanted, strict=False):
        if italic:
            cells[columns.index("explainer")] = f"*{cells[columns.index('explainer')]}*"
    rule = [":--" if name in _TEXT_COLUMNS else "--:" for name in columns]
    return ["| " + " | ".join(cells) + " |" for cells in ([escape(name) for name in columns], rule, *table)]


def _csv_line(leaderboard: Leaderboard, row: Row) -> dict[str, Any]:
    """Return the cells of a row by column."""
    line: dict[str, Any] = {
        "benchmark": leaderboard.benchmark,
        "benchmark_version": leaderboard.benchmark_version,
    }
    nested = {
        "provenance",
        "counts",
        "pointing_game",
        "energy",
        "measures",
        "curves",
        "completeness_error",
        "seeds",
        "image_scores",
    }
    line |= row.model_dump(exclude=nested)
    line |= row.counts.model_dump()
    measured = {name for other in leaderboard.rows for name in other.measures}
    estimates = {"pointing_game": row.pointing_game, "energy": row.energy}
    estimates |= {name: row.measures.get(name) for name in sorted(measured)}
    for name, estimate in estimates.items():
        found = estimate or Estimate()
        line |= {name: found.mean, f"{name}_ci_low": found.ci_low, f"{name}_ci_high": found.ci_high}
    error = row.completeness_error
    line |= {
        "completeness_error_median": error and error.median,
        "completeness_error_max": error and error.max,
    }
    return {name: _csv_cell(value) for name, value in line.items()}


def _csv_cell(value: Any) -> Any:
    """Keep a spreadsheet from running text from outside as a formula."""
    if isinstance(value, str) and value:
        return ("'" if value[0] in "=+-@" else "") + printable(value)
    return str(value).lower() if isinstance(value, bool) else value


_TEXT_COLUMNS = ("model", "explainer", "notes")


@dataclass(frozen=True)
class _BoardTable:
    """The table of a ranking for rich, without its minor columns where the terminal is narrow."""

    board: Board

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Table]":
        yield _board_table(
            self.board, {"model"} if options.max_width >= 96 else {"model", "pointing", "energy"}
        )


def _board_table(board: Board, hidden: Set[str]) -> "Table":
    """Return the table of a ranking, with the model as a heading over its rows."""
    from rich.text import Text

    shown = [index for index, name in enumerate(board.columns) if name not in hidden]
    table = _plain_table([board.columns[index] for index in shown])
    heading = ""
    for row in board.complete:
        if row.model != heading:
            heading = row.model
            if table.rows:
                table.add_section()
            before = [""] * shown.index(board.columns.index("explainer"))
            table.add_row(*before, Text(printable(heading), style="bold cyan"))
        cells = row_cells(row, board)
        style = "italic dim" if _is_aside(row) else "bold" if row.rank == 1 else ""
        table.add_row(*_texts(cells[index] for index in shown), style=style)
    return table


def _plain_table(columns: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for name in columns:
        wraps = name in _TEXT_COLUMNS
        table.add_column(Text(name), justify="left" if wraps else "right", no_wrap=not wraps, overflow="fold")
    return table


def _texts(cells: Iterable[str]) -> list[Any]:
    """Turn cells into rich's texts, in which brackets are no mark-up."""
    from rich.text import Text

    return [Text(printable(cell)) for cell in cells]
