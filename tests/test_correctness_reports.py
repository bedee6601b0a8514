"""The committed table of networks and explainers holds, and would show a wrong rule."""

import pytest
import torch
from scripts import ROOT, script
from torch import nn

from lapbench.explain import differences, relevance
from lapbench.explain.derivatives import derivative

networks = script("networks")
EVERY_ROW = [(name, False) for name in networks.NETWORKS] + [(name, True) for name in networks.PLUGGED]


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def small(monkeypatch):
    """One image that is just large enough for SqueezeNet."""
    monkeypatch.setattr(networks, "SIZE", (64, 48))
    monkeypatch.setattr(networks, "COUNT", 1)


def measured(case: object, *columns: str) -> dict[str, object]:
    return {name: networks.attempted(networks.COLUMNS[name], case, name) for name in columns}


def test_a_row_is_right_and_shows_what_captum_does(small):
    row = networks.row_of("squeezenet1_1")
    cells = row.cells
    assert not row.faults
    assert cells["output"].text == "equal"
    for column in ("GBP", "DeepLIFT", "LRP-ε + kept", "LRP-z⁺ + kept"):
        assert cells[column].value <= 1e-6
    assert cells["DeepLIFT, Captum"].value > 1e-2  # overlapping windows
    assert cells["GBP, Captum"].text.startswith("right")
    page = networks.rendered([row], minutes=1.0)
    assert "**1 of 1 networks are right**" in page
    assert f"| squeezenet1_1 | equal | {cells['GBP'].text} |" in page
    assert "misses more than 1 % of the difference on\n  1. It is right on 0: none." in page


def test_a_row_with_lap_is_right_and_what_captum_raises_becomes_a_note(small):
    row = networks.row_of("squeezenet1_1", lap=True)
    assert row.network == "LAP squeezenet1_1"
    assert not row.faults
    assert row.cells["LRP, Captum"].text == "TypeError"
    assert "no rule defined" in row.cells["LRP, Captum"].note
    assert "| TypeError [1] |" in networks.rendered([row], minutes=1.0)


def test_a_wrong_rule_is_seen(small, monkeypatch):
    monkeypatch.setitem(differences._RULES, nn.MaxPool2d, derivative)
    case = networks.case_of("squeezenet1_1")
    row = networks.Row("squeezenet1_1", measured(case, "output", "DeepLIFT"))
    assert row.cells["DeepLIFT"].value > 1e-3
    assert row.faults == ["DeepLIFT"]


def test_a_wrong_rule_of_relevance_is_seen(small, monkeypatch):
    right = relevance._to_winners
    monkeypatch.setattr(relevance, "_to_winners", lambda operation, received: right(operation, received / 2))
    case = networks.case_of("squeezenet1_1")
    row = networks.Row("squeezenet1_1", measured(case, "LRP-ε + kept", "LRP-z⁺ + kept"))
    assert row.faults == ["LRP-ε + kept", "LRP-z⁺ + kept"]


def test_a_failure_of_ours_is_a_fault_and_one_of_captums_is_not(small):
    def fail(case: object) -> None:
        raise ValueError("no such\n  thing")

    ours, theirs = networks.attempted(fail, None, "GBP"), networks.attempted(fail, None, "GBP, Captum")
    assert (ours.text, ours.right, ours.note) == ("ValueError", False, "ValueError: no such\n  thing")
    assert theirs.right is None
    assert networks.noted(ours, {}) == "ValueError [1]"
    assert networks.shortened(ours.note) == "ValueError: no such thing"


def test_a_refusal_is_no_fault_and_says_why(small):
    cell = measured(networks.case_of("mobilenet_v2"), "GBP")["GBP"]
    assert (cell.text, cell.right) == ("refused", None)
    assert cell.note == "MobileNetV2 has no ReLU: Guided Backprop would be the plain gradient"


def test_no_network_keeps_a_value_that_hides_a_fault(small):
    model = networks.case_of("convnext_tiny").plain
    still = [name for name, p in model.named_parameters() if p.ndim < 2 or "scale" in name]
    assert all(model.get_parameter(name).std() > 0.05 for name in still)
    norm = networks.case_of("squeezenet1_1", lap=True).plain
    assert all(b.std() > 0.05 for name, b in norm.named_parameters() if name.endswith("bias") and len(b) > 8)


def test_the_committed_page_has_every_row_and_column_and_no_fault():
    page = (ROOT / "reports" / "correctness" / "networks.md").read_text(encoding="utf-8")
    table = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in table[0]] == ["network", *networks.COLUMNS, "verdict"]
    found = {line[0].strip(): line[-1].strip() for line in table[2:-1]}
    assert found == {f"LAP {name}" if lap else name: "right" for name, lap in EVERY_ROW}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lap"), EVERY_ROW)
def test_every_row_is_right(name: str, lap: bool):
    row = networks.row_of(name, lap=lap)
    assert not row.faults
    for column in ("DeepLIFT", "LRP-ε + kept", "LRP-z⁺ + kept"):  # rules that no network of these lacks
        assert row.cells[column].value <= 1e-6
