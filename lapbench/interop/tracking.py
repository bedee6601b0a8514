"""A leaderboard in a tracker of experiments: MLflow, TensorBoard or Weights & Biases, imported when used.

Each complete row that competes becomes one metric, its mean; what decided the benchmark becomes parameters.
"""

import re
from pathlib import Path
from typing import Any

from lapbench.errors import MissingLibraryError
from lapbench.interop.library import library
from lapbench.report import Leaderboard

EXTRA = "pip install 'lapbench[tracking]'"


def log_to_mlflow(board: Leaderboard, *, experiment: str | None = None) -> str:
    """Log a leaderboard as a run of MLflow, and return the run's id.

    experiment: its name; if not given, the benchmark's. Errors: MissingLibraryError without MLflow.
    """
    mlflow: Any = _tracker("mlflow", "MLflow")
    mlflow.set_experiment(experiment or board.benchmark)
    with mlflow.start_run(run_name=board.title or board.benchmark) as run:
        mlflow.log_params(parameters(board))
        mlflow.log_metrics(metrics(board))
    return str(run.info.run_id)


def log_to_tensorboard(board: Leaderboard, folder: str | Path, *, step: int = 0) -> None:
    """Write a leaderboard as scalars of TensorBoard at a step. Errors: MissingLibraryError without it."""
    tensorboard: Any = _tracker("torch.utils.tensorboard", "TensorBoard")
    with tensorboard.SummaryWriter(str(folder)) as writer:
        for name, value in metrics(board).items():
            writer.add_scalar(name, value, step)
        lines = [f"{name}: {value}" for name, value in parameters(board).items()]
        writer.add_text("benchmark", "  \n".join(lines), step)


def log_to_wandb(board: Leaderboard, *, project: str = "lapbench") -> str:
    """Log a leaderboard as a run of Weights & Biases, and return its id. Errors: MissingLibraryError."""
    wandb: Any = _tracker("wandb", "Weights & Biases")
    with wandb.init(project=project, name=board.title or board.benchmark, config=parameters(board)) as run:
        run.summary.update(metrics(board))
    return str(run.id)


def metrics(board: Leaderboard) -> dict[str, float]:
    """Return the means by the names that all trackers take: ``threshold/model/explainer``."""
    return {
        "/".join(
            re.sub(r"[^\w.\- ]+", "_", part) for part in (row.selection, row.model, row.explainer)
        ): row.mean
        for row in board.rows
        if row.complete and row.mean is not None and not row.control and not row.randomised
    }


def parameters(board: Leaderboard) -> dict[str, str]:
    """Return what decided the benchmark: version, data, and the versions of libraries."""
    found: dict[str, Any] = {"benchmark": board.benchmark, "benchmark_version": board.benchmark_version}
    for group in ("data", "versions"):
        table: Any = board.provenance.get(group) or {}
        found |= {f"{group}.{name}": value for name, value in table.items()}
    return {name: str(value) for name, value in found.items()}


def _tracker(module: str, name: str) -> Any:
    try:
        return library(module, name)
    except MissingLibraryError as error:
        cause = error.__cause__
        raise MissingLibraryError(f"{name} cannot be imported ({cause}): {EXTRA}") from cause
