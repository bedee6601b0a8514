"""The whole job: what it leaves behind, and that nothing is ever made twice."""

import csv
import hashlib
import json
import platform

import numpy as np
import pytest
import torch
from PIL import Image

import lapbench
from lapbench import pipeline
from lapbench.digest import digest_of_code
from lapbench.models import record_laps
from lapbench.pipeline import networks
from lapbench.pipeline.job import Block, Subject
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.report import read_leaderboard
from lapbench.report.merge import read_submission
from lapbench.store import MapStore
from pipeline import tiny

CONTRACT = {
    "model", "explainer", "selection", "score", "mean", "ci_low", "ci_high", "n", "n_failed", "threshold",
    "complete", "reason", "provenance",
}  # fmt: skip


@pytest.fixture(scope="module")
def board(finished):
    return json.loads((finished.out / "leaderboard.json").read_text())


def rows(board, **wanted):
    return [row for row in board["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_every_file_is_there(finished):
    names = {path.name for path in finished.out.iterdir()}

    assert names == {
        "leaderboard.json", "leaderboard.md", "leaderboard.csv", "maps.png", "maps-plain.png", "ranking.png",
        "runs.jsonl", "scores",
    }  # fmt: skip
    for name in ("maps.png", "maps-plain.png", "ranking.png"):
        with Image.open(finished.out / name) as picture:
            assert min(picture.size) > 300
    assert not [path for path in finished.folder.rglob("*") if path.name.endswith((".tmp", ".part"))]


def test_the_history_tells_how_long_each_stage_took(finished):
    [line] = (finished.out / "runs.jsonl").read_text().splitlines()
    run = json.loads(line)

    assert list(run["seconds"]) == ["train", "explain", "score", "report"]
    assert run["seconds"]["train"] > 0
    assert run["device"] == platform.machine()


def test_a_map_that_is_too_coarse_for_the_objects_is_told(finished):
    [note] = finished.notes

    assert note.startswith("WS-LAP: the deepest LAP map (2×2) has 0.5 cells across the median object")


def test_leaderboard_has_the_fields_of_the_contract(board):
    assert {"schema_version", "benchmark", "benchmark_version", "rows"} <= board.keys()
    assert (board["schema_version"], board["benchmark"], board["benchmark_version"]) == (1, "tiny", 1)
    for row in board["rows"]:
        assert row.keys() >= CONTRACT
        assert row["score"] == "iou" and row["selection"] in ("threshold", "top-k", "native")
        if row["complete"]:
            assert 0 <= row["ci_low"] <= row["mean"] <= row["ci_high"] <= 1
            assert (row["n"], row["n_failed"], row["reason"]) == (15, 0, "")


def test_rows_are_those_of_the_definition(board):
    found = {(r["model"], r["explainer"], r["selection"], r["randomised"]) for r in board["rows"]}

    own = {("LAP All", s) for s in ("threshold", "top-k", "native")} | {
        ("LAP 3", s) for s in ("threshold", "top-k", "native")
    }
    others = {(e, s) for e in ("Grad-CAM", "DeepLIFT") for s in ("threshold", "top-k")}
    controls = {(e, s) for e in ("Random", "Centre", "All-ones", "Oracle") for s in ("threshold", "top-k")}
    wanted = {("WS-LAP", e, s, r) for e, s in own | others for r in (False, True)}
    wanted |= {("plain", e, s, r) for e, s in others for r in (False, True)}
    wanted |= {("no network", e, s, False) for e, s in controls | {("All-ones", "native")}}
    assert found == wanted and len(board["rows"]) == len(wanted)


def test_oracle_is_perfect_and_all_ones_is_the_mean_area(board, finished):
    [oracle] = rows(board, explainer="Oracle", selection="top-k")
    [by_threshold] = rows(board, explainer="Oracle", selection="threshold")
    assert oracle["mean"] == by_threshold["mean"] == 1.0 and oracle["tied_fraction"] == 0
    assert by_threshold["threshold"] == pytest.approx(0.5, abs=1e-9)

    [flat] = rows(board, explainer="All-ones", selection="threshold")
    [whole] = rows(board, explainer="All-ones", selection="native")
    truth = tiny.job(finished.definition, finished.folder).considered("score")
    areas = [sample.mask.mean() for sample in truth if sample.mask.any()]
    assert not flat["complete"] and "no separation" in flat["reason"] and flat["rank"] is None
    assert whole["mean"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_model_accuracy_stands_beside_the_maps(board):
    accuracy = {model["name"]: model["accuracy"] for model in board["models"]}

    assert accuracy.keys() == {"WS-LAP", "plain"} and all(0 <= a <= 1 for a in accuracy.values())
    for row in board["rows"]:
        wanted = None if row["randomised"] else accuracy.get(row["model"])
        assert row["model_accuracy"] == wanted


def test_each_lap_is_judged_alone_as_its_maps_say(board, finished):
    models = {model["name"]: model for model in board["models"]}
    job = tiny.job(finished.definition, finished.folder)
    (model,) = (m for m in job.benchmark.models if m.name == "WS-LAP")
    split, n = job.considered("score"), len(job.considered("score"))
    network = load_network(job, Subject(model, 0, job.weights(model, 0)))
    block = Block(split.name, 0, tuple(range(n)))
    with torch.no_grad(), record_laps(network) as records:
        said = network(Samples(job).images(block)).argmax(1).numpy()

    assert models["plain"]["laps"] == [] and len(models["WS-LAP"]["laps"]) == len(records)
    for record, lap in zip(records, models["WS-LAP"]["laps"], strict=True):
        alone = (record.logits[:, 0].flatten(1).max(1).values > 0).numpy()
        assert lap["predictivity"]["mean"] == pytest.approx(np.mean(alone == split.labels))
        assert lap["faithfulness"]["mean"] == pytest.approx(np.mean(alone == said))
    accuracy = models["WS-LAP"]["measures"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(np.mean(said == split.labels)) == models["WS-LAP"]["accuracy"]
    assert 0 <= accuracy["ci_low"] <= accuracy["mean"] <= accuracy["ci_high"] <= 1


def test_provenance_holds_what_decides_a_row(board):
    [row] = rows(board, model="WS-LAP", explainer="DeepLIFT", selection="threshold", randomised=False)
    [maps] = row["provenance"]["maps"]

    assert maps["explainer"] == "deeplift" and maps["explainer_version"] >= 1
    assert maps["network"]["architecture"] == "resnet18" and len(maps["network"]["weights"]) == 64
    assert row["provenance"]["upsample"] == {"mode": "bilinear", "align_corners": False, "to": [32, 32]}
    assert row["provenance"]["fits"][0]["n_pixels"] == 24 * 32 * 32
    assert row["completeness_error"]["bound"] == 0.01
    assert len(board["provenance"]["data"]["digest"]) == 64


def test_scores_by_image_have_the_right_checksums_and_means(board, finished):
    named = set()
    for row in board["rows"]:
        if not row["complete"]:
            continue
        content = (finished.out / row["image_scores"]["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["image_scores"]["checksum"]
        scores = json.loads(content)
        assert len(scores["ids"]) == 15
        assert np.mean(scores["scores"]["iou"]) == pytest.approx(row["mean"], abs=1e-12)
        named.add(row["image_scores"]["file"])
    assert len(named) == sum(row["complete"] for row in board["rows"])


def test_what_a_run_reports_is_borne_out_by_its_scores(finished):
    assert read_submission(finished.out).board == finished.board


def test_csv_and_markdown_show_the_same_rows(board, finished):
    with (finished.out / "leaderboard.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    text = (finished.out / "leaderboard.md").read_text()

    assert [(line["model"], line["explainer"], line["selection"]) for line in lines] == [
        (r["model"], r["explainer"], r["selection"]) for r in board["rows"]
    ]
    for line, row in zip(lines, board["rows"], strict=True):
        assert (float(line["mean"]) if line["mean"] else None) == row["mean"]
        if row["complete"] and not row["randomised"]:
            assert f"{row['mean']:.3f} \\[{row['ci_low']:.3f}, {row['ci_high']:.3f}\\]" in text
    assert "Not ranked:" in text


def test_ranks_are_given_to_complete_contestants_only(board):
    for selections in (("threshold", "native"), ("top-k",)):
        group = [r for r in board["rows"] if r["selection"] in selections]
        ranked = [r for r in group if r["rank"] is not None]
        assert ranked and all(r["complete"] and not r["control"] and not r["randomised"] for r in ranked)
        assert sorted(r["rank"] for r in ranked) == [
            1 + sum(other["mean"] > r["mean"] for other in ranked)
            for r in sorted(ranked, key=lambda r: r["rank"])
        ]


def test_no_path_and_no_date_is_in_a_result(finished):
    text = (finished.out / "leaderboard.json").read_text()

    assert str(finished.folder) not in text and "seconds" not in text


def test_a_run_in_another_folder_gives_the_same_bytes(copied, finished):
    pipeline.report(tiny.job(copied / "tiny.toml", copied))

    assert tiny.files(copied / "out") == tiny.files(finished.out)


def test_a_report_says_which_code_wrote_it_and_no_name_does(finished, copied, monkeypatch):
    versions = finished.board.provenance["versions"]
    assert versions["code"] == digest_of_code() and versions["lapbench"] == lapbench.__version__

    monkeypatch.setattr("lapbench.pipeline.reporting.digest_of_code", lambda: "0" * 64)
    board = pipeline.run(tiny.job(copied / "tiny.toml", copied))
    assert board.provenance["versions"]["code"] == "0" * 64
    assert tiny.files(copied / "cache") == tiny.files(finished.cache), "nothing has another name"


def test_a_report_without_the_digest_of_its_code_is_read(finished, tmp_path):
    older = json.loads((finished.out / "leaderboard.json").read_text())
    del older["provenance"]["versions"]["code"]
    (tmp_path / "leaderboard.json").write_text(json.dumps(older))
    assert read_leaderboard(tmp_path / "leaderboard.json").rows == finished.board.rows


def test_second_run_builds_no_network_and_gives_the_same_bytes(finished, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a network was built")

    monkeypatch.setattr(networks, "build", never)
    monkeypatch.setattr("torch.nn.Module.__call__", never)
    before = tiny.files(finished.cache)
    board = pipeline.run(tiny.job(finished.definition, finished.folder, out="again"))

    assert tiny.files(finished.folder / "again") == tiny.files(finished.out)
    assert tiny.files(finished.cache) == before
    assert board == finished.board


def test_maps_are_stored_raw_at_the_explainers_own_resolution(finished):
    shapes = {}
    for entry in MapStore(finished.cache / "maps").entries(verify=True):
        assert not entry.fault
        network, explainer, _ = entry.path.relative_to(finished.cache / "maps").parts
        shapes[network.partition("-")[0], explainer] = entry.shapes.get("maps", entry.shapes.get("logits"))[
            1:
        ]

    assert shapes["plain", "grad-cam"] == (2, 2) and shapes["plain", "deeplift"] == (32, 32)
    assert shapes["controls", "oracle"] == (32, 32) and shapes["plain", "predictions"] == (2,)


def test_the_functions_behind_the_commands_are_in_the_package(finished):
    assert lapbench.run is pipeline.run
    workspace = lapbench.Workspace(out=finished.folder / "again", cache=finished.cache)
    assert (
        lapbench.run(lapbench.Job(lapbench.load_benchmark(finished.definition), workspace)) == finished.board
    )
    assert set(lapbench.__all__) < set(dir(lapbench))
    with pytest.raises(AttributeError, match="no attribute 'bench'"):
        lapbench.bench  # noqa: B018


def test_a_limited_run_is_another_run(trained):
    board = pipeline.run(tiny.job(trained / "tiny.toml", trained, limit=8))

    assert {model.n for model in board.models} == {8} and board.provenance["limit"] == 8
    assert max(row.n for row in board.rows) == 4


def test_a_scored_split_without_truth_gives_rows_that_say_so(trained):
    text = tiny.with_explainers(tiny.without_models(tiny.DEFINITION, "WS-LAP"), "grad_cam", "oracle")
    text = text.replace('manifest = "few-digits.toml"', 'manifest = "few-digits.toml"\nscore_limit = 1')
    job = tiny.job(tiny.write_definition(trained, name="one.toml", text=text), trained)
    assert not job.considered("score").has_truth.any()
    board = pipeline.run(job)

    assert {row.reason for row in board.rows} == {
        "no image of the split 'test' has a truth to be scored against"
    }
    assert not (trained / "out" / "maps.png").exists()
