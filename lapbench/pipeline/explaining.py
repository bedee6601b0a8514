"""Stage 2: draw the maps, and predict the labels, that missing rows need."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lapbench.digest import plain
from lapbench.errors import LapbenchError, StoreError
from lapbench.executor import Task, in_batches, make
from lapbench.explain import explain as draw
from lapbench.models.predict import predict
from lapbench.pipeline.job import Block, Job, Purpose, Source, Subject
from lapbench.pipeline.networks import Lazy, load_network
from lapbench.pipeline.samples import Samples
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import FloatArray

BATCH = 32
"""Samples explained at once, where memory allows."""


def explain(job: Job) -> None:
    """Draw every map, and predict every label, that a missing row needs.

    An explainer that fails leaves its reason for the table, and the others go on.
    Errors: WeightsError where weights are missing.
    """
    samples = Samples(job)
    rows = job.missing_rows()
    for subject in job.subjects():
        network = Lazy(partial(load_network, job, subject))
        if not subject.randomised or job.benchmark.protocol.target == "predicted":
            _predict(job, subject, network, samples)
        for source in (source for row in rows for source in row.sources if source.subject == subject):
            _explain(job, source, network, samples)
    for row in rows:
        if row.model is None:
            _explain(job, row.sources[0], Lazy(nn.Identity), samples)


def predictions(job: Job, subject: Subject, block: Block) -> FloatArray | None:
    """The logits of a network on a block, (n, classes), or None where they are missing."""
    shard = job.store.read(*job.prediction_key(subject, block))
    return None if shard is None else shard.arrays["logits"]


def scored_logits(job: Job, subject: Subject) -> FloatArray:
    """What a network answers to every image of the scored split, (n, classes).

    Errors: StoreError where that is not known.
    """
    parts = [predictions(job, subject, block) for block in job.prediction_blocks("score")]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        raise StoreError(f"no predictions of {subject.text}: run `lapbench explain` first")
    return np.concatenate(known)


def _predict(job: Job, subject: Subject, network: Lazy, samples: Samples) -> None:
    """Store the logits on the scored split, and on the fitting split where they decide targets."""
    decides_targets = job.benchmark.protocol.target == "predicted"
    purposes: tuple[Purpose, ...] = ("score", "fit") if decides_targets else ("score",)

    device = resolve_device(job.workspace.device)

    def compute(block: Block) -> Shard:
        images = samples.images(block)
        logits = in_batches(
            lambda start, stop: predict(network(), images[start:stop].to(device)).cpu(),
            len(images),
            batch_size=BATCH,
        )
        return Shard(
            ids=samples.ids(block),
            targets=samples.labels(block),
            arrays={"logits": torch.cat(logits).float().numpy()},
            provenance=plain(subject.identity()),
        )

    for purpose in purposes:
        tasks = [
            Task(*job.prediction_key(subject, block), len(block.indices), partial(compute, block))
            for block in job.prediction_blocks(purpose)
        ]
        make(
            tasks,
            job.store,
            job.workspace.progress,
            f"predict {job.considered(purpose).name}: {subject.text}",
        )


def _explain(job: Job, source: Source, network: Lazy, samples: Samples) -> None:
    """Store the maps of one explainer on one network, or the reason why there are none."""
    device = resolve_device(job.workspace.device)

    def compute(block: Block) -> Shard:
        images, targets = samples.images(block), _targets(job, source, block, samples)
        masks = torch.from_numpy(samples.masks(block)) if "masks" in source.spec.needs else None
        ids = samples.ids(block)

        def batch(start: int, stop: int) -> Any:
            part = slice(start, stop)
            return draw(
                source.spec,
                network(),
                images[part].to(device),
                targets[part].to(device),
                source.parameters,
                masks=None if masks is None else masks[part],
                ids=ids[part],
            )

        parts = in_batches(batch, len(images), batch_size=BATCH)
        return Shard(
            ids=ids,
            targets=targets.numpy(),
            arrays={"maps": torch.cat([part.values.cpu() for part in parts]).numpy()},
            diagnostics={
                name: torch.cat([part.diagnostics[name].cpu().double() for part in parts]).numpy()
                for name in parts[0].diagnostics
            },
            provenance=plain(source.identity()),
        )

    tasks = [
        Task(*job.map_key(source, block), len(block.indices), partial(compute, block))
        for purpose in ("fit", "score")
        for block in job.blocks(purpose)
    ]
    failure = job.failure_path(source)
    try:
        make(tasks, job.store, job.workspace.progress, f"explain: {source.text}")
    except LapbenchError as error:
        failure.parent.mkdir(parents=True, exist_ok=True)
        failure.write_text(str(error), encoding="utf-8")
        job.workspace.notify(f"{source.text}: {error}")
    else:
        failure.unlink(missing_ok=True)


def _targets(job: Job, source: Source, block: Block, samples: Samples) -> Tensor:
    """The class explained in each sample (n,): the protocol's, or what the network itself predicts."""
    targets = job.targets(samples.labels(block))
    if targets is None:
        logits = predictions(job, source.subject, block) if source.subject else None
        targets = np.zeros(len(block.indices), np.int64) if logits is None else logits.argmax(axis=1)
    return torch.from_numpy(targets.astype(np.int64))
