import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, ttest_rel

from lapbench.errors import ResultError
from lapbench.report.baseline import Baseline, from_report
from lapbench.report.gate import Gate, Verdict, judge
from tests.report.folders import PROVENANCE, claims, write_results

rng = np.random.default_rng(0)
STEADY = rng.uniform(0.2, 0.8, 200)


def results(folder: Path, tables: dict[str, Any], **options: Any) -> Baseline:
    return from_report(write_results(folder, tables, **options))


def only(gate: Gate) -> Verdict:
    (verdict,) = gate.verdicts
    return verdict


def other_weights(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: claims(weights="b" * 64) for name in tables}


@pytest.fixture
def against(tmp_path):
    """Judge a table of one row, as a copy of the same row with other weights, against STEADY."""

    def call(now, then=STEADY, *, claimed=None, **options):
        old = results(tmp_path / "old", {"a": then})
        new = results(tmp_path / "new", {"a": now}, claimed={"a": claimed or claims(weights="b" * 64)})
        return only(judge(old, new, **options))

    return call


def test_the_same_results_pass(against):
    verdict = against(STEADY, claimed=claims())

    assert (verdict.state, verdict.reason, verdict.n) == ("ok", "", 200)
    assert (verdict.difference, verdict.low, verdict.high, verdict.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("shift", "state"), [(0.02, "improved"), (-0.02, "regressed")])
def test_both_directions_fail(against, shift, state):
    verdict = against(STEADY + shift + rng.normal(0, 0.02, 200))

    assert (verdict.state, verdict.passes, verdict.reason) == (state, False, "other weights")
    assert verdict.low < verdict.difference < verdict.high
    assert verdict.difference == pytest.approx(verdict.now - verdict.before)
    assert np.sign(verdict.low) == np.sign(verdict.high) == np.sign(shift)


def test_what_matters_is_larger_than_the_smallest_effect(against):
    moved = STEADY + 0.009

    assert against(moved).state == "ok"
    assert against(moved, min_effect=0.008).state == "improved"
    assert against(STEADY, min_effect=0).state == "ok"


def test_what_chance_explains_passes(against):
    noise = rng.normal(0, 0.2, 200)
    noise += 0.012 - noise.mean()  # beyond the smallest effect, within one standard error of nothing
    verdict = against(np.clip(STEADY + noise, 0, 1))

    assert verdict.state == "ok" and abs(verdict.difference) >= 0.01 and verdict.p_value > 0.05


@pytest.mark.parametrize(
    ("then", "now"),
    [([0.9], [0.1]), ([0.1], [0.9]), ([0.9, 0.8], [0.1, 0.2]), ([0.9, 0.2, 0.8, 0.5], [0.1, 0.3, 0.2, 0.4])],
)
def test_a_move_over_too_few_images_does_not_pass_in_silence(against, then, now):
    verdict = against(now, then)

    assert (verdict.state, verdict.passes) == ("incomparable", False)
    wanted = f"other weights; too few images to tell this from chance: 5 wanted, {len(then)} found"
    assert verdict.reason == wanted


def test_few_images_are_judged_where_nothing_is_left_to_chance(against):
    assert against([0.9], [0.9]).state == "ok"
    assert against([0.9], [0.895]).state == "ok", "less than what matters"
    assert against([0.1, 0.2, 0.1], [0.9, 0.95, 0.92]).state == "regressed"
    changed = against([0.1], [0.9], claimed=claims())
    assert changed.state == "changed" and changed.reason.startswith("the same maps are claimed, yet")


def test_images_that_move_both_ways_under_the_same_claims_have_changed(against):
    swapped = STEADY + np.where(np.arange(200) % 2, 0.005, -0.005)
    verdict = against(swapped, claimed=claims())

    assert verdict.state == "changed"
    assert verdict.reason == "the same maps are claimed, yet images moved by 0.0050 on average"
    assert against(swapped).state == "ok"  # other weights may
    assert against(STEADY + np.where(np.arange(200) % 2, 5e-4, -5e-4), claimed=claims()).state == "ok"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "b" * 64}, "other weights"),
        ({"architecture": "vgg11"}, "another network"),
        ({"explainer_version": 2}, "explainer grad_cam 1 then, grad_cam 2 now"),
        ({"parameters": {"layer": "layer2"}}, "other parameters"),
        ({"weights": "b" * 64, "parameters": {}}, "other weights; other parameters"),
    ],
)
def test_it_says_what_the_maps_are_made_of_instead(against, change, reason):
    assert against(STEADY, claimed=claims(**change)).reason == reason


def test_a_row_that_claims_nothing_is_judged_by_its_scores(tmp_path):
    old = results(tmp_path / "old", {"a": STEADY}, claimed={"a": {"weights": "?"}})
    moved = STEADY + np.where(np.arange(200) % 2, 0.005, -0.005)
    new = results(tmp_path / "new", {"a": moved}, claimed={"a": {"weights": "?"}})

    assert only(judge(old, new)).state == "ok"


def test_missing_and_new_rows(tmp_path):
    old = results(tmp_path / "old", {"a": STEADY, "b": STEADY, "c": STEADY}, failed={"d": "why", "e": "why"})
    new = results(
        tmp_path / "new", {"a": STEADY, "d": STEADY, "f": STEADY}, failed={"b": "no map", "e": "still not"}
    )
    gate = judge(old, new)

    assert {v.explainer: (v.state, v.reason) for v in gate.verdicts} == {
        "a": ("ok", ""),
        "b": ("missing", "the row has no number any more: no map"),
        "c": ("missing", "the row is not in the new results"),
        "d": ("new", "had no number: why"),
        "e": ("ok", "has no number, as before: still not"),
        "f": ("new", "not in the baseline"),
    }
    assert not gate.passes and gate.counts == {"missing": 2, "new": 2, "ok": 2}
    assert [v.state for v in gate.verdicts] == ["missing"] * 2 + ["new"] * 2 + ["ok"] * 2
    assert judge(new, old).counts == {"missing": 2, "new": 2, "ok": 2}
    more = results(tmp_path / "more", dict.fromkeys("abcf", STEADY), failed={"d": "why", "e": "why"})
    assert judge(old, more).passes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"benchmark": "other"}, "benchmark example then, other now"),
        ({"benchmark_version": 2}, "benchmark version 1 then, 2 now"),
        (
            {"provenance": PROVENANCE | {"data": {"name": "digits", "digest": "e" * 64}}},
            f"other data: digits {'d' * 12}… then, digits {'e' * 12}… now",
        ),
        (
            {"provenance": PROVENANCE | {"data": {}}},
            "the data has no digest, so nothing says that it is the same",
        ),
        (
            {"provenance": PROVENANCE | {"protocol": {"target": "present", "sign": "abs"}}},
            "protocol.sign: keep then, abs now",
        ),
    ],
)
def test_other_terms_are_incomparable(tmp_path, change, reason):
    old = results(tmp_path / "old", {"a": STEADY})
    verdict = only(judge(old, results(tmp_path / "new", {"a": STEADY}, **change)))

    assert (verdict.state, verdict.reason, verdict.passes) == ("incomparable", reason, False)


def test_how_intervals_are_drawn_does_not_keep_rows_from_being_compared(tmp_path):
    quick = PROVENANCE | {"protocol": PROVENANCE["protocol"] | {"resamples": 99, "confidence": 0.9}}
    old = results(tmp_path / "old", {"a": STEADY})

    assert judge(old, results(tmp_path / "new", {"a": STEADY}, provenance=quick)).passes


def test_a_baseline_older_than_a_setting_had_its_default(tmp_path):
    settings = PROVENANCE["protocol"]
    literal = PROVENANCE | {"protocol": settings | {"orientation": "literal", "box_accuracy": False}}
    above = PROVENANCE | {"protocol": settings | {"orientation": "always-above"}}
    old = results(tmp_path / "old", {"a": STEADY})

    assert judge(old, results(tmp_path / "new", {"a": STEADY}, provenance=literal)).passes
    verdict = only(judge(old, results(tmp_path / "other", {"a": STEADY}, provenance=above)))
    assert verdict.reason == "protocol.orientation: literal then, always-above now"


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (("x", "y"), "other images: 2 then, 2 now, 2 gone and 2 new, for instance 'image-0'"),
        (("image-0", "y"), "other images: 2 then, 2 now, 1 gone and 1 new, for instance 'image-1'"),
        (("image-1", "image-0"), "other images: 2 then, 2 now, 0 gone and 0 new, in another order"),
    ],
)
def test_other_images_are_incomparable(tmp_path, ids, reason):
    old = results(tmp_path / "old", {"a": [0.5, 0.6]})
    verdict = only(judge(old, results(tmp_path / "new", {"a": [0.5, 0.6]}, ids={"a": ids})))

    assert (verdict.state, verdict.reason) == ("incomparable", reason)


def test_p_values_are_those_of_scipy_corrected_over_the_table(tmp_path):
    now = {name: np.clip(STEADY + rng.normal(0.02, 0.1, 200), 0, 1).round(6) for name in "abcdef"}
    old = results(tmp_path / "old", dict.fromkeys(now, STEADY))
    gate = judge(old, results(tmp_path / "new", now, claimed=other_weights(now)))

    raw = [ttest_rel(table, STEADY.round(6)).pvalue for table in now.values()]
    found = {v.explainer: v.p_value for v in gate.verdicts}
    assert [found[name] for name in now] == pytest.approx(false_discovery_control(raw), rel=1e-9)


def test_a_skewed_difference_whose_mean_is_nothing_is_no_alarm(tmp_path):
    """Most images gain a little and few lose much: ranks see a difference, the mean has none."""
    few = np.arange(200) % 10 == 0
    then = np.full((10, 200), 0.5)
    now = then + np.where(few, -0.27, 0.03) + rng.normal(0, 0.01, then.shape)

    assert judge(_in_memory(then), _in_memory(np.clip(now, 0, 1)), min_effect=0).passes


def test_other_trainings_are_a_source_of_chance_and_the_same_trainings_are_not(tmp_path):
    """Three trainings that differ by 0.1 move a mean by more than 0.02 without saying anything."""
    then = STEADY + np.array([[-0.1], [0.0], [0.1]])
    now = then + 0.02
    old = results(tmp_path / "old", {"a": then})

    same = only(judge(old, results(tmp_path / "same", {"a": now})))
    assert same.state == "improved" and same.p_value < 1e-9
    unpaired = now[[1, 2, 0]]
    other = results(tmp_path / "other", {"a": unpaired}, claimed={"a": claims(weights="b" * 64)})
    assert only(judge(old, other)).state == "ok"


def test_another_number_of_trainings_is_compared_by_means(tmp_path):
    old = results(tmp_path / "old", {"a": np.stack([STEADY, STEADY])})
    new = results(tmp_path / "new", {"a": STEADY}, claimed={"a": claims(weights="b" * 64)})

    assert only(judge(old, new)).state == "ok"


def test_only_the_models_asked_for(tmp_path):
    old = results(tmp_path / "old", {"a": STEADY})

    assert judge(old, old, models=("net",)).counts == {"ok": 1}
    with pytest.raises(
        ResultError, match="the baseline of example has no row of other: there is nothing to "
    ):
        judge(old, old, models=("other",))


def test_rows_that_cannot_move_decide_nothing(tmp_path):
    """Twenty controls that are the same to the last bit do not excuse the row beside them."""
    moved = np.clip(STEADY - 0.02 + np.random.default_rng(7).normal(0, 0.11, len(STEADY)), 0, 1)
    controls = {f"control {n}": STEADY for n in range(20)}
    verdicts = []
    for place, others in enumerate(({}, controls)):
        before, after = {"a": STEADY, **others}, {"a": moved, **others}
        old = results(tmp_path / f"{place} old", before)
        verdicts.append(
            judge(old, results(tmp_path / f"{place} new", after, claimed=other_weights(after))).verdicts
        )
    (alone,), among = verdicts
    found = next(verdict for verdict in among if verdict.explainer == "a")
    assert (found.state, found.p_value) == (alone.state, alone.p_value) and 0 < found.p_value < 0.05
    assert all(verdict.state == "ok" for verdict in among if verdict is not found)


def test_a_baseline_without_a_score_is_refused(tmp_path):
    old = results(tmp_path / "old", {"a": STEADY})
    empty = old.model_copy(
        update={"rows": tuple(r.model_copy(update={"iou": (), "reason": "no maps"}) for r in old.rows)}
    )
    with pytest.raises(ResultError, match=r"no row of the baseline of example has a score \(no maps\): run"):
        judge(empty, old)


def test_limits_that_mean_nothing_are_refused(tmp_path):
    old = results(tmp_path / "old", {"a": STEADY})
    for options in ({"min_effect": -0.1}, {"alpha": 0.0}, {"min_effect": math.nan}):
        with pytest.raises(ValueError, match="wanted 0 ≤ min_effect ≤ 1 and 0 < alpha < 1, found"):
            judge(old, old, **options)


def simulated(rounds: int, rows: int, effect: float, *, scatter: float = 0.08) -> tuple[float, float]:
    """Return how often the gate of a table fails, and how often a row fails, where each moved by an effect.

    Scores are drawn anew for every round: the same hard and easy images, and beside them chance of the size
    that another training of the same network brings.
    """
    source = np.random.default_rng(1)
    alarms, found = 0, 0
    for _ in range(rounds):
        then = source.uniform(0.2, 0.7, (rows, 200))
        now = np.clip(then + effect + source.normal(0, scatter, then.shape), 0, 1)
        gate = judge(*(_in_memory(table) for table in (then, now)), min_effect=0)
        alarms += not gate.passes
        found += sum(not verdict.passes for verdict in gate.verdicts)
    return alarms / rounds, found / (rounds * rows)


def _in_memory(tables: np.ndarray) -> Baseline:
    rows = [
        {
            "model": "net", "explainer": str(i), "selection": "threshold", "seeds": [0], "images": 0,
            "iou": [table.round(6).tolist()],
        }
        for i, table in enumerate(tables)
    ]  # fmt: skip
    ids = [f"image-{i}" for i in range(tables.shape[1])]
    return Baseline.model_validate(
        {"benchmark": "b", "benchmark_version": 1, "provenance": PROVENANCE, "images": [ids], "rows": rows}
    )


def test_false_alarms_and_power_in_short():
    """At α = 0.05, 30 gates of 5 unchanged rows raise 6 alarms or more in 3 of a thousand draws."""
    alarms, _ = simulated(30, 5, 0.0)
    _, power = simulated(10, 5, 0.02)

    assert alarms <= 5 / 30
    assert power >= 0.8


@pytest.mark.slow
def test_false_alarms_and_power():
    """At most α of the gates fail where nothing moved, also without a smallest effect: 0.05 ± 3 · 0.007."""
    alarms, rows = simulated(1000, 10, 0.0)
    assert alarms <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert rows <= 0.01
    # An effect of 0.02 with scatter 0.08 over 200 images is 3.5 standard errors; 2.8 suffice for 0.8
    _, power = simulated(200, 10, 0.02)
    assert power >= 0.9
