"""What rows tell beside IoU, recomputed from the stored maps."""

import hashlib
import math
from dataclasses import astuple
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import torch
from score import reference
from sklearn.metrics import roc_auc_score

from lapbench import pipeline
from lapbench.explain import explain
from lapbench.pipeline import measures
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.pipeline.scoring import scored_rows
from lapbench.registry import explainers
from lapbench.report import read_image_scores
from lapbench.score import localise, normalise, sweep_boxes
from lapbench.score.stability import perturb
from pipeline import tiny


@pytest.fixture(scope="module", params=["Grad-CAM", "DeepLIFT"])
def material(request, finished):
    """The rows of one explainer on the plain network by selection, its maps as they are scored, and masks."""
    job = tiny.job(finished.definition, finished.folder)
    own = next(
        row
        for row in job.rows()
        if (row.explainer.row, row.randomised) == (request.param, False) and row.model.name == "plain"
    )
    [block] = job.blocks("score")
    masks = Samples(job).masks(block)
    maps = normalise(job.store.read(*job.map_key(own.sources[0], block)).maps, masks.shape[1:])
    rows = {
        r.selection: r
        for r in finished.board.rows
        if r.key[:2] == ("plain", request.param) and not r.randomised
    }
    return rows, maps, masks, lambda row: read_image_scores(finished.folder / "out", row).scores


def test_scores_by_image_are_those_of_the_maps(material):
    rows, maps, masks, scores = material
    row, found = rows["threshold"], {name: table[0] for name, table in scores(rows["threshold"]).items()}
    images = list(zip(maps, masks, strict=True))
    sign = row.orientation
    assert found["auc"] == pytest.approx([roc_auc_score(m.ravel(), v.ravel()) for v, m in images], abs=1e-6)
    oracle = [
        max(reference.iou(v > t if sign > 0 else v < t, m) for t in np.unique(v)) for v, m in images[:2]
    ]
    assert np.all(np.array(found["oracle_iou"][:2]) >= np.array(oracle) - 1e-6)
    assert found["threshold_gap"] == pytest.approx(np.subtract(found["oracle_iou"], found["iou"]), abs=2e-6)
    assert min(found["threshold_gap"]) >= 0
    p = np.array(found["rank_accuracy"])
    assert np.array(scores(rows["top-k"])["iou"][0]) == pytest.approx(p / (2 - p), abs=2e-6)
    near = [reference.near(v, m, 0.03 * 32) for v, m in images]
    assert found["tolerant_pointing_game"] == pytest.approx(near, abs=1e-6)


def test_rows_hold_their_means_and_intervals(material):
    rows, maps, masks, scores = material
    for selection, row in rows.items():
        tables = scores(row)
        assert set(row.measures) - {"pxap", "randomisation_drop"} == set(tables) - {
            "iou",
            "pointing_game",
            "energy",
        }
        for name, estimate in row.measures.items():
            if name == "pxap":
                wanted = reference.pixel_average_precision(maps, masks)
                assert estimate.mean == pytest.approx(wanted, abs=1e-9) and estimate.ci_low is None
            elif name != "randomisation_drop":
                assert estimate.mean == pytest.approx(np.mean(tables[name]), abs=1e-12)
                assert estimate.ci_low <= estimate.mean <= estimate.ci_high
        assert ("oracle_iou" in row.measures) == (selection == "threshold")


def test_rows_tell_what_they_lose_on_random_weights(finished):
    rows = {row.key: row for row in finished.board.rows}
    partners = {key: rows[*key[:3], True] for key in rows if (*key[:3], True) in rows and not key[3]}
    assert len(partners) >= 10
    for key, random in partners.items():
        drop = rows[key].measures["randomisation_drop"]
        assert drop.mean == pytest.approx(rows[key].mean - random.mean, abs=1e-12)
        assert drop.ci_low <= drop.mean <= drop.ci_high
    for key in rows.keys() - partners.keys():
        assert "randomisation_drop" not in rows[key].measures


def test_curves_are_means_over_images(material):
    rows, maps, masks, _ = material
    row = rows["threshold"]
    curve, sign = row.curves["iou_by_threshold"], row.orientation
    for at in (0, 40, 100):
        cut = at / 100
        chosen = [v > np.float64(cut) if sign > 0 else v < np.float64(cut) for v in maps.astype(np.float64)]
        wanted = np.mean([reference.iou(c, m) for c, m in zip(chosen, masks, strict=True)])
        assert curve.x[at] == cut and curve.y[at] == pytest.approx(wanted, abs=1e-6)
    for selection, other in rows.items():
        assert ("iou_by_threshold" in other.curves) == (selection == "threshold")
        by_size = other.curves["iou_by_size"]
        assert by_size.n == (3, 3, 3, 3, 3) and list(by_size.x) == sorted(by_size.x)
        area = np.sort(masks.mean(axis=(1, 2)))
        assert by_size.x == pytest.approx(area.reshape(5, 3).mean(axis=1), abs=1e-6)
        assert np.mean(by_size.y) == pytest.approx(other.mean, abs=1e-6)


def test_box_accuracy_is_there_where_the_protocol_asks_for_it(copied, finished):
    text = tiny.with_protocol(tiny.with_explainers(tiny.DEFINITION, "grad_cam", "oracle"), box_accuracy=True)
    job = tiny.job(tiny.write_definition(copied, text=text), copied)
    assert pipeline.explain(job) == [] and pipeline.score(job) == []
    found = {scored.row.key: scored for source in job.rows() for scored in scored_rows(job, source)}
    own = next(row for row in job.rows() if row.explainer.name == "grad_cam" and row.model.name == "plain")
    [block] = job.blocks("score")
    samples = Samples(job)
    masks, split = samples.masks(block), job.dataset[block.split]
    maps = normalise(job.store.read(*job.map_key(own.sources[0], block)).maps, masks.shape[1:])
    sweep = sweep_boxes(maps, [split.boxes(index) for index in block.indices])

    scored = found["plain", "Grad-CAM", "threshold", False]
    assert scored.images.scores["max_box_acc"][0] == tuple(sweep.hits().tolist())
    assert scored.row.measures["max_box_acc"].mean == pytest.approx(sweep.largest.mean(axis=0).max())
    v2 = sweep.any.mean(axis=1).max(axis=1).mean()
    assert scored.row.measures["max_box_acc_v2"].mean == pytest.approx(v2, abs=1e-6)
    assert found["no network", "Oracle", "threshold", False].row.measures["max_box_acc"].mean == 1
    assert all("max_box_acc" not in row.measures for row in finished.board.rows)


def test_insertion_and_deletion_are_there_where_the_protocol_asks_for_them(copied, finished):
    text = tiny.with_protocol(tiny.with_explainers(tiny.DEFINITION, "grad_cam", "random"), deletion_steps=4)
    job = tiny.job(tiny.write_definition(copied, text=text), copied)
    assert pipeline.explain(job) == [] and pipeline.score(job) == []
    found = {scored.row.key: scored for source in job.rows() for scored in scored_rows(job, source)}
    own = next(row for row in job.rows() if row.explainer.name == "grad_cam" and row.model.name == "plain")
    [block] = job.blocks("score")
    samples, shard = Samples(job), job.store.read(*job.map_key(own.sources[0], block))
    images, maps = samples.images(block), normalise(shard.maps, (32, 32))
    network = load_network(job, own.sources[0].subject)

    scored = found["plain", "Grad-CAM", "top-k", False]
    for i in (0, 7):
        order = np.argsort(-maps[i].ravel(), kind="stable")
        fall, rise = [], []
        for step in range(5):
            gone = np.zeros(32 * 32, bool)
            gone[order[: 256 * step]] = True
            gone = torch.from_numpy(gone.reshape(32, 32))
            for answers, image in ((fall, images[i] * ~gone), (rise, images[i] * gone)):
                with torch.no_grad():
                    answers.append(float(network(image[None]).double().softmax(1)[0, shard.targets[i]]))
        for name, curve in (("deletion_auc", fall), ("insertion_auc", rise)):
            area = sum(a + b for a, b in pairwise(curve)) / 8
            assert scored.images.scores[name][0][i] == pytest.approx(area, abs=1e-5)
    curve = scored.row.curves["deletion"]
    assert curve.x == (0, 0.25, 0.5, 0.75, 1)
    assert scored.row.curves["insertion"].y[-1] == pytest.approx(curve.y[0], abs=1e-5)
    mean = scored.row.measures["deletion_auc"].mean
    assert mean == pytest.approx((sum(curve.y) - (curve.y[0] + curve.y[-1]) / 2) / 4, abs=1e-5)
    assert "deletion_auc" not in found["no network", "Random", "top-k", False].row.measures


def test_removal_and_stability_are_there_where_the_protocol_asks_for_them(copied):
    text = tiny.with_explainers(tiny.DEFINITION, "grad_cam", "random")
    text = tiny.with_protocol(text, removal_grid=4, stability_samples=2, stability_radius=0.3)
    job = tiny.job(tiny.write_definition(copied, text=text), copied)
    assert pipeline.explain(job) == [] and pipeline.score(job) == []
    found = {scored.row.key: scored for source in job.rows() for scored in scored_rows(job, source)}
    own = next(row for row in job.rows() if row.explainer.name == "grad_cam" and row.model.name == "plain")
    [block] = job.blocks("score")
    samples, shard = Samples(job), job.store.read(*job.map_key(own.sources[0], block))
    images, maps = samples.images(block), normalise(shard.maps, (32, 32))
    network = load_network(job, own.sources[0].subject)
    scored = found["plain", "Grad-CAM", "top-k", False]

    i, target = 3, int(shard.targets[3])
    drops, means = [], []
    for row, column in np.ndindex(4, 4):
        there = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        without = images[i].clone()
        without[:, *there] = 0
        with torch.no_grad():
            before, after = network(torch.stack([images[i], without])).double().softmax(1)[:, target]
        drops.append(float(before - after))
        means.append(maps[i][there].mean())
    assert scored.images.scores["removal_correlation"][0][i] == pytest.approx(
        np.corrcoef(means, drops)[0, 1], abs=1e-4
    )
    slopes, changes = [], []
    for turn in range(2):
        seed = int(hashlib.sha256(samples.ids(block)[i].encode()).hexdigest()[:16], 16)
        near = perturb(images[i : i + 1].numpy(), 0.3, [(seed, turn)])
        raw = explain(
            explainers.get("grad_cam"), network, torch.from_numpy(near), torch.tensor([target])
        ).values
        step = np.linalg.norm(normalise(raw.numpy(), (32, 32))[0] - maps[i])
        slopes.append(step / np.linalg.norm(near - images[i : i + 1].numpy()))
        changes.append(step / np.linalg.norm(maps[i]))
    assert scored.images.scores["local_lipschitz"][0][i] == pytest.approx(max(slopes), rel=1e-3)
    assert scored.images.scores["max_sensitivity"][0][i] == pytest.approx(max(changes), rel=1e-3)
    for stranger in (("no network", "Random", "top-k", False), ("plain", "Grad-CAM", "top-k", True)):
        assert not {"local_lipschitz", "removal_correlation"} & set(found[stranger].row.measures)
    kept = job.store.read(*job.removal_key(own.sources[0].subject, block, 4))
    assert kept.arrays["drops"][i] == pytest.approx(np.array(drops), abs=1e-6)


def test_images_without_boxes_have_those_of_their_masks(finished):
    job = tiny.job(finished.definition, finished.folder)
    [block] = job.blocks("score")
    samples = Samples(job)
    annotated = samples.boxes(block)
    with patch.object(type(job.dataset[block.split]), "boxes", lambda *_: ()):
        from_masks = samples.boxes(block)
    assert [len(boxes) for boxes in from_masks] == [1] * 15
    for (own,), (other,) in zip(annotated, from_masks, strict=True):
        assert astuple(own) == pytest.approx(astuple(other), abs=0.5)


def test_without_a_scored_image_there_is_no_curve_and_no_number():
    masks = np.ones((2, 4, 4), bool)
    outcome = localise(
        np.full((2, 4, 4), np.nan, np.float32), masks, selections=("threshold",), threshold=0.5
    )
    assert measures.curves("threshold", [outcome], outcome.iou["threshold"].iou[None], 16) == {}
    found = measures.by_image("threshold", [outcome])
    assert "rank_accuracy" not in found  # it needs top-k
    assert all(np.isnan(table).all() and table.shape == (1, 2) for table in found.values())
    assert math.isnan(measures.of_all_images([outcome])["pxap"])
