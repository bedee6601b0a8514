"""Golden maps: those of lapbench's own explainers hold, and what moves is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lapbench import benchmark as definition
from lapbench.cli import app
from lapbench.errors import ResultError
from lapbench.pipeline import Job, Workspace
from lapbench.pipeline.golden import check_golden, update_golden
from lapbench.registry import explainers

GOLDEN = Path(__file__).parent / "golden"


def job(folder: Path, *names: str) -> Job:
    """A job on the shipped tiny network, with an empty cache, as `lapbench check golden` has it."""
    chosen = definition.select(definition.load_benchmark(GOLDEN / "tiny.toml"), explainers=names)
    few = chosen.data.model_copy(update={"fit_limit": 1, "score_limit": 4})
    return Job(chosen.model_copy(update={"data": few}), Workspace(out=folder, cache=folder / "cache"))


@pytest.fixture
def copied(tmp_path):
    """A copy of the golden maps of two explainers: CAM's are coarse, the gradient's as large as images."""
    shutil.copytree(GOLDEN / "maps", tmp_path / "maps")
    content = json.loads((tmp_path / "maps/golden.json").read_text())
    kept = ("CAM on BB-LAP ResNet", "Gradient on BB-LAP ResNet")
    content["tolerances"] = {name: content["tolerances"][name] for name in kept}
    (tmp_path / "maps/golden.json").write_text(json.dumps(content))
    return tmp_path / "maps"


def faults(folder: Path, *names: str) -> dict[str, str]:
    found = check_golden(job(folder.parent, *(names or ("cam", "gradient"))), folder)
    return {finding.row.partition(" on ")[0]: finding.fault for finding in found if finding.fault}


def file(folder: Path, start: str) -> Path:
    (path,) = folder.glob(f"*/{start}-????????.npy")
    return path


def test_no_explainer_draws_other_maps_than_it_did(tmp_path):
    findings = check_golden(job(tmp_path), GOLDEN / "maps")

    assert [finding for finding in findings if finding.fault] == []


def test_every_explainer_that_the_network_can_be_asked_by_has_golden_maps():
    tiny = definition.load_benchmark(GOLDEN / "tiny.toml")
    carries = frozenset[str]().union(*(model.carries for model in tiny.models))
    applicable = {spec.name for spec in explainers if spec.origin == "lapbench" and spec.layers <= carries}

    assert applicable <= {e.name for e in tiny.explainers} and "lap_all" in applicable


def test_what_moved_is_told(copied):
    path = file(copied, "gradient")
    maps = np.load(path)
    assert faults(copied) == {}

    np.save(path, maps * np.float32(1.002))
    assert faults(copied) == {"Gradient": "maps have moved further than the tolerance"}
    content = (copied / "golden.json").read_text()
    wide = json.loads(content)
    wide["tolerances"]["Gradient on BB-LAP ResNet"] = 0.01
    (copied / "golden.json").write_text(json.dumps(wide))
    assert faults(copied) == {}

    np.save(path, maps[:, 1:])
    assert faults(copied) == {"Gradient": "maps of shape (2, 31, 32) then, (2, 32, 32) now"}


def test_rows_that_come_and_go_are_told(copied):
    assert faults(copied, "cam", "center") == {
        "Gradient": "is not drawn any more",
        "Centre": "has no golden maps: look at them, then --update",
    }


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("golden.json", None, "there is no such result; make it with `lapbench check golden … --update`"),
        ("golden.json", b"{", "not valid JSON"),
        ("golden.json", b'{"schema_version": 1}', "5 faults"),
        ("cam", None, "there are no such maps; make it with"),
        ("cam", b"\x93NUMPY", "not an array: "),
        ("cam", b"cos\nsystem\n(S'true'\ntR.", "not an array: "),
    ],
)
def test_broken_files_are_refused(copied, name, content, fault):
    path = copied / name if name.endswith(".json") else file(copied, "cam")
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ResultError) as caught:
        faults(copied)
    assert str(path) in str(caught.value) and fault in str(caught.value)


def test_maps_of_other_images_are_not_compared(copied):
    content = json.loads((copied / "golden.json").read_text())
    content["images"] = content["images"][::-1]
    (copied / "golden.json").write_text(json.dumps(content))

    with pytest.raises(ResultError, match=r"golden.json: images \(.*\) wanted, \(.*\) found; make it with"):
        faults(copied)


def test_arrays_of_others_are_not_taken_for_golden_maps(tmp_path):
    own = tmp_path / "own" / "experiment" / "embeddings.npy"
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(
        ResultError, match=r"embeddings\.npy, and no golden\.json calls them golden maps: name"
    ):
        update_golden(job(tmp_path / "job", "center"), tmp_path / "own")
    assert own.is_file()


def test_update_keeps_tolerances_and_leaves_nothing_behind(copied):
    content = json.loads((copied / "golden.json").read_text())
    content["tolerances"]["CAM on BB-LAP ResNet"] = 0.5
    (copied / "golden.json").write_text(json.dumps(content))

    written = update_golden(job(copied.parent, "cam", "center"), copied)

    assert written == ["CAM on BB-LAP ResNet", "Centre"]
    assert json.loads((copied / "golden.json").read_text())["tolerances"] == dict(
        zip(written, (0.5, 1e-3), strict=True)
    )
    assert sorted(p.name.rpartition("-")[0] for p in copied.rglob("*.npy")) == ["cam", "centre"]
    assert faults(copied, "cam", "center") == {}


def test_the_command_fails_where_maps_moved_and_whenever_it_updates(tmp_path, monkeypatch):
    text = (GOLDEN / "tiny.toml").read_text()
    start, end = text.index("[[explainers]]"), text.index("[protocol]")
    text = text[:start] + '[[explainers]]\nname = "grad_cam"\n\n' + text[end:]
    (tmp_path / "one.toml").write_text(text)
    for name in ("digits.toml", "tiny.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def call(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["check", "golden", "one.toml", "maps", *options])
        return result.exit_code, result.output

    assert call()[0] == 2
    code, output = call("--update")
    assert code == 1 and "Grad-CAM on BB-LAP ResNet: written" in output
    code, output = call()
    assert code == 0 and "ok  Grad-CAM on BB-LAP ResNet" in output
    path = file(tmp_path / "maps", "grad-cam")
    np.save(path, np.load(path) + np.float32(1))
    code, output = call()
    assert code == 1 and "fault  Grad-CAM on BB-LAP ResNet" in output
