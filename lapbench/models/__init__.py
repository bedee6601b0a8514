"""LAP, its relatives and BLA, the networks that carry them, and their weights."""

from lapbench.models.bla import BLA, BlaRecord, SubsetAttention, bla_layers, deciding, record_bla
from lapbench.models.captioner import Captioner
from lapbench.models.lap import LAP, AdaptiveLAP2d, ConceptScoring, LAP2d, LapRecord, record_laps
from lapbench.models.lip import LIP
from lapbench.models.plug import (
    Site,
    find_sites,
    is_added,
    is_plugged,
    lap_heads,
    lap_layers,
    lap_names,
    lip_layers,
    load_plain,
    plug,
    put_antehoc,
    put_bla,
)
from lapbench.models.pooling import Pooling, Strided, Window
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
    "BLA",
    "LAP",
    "LIP",
    "AdaptiveLAP2d",
    "BlaRecord",
    "Captioner",
    "ConceptScoring",
    "LAP2d",
    "LapRecord",
    "Pooling",
    "Site",
    "Strided",
    "SubsetAttention",
    "Window",
    "bla_layers",
    "build",
    "copy_pretrained",
    "copy_weights",
    "deciding",
    "evaluating",
    "find_sites",
    "is_added",
    "is_plugged",
    "lap_heads",
    "lap_layers",
    "lap_names",
    "lip_layers",
    "load_plain",
    "load_record",
    "load_weights",
    "plug",
    "predict",
    "put_antehoc",
    "put_bla",
    "randomise",
    "record_bla",
    "record_laps",
    "save_weights",
    "weights_digest",
]
