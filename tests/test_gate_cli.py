"""`lapbench gate` and `lapbench baseline accept`: what they print and write, and with which exit code."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from lapbench.cli import app
from lapbench.report.baseline import read_baseline
from tests.report.folders import claims, write_results

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-c", "from lapbench.cli import main; main()")
HEAVY = ("torch", "captum", "matplotlib", "scipy.stats", "pandas")
STEADY = np.random.default_rng(0).uniform(0.2, 0.8, 100)
TABLES = {"Grad-CAM": STEADY, "LRP |z⁺|": STEADY, "<b>::error, 100%": STEADY}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty folder to work in, and no GitHub around it."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "LAPBENCH_DATA", "LAPBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lapbench():
    """Call the command; the exit code must be the one expected, and nothing may look like a traceback."""

    def call(*arguments, code=0, **environment):
        result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def moved(tmp_path):
    """Accepted results in `old`, and new ones in `new` of which one row fell, one rose and one is missing."""
    write_results(tmp_path / "old", TABLES)
    now = {"Grad-CAM": STEADY - 0.05, "<b>::error, 100%": STEADY + 0.05, "extra": STEADY}
    write_results(tmp_path / "new", now, claimed={name: claims(weights="b" * 64) for name in now})


def test_it_passes(lapbench, moved):
    result = lapbench("gate", "--baseline", "old", "--current", "old")

    assert result.stdout.splitlines()[0] == "The gate passes: 3 ok (example, version 1)"
    assert "moved by 0.01 or more, either way, with p < 0.05" in result.stdout


def test_it_fails_and_says_where(lapbench, moved):
    result = lapbench("gate", "--baseline", "old", "--current", "new", code=1)

    lines = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert lines[0] == [
        "verdict",
        "model",
        "explainer",
        "selection",
        "before",
        "now",
        "difference",
        "p",
        "reason",
    ]
    assert [line[0] for line in lines[1:5]] == ["regressed", "improved", "missing", "new"]
    assert lines[1][2] == "Grad-CAM" and lines[1][6].startswith("-0.0500") and lines[1][-1] == "other weights"
    assert lines[3][-1] == "the row is not in the new results"
    assert lines[5] == ["The gate FAILS: 1 regressed, 1 improved, 1 missing, 1 new (example, version 1)"]
    assert "::error" not in "".join(line[0] for line in lines)


def test_it_says_for_what_p_is_corrected_wherever_it_speaks(lapbench, moved, tmp_path):
    said = "paired by image, corrected for the number of rows that moved at all"
    result = lapbench("gate", "--baseline", "old", "--current", "new", "--markdown", "gate.md", code=1)
    assert said in result.stdout
    assert said in (tmp_path / "gate.md").read_text()


def test_one_image_that_moved_fails_and_is_no_number_less(lapbench, tmp_path):
    write_results(tmp_path / "old", {"Grad-CAM": [0.9]})
    write_results(tmp_path / "new", {"Grad-CAM": [0.1]}, claimed={"Grad-CAM": claims(weights="b" * 64)})
    result = lapbench("gate", "--baseline", "old", "--current", "new", code=1, GITHUB_ACTIONS="true")

    assert "too few images to tell this from chance: 5 wanted, 1 found" in result.stdout
    assert "or over fewer than 5 images, too few to tell" in result.stdout
    assert "-0.8000, p 1, 1 image; other weights" in result.stdout
    assert "nan" not in result.stdout


def test_effects_and_rates_are_options(lapbench, moved):
    lapbench("gate", "--baseline", "old", "--current", "new", "--min-effect", "0.06", code=1)
    accepted = lapbench(
        "gate", "--baseline", "new", "--current", "new", "--min-effect", "0", "--alpha", "0.01"
    )

    assert "moved by 0 or more, either way, with p < 0.01" in accepted.stdout
    for option, value in (
        ("--min-effect", "-1"),
        ("--min-effect", "2"),
        ("--alpha", "0"),
        ("--alpha", "nan"),
    ):
        lapbench("gate", "--baseline", "old", "--current", "new", option, value, code=2)


def test_markdown(lapbench, moved, tmp_path):
    lapbench("gate", "--baseline", "old", "--current", "new", "--markdown", "page/gate.md", code=1)

    page = (tmp_path / "page" / "gate.md").read_text()
    assert page.startswith(
        "### The gate FAILS: 1 regressed, 1 improved, 1 missing, 1 new (example, version 1)\n"
    )
    assert "| missing | net | LRP \\|z⁺\\| | threshold |" in page
    assert r"\<b\>::error, 100%" in page and "<b>" not in page
    assert "<details><summary>Rows that pass: 1</summary>" in page


def test_what_is_seen_on_github(lapbench, moved, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    result = lapbench("gate", "--baseline", "old", "--current", "new", code=1, **environment)

    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert len(commands) == 3
    assert commands[0].startswith(
        "::error title=regressed%3A net%2C Grad-CAM (threshold)::net, Grad-CAM (threshold): regressed: IoU 0."
    )
    assert commands[1].startswith(
        "::error title=improved%3A net%2C <b>%3A%3Aerror%2C 100%25 (threshold)::net, <b>"
    )
    assert summary.read_text().startswith("before\n### The gate FAILS")


def test_github_is_told_no_more_than_it_shows(lapbench, tmp_path):
    tables = {f"row {i}": STEADY for i in range(14)}
    write_results(tmp_path / "old", tables)
    write_results(tmp_path / "new", {"row 0": STEADY})
    result = lapbench("gate", "--baseline", "old", "--current", "new", code=1, GITHUB_ACTIONS="true")

    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert len(commands) == 10 and commands[-1].endswith("::and 4 more rows")


def test_junit(lapbench, moved, tmp_path):
    lapbench("gate", "--baseline", "old", "--current", "new", "--junit", "gate.xml", code=1)

    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()[0]
    assert {n: suite.get(n) for n in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "3", "errors": "0", "skipped": "1",
    }  # fmt: skip
    failures = {case.get("name"): case.find("failure") for case in suite}
    assert failures["net, LRP |z⁺| (threshold)"].get("type") == "missing"
    assert failures["net, extra (threshold)"] is None


def test_a_baseline_is_accepted_with_a_reason(lapbench, moved, tmp_path):
    first = lapbench(
        "baseline", "accept", "--current", "old", "--baseline", "kept.json", "--why", "the first"
    )
    assert first.stdout == "kept.json: 3 rows accepted\n"
    lapbench("gate", "--baseline", "kept.json", "--current", "old")
    lapbench("gate", "--baseline", "kept.json", "--current", "new", code=1)

    shown = lapbench(
        "baseline", "accept", "--current", "new", "--baseline", "kept.json", "--why", "new weights"
    )
    assert "The gate FAILS: 1 regressed, 1 improved, 1 missing, 1 new" in shown.stdout
    lapbench("gate", "--baseline", "kept.json", "--current", "new")

    history = read_baseline(tmp_path / "kept.json").history
    assert [(a.why, a.verdicts) for a in history] == [
        ("the first", {}),
        ("new weights", {"regressed": 1, "improved": 1, "missing": 1, "new": 1}),
    ]


def test_a_reason_is_wanted(lapbench, moved, tmp_path):
    arguments = ("baseline", "accept", "--current", "old", "--baseline", "kept.json")

    assert "a reason in words is wanted" in lapbench(*arguments, "--why", " ", code=2).output
    assert "--why" in lapbench(*arguments, code=2).output
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--model", "w.safetensors"),
        ("--benchmark", "x"),
        ("--current", "old", "--model", "w", "--benchmark", "x"),
    ],
)
def test_results_or_a_model(lapbench, moved, arguments):
    result = lapbench("gate", "--baseline", "old", *arguments, code=2)

    assert "give either --current, or --model with --benchmark" in " ".join(result.output.split())


def test_it_needs_no_torch_and_no_statistics_where_nothing_moved(moved):
    code = (
        "import sys; from typer.testing import CliRunner; from lapbench.cli import app;"
        "result = CliRunner().invoke(app, ['gate', '--baseline', 'old', '--current', sys.argv[1]]);"
        f"print(result.exit_code, *sys.modules.keys() & set({HEAVY}))"
    )
    for current, expected in (("old", "0\n"), ("new", "1 scipy.stats\n")):
        shown = subprocess.run(
            [sys.executable, "-c", code, current], check=True, capture_output=True, text=True
        )
        assert shown.stdout == expected


@pytest.mark.speed
def test_it_answers_within_a_second_and_a_half(tmp_path):
    """A table of 40 rows over 200 images that all moved, statistics and all."""
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (40, 200))
    write_results(tmp_path / "old", {str(i): row for i, row in enumerate(scores)})
    write_results(tmp_path / "new", {str(i): row**1.1 for i, row in enumerate(scores)})
    command = [*COMMAND, "gate", "--baseline", "old", "--current", "new"]
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        assert subprocess.run(command, check=False, capture_output=True).returncode in (0, 1)
        taken.append(time.perf_counter() - start)
    assert min(taken) <= 1.5


def test_a_model_is_explained_and_held_against_its_baseline(lapbench, finished, tmp_path):
    (weights,) = finished.cache.glob("weights/plain-*.safetensors")
    given = ("--model", f"plain={weights}", "--benchmark", finished.definition)
    lapbench("gate", "--baseline", finished.out, *given)

    (others,) = finished.cache.glob("weights/ws-lap-*.safetensors")
    for model, fault in (
        (others, "tiny has 2 models: say whose weights"),
        (f"plain={others}", "WeightsError"),
        ("plain=no.safetensors", "no.safetensors: there is no such weights file, which plain needs"),
        (f"plane={weights}", "there is no model in tiny 'plane'; did you mean 'plain'?"),
    ):
        options = ("--model", model, "--benchmark", finished.definition)
        assert fault in lapbench("gate", "--baseline", finished.out, *options, code=2).output

    lapbench("baseline", "accept", "--baseline", "own.json", *given, "--why", "as trained", "--out", "report")
    assert {row.model for row in read_baseline(tmp_path / "own.json").rows} == {"plain", "no network"}
    lapbench("gate", "--baseline", "own.json", "--current", "report")


ACTION = ROOT / ".github/actions/lapbench-gate"


def action_steps(folder=ACTION, **given):
    """The commands of the action's steps with their environment, as GitHub would run them from a folder."""
    action = yaml.safe_load((ACTION / "action.yml").read_text())
    assert set(given) <= set(action["inputs"])
    values = {name: given.get(name, table.get("default", "")) for name, table in action["inputs"].items()}

    def filled(text):
        text = text.replace("${{ github.action_path }}", str(folder))
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], text)

    for step in action["runs"]["steps"]:
        if condition := step.get("if"):
            (name,) = re.findall(r"^inputs\.([\w-]+) != ''$", condition)
            if not values[name]:
                continue
        assert "${{" not in step["run"], "inputs must not become code"
        yield step["run"], {name: filled(text) for name, text in step["env"].items()}


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Run lines in bash as a runner does; lapbench is on the path."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "lapbench"
    script.write_text(f"#!/bin/sh\nexec '{COMMAND[0]}' -c '{COMMAND[2]}' \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    def call(lines, code, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", lines], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return call


def test_the_action(shell, moved, tmp_path):
    for current, code in (("old", 0), ("new", 1)):
        ((run, environment),) = action_steps(baseline="old", current=current, install="")
        shell(run, code, **environment, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert (tmp_path / "lapbench-gate.xml").is_file() and (tmp_path / "summary").is_file()


def test_the_action_installs_the_checkout_that_it_is_of(shell, tmp_path):
    copied = tmp_path / "theirs/.github/actions/lapbench-gate"
    copied.mkdir(parents=True)
    (tmp_path / "theirs/pyproject.toml").touch()  # of another project

    def installed(folder=ACTION, **given):
        run, environment = next(action_steps(folder, baseline="old", current="old", **given))
        said = shell(f'python() {{ printf "%s\\n" "$@"; }}\n{run}', 0, **environment)
        *command, what = said.splitlines()
        assert command == ["-m", "pip", "install", "--quiet"]
        return what

    assert Path(installed()).resolve() == ROOT
    assert installed(copied) == "lapbench"
    assert installed(install="lapbench @ file:///a b") == "lapbench @ file:///a b"
    assert len(list(action_steps(baseline="old", current="old", install=""))) == 1


def readme(name, language="yaml"):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S) if name in b]
    return block


def test_the_readme_calls_the_action_as_it_is(shell, moved, tmp_path):
    steps = yaml.safe_load(readme("lapbench-gate"))["jobs"]["gate"]["steps"]
    given = steps[-1]["with"]
    assert (ROOT / steps[-1]["uses"] / "action.yml").is_file()
    _, (run, environment) = action_steps(**given)
    # what the action would call, for there is no such model here
    called = shell(f'lapbench() {{ printf "%s " "$@"; }}\n{run}', 0, **environment)
    assert called.startswith("gate --baseline mine-baseline.json") and "--model new.safetensors" in called


def test_the_readme_for_gitlab(shell, moved, tmp_path):
    job = yaml.safe_load(readme("junit: gate.xml"))["gate"]
    install, command = job["script"]
    called = shell(f'pip() {{ printf "%s " "$@"; }}\n{install}', 0, **job["variables"])
    assert called == "install --quiet lapbench "
    given = "--model new.safetensors --benchmark mine.toml"
    assert given in command
    shell("lapbench baseline accept --current old --baseline mine-baseline.json --why first", 0)
    shell(command.replace(given, "--current new"), 1)
    assert (tmp_path / job["artifacts"]["reports"]["junit"]).is_file()
    assert job["artifacts"]["when"] == "always"


def test_the_fixture_of_pytest(moved, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        readme("lapbench_gate", "python").replace("reports/mine", "new")
        + "\n\ndef test_same(lapbench_gate):\n"
        "    assert lapbench_gate('old', baseline='mine-baseline.json').counts == {'ok': 3}\n"
    )
    CliRunner().invoke(
        app, ["baseline", "accept", "--current", "old", "--baseline", "mine-baseline.json", "--why", "first"]
    )
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", ".", "-c", "/dev/null", "test_mine.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout
    assert "The gate FAILS: 1 regressed, 1 improved, 1 missing, 1 new (example, version 1)" in done.stdout
    assert "net, Grad-CAM (threshold): regressed: IoU 0." in done.stdout
    assert "corrected for the number of rows that moved at all" in done.stdout


def test_json_of_the_baseline_is_strict(lapbench, moved, tmp_path):
    lapbench("baseline", "accept", "--current", "old", "--baseline", "kept.json", "--why", 'the "first" · 1')
    json.loads((tmp_path / "kept.json").read_text(), parse_constant=lambda token: pytest.fail(token))
