"""Results for other tools: pandas, github-action-benchmark and Every Eval Ever."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapbench.errors import MissingLibraryError
from lapbench.report.leaderboard import render_csv
from lapbench.report.results import Leaderboard, ModelSummary, Row, read_image_scores, read_leaderboard

if TYPE_CHECKING:
    import pandas as pd

EVERY_EVAL_EVER = "0.3.0"
"""The version of Every Eval Ever's schema (evaleval/every_eval_ever, eval.schema.json) that is written."""

TEXTS = dict.fromkeys(("benchmark", "model", "explainer", "selection", "score", "reason"), "str")
"""The columns of a table that hold words, whatever these look like: a network may be called NA, or 18."""


def load_results(*folders: str | Path, images: bool = False) -> "pd.DataFrame":
    """Read report folders into one table: a line a row of the leaderboards, or a line an image.

    folders: each holds a leaderboard.json. The columns are those of leaderboard.csv, and ``folder``. With
    ``images``: folder, benchmark, model, explainer, selection, randomised, seed, image, and a column for
    each score by image; NaN where an image has none.
    Errors: MissingLibraryError without pandas; ResultError for a folder that cannot be read.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise MissingLibraryError("tables need pandas: pip install 'lapbench[pandas]'") from error

    paths = [Path(folder) for folder in folders]
    boards = [read_leaderboard(path / "leaderboard.json") for path in paths]
    tables = []
    for path, board in zip(paths, boards, strict=True):
        if images:
            table = pd.DataFrame(_image_lines(path, board))
        else:
            content = io.StringIO(render_csv(board))
            table = pd.read_csv(content, dtype=TEXTS, keep_default_na=False, na_values=[""])
        table.insert(0, "folder", str(path))
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def github_action_benchmark(board: Leaderboard) -> list[dict[str, Any]]:
    """Return what github-action-benchmark's tool ``customBiggerIsBetter`` reads: an entry a complete row."""
    return [
        {
            "name": f"{board.benchmark}: {row.model}, {row.explainer} ({row.selection})",
            "unit": "IoU",
            "value": row.mean,
            **({} if row.ci_low is None else {"range": f"[{row.ci_low:.4f}, {row.ci_high:.4f}]"}),
            "extra": f"{row.n} images, benchmark version {board.benchmark_version}",
        }
        for row in _ranked(board.rows)
    ]


def every_eval_ever(board: Leaderboard, *, organisation: str, retrieved: float) -> list[dict[str, Any]]:
    """Return records of Every Eval Ever, one a model, with a result a complete row.

    organisation: who evaluated. retrieved: when the record is made, in seconds since 1970.
    """
    return [
        {
            "schema_version": EVERY_EVAL_EVER,
            "evaluation_id": f"lapbench-{board.benchmark}/{model.name}/{retrieved:.0f}",
            "retrieved_timestamp": f"{retrieved:.0f}",
            "source_metadata": {
                "source_name": board.title or board.benchmark,
                "source_type": "evaluation_run",
                "source_organization_name": organisation,
                "evaluator_relationship": "other",
            },
            "eval_library": {"name": "lapbench", "version": _library_version(board)},
            "model_info": _model_info(model),
            "evaluation_results": [_result(board, row) for row in rows],
        }
        for model in board.models
        if (rows := [row for row in _ranked(board.rows) if row.model == model.name])
    ]


def _ranked(rows: Iterable[Row]) -> list[Row]:
    """Leave out controls, random weights and rows without a number."""
    return [row for row in rows if row.complete and not row.control and not row.randomised]


def _library_version(board: Leaderboard) -> str:
    versions = board.provenance.get("versions")
    return str(versions.get("lapbench", "unknown")) if isinstance(versions, Mapping) else "unknown"


def _model_info(model: ModelSummary) -> dict[str, Any]:
    return {
        "name": model.name,
        "id": model.name,
        "additional_details": {
            "deployment_type": "self_deployed",
            "model_availability": "unknown",
            **({} if model.accuracy is None else {"accuracy": f"{model.accuracy:.6g}"}),
        },
    }


def _result(board: Leaderboard, row: Row) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": row.n}
    if row.ci_low is not None:
        uncertainty["confidence_interval"] = {
            "lower": row.ci_low,
            "upper": row.ci_high,
            "confidence_level": board.confidence,
            "method": "bootstrap",
        }
    data = board.provenance.get("data")
    source = data if isinstance(data, Mapping) else {}
    return {
        "evaluation_name": f"{board.benchmark}: {row.explainer} ({row.selection})",
        "source_data": {
            "dataset_name": str(source.get("name", board.benchmark)),
            "source_type": "other",
            "additional_details": {key: str(source[key]) for key in ("version", "digest") if key in source},
        },
        "metric_config": {
            "evaluation_description": "mean IoU of the masks that an explainer's maps predict with the truth",
            "metric_id": "iou",
            "metric_name": "IoU",
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {"score": row.mean, "uncertainty": uncertainty},
    }


def _image_lines(folder: Path, board: Leaderboard) -> list[dict[str, Any]]:
    lines = []
    for row in board.rows:
        if row.image_scores is None:
            continue
        found = read_image_scores(folder, row)
        for number, seed in enumerate(found.seeds):
            for image, sample in enumerate(found.ids):
                lines.append(
                    {
                        "benchmark": board.benchmark,
                        "model": row.model,
                        "explainer": row.explainer,
                        "selection": row.selection,
                        "randomised": row.randomised,
                        "seed": seed,
                        "image": sample,
                        **{name: table[number][image] for name, table in found.scores.items()},
                    }
                )
    return lines
