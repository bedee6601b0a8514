import json
from pathlib import Path

import numpy as np
import pytest

from lapbench.errors import ResultError
from lapbench.report.baseline import accepted, from_report, read_baseline, write_baseline
from tests.report.folders import claims, write_results

TABLES = {"Grad-CAM": [0.1234567, 0.5, 1.0], "DeepLIFT": [[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]]}


def test_a_baseline_holds_every_score_and_what_the_maps_claim(tmp_path: Path) -> None:
    baseline = from_report(write_results(tmp_path, TABLES, failed={"LRP": "no rule for `Hardswish`"}))

    first, second, failed = baseline.rows
    assert first.table.tolist() == [[0.123457, 0.5, 1.0]]
    assert second.table.tolist() == TABLES["DeepLIFT"] and second.seeds == (0, 1)
    assert baseline.ids(first) == baseline.ids(second) == ("image-0", "image-1", "image-2")
    assert baseline.images == (("image-0", "image-1", "image-2"),)
    assert (failed.iou, failed.reason, baseline.ids(failed)) == ((), "no rule for `Hardswish`", ())
    assert first.claims["weights"] == ["a" * 64] and first.claims["explainer"] == "grad_cam"
    assert baseline.provenance["data"] == {"name": "digits", "version": 1, "digest": "d" * 64}


def test_a_row_that_says_nothing_about_its_maps_claims_nothing(tmp_path: Path) -> None:
    for number, odd in enumerate(({"maps": "all"}, {"maps": [1]}, {"weights": "abc"})):
        folder = write_results(tmp_path / str(number), {"a": [0.5, 0.6]}, claimed={"a": odd})
        assert from_report(folder).rows[0].claims == {}


def test_what_is_written_is_read_again_one_row_a_line(tmp_path: Path) -> None:
    baseline = from_report(write_results(tmp_path / "new", TABLES))
    path = tmp_path / "kept" / "baseline.json"
    write_baseline(path, accepted(baseline, "the first", old=None, verdicts={}))

    again = read_baseline(path)
    assert again.model_copy(update={"history": ()}) == baseline
    assert again.history[0].why == "the first"
    assert sum('"explainer":"Grad-CAM"' in line for line in path.read_text().splitlines()) == 1
    write_baseline(tmp_path / "twice.json", again)
    assert (tmp_path / "twice.json").read_bytes() == path.read_bytes()


def test_history_grows(tmp_path: Path) -> None:
    new = from_report(write_results(tmp_path, TABLES))
    old = accepted(new, "the first", old=None, verdicts={})
    renewed = accepted(new, "a better layer", old=old, verdicts={"improved": 1, "ok": 1})

    assert [a.why for a in renewed.history] == ["the first", "a better layer"]
    assert renewed.history[1].verdicts == {"improved": 1, "ok": 1}


def test_a_folder_and_its_leaderboard_serve_as_a_baseline(tmp_path: Path) -> None:
    folder = write_results(tmp_path, TABLES)

    assert read_baseline(folder) == read_baseline(folder / "leaderboard.json") == from_report(folder)


def test_a_complete_row_without_all_scores_is_refused(tmp_path: Path) -> None:
    folder = write_results(tmp_path, {"a": [0.5, np.nan, np.nan]}, claimed={"a": claims()})
    board = json.loads((folder / "leaderboard.json").read_text())
    board["rows"][0] |= {"mean": 0.5, "complete": True, "reason": ""}
    (folder / "leaderboard.json").write_text(json.dumps(board))

    with pytest.raises(ResultError, match=r"scores/net-a-threshold-\w+.json: 2 of 3 images have no score, "):
        from_report(folder)
