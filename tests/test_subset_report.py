"""The toy task of subset selection: what is planted decides, and a selection is measured as it is said."""

import pytest
import torch
from scripts import script

subset = script("subset")


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng(devices=[]):
        yield


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_marked_positions_decide_and_the_others_do_not():
    samples = subset.positions(500, generator())
    x = samples.inputs.flatten(2).transpose(1, 2)
    evidence = x[:, :, 1 : 1 + subset.CLASSES]
    planted = (evidence * samples.planted[:, :, None]).sum(1).argmax(1)
    assert (planted == samples.labels).float().mean() > 0.97
    others = (evidence * ~samples.planted[:, :, None]).sum(1).argmax(1)
    assert (others == samples.labels).float().mean() == pytest.approx(1 / subset.CLASSES, abs=0.07)
    sizes = samples.planted.sum(1)
    assert sizes.min() == 1 and sizes.max() == subset.LARGEST
    mark = x[:, :, 0]
    assert mark[samples.planted].mean() > 1.9 and abs(float(mark[~samples.planted].mean())) < 0.1


@pytest.mark.parametrize("few", [2, 4])
def test_the_first_features_decide(few):
    samples = subset.features(20_000, generator(), few=few)
    x = samples.inputs
    logit = x[:, 0] * x[:, 1] if few == 2 else (x[:, :4] ** 2).sum(1) - 4
    high, low = logit > 1, logit < -1
    for part in (high, low):
        assert samples.labels[part].float().mean() == pytest.approx(
            float(logit[part].sigmoid().mean()), abs=0.02
        )
    assert samples.planted.sum(1).unique().tolist() == [few]


def test_overlap_by_hand():
    selected = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]).bool()
    planted = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]).bool()
    assert subset.overlap(selected, planted) == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert subset.interval([0.5, 0.7]) == "0.60 [0.00, 1.00]"


def test_a_task_is_learnt_and_measured(monkeypatch):
    monkeypatch.setattr(subset, "TRAIN", 3000)
    found = subset.trained(subset.TASKS[0], subset.METHODS["BLA, temperature 1"], seed=0)
    assert found.hard > 0.6 and 0.3 < found.overlap <= 1 and 1 <= found.size < 8
    told = subset.trained(subset.TASKS[1], subset.METHODS["L2X"], seed=0)
    assert told.size == 2
    page = subset.rendered([subset.line(subset.TASKS[0], "BLA", [found, found])], 2, 0.1)
    assert "| positions | BLA | " in page and page.startswith("# Does differentiable selection")
