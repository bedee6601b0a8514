"""Scores that ask the network again, where the protocol wants them: how faithful maps are, and how stable."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lapbench.digest import plain
from lapbench.executor import MOST, in_batches
from lapbench.explain import explain
from lapbench.models.predict import describe, predict, probabilities, word_probabilities
from lapbench.pipeline.job import Block, Job, Source, Subject
from lapbench.pipeline.networks import Lazy, load_network
from lapbench.pipeline.samples import Samples
from lapbench.score import normalise
from lapbench.score.faithfulness import (
    Faithfulness,
    Predict,
    insert_and_delete,
    removal_correlation,
    removal_drops,
)
from lapbench.score.stability import perturb, stability
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import Array, FloatArray, IntArray, MaskArray

T = TypeVar("T")
Scores: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Inquiry:
    """What came of asking a network again about the maps of n images.

    scores: by name, (n,) each. curves: of deletion and insertion, where they were asked for.
    """

    scores: dict[str, Scores]
    curves: Faithfulness | None = None

    @classmethod
    def join(cls, parts: Sequence["Inquiry"]) -> "Inquiry":
        """Join what came of consecutive shards, at least one."""
        scores = {name: np.concatenate([part.scores[name] for part in parts]) for name in parts[0].scores}
        curves = [part.curves for part in parts if part.curves is not None]
        return cls(scores, Faithfulness.join(curves) if curves else None)


class Asked(Lazy):
    """A network that is asked about images.

    Where images have several targets it remembers its answers: the landmarks of a face ask the same, and the
    words of a scene.
    """

    def __init__(self, job: Job, build: Callable[[], nn.Module]) -> None:
        super().__init__(build)
        self.device = resolve_device(job.workspace.device)
        self.answers: dict[bytes, Tensor] | None = None if job.dataset.task == "classification" else {}

    def logits(self, images: FloatArray) -> Tensor:
        """Return what the network answers to images (n, C, H, W), (n, targets)."""
        return self._remembered(predict, images)

    def captions(self, images: FloatArray) -> list[tuple[Tensor, Tensor]]:
        """Return the caption of each image, and the words' steps in it: see `describe`."""
        parts = self._batches(describe, images)
        return [pair for captions, steps in parts for pair in zip(captions, steps, strict=True)]

    def words(self, images: FloatArray, caption: Tensor, steps: Tensor) -> Tensor:
        """Return the words' probabilities in a caption of other images, (n, V): see `word_probabilities`."""
        return self._remembered(word_probabilities, images, caption, steps)

    def _remembered(self, ask: Callable[..., Tensor], images: FloatArray, *given: Tensor) -> Tensor:
        if self.answers is None:
            return torch.cat(self._batches(ask, images, *given)).cpu().double()
        arrays = [images, *(one.numpy() for one in given)]
        asked = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()
        if asked not in self.answers:
            self.answers[asked] = torch.cat(self._batches(ask, images, *given)).cpu().double()
        return self.answers[asked]

    def _batches(self, ask: Callable[..., T], images: FloatArray, *given: Tensor) -> list[T]:
        def work(start: int, stop: int) -> T:
            return ask(self(), torch.from_numpy(images[start:stop]).to(self.device), *given)

        return in_batches(work, len(images), most=MOST[self.device.type])


def network_of(job: Job, source: Source) -> Asked | None:
    """Return the network to be asked about a source's maps, or None where nothing is to be asked.

    Networks with random weights are not asked: there is nothing in their answers to be faithful to.
    """
    protocol = job.benchmark.protocol
    wanted = protocol.deletion_steps or protocol.removal_grid or protocol.stability_samples
    if wanted is None or source.subject is None or source.subject.randomised:
        return None
    return Asked(job, partial(load_network, job, source.subject))


def inquire(
    job: Job,
    source: Source,
    network: Asked,
    samples: Samples,
    block: Block,
    shard: Shard,
    maps: FloatArray,
    counted: MaskArray,
) -> Inquiry:
    """Ask a network about a block's images, changed as the protocol says.

    A deleted pixel has the mean colour, 0 for the network; the answer is the probability of the class that
    the map explains. Of a word it is that at the word's own step, in the caption of the whole image: words of
    other steps do not compete with it. Of a landmark's coordinate it is 1 less how far it has moved, in sides
    of the image, for it may be moved either way. counted: (n,) which images count; maps: (m, H, W), of those
    alone, normalised and at the images' size.
    """
    protocol, curves = job.benchmark.protocol, None
    scores: dict[str, Scores] = {}
    images, targets = samples.images(block)[torch.from_numpy(counted)], shard.targets[counted]
    if protocol.deletion_steps:
        asks = _asks(job, network, images, targets)
        curves = insert_and_delete(asks, images.numpy(), maps, steps=protocol.deletion_steps)
        scores |= {"deletion_auc": curves.deletion_auc, "insertion_auc": curves.insertion_auc}
    if protocol.removal_grid and source.subject:
        drops = _drops(job, source.subject, network, samples, block, shard.targets, protocol.removal_grid)
        scores["removal_correlation"] = removal_correlation(drops[counted], maps)
    if protocol.stability_samples:
        masks = torch.from_numpy(samples.masks(block)[counted])
        ids = [name for name, counts in zip(samples.ids(block), counted, strict=True) if counts]

        def draw(changed: FloatArray) -> FloatArray:
            if not len(changed):  # none of the block's images counts
                return maps
            raw = _maps(
                job, source, network, torch.from_numpy(changed), torch.from_numpy(targets), masks, ids
            )
            return normalise(
                raw,
                (maps.shape[1], maps.shape[2]),
                mode=source.spec.upsample,
                sign=protocol.sign,
                order=protocol.order,
            )

        seeds = [int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) for name in ids]
        neighbours = (
            perturb(images.numpy(), protocol.stability_radius, [(seed, turn) for seed in seeds])
            for turn in range(protocol.stability_samples)
        )
        scores |= stability(draw, images.numpy(), maps, neighbours)
    return Inquiry(scores, curves)


def _drops(
    job: Job, subject: Subject, network: Asked, samples: Samples, block: Block, targets: IntArray, grid: int
) -> FloatArray:
    """What the removal of regions costs a network, for all images of a block; kept for other explainers."""
    key = job.removal_key(subject, block, grid)
    kept = job.store.read(*key)
    if kept is None:
        images = samples.images(block)
        drops = removal_drops(_asks(job, network, images, targets), images.numpy(), grid=grid)
        arrays = {"drops": drops.astype(np.float32)}
        kept = Shard(samples.ids(block), targets, arrays, provenance=plain(subject.identity()))
        job.store.write(*key, kept)
    return kept.arrays["drops"]


def _asks(job: Job, network: Asked, images: Tensor, targets: IntArray) -> list[Predict]:
    """Return for each image what the network answers to changes of it."""
    if job.dataset.task == "landmarks":
        unchanged = network.logits(images.numpy())
        return [partial(_nearness, network, int(t), at[t]) for t, at in zip(targets, unchanged, strict=True)]
    if job.dataset.task == "captions":
        whole = network.captions(images.numpy())
        return [partial(_word, network, int(t), *caption) for t, caption in zip(targets, whole, strict=True)]
    return [partial(_answer, network, int(target)) for target in targets]


def _answer(network: Asked, target: int, images: FloatArray) -> Array:
    """Return the network's probability of a class for each image, (n,)."""
    return np.asarray(probabilities(network.logits(images))[:, target])


def _word(network: Asked, target: int, caption: Tensor, steps: Tensor, images: FloatArray) -> Array:
    """Return the network's probability of a word at its own step of a caption, for each image, (n,)."""
    return np.asarray(network.words(images, caption, steps)[:, target])


def _nearness(network: Asked, target: int, unchanged: Tensor, images: FloatArray) -> Array:
    """Return how near a coordinate of images is to where it was, (n,)."""
    moved = network.logits(images)[:, target] - unchanged
    return np.asarray((1 - moved.abs()).clamp_min(0))


def _maps(
    job: Job,
    source: Source,
    network: Lazy,
    images: Tensor,
    targets: Tensor,
    masks: Tensor,
    ids: Sequence[str],
) -> FloatArray:
    """Return the source's raw maps of other images with the same targets, (n, h, w)."""
    device = resolve_device(job.workspace.device)

    def draw(start: int, stop: int) -> Tensor:
        part = slice(start, stop)
        return explain(
            source.spec,
            network(),
            images[part].to(device),
            targets[part].to(device),
            source.parameters,
            masks=masks[part],
            ids=ids[part],
        ).values.cpu()

    found: FloatArray = torch.cat(in_batches(draw, len(images), most=MOST[device.type])).numpy()
    return found
