"""What a leaderboard states, held to the scores by image: each false number is named."""

from typing import Any

import numpy as np
import pytest

from lapbench.report.evidence import contradictions
from lapbench.report.results import (
    Estimate,
    ImageScores,
    LapSummary,
    Leaderboard,
    ModelSummary,
    Row,
    SeedResult,
)
from lapbench.report.statistics import bootstrap_mean, in_range

N = 60
DRAWN = np.random.default_rng(3)
SCORES = {
    "iou": DRAWN.random((2, N)) * 0.5 + 0.4,
    "pointing_game": (DRAWN.random((2, N)) < 0.9).astype(float),
    "energy": DRAWN.random((2, N)),
    "auc": DRAWN.random((2, N)),
}
RANDOM = {"iou": DRAWN.random((1, N)) * 0.3}
RIGHT = np.arange(N) < 51


def estimate(values: Any, name: str = "iou") -> Estimate:
    return Estimate.of(in_range({name: bootstrap_mean(values, resamples=999)})[name])


def image_scores(scores: dict[str, Any], **fields: Any) -> ImageScores:
    seeds, ids = tuple(range(len(scores["iou"]))), tuple(f"image-{n}" for n in range(N))
    return ImageScores(
        benchmark="example", benchmark_version=1, model="net", explainer="CAM", selection="top-k",
        seeds=seeds, ids=ids, **fields,
        scores={name: tuple(map(tuple, table.tolist())) for name, table in scores.items()},
    )  # fmt: skip


def row(scores: dict[str, Any], **fields: Any) -> Row:
    iou = estimate(scores["iou"])
    return Row(
        model="net", explainer="CAM", selection="top-k", complete=True, n=N,
        mean=iou.mean, ci_low=iou.ci_low, ci_high=iou.ci_high, **fields,
    )  # fmt: skip


TRAINED = row(
    SCORES,
    pointing_game=estimate(SCORES["pointing_game"]),
    energy=estimate(SCORES["energy"]),
    measures={
        "auc": estimate(SCORES["auc"]),
        "pxap": Estimate(mean=0.5),
        "randomisation_drop": estimate(SCORES["iou"] - RANDOM["iou"], "randomisation_drop"),
    },
    seeds=tuple(SeedResult(seed=seed, mean=float(SCORES["iou"][seed].mean())) for seed in (0, 1)),
    model_accuracy=0.85,
)
SHARE = estimate(RIGHT[::-1])  # the answers in another order
MODEL = ModelSummary(
    name="net", accuracy=0.85, balanced_accuracy=0.8, classes=2, n=N, seeds=(0,),
    measures={"accuracy": SHARE, "balanced_accuracy": Estimate(mean=0.8)},
    laps=(LapSummary(predictivity=SHARE, faithfulness=SHARE),),
)  # fmt: skip


def found(trained: Row = TRAINED, model: ModelSummary = MODEL, **provenance: Any) -> list[str]:
    untrained = row(RANDOM, randomised=True)
    board = Leaderboard(
        benchmark="example", benchmark_version=1, models=(model,), rows=(trained, untrained),
        provenance={"protocol": {"resamples": 999}, **provenance},
    )  # fmt: skip
    images = {trained.key: image_scores(SCORES), untrained.key: image_scores(RANDOM, randomised=True)}
    return contradictions(board, images)


def test_what_the_scores_bear_out_is_no_contradiction() -> None:
    assert found() == []


def test_another_scipy_may_draw_other_samples() -> None:
    other = bootstrap_mean(SCORES["energy"], resamples=999, seed=5)
    assert found(TRAINED.model_copy(update={"energy": Estimate.of(other)})) == []


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("mean", 0.9, "mean 0.9, that of the scores by image is 0.6"),
        ("ci_high", 0.99, "interval [ … , 0.99] of mean, that of the scores by image is "),
        ("energy", Estimate(mean=0.9), "energy 0.9, that of the scores by image is 0."),
        (
            "energy",
            Estimate(ci_low=0.5, ci_high=0.5001),
            "interval [0.5, 0.5001] of energy, that of the scores by image",
        ),
        ("pointing_game", Estimate(mean=1.0), "pointing_game 1.0, that of the scores by image is 0."),
        ("measures", {"auc": Estimate(mean=0.9)}, "auc 0.9, that of the scores by image is 0."),
        (
            "measures",
            {"randomisation_drop": Estimate(mean=0.9)},
            "randomisation_drop 0.9, that of the scores by image is 0.",
        ),
        ("seeds", (SeedResult(seed=1, mean=0.9),), "mean 0.9 of seed 1, that of the scores by image is 0."),
        ("model_accuracy", 0.95, "model_accuracy 0.95, that of the model is 0.85"),
    ],
)
def test_what_a_row_states_wrongly_is_named(field: str, value: Any, fault: str) -> None:
    (said,) = found(TRAINED.model_copy(update={field: value}))
    assert said.startswith("net, CAM (top-k): ") and all(part in said for part in fault.split(" … "))


def test_images_without_a_score_are_counted() -> None:
    stated = TRAINED.model_copy(update={"complete": False, "reason": "some failed", "n": 58, "n_failed": 2})
    assert found(stated) == [
        "net, CAM (top-k): 58 images counted, 60 have a score",
        "net, CAM (top-k): 2 images counted as failed, 0 have no score",
    ]


def test_what_a_model_states_wrongly_is_named() -> None:
    def said(**fields: Any) -> list[str]:
        return found(model=MODEL.model_copy(update=fields), submissions=[])

    other = {**MODEL.measures, "accuracy": Estimate(mean=0.95)}
    narrow = SHARE.model_copy(update={"ci_low": 0.84, "ci_high": 0.86})
    assert said(balanced_accuracy=0.9) == ["net: balanced_accuracy 0.9, its measure of that name is 0.8"]
    assert said(measures=other) == ["net: accuracy 0.85, its measure of that name is 0.95"]
    assert said(accuracy=0.954, measures={"accuracy": Estimate(mean=0.954)}) == [
        "net: accuracy 0.954 is no share of 60 answers"
    ]
    (fault,) = said(laps=(LapSummary(predictivity=SHARE, faithfulness=narrow),))
    wanted = "net: interval [0.84, 0.86] of faithfulness of LAP 1, that of 51 of 60 right answers is [0.7"
    assert fault.startswith(wanted)
    assert said(seeds=(0, 1), laps=(LapSummary(predictivity=SHARE, faithfulness=narrow),)) == []


def test_pooled_means_are_not_in_the_scores_by_image() -> None:
    protocol = {"resamples": 999, "averaging": "pooled"}
    stated = TRAINED.model_copy(update={"mean": 0.7, "ci_low": 0.69, "ci_high": 0.71})
    assert found(stated, protocol=protocol) == []


@pytest.mark.parametrize("resamples", ["many", 10**12, -1, None])
def test_no_stranger_decides_how_much_is_drawn(resamples: Any) -> None:
    assert found(protocol={"resamples": resamples}) == []
