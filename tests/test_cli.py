"""The command line: what it prints, where, and with which exit code."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from pipeline import tiny
from rich.console import Console
from typer.testing import CliRunner

from lapbench import pipeline
from lapbench.cli import app, console
from lapbench.errors import LapbenchError
from lapbench.registry import explainer, explainers

PLAIN = tiny.with_explainers(tiny.without_models(tiny.DEFINITION, "WS-LAP"), "grad_cam", "random", "oracle")
COMMANDS = (
    "run",
    "train",
    "explain",
    "score",
    "report",
    "ls",
    "doctor",
    "check explainer",
    "maps list",
    "maps check",
    "maps export",
    "gate",
    "baseline accept",
    "check golden",
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty folder to work in, and no settings of the user's."""
    for name in ("LAPBENCH_DATA", "LAPBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "default_cache", lambda: tmp_path / "cache")


@pytest.fixture
def lapbench():
    """Call the command; the exit code must be the one expected, and nothing may look like a traceback."""

    def call(*arguments, code=0, **environment):
        result = CliRunner().invoke(app, [str(a) for a in arguments], env=environment)
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output and not CONTROL.search(result.output)
        return result

    return call


@pytest.fixture
def cached(finished, tmp_path):
    """The definition and the finished cache, copied into the folder that is worked in."""
    shutil.copytree(finished.cache, tmp_path / "cache")
    return tiny.write_definition(tmp_path)


def test_help_of_everything(lapbench):
    shown = lapbench("--help").stdout
    for command in {name.split()[0] for name in COMMANDS}:
        assert command in shown
    assert "Exit codes: 0 done;" in shown and "130" in shown
    for command in COMMANDS:
        assert "Usage:" in lapbench(*command.split(), "--help").stdout
    options = lapbench("run", "--help").stdout
    for name in ("out", "cache", "data", "limit", "device", "models", "explainers", "seed"):
        assert f"--{name}" in options
    assert "LAPBENCH_CACHE" in options and "LAPBENCH_DATA" in options and "reports/NAME" in options


def test_run_shows_the_table_and_says_where_everything_is(lapbench, cached, finished, tmp_path):
    result = lapbench("run", cached)

    assert "Tiny: find the three (tiny, version 1)" in result.stdout
    for title in ("By thresholding", "By top-k selection", "LAP All", "Grad-CAM", "Oracle"):
        assert title in result.stdout
    assert "1.000 [1.000, 1.000]" in result.stdout
    last = result.stdout.rstrip().splitlines()[-1]
    assert last == f"Written to reports/tiny/; weights and maps are kept in {tmp_path / 'cache'}"
    assert tiny.files(tmp_path / "reports" / "tiny") == tiny.files(finished.out)


def test_options_decide_where_and_what(lapbench, cached, tmp_path):
    shutil.move(tmp_path / "cache", tmp_path / "kept here")
    result = lapbench(
        "run", cached, "--out", "my reports", "--cache", "kept here", "--models", "plain",
        "--explainers", "Grad-CAM, oracle,", "--device", "cpu",
    )  # fmt: skip
    board = json.loads((tmp_path / "my reports" / "leaderboard.json").read_text())

    assert "Written to my reports/; weights and maps are kept in kept here" in result.stdout
    assert {(r["model"], r["explainer"]) for r in board["rows"]} == {
        ("plain", "Grad-CAM"),
        ("no network", "Oracle"),
    }
    assert not (tmp_path / "cache").exists()


def test_the_environment_names_the_cache(lapbench, cached, tmp_path):
    shutil.move(tmp_path / "cache", tmp_path / "elsewhere")
    result = lapbench("report", cached, LAPBENCH_CACHE=str(tmp_path / "elsewhere"))

    assert f"kept in {tmp_path / 'elsewhere'}" in result.stdout and not (tmp_path / "cache").exists()
    assert lapbench("maps", "check").stdout.startswith("0 shards")
    assert " 0 broken" in lapbench("maps", "check", LAPBENCH_CACHE=str(tmp_path / "elsewhere")).stdout


def test_stages_one_by_one_tell_what_they_do(lapbench, finished, tmp_path):
    path = tiny.write_definition(tmp_path, text=PLAIN)
    trained = lapbench("train", path)
    [weights] = (tmp_path / "cache" / "weights").glob("*.safetensors")
    assert trained.stdout == f"{weights}\n"
    assert re.search(r"^train plain · epoch 1/1 \(1/3\)$", trained.stderr, re.MULTILINE)
    assert lapbench("train", path).stdout == trained.stdout

    unexplained = lapbench("score", path, code=3)
    assert (
        "not scored: Grad-CAM: no maps of Grad-CAM on plain on val: run `lapbench explain` first"
        in unexplained.stderr
    )
    unknown = lapbench("report", path, code=3)
    assert "run `lapbench explain` first" in " ".join(unknown.stdout.split())

    assert "explain: plain (39/39)" in lapbench("explain", path).stderr
    assert "score (4/4)" in lapbench("score", path).stderr
    lapbench("report", path)
    wanted = {r.key: r.mean for r in finished.board.rows}
    board = json.loads((tmp_path / "reports" / "tiny" / "leaderboard.json").read_text())
    for r in board["rows"]:
        assert (
            r["complete"] and r["mean"] == wanted[r["model"], r["explainer"], r["selection"], r["randomised"]]
        )


def test_limit_and_seed_reach_the_run(lapbench, cached, tmp_path):
    lapbench("train", cached, "--limit", 16, "--seed", 9, "--models", "plain")
    records = [json.loads(p.read_text()) for p in (tmp_path / "cache" / "weights").glob("plain-*.json")]

    assert sorted(record["seed"] for record in records) == [0, 9]
    assert len({record["dataset_digest"] for record in records}) == 2


def test_a_failing_explainer_ends_with_3_and_its_reason(lapbench, cached, tmp_path):
    explainers.names()

    @explainer("fragile", version=1, title="Fragile")
    def fragile(model, images, target):
        raise RuntimeError("the [wheels] came off")

    try:
        path = tiny.write_definition(tmp_path, text=tiny.with_explainers(PLAIN, "fragile", "oracle"))
        reason = "explainer 'fragile' failed: RuntimeError: the [wheels] came off"
        assert f"Fragile on plain: {reason}" in lapbench("explain", path, code=3).stderr
        assert f"not scored: Fragile: {reason}" in lapbench("score", path, code=3).stderr
        assert reason in " ".join(lapbench("run", path, code=3).stdout.split())
    finally:
        del explainers._entries["fragile"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "quikstart"], "there is no benchmark 'quikstart'; did you mean 'quickstart'?"),
        (["run", "no.toml"], "no.toml: cannot be read"),
        (["run", "tiny.toml", "--models", "plan"], "there is no model in tiny 'plan'; did you mean 'plain'?"),
        (["run", "tiny.toml", "--explainers", "gradcam"], "'gradcam'; did you mean 'grad_cam'?"),
        (["explain", "tiny.toml"], "run `lapbench train` first"),
        (["report", "tiny.toml"], "run `lapbench train` first"),
        (["run", "bad.toml"], "bad.toml:8: data.image_sise: unknown field; did you mean 'image_size'?"),
        (["train", "tiny.toml", "--limit", "1"], "split 'train' holds no sample of class 'present'"),
        (["train", "tiny.toml", "--cache", "tiny.toml"], "tiny.toml"),
    ],
)  # fmt: skip
def test_faults_of_the_user_end_with_2_and_one_message(lapbench, tmp_path, arguments, said):
    tiny.write_definition(tmp_path)
    tiny.write_definition(tmp_path, name="bad.toml", text=tiny.DEFINITION.replace("image_size", "image_sise"))
    result = lapbench(*arguments, code=2)

    assert result.stdout == "" and result.stderr.startswith("error: ") and said in result.stderr


def test_wrong_usage_ends_with_2(lapbench):
    for arguments in (
        ["run"],
        ["run", "quickstart", "--limit", "0"],
        ["ls", "cats"],
        ["run", "x", "--device", "tpu"],
    ):
        assert "Usage:" in lapbench(*arguments, code=2).output
    assert "Usage:" in lapbench(code=2).output


def test_wrong_weights_are_named(lapbench, tmp_path):
    recipe = PLAIN[PLAIN.index("[models.recipe]") : PLAIN.index("[[explainers]]")]
    text = PLAIN.replace(recipe, "").replace('name = "plain"', 'name = "plain"\nweights = "w.safetensors"')
    path = tiny.write_definition(tmp_path, text=text)
    (tmp_path / "w.safetensors").write_bytes(b"not weights at all")

    result = lapbench("run", path, code=2)
    assert (
        "error: WeightsError" in result.stderr
        and "w.safetensors: not a whole safetensors file" in result.stderr
    )


def test_data_that_is_missing_says_what_was_looked_for_and_how_to_mend_it(lapbench, tmp_path):
    result = lapbench("run", "deeppcb", code=2)
    assert (
        "data set 'deeppcb' needs files, and no data root is named: give --data DIR, or set LAPBENCH_DATA"
        in result.stderr
    )
    assert "github.com/tangsanli5201/DeepPCB" in result.stderr

    result = lapbench("run", "deeppcb", "--data", tmp_path / "nowhere", code=2)
    assert f"there is no folder {tmp_path / 'nowhere'}, which the data option names" in result.stderr
    result = lapbench("run", "deeppcb", "--data", tmp_path, code=2)
    assert str(tmp_path) in result.stderr
    result = lapbench("run", "deeppcb", code=2, LAPBENCH_DATA=str(tmp_path / "gone"))
    assert f"there is no folder {tmp_path / 'gone'}" in result.stderr


def test_an_interrupted_command_ends_with_130(lapbench, cached, monkeypatch):
    def interrupt(job):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(pipeline, "run", interrupt)
    result = lapbench("run", cached, code=130)

    assert result.stderr == "Interrupted. What is finished is kept; the same command goes on from there.\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_that_python_drops_is_raised_again(lapbench, cached, monkeypatch):
    """KeyboardInterrupt inside a destructor is printed and ignored; the next piece of work raises it."""

    def interrupt(job):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            job.workspace.progress(1, 2, "work")
        raise AssertionError("it went on")

    monkeypatch.setattr(pipeline, "run", interrupt)
    lapbench("run", cached, code=130)


def test_every_error_of_lapbench_is_a_message(lapbench, cached, monkeypatch):
    for kind in LapbenchError.__subclasses__():
        error = kind("thing", "x", ["y"]) if kind.__name__ == "UnknownNameError" else kind("it is [so]")

        def fail(job, error=error):
            raise error

        monkeypatch.setattr(pipeline, "run", fail)
        assert lapbench("run", cached, code=2).stderr == f"error: {kind.__name__}\n{error}\n"


@pytest.mark.parametrize("kind", ["benchmarks", "explainers", "models", "data"])
def test_ls(lapbench, kind):
    lines = lapbench("ls", kind).stdout.splitlines()
    first = {line.split()[0] for line in lines}

    assert {
        "benchmarks": {"benchmark", "quickstart", "deeppcb"},
        "explainers": set(explainers.names()) | {"explainer"},
        "models": {"architecture", "resnet18", "inception_v3", "vgg16"},
        "data": {"data", "digits", "deeppcb"},
    }[kind] <= first
    assert len(lines) == len(first) and "…" not in "".join(lines)


def test_ls_shows_cards(lapbench):
    cards = lapbench("ls", "explainers", "-v").stdout.split("\n\n")
    [card] = [card for card in cards if card.startswith("lap_all ")]

    for label in ("measures", "paper", "cost", "randomness", "channels", "sign", "up-sampling", "limits"):
        assert re.search(rf"^{label} +\S", card, re.MULTILINE)
    assert re.search(r"^computed by +lapbench", card, re.MULTILINE)
    assert re.search(r"^version +\d+, from lapbench \d", card, re.MULTILINE)
    assert "only explainers have a card" in lapbench("ls", "models", "--verbose", code=2).stderr


def test_ls_says_which_plugins_are_broken(lapbench, monkeypatch):
    explainers.names()
    monkeypatch.setattr(explainers, "broken", {"bad": "bad:x: ImportError: half installed"})

    result = lapbench("ls", "explainers")
    assert result.stderr == "plug-in bad is broken, and adds nothing: bad:x: ImportError: half installed\n"
    assert "grad_cam" in result.stdout and lapbench("ls", "models").stderr == ""


MINE = """
def brightness(model, images, target):
    return images.sum(1)
"""


def test_check_explainer(lapbench, tmp_path):
    (tmp_path / "my_explainers.py").write_text(MINE)
    small = ("--size", 32, "--batch", 2)

    kept = lapbench("check", "explainer", "lap", "-p", "layer=2", *small)
    assert re.search(r"^ok +depends on weights$", kept.stdout, re.MULTILINE) and "fault" not in kept.stdout
    broken = lapbench("check", "explainer", "my_explainers:brightness", *small, code=1)
    assert re.search(
        r"^fault +depends on target +the maps are the same for every target", broken.stdout, re.MULTILINE
    )
    for name, said in {
        "gradcam": "there is no explainer 'gradcam'; did you mean 'grad_cam'",
        "nowhere:x:": "nowhere:x:: 'nowhere' cannot be imported: ModuleNotFoundError",
        "my_explainers:darkness": "no name in my_explainers 'darkness'; did you mean 'brightness'?",
    }.items():
        result = lapbench("check", "explainer", name, *small, code=2)
        assert result.stdout == "" and said in result.stderr


def test_doctor_finds_nothing_wrong_and_says_what_is_wrong(lapbench, tmp_path):
    result = lapbench("doctor")
    assert re.search(r"^ok +torch +\d", result.stdout, re.MULTILINE)
    assert "LAPBENCH_DATA is not set" in result.stdout and "benchmark quickstart" in result.stdout

    result = lapbench("doctor", code=1, LAPBENCH_DATA=str(tmp_path / "nowhere"))
    assert re.search(r"^fault +data +.*nowhere is not a folder$", result.stdout, re.MULTILINE)


def test_maps_list_check_and_export(lapbench, cached, tmp_path):
    listed = lapbench("maps", "list").stdout.splitlines()
    assert listed[0].split() == ["shard", "samples", "arrays", "KiB"]
    [line] = [line for line in listed if line.startswith("controls/oracle/test-0000")]
    assert line.split()[1:4] == ["15", "maps", "32×32"]
    count = len(listed) - 1
    assert lapbench("maps", "check").stdout.startswith(f"{count} shards, 0 broken")

    result = lapbench("maps", "export", "out", "--only", "controls/oracle")
    assert result.stdout == "2 shards, 4 files in out\n"
    [array] = (tmp_path / "out").rglob("test-*.npy")
    assert np.load(array).shape == (15, 32, 32)
    record = json.loads(array.with_name(array.name.replace(".maps.npy", ".json")).read_text())
    assert len(record["ids"]) == 15 and record["provenance"]["explainer"] == "oracle"

    [shard] = (tmp_path / "cache" / "maps" / "controls" / "oracle").glob("test-*.h5")
    shard.write_bytes(shard.read_bytes()[:-50])
    result = lapbench("maps", "check", code=1)
    assert f"{shard}: " in result.stdout and f"{count} shards, 1 broken" in result.stdout
    assert "error: StoreError" in lapbench("maps", "export", "out", code=2).stderr


def test_maps_of_an_empty_cache(lapbench, tmp_path):
    assert lapbench("maps", "list").stdout.split() == ["shard", "samples", "arrays", "KiB"]
    assert lapbench("maps", "check").stdout.startswith("0 shards, 0 broken")
    assert lapbench("maps", "export", "out").stdout == "0 shards, 0 files in out\n"


@pytest.mark.parametrize("command", [("list",), ("check",), ("export", "out")])
def test_a_cache_that_is_not_there_is_not_an_empty_one(lapbench, tmp_path, command):
    result = lapbench("maps", *command, "--cache", tmp_path / "none", code=2)
    assert f"{tmp_path / 'none'}: there is no such cache: name the folder" in result.stderr


@pytest.fixture
def terminal(monkeypatch):
    """What a narrow terminal shows."""
    screen = io.StringIO()
    for name in ("out_console", "err_console"):
        monkeypatch.setattr(
            console, name, Console(file=screen, force_terminal=True, width=60, color_system=None)
        )
    return screen


def test_a_terminal_folds_tables_and_never_cuts_names(terminal):
    console.print_table(
        ("name", "what"), [("a_rather_long_name_of_a_thing", "word " * 20), ("b", "[red]no mark-up[/]")]
    )
    shown = terminal.getvalue()

    assert "a_rather_long_name_of_a_thing" in shown and shown.count("word") == 20 and "…" not in shown
    assert "[red]no mark-up[/]" in shown


def test_one_bar_for_one_piece_of_work_whatever_its_state(terminal):
    with console.Bars() as bars:
        for step, epoch in enumerate((1, 1, 2, 2), start=1):
            bars.update(step, 4, f"train x · epoch {epoch}/2")
        bars.update(3, 3, "score")
        bars.note("a [note] on the way")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", terminal.getvalue()).split("\n")
    *above, training, scoring = [line for line in lines if line.strip()]

    assert training.startswith("train x · epoch 2/2") and " 4/4 " in training
    assert scoring.startswith("score") and " 3/3 " in scoring
    assert "a [note] on the way" in "".join(above)


def command(*arguments, **options):
    """The installed command, in a process of its own."""
    line = [sys.executable, "-c", "from lapbench.cli import main; main()", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, **options)


def test_the_real_command_prints_no_control_characters_into_a_file(cached, tmp_path):
    result = command("run", cached, "--cache", tmp_path / "cache", cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert "Oracle" in result.stdout and not CONTROL.search(result.stdout + result.stderr)
    assert "Warning" not in result.stderr and (tmp_path / "reports" / "tiny" / "maps.png").is_file()


def test_the_real_command_ends_quietly_when_nobody_reads_on(tmp_path):
    line = f'"{sys.executable}" -c "from lapbench.cli import main; main()" ls models | head -n 1'
    result = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=300, check=False)

    assert result.stdout.startswith("architecture") and "Traceback" not in result.stderr
