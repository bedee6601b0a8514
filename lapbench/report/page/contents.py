"""The first page of a folder of reports: every benchmark in it with its best rows."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from lapbench.report.leaderboard import Board, boards
from lapbench.report.page.document import digest, templates, text
from lapbench.report.results import Leaderboard, Row, read_leaderboard

BEST = 3
"""Rows shown of each ranking."""
PAGES = ("index.html", "README.md", "leaderboard.md")
"""What the link of a benchmark leads to: the first of these that is there."""


def render_contents(folder: Path) -> str:
    """Return the HTML page of all report folders below a folder; sorted by name, the same bytes each time.

    Errors: ResultError for a leaderboard that cannot be read.
    """
    found = sorted(folder.glob("*/leaderboard.json"))
    entries = [_entry(path.parent, read_leaderboard(path)) for path in found]
    style = text("page.css")
    template = templates().get_template("contents.html.j2")
    return template.render(entries=entries, style=style, style_digest=digest(style))


def _entry(folder: Path, leaderboard: Leaderboard) -> dict[str, Any]:
    page = next((name for name in PAGES if (folder / name).is_file()), "leaderboard.json")
    return {
        "heading": leaderboard.title or leaderboard.benchmark,
        "address": quote(f"{folder.name}/{page}"),
        "facts": _facts(leaderboard),
        "rankings": [_ranking(board) for board in boards(leaderboard) if board.complete],
    }


def _facts(leaderboard: Leaderboard) -> list[str]:
    models = f"{len(leaderboard.models)} networks" if len(leaderboard.models) != 1 else "1 network"
    explainers = len({row.explainer for row in leaderboard.rows if not row.control})
    version = f"{leaderboard.benchmark}, version {leaderboard.benchmark_version}"
    data: Any = leaderboard.provenance.get("data") or {}
    source = [f"data: {data['name']}, version {data['version']}"] if "name" in data else []
    return [version, *source, models, f"{explainers} explainers"]


def _ranking(board: Board) -> dict[str, Any]:
    contestants = [row for row in board.complete if not row.control and not row.randomised]
    controls = [row for row in board.complete if row.control and row.explainer != "Oracle"]
    best = sorted(contestants, key=lambda row: -(row.mean or 0))[:BEST]
    return {
        "title": board.title,
        "n": board.n,
        "best": [_line(row) for row in best],
        "control": _line(max(controls, key=lambda row: row.mean or 0)) if controls else None,
    }


def _line(row: Row) -> dict[str, Any]:
    return {"model": row.model, "explainer": row.explainer, "mean": row.mean, "low": row.ci_low,
            "high": row.ci_high, "native": row.selection == "native"}  # fmt: skip
