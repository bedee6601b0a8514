"""The switches of the protocol: each changes what it should, on cached maps where the maps stay the same."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from lapbench import pipeline
from lapbench.errors import ResultError, StoreError
from lapbench.models.predict import predict
from lapbench.pipeline.answering import read_logits
from lapbench.pipeline.job import Job
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.score import normalise
from pipeline import tiny

PLAIN = tiny.with_explainers(tiny.without_models(tiny.DEFINITION, "WS-LAP"), "grad_cam", "deeplift", "random")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("lapbench.pipeline.reporting.draw_pictures", lambda *_: [])


@pytest.fixture
def scored(copied, monkeypatch):
    """Score the copied cache by another protocol; any network that is built is an error."""

    def score(**settings):
        path = tiny.write_definition(copied, text=tiny.with_protocol(PLAIN, **settings))
        job = tiny.job(path, copied)
        with monkeypatch.context() as patch:
            patch.setattr("lapbench.pipeline.networks.build", None)
            assert pipeline.explain(job) == [] and pipeline.score(job) == []
        return {(r.explainer, r.selection, r.randomised): r for r in pipeline.report(job).rows}

    return score


@pytest.fixture(scope="module")
def usual(finished):
    return {
        (r.explainer, r.selection, r.randomised): r
        for r in finished.board.rows
        if r.model in ("plain", "no network")
    }


@pytest.fixture(scope="module")
def material(finished):
    """Raw DeepLIFT maps with their masks, by purpose."""
    job = tiny.job(finished.definition, finished.folder)
    source = next(
        row.sources[0]
        for row in job.rows()
        if row.explainer.name == "deeplift" and row.model.name == "plain" and not row.randomised
    )
    samples, found = Samples(job), {}
    for purpose in ("fit", "score"):
        [block] = job.blocks(purpose)
        found[purpose] = job.store.read(*job.map_key(source, block)).maps, samples.masks(block)
    return found


def midpoint(maps, masks):
    return (maps[masks].mean(dtype=np.float64) + maps[~masks].mean(dtype=np.float64)) / 2


DEEPLIFT = ("DeepLIFT", "threshold", False)


@pytest.mark.parametrize("sign", ["relu", "abs"])
def test_sign(scored, usual, material, sign):
    row = scored(sign=sign)[DEEPLIFT]
    maps, masks = material["fit"]
    changed = np.maximum(maps, 0) if sign == "relu" else np.abs(maps)

    assert row.threshold == pytest.approx(
        midpoint(changed / changed.max((1, 2), keepdims=True), masks), abs=1e-7
    )
    assert row.threshold != usual[DEEPLIFT].threshold and row.threshold > 0


def test_order(scored, usual, finished):
    rows = scored(order="scale-upsample")

    key = ("Grad-CAM", "threshold", False)
    assert rows[key].threshold != usual[key].threshold  # 2×2 maps: the maximum lies between the corners
    assert rows[DEEPLIFT].mean == usual[DEEPLIFT].mean  # already at the image's size


def test_fit_images(copied, usual, material):
    text = tiny.with_protocol(tiny.with_explainers(PLAIN, "deeplift"), fit_images="positives")
    job = tiny.job(tiny.write_definition(copied, text=text), copied)
    assert pipeline.explain(job) == [] and pipeline.score(job) == []
    row = next(r for r in pipeline.report(job).rows if r.selection == "threshold" and not r.randomised)
    maps, masks = material["fit"]
    positive = masks.any((1, 2))
    scaled = maps[positive] / maps[positive].max((1, 2), keepdims=True)

    [fit] = row.provenance["fits"]
    assert fit["n_maps"] == positive.sum() == 12 and usual[DEEPLIFT].provenance["fits"][0]["n_maps"] == 24
    assert row.threshold == pytest.approx(midpoint(scaled, masks[positive]), abs=1e-7)


def test_averaging(scored, usual, material):
    rows = scored(averaging="pooled")
    row, (maps, masks) = rows[DEEPLIFT], material["score"]
    scaled = normalise(maps, (32, 32))
    chosen = scaled > row.threshold if row.orientation == 1 else scaled < row.threshold

    assert row.mean == pytest.approx((chosen & masks).sum() / (chosen | masks).sum(), abs=1e-9)
    assert row.ci_low < row.mean < row.ci_high and row.n == 15 and row.mean != usual[DEEPLIFT].mean
    assert row.pointing_game == usual[DEEPLIFT].pointing_game
    assert row.seeds[0].mean == pytest.approx(row.mean, abs=1e-12)


def test_orientation(scored, usual):
    rows = scored(orientation="always-above")

    inverted = [key for key, row in usual.items() if row.orientation == -1]
    assert inverted
    for key, row in rows.items():
        if row.orientation is not None:
            assert row.orientation == 1 and row.threshold == pytest.approx(usual[key].threshold, abs=1e-12)
            assert (row.mean != usual[key].mean) == (key in inverted)


@pytest.mark.parametrize("method", ["ridge", "streaming"])
def test_threshold_fit(scored, usual, method):
    rows = scored(threshold_fit=method)

    for key, row in rows.items():
        assert row.threshold == (pytest.approx(usual[key].threshold, abs=1e-9) if row.threshold else None)
        assert row.provenance["fits"][0]["method"] == method


def test_score_images(scored, usual, finished):
    rows = scored(score_images="correct-positives")
    job = tiny.job(finished.definition, finished.folder)
    subject = next(s for s in job.subjects() if s.model.name == "plain" and not s.randomised)
    split = job.considered("score")
    images = torch.from_numpy(np.stack([(sample.image - 0.5) / 0.25 for sample in split]))
    right = predict(load_network(job, subject), images).argmax(1).numpy() == split.labels
    n = int((right & split.has_truth).sum())
    assert 0 < n < 15

    for (explainer, _, _), row in rows.items():
        assert row.n == (15 if explainer == "Random" else n) and row.complete
    assert rows["Random", "top-k", False].mean == usual["Random", "top-k", False].mean


def test_selections(scored, usual):
    rows = scored(selections=["top-k"])

    assert {key[1] for key in rows} == {"top-k"}
    assert all(row.mean == usual[key].mean for key, row in rows.items())


def test_randomised_weights(scored, usual):
    rows = scored(randomised_weights=False)

    assert rows.keys() == {key for key in usual if not key[2]} - {
        key for key in usual if key[0] in ("Centre", "All-ones", "Oracle")
    }
    assert all(row.mean == usual[key].mean for key, row in rows.items())


def test_completeness_bound(scored, usual):
    found = scored(completeness_bound=0.5)[DEEPLIFT].completeness_error

    assert found.bound == 0.5 and found.max == usual[DEEPLIFT].completeness_error.max


def test_confidence_and_resamples(scored, usual):
    row, before = scored(confidence=0.5, resamples=199)[DEEPLIFT], usual[DEEPLIFT]

    assert row.mean == before.mean and row.ci_high - row.ci_low < before.ci_high - before.ci_low


def maps_and_targets(folder, **settings):
    """Grad-CAM on the trained plain network: (targets, maps) of the scored split."""
    text = tiny.with_explainers(
        tiny.with_protocol(PLAIN, randomised_weights=False, **settings), "grad_cam", "random"
    )
    job = tiny.job(tiny.write_definition(folder, text=text), folder)
    assert pipeline.explain(job) == [] and pipeline.score(job) == []
    row = next(iter(job.rows()))
    [block] = job.blocks("score")
    shard = job.store.read(*job.map_key(row.sources[0], block))
    assert all(row.complete for row in pipeline.report(job).rows if row.selection == "top-k")
    return job, row, block, shard


def test_target_label_is_that_of_each_image(copied, finished):
    _, _, _, shard = maps_and_targets(copied, target="label")
    assert shard.targets.tolist() == [1] * 15  # only images with the digit have a truth


def test_target_predicted_is_what_the_network_answers_to_that_very_image(copied):
    """The scored images are a part of those predicted: each keeps its own answer."""
    job, row, block, shard = maps_and_targets(copied, target="predicted")
    logits = read_logits(job, row.sources[0].subject, "score")
    answers = logits.argmax(1)

    assert len(logits) == 30 and shard.targets.tolist() == answers[list(block.indices)].tolist()
    assert 0 < shard.targets.sum() < 15  # both classes are predicted somewhere
    _, _, _, of_class_0 = maps_and_targets(copied, target="absent")
    _, _, _, of_class_1 = maps_and_targets(copied, target="present")
    for i, target in enumerate(shard.targets):
        assert np.array_equal(shard.maps[i], (of_class_0, of_class_1)[target].maps[i])


def test_predictions_that_have_gone_are_no_labels(copied, monkeypatch):
    monkeypatch.setattr("lapbench.pipeline.explaining.read_logits", lambda *_: None)
    with pytest.raises(StoreError, match="the answers of plain have gone from"):
        maps_and_targets(copied, target="predicted")


def test_another_target_leaves_the_maps_of_controls(copied, finished):
    before = {p.name for p in (finished.cache / "maps" / "controls" / "random").iterdir()}
    maps_and_targets(copied, target="absent")
    assert {p.name for p in (copied / "cache" / "maps" / "controls" / "random").iterdir()} == before


def test_several_seeds_are_averaged_image_by_image(trained):
    text = tiny.with_explainers(PLAIN, "grad_cam", "random").replace(
        'name = "plain"', 'name = "plain"\nseeds = [0, 3]'
    )
    path = tiny.write_definition(trained, text=text)
    board = pipeline.run(tiny.job(path, trained))
    singles = []
    for seed in (0, 3):
        single = tiny.write_definition(trained, text=text.replace("seeds = [0, 3]", f"seeds = [{seed}]"))
        singles.append({row.key: row for row in pipeline.run(tiny.job(single, trained, out=f"{seed}")).rows})

    for row in board.rows:
        if row.model != "plain":
            continue
        own = [rows[row.key] for rows in singles]
        assert row.mean == pytest.approx(np.mean([r.mean for r in own]), abs=1e-12)
        assert [(s.seed, s.mean, s.threshold) for s in row.seeds] == [
            (seed, r.seeds[0].mean, r.seeds[0].threshold) for seed, r in zip((0, 3), own, strict=True)
        ]
    accuracies = [rows["plain", "Grad-CAM", "top-k", False].model_accuracy for rows in singles]
    assert board.models[0].accuracy == pytest.approx(np.mean(accuracies)) and board.models[0].seeds == (0, 3)


def test_limits_of_the_definition_take_the_first_images(copied, finished):
    text = PLAIN.replace("channels = 1", "channels = 1\nfit_limit = 10\nscore_limit = 12")
    job = tiny.job(tiny.write_definition(copied, text=text), copied)
    pipeline.explain(job)
    pipeline.score(job)
    board = pipeline.report(job)

    assert {row.n for row in board.rows} == {6} and board.models[0].n == 12
    assert {row.provenance["fits"][0]["n_maps"] for row in board.rows} == {10}


def test_a_report_is_not_emptied_by_another_cache(trained, tmp_path):
    text = tiny.with_explainers(PLAIN, "grad_cam", "random")
    path = tiny.write_definition(trained, text=text)
    pipeline.run(tiny.job(path, trained))
    before = (trained / "out" / "leaderboard.json").read_bytes()
    job = tiny.job(path, trained)
    shutil.copytree(trained / "cache" / "weights", tmp_path / "other" / "weights")
    elsewhere = replace(job.workspace, cache=tmp_path / "other")
    with pytest.raises(
        ResultError, match=r"rows are complete there, and .*other has the scores of none: name"
    ):
        pipeline.report(Job(job.benchmark, elsewhere))
    assert (trained / "out" / "leaderboard.json").read_bytes() == before
