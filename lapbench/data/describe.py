"""A data set in numbers: how many samples, how balanced, how large the truth."""

from dataclasses import dataclass

import numpy as np

from lapbench.data.dataset import Dataset, Split


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """What one split holds.

    per_class: samples of each class. n_with_truth: samples whose mask is not empty. boxes_per_image: mean
    number of boxes over the samples that have any. median_box_area: in pixels of the size that the network
    sees. median_box_side: the square root of that area as a fraction of the square root of the image's area.
    The last three are None where there are no boxes.
    """

    per_class: dict[str, int]
    n_with_truth: int
    boxes_per_image: float | None
    median_box_area: float | None
    median_box_side: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a data set holds, by split, with what was left out or cut when it was opened."""

    name: str
    version: int
    digest: str
    splits: dict[str, SplitFacts]
    n_missing: int
    n_clipped: int
    n_outside: int


def describe(dataset: Dataset) -> Facts:
    """Count and measure an opened data set; no image is decoded, mask files are."""
    splits = {name: _describe_split(dataset[name]) for name in dataset.splits}
    return Facts(
        dataset.name, dataset.version, dataset.digest, splits,
        dataset.n_missing, dataset.n_clipped, dataset.n_outside,
    )  # fmt: skip


def _describe_split(split: Split) -> SplitFacts:
    counts = np.bincount(split.labels, minlength=len(split.view.classes))
    boxes = [split.boxes(index) for index in range(len(split))]
    areas = [box.width * box.height for found in boxes for box in found]
    height, width = split.view.image_size
    area = float(np.median(areas)) if areas else None
    return SplitFacts(
        per_class={name: int(n) for name, n in zip(split.view.classes, counts, strict=True)},
        n_with_truth=int(split.has_truth.sum()),
        boxes_per_image=len(areas) / sum(bool(found) for found in boxes) if areas else None,
        median_box_area=area,
        median_box_side=None if area is None else (area / (height * width)) ** 0.5,
    )
