"""From maps and truth to numbers: the global threshold, and how well a map points at what is there."""

from lapbench.score.box_accuracy import BoxSweep, boxes_of, sweep_boxes
from lapbench.score.localisation import (
    ImageScores,
    Localisation,
    apply_sign,
    energy_inside,
    iou_both_ways,
    iou_by_threshold,
    iou_top_k,
    localise,
    normalise,
    pointing_game,
    predict_mask,
    scale_by_max,
    upsample,
)
from lapbench.score.sweep import Sweep, iou_by_size, sweep_thresholds
from lapbench.score.threshold import StreamingFit, ThresholdFit, fit_ridge, fit_threshold

__all__ = [
    "BoxSweep", "ImageScores", "Localisation", "StreamingFit", "Sweep", "ThresholdFit", "apply_sign",
    "boxes_of", "energy_inside", "fit_ridge", "fit_threshold", "iou_both_ways", "iou_by_size",
    "iou_by_threshold", "iou_top_k", "localise", "normalise", "pointing_game", "predict_mask",
    "scale_by_max", "sweep_boxes", "sweep_thresholds", "upsample",
]  # fmt: skip
