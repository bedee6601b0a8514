"""A small leaderboard with one of everything."""

import math
from typing import Any

from lapbench.report import CompletenessError, Counts, Estimate, Leaderboard, ModelSummary, Row, SeedResult


def make_row(explainer: str, mean: float, selection: str = "threshold", **fields: Any) -> Row:
    defaults: dict[str, Any] = {
        "model": "ws-lap",
        "ci_low": mean - 0.02,
        "ci_high": mean + 0.03,
        "n": 200,
        "threshold": None if selection == "top-k" else 0.5 if selection == "native" else 0.412,
        "orientation": 1 if selection == "threshold" else None,
        "tied_fraction": 0.25 if selection == "top-k" else None,
        "complete": True,
        "pointing_game": Estimate(mean=0.75, ci_low=0.7, ci_high=0.8),
        "energy": Estimate(mean=0.5, ci_low=0.45, ci_high=0.55),
        "provenance": {"weights": "abc", "data": {"digest": "def", "version": 1}},
    }
    return Row(explainer=explainer, mean=mean, selection=selection, **{**defaults, **fields})


def make_leaderboard() -> Leaderboard:
    too_far = CompletenessError(median=0.001, max=0.034, bound=0.01)
    seeds = (SeedResult(seed=0, mean=0.24, threshold=0.4), SeedResult(seed=1, mean=0.28, threshold=0.42))
    return Leaderboard(
        benchmark="example",
        benchmark_version=3,
        title="Digits | <b>pasted</b>",
        models=(
            ModelSummary(
                name="ws-lap", accuracy=0.97, balanced_accuracy=0.96, classes=2, n=1000, seeds=(0, 1)
            ),
            ModelSummary(name="vanilla", accuracy=0.9, balanced_accuracy=0.55, classes=2, n=1000),
        ),
        rows=(
            make_row("Random", 0.08, control=True, model="no network"),
            make_row("Grad-CAM", 0.26, seeds=seeds, counts=Counts(n_flat=1, n_empty=14)),
            make_row("Grad-CAM", 0.11, randomised=True),
            make_row("LAP All", 0.52, "native", fitted_threshold=0.431),
            make_row("LAP All", 0.55, "top-k"),
            make_row("Oracle", 1.0, ci_low=1.0, ci_high=1.0, control=True, model="no network"),
            make_row("Guided Backprop", 0.31, model="vanilla", orientation=-1, n=199),
            make_row("DeepLIFT", 0.26, completeness_error=too_far),
            make_row(
                "Relevance-CAM",
                math.nan,
                model="vanilla",
                ci_low=None,
                ci_high=None,
                n=0,
                n_failed=200,
                complete=False,
                reason="no rule for `Hardswish`",
                pointing_game=None,
                energy=None,
                threshold=None,
            ),
        ),
    )
