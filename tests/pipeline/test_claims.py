"""Claims of a definition, held against a finished run."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from lapbench import pipeline
from lapbench.benchmark import load_benchmark, select
from lapbench.cli import app
from lapbench.errors import DefinitionError, UnknownNameError, WeightsError
from pipeline import tiny

CLAIMS = """
[[claims]]
id = "T2b"
says = "the oracle's rival is worse"
higher = { model = "plain", explainer = "Grad-CAM", selection = "top-k", measure = "energy" }
than = [
  { model = "plain", explainer = "DeepLIFT", selection = "top-k", measure = "energy" },
  { model = "WS-LAP", explainer = "Grad-CAM", selection = "top-k", measure = "energy" },
]
[[claims]]
id = "C2"
says = "LAP loses nothing"
margin = 0.5
higher = { model = "WS-LAP" }
than = [{ model = "plain" }]
[[claims]]
id = "T1b"
says = "predictivity rises"
rising = [
  { model = "WS-LAP", measure = "predictivity_1" },
  { model = "WS-LAP", measure = "predictivity_2" },
]
"""


def judged(folder, claims=CLAIMS):
    return tiny.job(tiny.write_definition(folder, text=tiny.DEFINITION + claims), folder)


def test_every_part_is_the_mean_difference_of_the_scores_in_the_report(copied, finished):
    results = pipeline.check_claims(judged(copied))
    first, second, third = results.claims

    scores = {}
    for file in (finished.out / "scores").glob("*.json"):
        table = json.loads(file.read_text())
        scores[table["model"], table["explainer"], table["selection"], table["randomised"]] = table
    for part, (model, explainer) in zip(
        first.parts, [("plain", "DeepLIFT"), ("WS-LAP", "Grad-CAM")], strict=True
    ):
        ours = np.array(scores["plain", "Grad-CAM", "top-k", False]["scores"]["energy"], float)
        theirs = np.array(scores[model, explainer, "top-k", False]["scores"]["energy"], float)
        assert part.difference == pytest.approx(np.nanmean(ours - theirs))
    models = {model.name: model for model in finished.board.models}
    assert second.parts[0].difference == pytest.approx(models["WS-LAP"].accuracy - models["plain"].accuracy)
    assert second.parts[0].n == models["plain"].n and second.margin == 0.5
    laps = [lap.predictivity.mean for lap in models["WS-LAP"].laps]
    assert third.parts[0].difference == pytest.approx(laps[1] - laps[0])
    assert json.loads((copied / "out" / "claims.json").read_text())["claims"][1]["id"] == "C2"
    assert "| T1b | " in (copied / "out" / "claims.md").read_text()


def test_before_the_run_nothing_is_decided(trained):
    results = pipeline.check_claims(judged(trained))

    assert {claim.verdict for claim in results.claims} == {"not decidable"}
    reasons = [part.reason for claim in results.claims for part in claim.parts]
    assert all("run `lapbench" in reason for reason in reasons)


@pytest.mark.parametrize("given", [False, True])
def test_claims_about_trained_models_are_judged_although_others_were_not_trained(copied, monkeypatch, given):
    monkeypatch.chdir(copied)
    (weights,) = (copied / "cache" / "weights").glob("plain-*.safetensors")
    text = tiny.DEFINITION + CLAIMS
    if given:
        start = text.index("[models.recipe]\nepochs = 1")
        table = f'weights = "{weights}"\n'
        text = text[:start] + table + text[text.index("[[explainers]]") :]
    weights.unlink()
    path = tiny.write_definition(copied, text=text)
    result = CliRunner().invoke(app, ["claims", str(path), "--cache", str(copied / "cache")])

    assert result.exit_code == 3, result.output
    found = json.loads((copied / "reports" / "tiny" / "claims.json").read_text())["claims"]
    mend = "give the path of a file" if given else "run `lapbench train` first"
    for claim in found[:2]:
        assert claim["verdict"] == "not decidable"
        assert {part["reason"] for part in claim["parts"]} == {f"no weights for plain ({weights}): {mend}"}
    assert found[2]["parts"][0]["n"] > 0


def test_without_any_weights_there_is_nothing_to_judge(copied):
    shutil.rmtree(copied / "cache")
    with pytest.raises(WeightsError, match=r"no weights for WS-LAP .*run `lapbench train` first"):
        pipeline.check_claims(judged(copied))
    assert not (copied / "out").exists()


def test_a_claim_of_what_is_not_there_is_a_fault_of_the_definition(copied):
    with pytest.raises(DefinitionError, match=r"claim C2: no model 'plian'.*did you mean 'plain'"):
        judged(copied, CLAIMS.replace('than = [{ model = "plain" }]', 'than = [{ model = "plian" }]'))
    with pytest.raises(DefinitionError, match="claim T2b: no explainer row 'Deeplift'"):
        judged(copied, CLAIMS.replace("DeepLIFT", "Deeplift"))
    with pytest.raises(DefinitionError, match="claim names must differ"):
        judged(copied, CLAIMS + CLAIMS)
    with pytest.raises(UnknownNameError, match="measure of WS-LAP 'predictivity_9'"):
        pipeline.check_claims(judged(copied, CLAIMS.replace("predictivity_2", "predictivity_9")))


def test_claims_about_what_is_left_out_are_left_out(copied):
    benchmark = load_benchmark(tiny.write_definition(copied, text=tiny.DEFINITION + CLAIMS))
    assert [claim.id for claim in select(benchmark, models=("WS-LAP",)).claims] == ["T1b"]
    assert [claim.id for claim in select(benchmark, explainers=("Grad-CAM",)).claims] == ["C2", "T1b"]


def test_the_command_prints_verdicts_and_says_where_the_parts_are(copied, monkeypatch):
    monkeypatch.chdir(copied)
    path = tiny.write_definition(copied, text=tiny.DEFINITION + CLAIMS)
    arguments = ["claims", str(path), "--cache", str(copied / "cache")]

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "C2     holds" in result.stdout and "Written to reports/tiny/claims.md" in result.stdout

    shutil.rmtree(copied / "cache" / "rows")
    unscored = CliRunner().invoke(app, arguments)
    assert unscored.exit_code == 3 and "run `lapbench score`" in unscored.stdout

    path.write_text(tiny.DEFINITION)
    assert "tiny makes no claims" in CliRunner().invoke(app, arguments).stderr
