"""Killed at any moment and started again: the results are those of a run that nobody disturbed."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from lapbench import pipeline
from lapbench.pipeline import job as jobs
from lapbench.store import MapStore
from pipeline import tiny

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lapbench.cli", "lapbench.pipeline", "sklearn.linear_model", "scipy.stats"])
"""Every child is forked from a server that has imported torch: it is killed at work, not while loading."""

DEFINITION = tiny.with_explainers(
    tiny.without_models(tiny.DEFINITION, "plain"), "lap_all", "deeplift", "random"
)


def run_command(definition: Path, folder: Path, shard: int) -> None:
    """Run `lapbench run` in small shards; what it prints goes to a file."""
    sys.stdout = sys.stderr = (folder / "log.txt").open("a", buffering=1)
    jobs.SHARD = shard
    from lapbench.cli import app

    app(["run", str(definition), "--cache", str(folder / "cache"), "--out", str(folder / "out")])


def start(definition, folder, shard=5):
    folder.mkdir(exist_ok=True)
    process = CONTEXT.Process(target=run_command, args=(definition, folder, shard))
    process.start()
    return process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The definition, a folder with an uninterrupted run of it, and how long that took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    definition = tiny.write_definition(folder, text=DEFINITION)
    process = start(definition, folder)
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    return definition, folder, time.monotonic() - began


def maps(folder):
    return {
        path: content
        for path, content in tiny.files(folder / "cache" / "maps").items()
        if path.endswith(".h5")
    }


def assert_same(folder, undisturbed):
    _, whole, _ = undisturbed
    assert tiny.files(folder / "out") == tiny.files(whole / "out")
    assert maps(folder) == maps(whole) and len(maps(folder)) > 30
    for kind in ("rows", "weights"):
        kept = "*.json" if kind == "rows" else "*.safetensors"
        found, wanted = (
            {p.name: p.read_bytes() for p in (f / "cache" / kind).glob(kept)} for f in (folder, whole)
        )
        assert found == wanted
    assert not list((folder / "cache").rglob("*broken*"))
    assert not [entry for entry in MapStore(folder / "cache" / "maps").entries(verify=True) if entry.fault]


def kill_and_resume(undisturbed, folder, kills, chance):
    """Kill runs at random moments until that many have died, then let one end; return the moments."""
    definition, _, seconds = undisturbed
    moments = []
    while len(moments) < kills:
        process = start(definition, folder)
        delay = chance.uniform(0, 2 * seconds / kills) if kills < 10 else chance.uniform(0, seconds)
        process.join(delay)
        if process.exitcode is not None:  # it came to its end before: the next one begins anew
            assert process.exitcode == 0, (folder / "log.txt").read_text()
            assert_same(folder, undisturbed)
            shutil.rmtree(folder)
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        moments.append(delay)
    process = start(definition, folder)
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()
    assert_same(folder, undisturbed)
    return moments


def test_killed_three_times_and_resumed(undisturbed, tmp_path):
    moments = kill_and_resume(undisturbed, tmp_path / "run", 3, random.Random(1))
    assert len(moments) == 3


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(undisturbed, tmp_path):
    moments = kill_and_resume(undisturbed, tmp_path / "run", 20, random.Random(2))
    assert len(moments) == 20


def test_two_runs_at_once_share_one_cache(undisturbed, tmp_path):
    definition, _, _ = undisturbed
    folder = tmp_path / "run"
    both = [start(definition, folder) for _ in range(2)]
    for process in both:
        process.join()

    assert [process.exitcode for process in both] == [0, 0], (folder / "log.txt").read_text()
    assert_same(folder, undisturbed)
    assert not list(folder.rglob("*.tmp")) and not list(folder.rglob("*.part"))


@pytest.mark.parametrize("stage", ["train", "explain"])
def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(undisturbed, tmp_path, stage):
    definition, _, _ = undisturbed
    folder = tmp_path / "run"
    process = start(definition, folder)
    sign = "*.training/last.ckpt" if stage == "train" else "maps/*/lap-all/*.h5"
    while not list((folder / "cache").rglob(sign)) and process.exitcode is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    process.join()

    log = (folder / "log.txt").read_text()
    assert process.exitcode == 130, log
    assert log.endswith("Interrupted. What is finished is kept; the same command goes on from there.\n")
    assert "Traceback" not in log and not (folder / "out").exists()
    assert not list((folder / "cache").rglob("*.part"))
    process = start(definition, folder)
    process.join()
    assert process.exitcode == 0
    assert_same(folder, undisturbed)


def test_interrupting_a_stage_in_python_is_a_keyboard_interrupt(trained, monkeypatch):
    """The functions themselves let it through; what was whole before stays."""
    calls = []

    def interrupt(done, total, text):
        calls.append(text)
        if sum(name.startswith("explain") for name in calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "SHARD", 5)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(tiny.job(tiny.write_definition(trained, text=DEFINITION), trained, progress=interrupt))
    entries = list(MapStore(trained / "cache" / "maps").entries(verify=True))
    assert entries and not [entry for entry in entries if entry.fault]
