"""The gate sees faults that are planted into the run of the shipped tiny network."""

from pathlib import Path

import pytest
from scripts import ROOT, script

from lapbench import benchmark as definition
from lapbench.report.gate import judge

gate = script("gate")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """The tiny network with explainers of coarse and of fine maps, run without a fault."""
    names = ("lap_all", "grad_cam", "deeplift")
    chosen = definition.select(definition.load_benchmark(GOLDEN / "tiny.toml"), explainers=names)
    folder = tmp_path_factory.mktemp("faults")
    found = gate.Trial("tiny", chosen, GOLDEN / "tiny.safetensors", folder, None)
    return found, found.results("cache")


IN_SCORING = [name for name in gate.FAULTS if name.startswith("a") or "maps" in name or "drawn" in name]


@pytest.mark.parametrize("name", IN_SCORING)
def test_a_fault_in_scoring_is_seen(trial, name):
    verdict = judge(*gate.FAULTS[name](*trial))

    assert not verdict.passes
    assert verdict.counts.get("regressed", 0) + verdict.counts.get("improved", 0) >= 1


@pytest.mark.slow
def test_a_fault_before_scoring_is_seen(trial):
    read = judge(*gate.FAULTS["boxes inclusive, when read"](*trial))
    channels = judge(*gate.FAULTS["channels in the wrong order"](*trial))

    assert set(read.counts) == {"incomparable"} and not channels.passes


@pytest.mark.slow
def test_other_batches_and_threads_are_no_fault(trial, monkeypatch):
    monkeypatch.setattr(gate, "FEW", (4, 8))

    passed, image, row = gate.reruns(trial[0], 4)

    assert passed == 4 and image <= 1e-3 and row <= 1e-4


def test_the_committed_page_tells_of_all_of_them():
    page = (ROOT / "reports/correctness/gate.md").read_text(encoding="utf-8")
    for name in gate.FAULTS:
        lines = [
            line for line in page.splitlines() if line.startswith(f"| {name.replace('_', chr(92) + '_')} |")
        ]
        assert len(lines) == len(gate.SETS)
        assert all("| fails |" in line for line in lines)
