"""What networks answer, and what is read in the concepts of their LAPs, stored beside the maps."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from lapbench import benchmark as definition
from lapbench.digest import plain
from lapbench.executor import MOST, Key, Task, in_batches, make
from lapbench.models.predict import answer
from lapbench.pipeline.job import Block, Job, Purpose, Subject
from lapbench.pipeline.networks import Lazy
from lapbench.pipeline.samples import Samples
from lapbench.score.predictivity import learn_to_read
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import FloatArray, IntArray

Answers = dict[str, FloatArray]


def ask(job: Job, subject: Subject, network: Lazy, samples: Samples) -> None:
    """Store a network's answers on the scored split, and on others as far as the definition needs them."""
    decides_targets = job.benchmark.protocol.target == "predicted"
    if subject.randomised and not decides_targets:
        return
    _answer(job, subject, network, samples, "score")
    if decides_targets:
        _answer(job, subject, network, samples, "fit")
    mlp = subject.model.concept_mlp
    if mlp is not None and not subject.randomised:
        _answer(job, subject, network, samples, "train")
        _read_concepts(job, subject, mlp)


def read_logits(job: Job, subject: Subject, purpose: Purpose) -> FloatArray | None:
    """What a network answers to every image of a split, (n, classes), or None where that is not known."""
    answers = read_answers(job, subject, purpose)
    return answers["logits"] if answers else None


def read_answers(job: Job, subject: Subject, purpose: Purpose) -> Answers | None:
    """What a network and, as "peaks" and "sums", its LAPs say of every image of a split.

    They are those of `lapbench.models.predict.Answers`; without LAP there are only "logits", with BLA "soft",
    "hard" and "selected" besides, of captions "tokens". None where the network was not asked yet.
    """
    shards = [job.store.read(*job.prediction_key(subject, block)) for block in job.prediction_blocks(purpose)]
    known = [shard.arrays for shard in shards if shard is not None]
    if not known or len(known) < len(shards):
        return None
    return {name: np.concatenate([arrays[name] for arrays in known]) for name in known[0]}


def read_mlps(job: Job, subject: Subject) -> Answers | None:
    """What the networks that read a LAP's concepts say of every scored image, (n, L, classes).

    truth: of one that learned the true classes. network: of one that learned what the network answers; the
    same one, where the definition asks for a single one. None where there are none yet.
    """
    if subject.model.concept_mlp is None:
        return None
    shard = job.store.read(*job.mlp_key(subject, subject.model.concept_mlp))
    return None if shard is None else dict(shard.arrays)


def _answer(job: Job, subject: Subject, network: Lazy, samples: Samples, purpose: Purpose) -> None:
    device = resolve_device(job.workspace.device)

    def compute(block: Block, keys: list[Key]) -> Mapping[Key, Shard]:
        images = samples.images(block)
        parts = in_batches(
            lambda start, stop: answer(network(), images[start:stop].to(device)),
            len(images),
            most=MOST[device.type],
        )
        names = ["logits", "peaks", "sums"] if parts[0].peaks.shape[1] else ["logits"]
        names += ["soft", "hard", "selected"] if parts[0].hard is not None else []
        names += ["tokens"] if parts[0].tokens is not None else []
        shard = Shard(
            ids=samples.ids(block),
            targets=samples.labels(block),
            arrays={name: torch.cat([getattr(p, name) for p in parts]).float().numpy() for name in names},
            provenance=plain(subject.identity()),
        )
        return dict.fromkeys(keys, shard)

    tasks = [
        Task((job.prediction_key(subject, block),), len(block.indices), partial(compute, block))
        for block in job.prediction_blocks(purpose)
    ]
    text = f"predict {job.considered(purpose).name}: {subject.text}"
    make(tasks, job.store, job.workspace.progress, text)


def _read_concepts(job: Job, subject: Subject, mlp: definition.ConceptMLP) -> None:
    """Train networks that read the concepts of each LAP on the training split, and store what they say."""
    scored, training, n_classes = job.considered("score"), job.considered("train"), len(job.dataset.classes)

    def compute(keys: list[Key]) -> Mapping[Key, Shard]:
        taught, asked = (read_answers(job, subject, purpose) for purpose in ("train", "score"))
        if taught is None or asked is None:
            raise RuntimeError(f"{subject.text} has not answered yet")

        def said(lessons: IntArray) -> FloatArray:
            layers = range(asked["sums"].shape[1])
            return np.stack(
                [
                    learn_to_read(
                        taught["sums"][:, layer],
                        lessons,
                        asked["sums"][:, layer],
                        n_classes=n_classes,
                        hidden=mlp.hidden,
                        seed=subject.seed,
                    )
                    for layer in layers
                ],
                axis=1,
            )

        truth = said(training.labels)
        network = truth if mlp.target == "truth" else said(taught["logits"].argmax(axis=1))
        shard = Shard(
            ids=scored.ids,
            targets=scored.labels,
            arrays={"truth": truth, "network": network},
            provenance=plain(subject.identity()),
        )
        return dict.fromkeys(keys, shard)

    task = Task((job.mlp_key(subject, mlp),), len(scored), compute)
    make([task], job.store, job.workspace.progress, f"read concepts: {subject.text}")
