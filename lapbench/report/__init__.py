"""Results, rankings, intervals and figures. No torch: a verdict on results must come at once.

Names are imported when they are first used, so that reading a leaderboard does not wait for matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lapbench.report.baseline import Baseline, from_report, read_baseline, write_baseline
    from lapbench.report.comparison import Comparison, adjusted, compare, compare_all, detectable_effect
    from lapbench.report.figures import MapColumn, draw_maps, draw_ranking
    from lapbench.report.gate import Gate, Verdict, judge
    from lapbench.report.leaderboard import rank, render_csv, render_markdown, render_terminal, write_report
    from lapbench.report.ranks import Ranks, rank_leaderboards, rank_over_data_sets, render_ranks
    from lapbench.report.results import (
        CompletenessError,
        Counts,
        Curve,
        Estimate,
        ImageScores,
        Leaderboard,
        ModelSummary,
        Power,
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
    "baseline": ("Baseline", "from_report", "read_baseline", "write_baseline"),
    "comparison": ("Comparison", "adjusted", "compare", "compare_all", "detectable_effect"),
    "figures": ("MapColumn", "draw_maps", "draw_ranking"),
    "gate": ("Gate", "Verdict", "judge"),
    "leaderboard": ("rank", "render_csv", "render_markdown", "render_terminal", "write_report"),
    "ranks": ("Ranks", "rank_leaderboards", "rank_over_data_sets", "render_ranks"),
    "results": (
        "CompletenessError", "Counts", "Curve", "Estimate", "ImageScores", "Leaderboard", "ModelSummary",
        "Power", "Row", "SeedResult", "json_schema", "read_image_scores", "read_leaderboard",
        "write_image_scores", "write_leaderboard",
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
    "Baseline", "Comparison", "CompletenessError", "Counts", "Curve", "Estimate", "Gate", "ImageScores",
    "Interval", "Leaderboard", "MapColumn", "ModelSummary", "Power", "Ranks", "Row", "SeedResult",
    "Verdict", "adjusted", "bootstrap_mean", "bootstrap_means", "bootstrap_ratio", "compare", "compare_all",
    "detectable_effect", "draw_maps", "draw_ranking", "from_report", "json_schema", "judge", "rank",
    "rank_leaderboards", "rank_over_data_sets", "read_baseline", "read_image_scores", "read_leaderboard",
    "render_csv", "render_markdown", "render_ranks", "render_terminal", "write_baseline",
    "write_image_scores", "write_leaderboard", "write_report",
]  # fmt: skip
