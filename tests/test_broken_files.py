"""Files by hand, broken: every one is refused with a clear sentence and exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline import tiny
from typer.testing import CliRunner

from lapbench.cli import app
from lapbench.report.baseline import accepted, from_report, write_baseline
from tests.report.folders import write_results

Spoil = Callable[[Path], object]


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Call the command; it must refuse, name the file, and say what is wrong with it."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, file, fault):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit) and "Traceback" not in result.output
        assert file in result.output and fault in result.output, result.output

    return call


def edit(change: Callable[[Any], object]) -> Spoil:
    """Change the content of a JSON file."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return spoil


def replaced(old: str, new: str) -> Spoil:
    """Replace a text that is there once or more."""

    def spoil(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def row(**fields: object) -> Spoil:
    """Change fields of the first row."""
    return edit(lambda content: content["rows"][0].update(fields))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


TWICE = (edit(lambda c: c["rows"].append(c["rows"][0])), "found twice: row ('net', 'a', 'threshold', False)")
RESULTS: dict[str, tuple[Spoil, str]] = {
    "missing": (Path.unlink, "there is no such result; run the benchmark again to remake it"),
    "a folder": (a_folder, "cannot be read: Is a directory"),
    "empty": (lambda p: p.write_text(""), "not valid JSON, perhaps cut short"),
    "cut short": (cut_short, "not valid JSON, perhaps cut short"),
    "binary": (lambda p: p.write_bytes(b"\x89PNG\xff\xfe"), "not a text file"),
    "a list": (lambda p: p.write_text("[1, 2]"), "not a result of lapbench"),
    "nested": (lambda p: p.write_text("[" * 100_000), "nested too deeply to be a result"),
    "NaN": (replaced('"mean":0.', '"mean":NaN,"x":0.'), "NaN is no number of JSON"),
    "of a later version": (edit(lambda c: c.update(schema_version=99)), "schema_version 1 wanted, 99 found"),
    "a typo": (edit(lambda c: c["rows"][0].update(explaner="x")), "did you mean 'explainer'?"),
    "a number as text": (row(mean="0.5"), "rows.1.mean: Input should be a valid number"),
    "no benchmark": (edit(lambda c: c.pop("benchmark")), "benchmark: this field is missing"),
    "twice": TWICE,
    "upside down": (row(ci_low=0.9, ci_high=0.1), "the interval is upside down"),
    "without images": (row(image_scores=None), "net, a (threshold): no scores by image were recorded"),
    "out of its folder": (
        edit(lambda c: c["rows"][0]["image_scores"].update(file="../../etc/passwd")),
        "rows.1.image_scores.file: String should match pattern",
    ),
}  # fmt: skip

SCORES: dict[str, tuple[Spoil, str]] = {
    "missing": (Path.unlink, "there is no such result"),
    "changed": (replaced("0.25", "0.95"), "not the file that the leaderboard was made with: SHA-256"),
    "cut short": (cut_short, "not the file that the leaderboard was made with: SHA-256"),
}

BASELINES: dict[str, tuple[Spoil, str]] = {
    "missing": (Path.unlink, "there is no such result; make it with `lapbench baseline accept`"),
    "empty": (lambda p: p.write_text(""), "not valid JSON, perhaps cut short"),
    "cut short": (cut_short, "make it with `lapbench baseline accept`"),
    "binary": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0"), "not a text file"),
    "null": (lambda p: p.write_text("null"), "not a result of lapbench"),
    "of a later version": (edit(lambda c: c.update(schema_version=2)), "schema_version 1 wanted, 2 found"),
    "of another kind": (edit(lambda c: c.update(kind="leaderboard")), "kind: Input should be 'baseline'"),
    "no rows": (edit(lambda c: c.pop("rows")), "rows: this field is missing"),
    "beyond one": (row(iou=[[0.5, 1.5, 0.5]]), "rows.1.iou.1.2: Input should be less than or equal to 1"),
    "a score as text": (row(iou=[["0.5", 0.5, 0.5]]), "rows.1.iou.1.1: Input should be a valid number"),
    "too few scores": (row(iou=[[0.5, 0.5]]), "3 scores wanted in every seed, found [2]"),
    "other seeds": (row(seeds=[0, 1]), "one of 'seeds' for every line (1 lines, 2 seeds)"),
    "unknown images": (row(images=7), "wants list 7 of images, and there are 1"),
    "neither": (row(iou=[]), "a row has either scores in 'iou' or a 'reason' why it has none"),
    "ids twice": (edit(lambda c: c["images"][0].__setitem__(1, "image-0")), "image ids must differ"),
    "twice": TWICE,
    "no reason": (edit(lambda c: c["history"][0].update(why="  ")), "history.1.why: String should match"),
}  # fmt: skip

MANIFESTS: dict[str, tuple[Spoil, str]] = {
    "missing": (Path.unlink, "few-digits.toml"),
    "no TOML": (lambda p: p.write_text("name = "), "few-digits.toml"),
    "a typo": (replaced("licence", "license"), "did you mean 'licence'?"),
    "no classes": (replaced('["absent", "present"]', "[]"), "classes"),
    "an unknown reader": (replaced('name = "digits"', 'name = "digit"'), "did you mean 'digits'?"),
    "an unknown parameter": (replaced("digit = 3", "digits = 3"), "did you mean 'digit'?"),
    "no such digit": (
        replaced("digit = 3", "digit = 11"),
        "parameter 'digit' of reader 'digits': Input should be less",
    ),
    "other classes": (replaced('"present"]', '"there"]'), "the label 'present' is no class of the manifest"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(refused, tmp_path, name):
    spoil, fault = RESULTS[name]
    write_results(tmp_path / "good", {"a": [0.25, 0.5, 0.75]})
    write_results(tmp_path / "bad", {"a": [0.25, 0.5, 0.75]})
    spoil(tmp_path / "bad" / "leaderboard.json")

    file = "net, a" if name == "without images" else "bad/leaderboard.json"
    refused("gate", "--baseline", "good", "--current", "bad", file=file, fault=fault)
    refused(
        "baseline", "accept", "--baseline", "b.json", "--current", "bad", "--why", "w", file=file, fault=fault
    )
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("name", SCORES)
def test_scores_by_image(refused, tmp_path, name):
    spoil, fault = SCORES[name]
    write_results(tmp_path / "good", {"a": [0.25, 0.5, 0.75]})
    write_results(tmp_path / "bad", {"a": [0.25, 0.5, 0.75]})
    (scores,) = (tmp_path / "bad" / "scores").iterdir()
    spoil(scores)

    refused("gate", "--baseline", "good", "--current", "bad", file=f"bad/scores/{scores.name}", fault=fault)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(refused, tmp_path, name):
    spoil, fault = BASELINES[name]
    good = from_report(write_results(tmp_path / "good", {"a": [0.25, 0.5, 0.75]}))
    write_baseline(tmp_path / "kept.json", accepted(good, "the first", old=None, verdicts={}))
    spoil(tmp_path / "kept.json")

    refused("gate", "--baseline", "kept.json", "--current", "good", file="kept.json", fault=fault)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(refused, tmp_path, name):
    spoil, fault = MANIFESTS[name]
    definition = tiny.write_definition(tmp_path)
    spoil(tmp_path / "few-digits.toml")

    refused("score", definition, "--cache", tmp_path / "cache", file="few-digits", fault=fault)


def test_there_are_thirty_of_them():
    assert len(RESULTS) + len(SCORES) + len(BASELINES) + len(MANIFESTS) >= 30
