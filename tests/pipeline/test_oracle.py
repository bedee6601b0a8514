"""From stored maps to the numbers of the table by another way: torch, scikit-learn and a loop over pixels."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from lapbench.store import MapStore
from pipeline import tiny


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """Ids and raw maps by (network, explainer, split), from the files that `lapbench maps export` writes."""
    folder = tmp_path_factory.mktemp("export")
    store = MapStore(finished.cache / "maps")
    store.export(store.entries(), folder)
    found = {}
    for path in folder.rglob("*.maps.npy"):
        record = json.loads(path.with_name(path.name.replace(".maps.npy", ".json")).read_text())
        network, explainer, shard = path.relative_to(folder).parts
        found[network, explainer, shard.partition("-")[0]] = record["ids"], np.load(path)
    return found


@pytest.fixture(scope="module")
def masks(finished):
    dataset = tiny.job(finished.definition, finished.folder).dataset
    return {sample.id: sample.mask for name in ("val", "test") for sample in dataset[name]}


def scaled(maps):
    large = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None].double(), size=(32, 32), mode="bilinear", align_corners=False
    )[:, 0].numpy()
    return np.stack([image / image.max() if image.max() > 0 else 0 * image for image in large])


def iou(chosen, mask):
    common = union = 0
    for y in range(32):
        for x in range(32):
            common += bool(chosen[y, x] and mask[y, x])
            union += bool(chosen[y, x] or mask[y, x])
    return common / union


def highest(values, k):
    """The k highest pixels, the first of those that are equal; digits beyond float32 are no difference."""
    flat = np.round(values.ravel(), 6)
    order = sorted(range(flat.size), key=lambda i: (-flat[i], i))
    chosen = np.zeros(flat.size, bool)
    chosen[order[:k]] = True
    return chosen.reshape(values.shape)


NETWORKS = {"WS-LAP": ("LAP All", "LAP 3", "Grad-CAM", "DeepLIFT"), "plain": ("Grad-CAM", "DeepLIFT")}
CASES = [
    (model, title, random) for model, own in NETWORKS.items() for title in own for random in (False, True)
]
CASES += [("no network", title, False) for title in ("Random", "Centre")]


@pytest.mark.parametrize(("model", "title", "randomised"), CASES)
def test_rows_can_be_recomputed_by_hand(finished, exported, masks, model, title, randomised):
    rows = {
        row.selection: row
        for row in finished.board.rows
        if (row.model, row.explainer, row.randomised) == (model, title, randomised)
    }
    folder = title.lower().replace(" ", "-")
    start = "controls" if model == "no network" else model.lower()
    [network] = {
        n
        for n, e, _ in exported
        if e == folder and n.startswith(start) and n.endswith("random") == randomised
    }

    ids, maps = exported[network, folder, "val"]
    pixels = scaled(maps).reshape(-1, 1)
    truth = np.stack([masks[name] for name in ids]).ravel()
    assert len(ids) == 24 and 0 < truth.sum() < truth.size
    ridge = RidgeClassifier(alpha=0.01, solver="lsqr", tol=1e-3, max_iter=100, class_weight="balanced")
    ridge.fit(pixels, truth)
    slope, offset = float(np.ravel(ridge.coef_)[0]), float(np.ravel(ridge.intercept_)[0])
    threshold = -offset / slope

    ids, maps = exported[network, folder, "test"]
    images = list(zip(scaled(maps), [masks[name] for name in ids], strict=True))
    selected = {
        "threshold": [(v > threshold) if slope > 0 else (v < threshold) for v, _ in images],
        "top-k": [highest(v, int(mask.sum())) for v, mask in images],
    }
    if "native" in rows:
        raw = torch.nn.functional.interpolate(
            torch.from_numpy(maps)[:, None], size=(32, 32), mode="bilinear", align_corners=False
        )
        selected["native"] = list(raw[:, 0].numpy() > 0.5)
        assert rows["native"].fitted_threshold == pytest.approx(threshold, abs=1e-6)
    assert rows.keys() == selected.keys() and len(ids) == 15
    assert rows["threshold"].threshold == pytest.approx(threshold, abs=1e-6)
    assert rows["threshold"].orientation == (1 if slope > 0 else -1)
    for selection, chosen in selected.items():
        wanted = np.mean([iou(c, mask) for c, (_, mask) in zip(chosen, images, strict=True)])
        assert rows[selection].mean == pytest.approx(wanted, abs=1e-6), selection


def test_maps_of_the_trained_network_are_those_its_explainer_gives(finished, exported):
    """The stored Grad-CAM against a few lines on the last block's activations and gradients."""
    from lapbench.pipeline.networks import load_network

    job = tiny.job(finished.definition, finished.folder)
    subject = next(s for s in job.subjects() if s.model.name == "plain" and not s.randomised)
    model = load_network(job, subject)
    kept = {}
    handle = model.layer4.register_forward_hook(lambda _m, _i, output: kept.update(features=output))
    ids, maps = next(
        v
        for (n, e, s), v in exported.items()
        if (e, s) == ("grad-cam", "test") and "plain" in n and "random" not in n
    )
    for sample in (s for s in job.dataset["test"] if s.id in ids):
        logits = model(torch.from_numpy((sample.image - 0.5) / 0.25)[None])
        [gradient] = torch.autograd.grad(logits[0, 1], kept["features"])
        weights = gradient.mean((2, 3), keepdim=True)
        wanted = (weights * kept["features"]).sum(1).relu()[0].detach().numpy()
        assert maps[ids.index(sample.id)] == pytest.approx(wanted, abs=1e-5)
    handle.remove()
