"""A leaderboard in trackers of experiments; each is an extra."""

from pathlib import Path

import pytest

from lapbench.errors import MissingLibraryError
from lapbench.interop import tracking
from tests.report.examples import make_leaderboard

BOARD = make_leaderboard()


def test_a_metric_for_every_complete_row_that_competes() -> None:
    found = tracking.metrics(BOARD)
    assert found["threshold/ws-lap/Grad-CAM"] == 0.26
    assert found["native/ws-lap/LAP All"] == 0.52
    assert len(found) == 5


def test_parameters_are_text() -> None:
    board = BOARD.model_copy(update={"provenance": {"data": {"name": "digits", "version": 1}}})
    assert tracking.parameters(board) == {
        "benchmark": "example", "benchmark_version": "3", "data.name": "digits", "data.version": "1",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # theirs
def test_tensorboard_reads_the_means_again(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking.log_to_tensorboard(BOARD, tmp_path, step=3)
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    [scalar] = events.Scalars("threshold/ws-lap/Grad-CAM")
    assert (scalar.step, scalar.value) == (3, pytest.approx(0.26))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_the_means_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(tmp_path.as_uri())
    run = mlflow.get_run(tracking.log_to_mlflow(BOARD))
    assert run.data.metrics == tracking.metrics(BOARD)
    assert run.data.params["benchmark"] == "example"


@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    number = tracking.log_to_wandb(BOARD)
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{number}"))


@pytest.mark.parametrize("module", ["mlflow", "wandb"])
def test_a_missing_tracker_is_named_with_the_mend(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(MissingLibraryError, match=r"cannot be imported .*pip install 'lapbench\[tracking\]'"):
        {"mlflow": tracking.log_to_mlflow, "wandb": tracking.log_to_wandb}[module](BOARD)
