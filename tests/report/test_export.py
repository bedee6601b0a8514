import math
from pathlib import Path

import pytest

from lapbench.report import Leaderboard, write_leaderboard
from lapbench.report.export import every_eval_ever, github_action_benchmark, load_results
from tests.report.examples import make_leaderboard, make_row
from tests.report.test_merge import IOU, submit


def test_what_github_action_benchmark_reads() -> None:
    entries = github_action_benchmark(make_leaderboard())
    assert entries[0] == {
        "name": "example: ws-lap, Grad-CAM (threshold)",
        "unit": "IoU",
        "value": 0.26,
        "range": "[0.2400, 0.2900]",
        "extra": "200 images, benchmark version 3",
    }
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names) == 5  # no control, no random weights, no row without a number


def test_a_record_of_every_eval_ever_a_model() -> None:
    records = every_eval_ever(make_leaderboard(), organisation="Lab", retrieved=1.8e9)
    assert [record["model_info"]["name"] for record in records] == ["ws-lap", "vanilla"]
    first = records[0]
    assert set(first) == {
        "schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "eval_library",
        "model_info", "evaluation_results",
    }  # fmt: skip
    assert first["evaluation_id"] == "lapbench-example/ws-lap/1800000000"
    result = first["evaluation_results"][0]
    assert {"evaluation_name", "source_data", "metric_config", "score_details"} == set(result)
    assert result["score_details"]["score"] == 0.26
    assert result["score_details"]["uncertainty"]["confidence_interval"]["lower"] == pytest.approx(0.24)


def test_rows_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is an extra")
    write_leaderboard(tmp_path / "leaderboard.json", make_leaderboard())
    table = load_results(tmp_path)
    assert len(table) == len(make_leaderboard().rows)
    lap = table[(table["explainer"] == "LAP All") & (table["selection"] == "native")].iloc[0]
    assert lap["mean"] == 0.52
    assert math.isnan(table[table["explainer"] == "Relevance-CAM"].iloc[0]["mean"])
    assert set(table["folder"]) == {str(tmp_path)}


@pytest.mark.parametrize("name", ["NA", "None", "018", "true"])
def test_names_in_a_table_stay_names(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pandas", reason="pandas is an extra")
    board = Leaderboard(
        benchmark=name, benchmark_version=1, rows=(make_row(name, 0.5, model=name, threshold=None),)
    )
    write_leaderboard(tmp_path / "leaderboard.json", board)
    (line,) = load_results(tmp_path).to_dict("records")
    assert [line["benchmark"], line["model"], line["explainer"]] == [name] * 3
    assert math.isnan(line["threshold"])


def test_images_as_a_table(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="pandas is an extra")
    table = load_results(submit(tmp_path / "ada"), submit(tmp_path / "bo", "DeepLIFT"), images=True)
    assert list(table["iou"]) == [*IOU, *IOU]
    assert list(table["image"]) == [*"abc", *"abc"]
    assert table.groupby("explainer")["iou"].mean().to_dict() == {"DeepLIFT": 0.5, "Grad-CAM": 0.5}
