"""Data sets: manifests, readers, and samples at the size that a network sees."""

from lapbench.data.dataset import Dataset, Split, open_dataset
from lapbench.data.describe import Facts, SplitFacts, describe
from lapbench.data.images import resize_mask
from lapbench.data.manifest import Manifest, load_manifest
from lapbench.data.record import Drawn, MaskFile, Record

__all__ = [
    "Dataset",
    "Drawn",
    "Facts",
    "Manifest",
    "MaskFile",
    "Record",
    "Split",
    "SplitFacts",
    "describe",
    "load_manifest",
    "open_dataset",
    "resize_mask",
]
