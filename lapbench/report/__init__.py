"""Results, rankings, intervals and figures. No torch: a verdict on results must come at once.

Names are imported when they are first used, so that reading a leaderboard does not wait for matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapbench.report.figures import MapColumn, draw_maps, draw_ranking
    from lapbench.report.leaderboard import rank, render_csv, render_markdown, render_terminal, write_report
    from lapbench.report.results import (
        CompletenessError,
        Counts,
        Curve,
        Estimate,
        ImageScores,
        Leaderboard,
        ModelSummary,
        Row,
        SeedResult,
        json_schema,
        read_image_scores,
        read_leaderboard,
        write_image_scores,
        write_leaderboard,
    )
    from lapbench.report.statistics import Interval, bootstrap_mean, bootstrap_means, bootstrap_ratio

_HOMES = {
    "figures": ("MapColumn", "draw_maps", "draw_ranking"),
    "leaderboard": ("rank", "render_csv", "render_markdown", "render_terminal", "write_report"),
    "results": (
        "CompletenessError", "Counts", "Curve", "Estimate", "ImageScores", "Leaderboard", "ModelSummary",
        "Row", "SeedResult", "json_schema", "read_image_scores", "read_leaderboard", "write_image_scores",
        "write_leaderboard",
    ),
    "statistics": ("Interval", "bootstrap_mean", "bootstrap_means", "bootstrap_ratio"),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)


__all__ = [
    "CompletenessError", "Counts", "Curve", "Estimate", "ImageScores", "Interval", "Leaderboard",
    "MapColumn", "ModelSummary", "Row", "SeedResult", "bootstrap_mean", "bootstrap_means", "bootstrap_ratio",
    "draw_maps", "draw_ranking", "json_schema", "rank", "read_image_scores", "read_leaderboard",
    "render_csv", "render_markdown", "render_terminal", "write_image_scores", "write_leaderboard",
    "write_report",
]  # fmt: skip
