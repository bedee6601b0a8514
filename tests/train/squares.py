"""A data set that a tiny network learns in seconds: is there a bright square on the noise, and where."""

from functools import partial

import numpy as np
import torch

from lapbench import models
from lapbench.benchmark import Concept, Data, Plug
from lapbench.data import Dataset, Drawn, Record
from lapbench.data.dataset import Entry, Split, View
from lapbench.train import seeded
from lapbench.types import Box

SIDE = 16
CLASSES = ("absent", "present")
DATA = Data(manifest="squares", image_size=(SIDE, SIDE), channels=1, mean=(0.5,), std=(0.25,))
PLUG = Plug(
    concepts=(Concept(name="square", classes=("present",), min_area=0.05, max_area=0.3, inactive_area=0.05),)
)


def place(seed: int) -> tuple[int, int]:
    y, x = np.random.default_rng(seed).integers(0, SIDE - 5, size=2)
    return int(y), int(x)


def draw(seed: int, present: bool) -> np.ndarray:
    pixels = np.random.default_rng(seed + 10**6).integers(0, 128, size=(SIDE, SIDE)).astype(np.uint8)
    if present:
        y, x = place(seed)
        pixels[y : y + 5, x : x + 5] += 127
    return pixels


def split(name: str, start: int, n: int, classes: tuple[str, ...] = CLASSES) -> Split:
    entries = []
    for seed in range(start, start + n):
        present = seed % 2 == 1
        y, x = place(seed)
        boxes = (Box(x, y, x + 5, y + 5),) if present else ()
        source = Drawn(partial(draw, seed, present), str(seed), (SIDE, SIDE))
        record = Record(f"{name}/{seed}", name, classes[int(present)], source, boxes)
        entries.append(Entry(record, (SIDE, SIDE), str(seed)))
    return Split(name, entries, View((SIDE, SIDE), 1, classes))


def dataset(n_train: int = 64, classes: tuple[str, ...] = CLASSES) -> Dataset:
    sizes = {"train": n_train, "val": 12, "test": 24}
    parts = {name: split(name, 10_000 * i, n, classes) for i, (name, n) in enumerate(sizes.items())}
    return Dataset("squares", 1, classes, f"squares {n_train}", parts)


def network(seed: int = 0, *, plugged: bool = True, width: int = 4) -> torch.nn.Module:
    """The narrowest ResNet of the zoo: one block a stage, a 3×3 stem."""
    parameters = {"width": width, "blocks": (1, 1, 1, 1), "stem": "3x3", "stem_stride": 1, "stem_pool": False}
    with seeded(seed):
        plain = models.build("resnet18", num_classes=2, in_channels=1, parameters=parameters)
        return models.plug(plain, PLUG, classes=CLASSES) if plugged else plain
