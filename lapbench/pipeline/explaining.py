"""Stage 2: draw the maps, and predict the labels, that missing rows need."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lapbench.digest import plain
from lapbench.errors import DataError, ExplainerError, LapbenchError, StoreError, WeightsError
from lapbench.executor import Task, in_batches, make
from lapbench.explain import Maps
from lapbench.explain import explain as draw
from lapbench.models.predict import predict
from lapbench.pipeline.job import Block, Job, Purpose, Source, Subject
from lapbench.pipeline.networks import Lazy, load_network
from lapbench.pipeline.rows import missing_rows
from lapbench.pipeline.samples import Samples
from lapbench.report.results import write_file
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import FloatArray

BATCH = 32
"""Samples explained at once, where memory allows."""


def explain(job: Job) -> list[str]:
    """Draw every map, and predict every label, that a missing row needs.

    An explainer that fails leaves its reason for the table, and the others go on; the reasons are returned.
    Errors: WeightsError where weights are missing; DataError and StoreError where files are at fault.
    """
    reasons: list[str] = []
    samples = Samples(job)
    rows = missing_rows(job)
    for subject in job.subjects():
        network = Lazy(partial(load_network, job, subject))
        if not subject.randomised or job.benchmark.protocol.target == "predicted":
            _predict(job, subject, network, samples)
        for source in (source for row in rows for source in row.sources if source.subject == subject):
            reasons += _explain(job, source, network, samples)
    for row in rows:
        if row.model is None:
            reasons += _explain(job, row.sources[0], Lazy(nn.Identity), samples)
    return reasons


def read_logits(job: Job, subject: Subject, purpose: Purpose) -> FloatArray | None:
    """What a network answers to every image of a split, (n, classes), or None where that is not known."""
    shards = [job.store.read(*job.prediction_key(subject, block)) for block in job.prediction_blocks(purpose)]
    known = [shard.arrays["logits"] for shard in shards if shard is not None]
    return np.concatenate(known) if len(known) == len(shards) else None


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


def _explain(job: Job, source: Source, network: Lazy, samples: Samples) -> list[str]:
    """Store the maps of one explainer on one network, or the reason why there are none, and return it."""
    device = resolve_device(job.workspace.device)

    def compute(purpose: Purpose, block: Block) -> Shard:
        images, targets = samples.images(block), _targets(job, source, purpose, block, samples)
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

        maps = _joined(source, in_batches(batch, len(images), batch_size=BATCH))
        return Shard(
            ids=ids,
            targets=targets.numpy(),
            arrays={"maps": maps.values.numpy()},
            diagnostics={name: values.numpy() for name, values in maps.diagnostics.items()},
            provenance=plain(source.identity()),
        )

    tasks = [
        Task(*job.map_key(source, block), len(block.indices), partial(compute, purpose, block))
        for purpose in ("fit", "score")
        for block in job.blocks(purpose)
    ]
    failure = job.failure_path(source)
    try:
        make(tasks, job.store, job.workspace.progress, f"explain: {source.text}")
    except (DataError, StoreError, WeightsError):
        raise  # not the explainer's fault: it would come again with the next one
    except LapbenchError as error:
        write_file(failure, str(error).encode())
        reason = f"{source.text}: {error}"
        job.workspace.notify(reason)
        return [reason]
    failure.unlink(missing_ok=True)
    return []


def _joined(source: Source, parts: Sequence[Maps]) -> Maps:
    """Join the maps of consecutive batches on the CPU. Errors: ExplainerError where they differ in kind."""
    sizes = {tuple(part.values.shape[1:]) for part in parts}
    figures = {tuple(sorted(part.diagnostics)) for part in parts}
    if len(sizes) > 1 or len(figures) > 1:
        raise ExplainerError(
            f"explainer {source.spec.name!r} must return maps of one size with the same diagnostics for all "
            f"batches, found {' and '.join(str(kind) for kind in (*sorted(sizes), *sorted(figures)))}"
        )
    return Maps(
        torch.cat([part.values.cpu() for part in parts]),
        {
            name: torch.cat([part.diagnostics[name].cpu().double() for part in parts])
            for name in figures.pop()
        },
    )


def _targets(job: Job, source: Source, purpose: Purpose, block: Block, samples: Samples) -> Tensor:
    """The class explained in each sample (n,): the protocol's, or what the network itself predicts."""
    targets = job.targets(samples.labels(block))
    if targets is None:
        logits = read_logits(job, source.subject, purpose) if source.subject else None
        known = samples.labels(block) if logits is None else logits.argmax(axis=1)[list(block.indices)]
        targets = known.astype(np.int64)
    return torch.from_numpy(targets)
