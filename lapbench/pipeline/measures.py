"""What a row tells beside its IoU: further scores of the same images, and IoU as a function of something."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.benchmark import Protocol
from lapbench.pipeline.inquiry import Inquiry
from lapbench.pipeline.rows import ScoredRow
from lapbench.report.results import Curve, Estimate, RowKey, Selection
from lapbench.report.statistics import bootstrap_means, in_range
from lapbench.score import BoxSweep, ImageScores, Localisation, iou_by_size
from lapbench.score.faithfulness import Faithfulness
from lapbench.score.sweep import THRESHOLDS

Scores: TypeAlias = npt.NDArray[np.float64]

_DECIMALS = 6


def by_image(selection: Selection, outcomes: Sequence[Localisation]) -> dict[str, Scores]:
    """Return further scores of every image by name, (seeds, images) each.

    tolerant_pointing_game, auc: as `lapbench.score` defines them. rank_accuracy: the share of the k highest
    pixels that lies in the truth of k pixels. oracle_iou: the highest IoU that a threshold of the image's own
    reaches, and threshold_gap: what using one for all images costs of it.
    """
    found = {
        "tolerant_pointing_game": [outcome.tolerant_pointing for outcome in outcomes],
        "auc": [outcome.sweep.auc for outcome in outcomes],
    }
    if all("top-k" in outcome.iou for outcome in outcomes):
        found["rank_accuracy"] = [_precision(outcome.iou["top-k"]) for outcome in outcomes]
    if selection == "threshold":
        found["oracle_iou"] = [outcome.sweep.oracle for outcome in outcomes]
        found["threshold_gap"] = [outcome.sweep.oracle - outcome.iou[selection].iou for outcome in outcomes]
    return {name: np.stack(scores).round(_DECIMALS) for name, scores in found.items()}


def of_boxes(sweeps: Sequence[BoxSweep]) -> dict[str, Scores]:
    """Return whether images are hit by boxes, (seeds, images) each: the means are MaxBoxAcc and MaxBoxAccV2.

    Their intervals take the best threshold as given.
    """
    if not sweeps:
        return {}
    return {
        "max_box_acc": np.stack([sweep.hits() for sweep in sweeps]),
        "max_box_acc_v2": np.stack([sweep.hits_v2() for sweep in sweeps]).round(_DECIMALS),
    }


def of_networks(found: Sequence[Inquiry]) -> dict[str, Scores]:
    """Return what networks that were asked again say of every image, by name, (seeds, images) each."""
    if not found:
        return {}
    return {name: np.stack([one.scores[name] for one in found]).round(_DECIMALS) for name in found[0].scores}


def faithfulness_curves(found: Sequence[Faithfulness]) -> dict[str, Curve]:
    """Return the mean deletion and insertion curve, by the share of pixels that is replaced."""
    tables = {
        "deletion": np.array([one.deletion for one in found]),
        "insertion": np.array([one.insertion for one in found]),
    }
    means = {
        name: table[:, np.isfinite(table).all(axis=(0, 2))].mean(axis=(0, 1))
        for name, table in tables.items()
        if table.size and np.isfinite(table).all(axis=(0, 2)).any()
    }
    return {name: _curve(found[0].fractions, mean) for name, mean in means.items()}


def of_all_images(outcomes: Sequence[Localisation]) -> dict[str, float]:
    """Return the scores that only a whole data set has, by name, as means over seeds: PxAP."""
    return {"pxap": float(np.mean([outcome.sweep.pixel_average_precision for outcome in outcomes]))}


def randomisation_drops(rows: Sequence[ScoredRow], protocol: Protocol) -> dict[RowKey, Estimate]:
    """Return what rows lose in IoU when the network's weights are random, by the key of the trained row.

    An explainer that loses nothing does not explain the network (Adebayo et al., "Sanity Checks for Saliency
    Maps", 2018). The mean of IoU(trained) − IoU(random) over images, with its interval.
    """
    images = {scored.row.key: scored.images for scored in rows if scored.images is not None}
    pairs = {
        key: (own, other)
        for key, own in images.items()
        if not own.randomised and (other := images.get((*key[:3], True))) and other.ids == own.ids
    }
    tables = [
        np.array(own.scores["iou"], np.float64) - np.array(other.scores["iou"], np.float64)
        for own, other in pairs.values()
    ]
    intervals = bootstrap_means(tables, confidence=protocol.confidence, resamples=protocol.resamples)
    within = (in_range({"randomisation_drop": found})["randomisation_drop"] for found in intervals)
    return {key: Estimate.of(found) for key, found in zip(pairs, within, strict=True)}


def curves(
    selection: Selection, outcomes: Sequence[Localisation], iou: Scores, pixels: int
) -> dict[str, Curve]:
    """Return mean IoU by threshold (where one is fitted), and by the share of the image that is truth.

    iou: (seeds, images). pixels: of an image.
    """
    found = {}
    if selection == "threshold":
        table = np.stack([outcome.sweep.by_threshold for outcome in outcomes])
        scored = np.isfinite(table).all(axis=(0, 2))
        if scored.any():
            found["iou_by_threshold"] = _curve(THRESHOLDS, table[:, scored].mean(axis=(0, 1)))
    size, mean, n = iou_by_size(iou.mean(axis=0), outcomes[0].iou[selection].truth)
    if len(n):
        found["iou_by_size"] = _curve(size / pixels, mean).model_copy(update={"n": tuple(n.tolist())})
    return found


def _precision(scores: ImageScores) -> Scores:
    """Return which share of the selected pixels lies in the truth, (n,); NaN where there is no score."""
    return np.where(np.isfinite(scores.iou), scores.intersection / np.maximum(scores.selected, 1), np.nan)


def _curve(x: Scores, y: Scores) -> Curve:
    return Curve(x=tuple(x.round(_DECIMALS).tolist()), y=tuple(y.round(_DECIMALS).tolist()))
