"""Maps that know nothing of the network: where every table must have its floor and its ceiling."""

# ruff: noqa: ARG001 - every explainer is given the network and the target, these do not look at them

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from lapbench.errors import ExplainerError
from lapbench.registry import Card, explainer

CARD = Card(
    cost="none: it looks at no network",
    limits="A control: it has no rank, and what does not beat it says nothing.",
    computed_by="lapbench",
)


@explainer(
    "random",
    version=1,
    title="Random",
    needs=("ids",),
    class_agnostic=True,
    control=True,
    card=replace(CARD, randomness="seeded"),
)
def random(model: nn.Module, images: Tensor, target: Tensor, *, ids: Sequence[str], seed: int = 0) -> Tensor:
    """Uniform noise in [0, 1) at the image's size, decided by the seed and the sample's id alone.

    Its top-k selection at area fraction a has an expected IoU of about a / (2 − a).
    """
    size = tuple(images.shape[-2:])
    maps = [_generator(seed, name).random(size, dtype=np.float32) for name in ids]
    return torch.from_numpy(np.stack(maps)).to(images.device)


@explainer("center", version=1, title="Centre", needs=(), class_agnostic=True, control=True, card=CARD)
def center(model: nn.Module, images: Tensor, target: Tensor, *, deviation: PositiveFloat = 0.25) -> Tensor:
    """A Gaussian in the middle of the image; its standard deviation is a fraction of each side."""
    rows, columns = (_bell(side, deviation * side, images) for side in images.shape[-2:])
    return (rows[:, None] * columns).expand(len(images), -1, -1)


@explainer(
    "ones",
    version=1,
    title="All-ones",
    needs=(),
    native_threshold=0.5,
    class_agnostic=True,
    control=True,
    card=CARD,
)
def ones(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Every pixel alike: the whole image is selected, and its mean IoU is the mean area of the truth."""
    return images.new_ones((len(images), *images.shape[-2:]), dtype=torch.float32)


@explainer(
    "oracle",
    version=1,
    title="Oracle",
    needs=("masks",),
    class_agnostic=True,
    control=True,
    card=replace(CARD, limits="A control that is given the truth: nothing can beat it."),
)
def oracle(model: nn.Module, images: Tensor, target: Tensor, *, masks: Tensor) -> Tensor:
    """The truth itself: anything below an IoU of 1 is a fault of the harness, not of a map."""
    if masks.shape[-2:] != images.shape[-2:]:
        raise ExplainerError(
            f"the truth must have the image's size {tuple(images.shape[-2:])}, "
            f"found {tuple(masks.shape[-2:])}"
        )
    return masks.to(images.device, torch.float32)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{seed}:{name}".encode()).digest()))


def _bell(side: int, deviation: float, like: Tensor) -> Tensor:
    """Return exp(−x² / 2σ²) at the pixels of one side, x measured from its middle, in pixels."""
    offset = torch.arange(side, device=like.device, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-(offset**2) / (2 * deviation**2))
