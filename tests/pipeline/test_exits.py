"""Networks that stop at a LAP, in a finished benchmark."""

import pytest
from typer.testing import CliRunner

from lapbench import pipeline
from lapbench.cli import app
from lapbench.errors import StoreError
from lapbench.pipeline import exits
from lapbench.pipeline.exits import COLUMNS
from pipeline import tiny


def test_every_lap_has_a_line_with_what_is_kept_and_what_is_saved(copied, finished):
    lines = pipeline.early_exits(tiny.job(tiny.write_definition(copied), copied))
    models = {model.name: model for model in finished.board.models}

    laps = [f"LAP {number}" for number, _ in enumerate(models["WS-LAP"].laps, start=1)]
    assert [line[:2] for line in lines] == [
        ("WS-LAP", "its end"), *(("WS-LAP", lap) for lap in laps), ("plain", "its end"),
    ]  # fmt: skip
    kept = {line[1]: line[2] for line in lines if line[0] == "WS-LAP"}
    assert kept["its end"].startswith(f"{models['WS-LAP'].accuracy:.3f} [")
    for lap, said in zip(laps, models["WS-LAP"].laps, strict=True):
        assert kept[lap].startswith(f"{said.predictivity.mean:.3f} [")
    sizes = [int(line[3].replace(",", "")) for line in lines if line[0] == "WS-LAP"]
    assert sizes[1:] == sorted(sizes[1:]) and sizes[-1] < sizes[0]
    work = [int(line[5].removesuffix(" %")) for line in lines if line[0] == "WS-LAP"]
    assert work[0] == 100 and work[1] < work[2] < work[3] <= 100
    assert all(float(line[6]) > 0 and len(line) == len(COLUMNS) for line in lines)
    page = (copied / "out" / "exits.md").read_text()
    assert "| WS-LAP | LAP 1 |" in page and "of a CPU, one image at a time." in page


def test_a_network_is_timed_on_one_image(copied, monkeypatch):
    seen, timed = [], exits._milliseconds
    monkeypatch.setattr(
        exits, "_milliseconds", lambda networks, image: seen.append(image.shape) or timed(networks, image)
    )
    pipeline.early_exits(tiny.job(tiny.write_definition(copied), copied))

    assert set(seen) == {(1, 1, 32, 32)}


def test_a_network_that_was_not_asked_has_no_table(trained):
    with pytest.raises(
        StoreError, match=r"WS-LAP was not asked about the scored .*: run `lapbench run` first"
    ):
        pipeline.early_exits(tiny.job(tiny.write_definition(trained), trained))
    assert not (trained / "out").exists()


def test_the_command_prints_the_same_table(copied, monkeypatch):
    monkeypatch.chdir(copied)
    arguments = ["exits", str(tiny.write_definition(copied)), "--cache", str(copied / "cache")]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.output
    assert "WS-LAP   LAP 1" in result.stdout and "Written to reports/tiny/exits.md" in result.stdout
