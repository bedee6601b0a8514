"""LAP, the networks that carry it, and their weights."""

from lapbench.models.captioner import Captioner
from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d, LapRecord, Window, record_laps
from lapbench.models.plug import (
    Site,
    find_sites,
    is_plugged,
    lap_heads,
    lap_layers,
    lap_names,
    load_plain,
    plug,
)
from lapbench.models.predict import evaluating, predict
from lapbench.models.weights import (
    copy_pretrained,
    copy_weights,
    load_record,
    load_weights,
    randomise,
    save_weights,
    weights_digest,
)
from lapbench.models.zoo import build

__all__ = [
    "LAP",
    "AdaptiveLAP2d",
    "Captioner",
    "ConceptScoring",
    "LAP2d",
    "LapRecord",
    "Site",
    "Window",
    "build",
    "copy_pretrained",
    "copy_weights",
    "evaluating",
    "find_sites",
    "is_plugged",
    "lap_heads",
    "lap_layers",
    "lap_names",
    "load_plain",
    "load_record",
    "load_weights",
    "plug",
    "predict",
    "randomise",
    "record_laps",
    "save_weights",
    "weights_digest",
]
