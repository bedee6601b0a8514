"""Stage 2: draw the maps, and predict the labels, that missing rows need."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lapbench.digest import plain
from lapbench.errors import ExplainerError, LapbenchError, StoreError
from lapbench.executor import MOST, Key, Task, in_batches, make
from lapbench.explain import Maps, Prepared, Request, explain_together
from lapbench.explain.state import Weights
from lapbench.pipeline.answering import ask, read_logits
from lapbench.pipeline.job import Block, Job, Purpose, Source, Subject
from lapbench.pipeline.networks import Lazy, load_network
from lapbench.pipeline.rows import missing_rows
from lapbench.pipeline.samples import Samples
from lapbench.report.results import write_file
from lapbench.store import Shard
from lapbench.train.hardware import resolve_device
from lapbench.types import IntArray


def explain(job: Job) -> list[str]:
    """Draw every map, and predict every label, that a missing row needs.

    All explainers of a network are asked batch by batch, and share its passes. One that fails leaves its
    reason for the table, and the others go on; the reasons are returned.
    Errors: WeightsError where weights are missing; DataError and StoreError where files are at fault.
    """
    reasons: list[str] = []
    samples = Samples(job)
    rows = missing_rows(job)
    for subject in job.subjects():
        network = Lazy(partial(load_network, job, subject))
        ask(job, subject, network, samples)
        sources = [source for row in rows for source in row.sources if source.subject == subject]
        reasons += _explain(job, sources, network, samples, f"explain: {subject.text}")
    controls = [row.sources[0] for row in rows if row.model is None]
    return reasons + _explain(job, controls, Lazy(nn.Identity), samples, "explain: controls")


def _explain(job: Job, sources: Sequence[Source], network: Lazy, samples: Samples, text: str) -> list[str]:
    """Store the maps of one network's explainers, or the reasons why there are none, and return those."""
    failed: dict[str, LapbenchError] = {}  # by row
    explained: list[_Explained] = []  # made when the first map is missing

    def compute(
        purpose: Purpose, block: Block, of: Mapping[Key, Source], keys: list[Key]
    ) -> Mapping[Key, Shard]:
        if not explained:
            explained.append(_Explained(network()))
        asked = [of[key] for key in keys if of[key].explainer.row not in failed]
        if not asked:
            return {}
        targets = _targets(job, asked[0], purpose, block, samples)
        drawn = _draw(job, asked, explained[0], samples, block, targets)
        failed.update({row: result for row, result in drawn.items() if isinstance(result, LapbenchError)})
        return {
            key: Shard(
                ids=samples.ids(block),
                targets=targets.numpy(),
                arrays={"maps": maps.values.numpy()},
                diagnostics={name: values.numpy() for name, values in maps.diagnostics.items()},
                provenance=plain(of[key].identity()),
            )
            for key in keys
            if isinstance(maps := drawn.get(of[key].explainer.row), Maps)
        }

    tasks = []
    for purpose in ("fit", "score") if sources else ():
        for block in job.blocks(purpose):
            of = {job.map_key(source, block): source for source in sources}
            tasks.append(Task(tuple(of), len(block.indices), partial(compute, purpose, block, of)))
    make(tasks, job.store, job.workspace.progress, text)
    reasons = []
    for source in sources:
        error = failed.get(source.explainer.row)
        if error is None:
            job.failure_path(source).unlink(missing_ok=True)
            continue
        write_file(job.failure_path(source), str(error).encode())
        reasons.append(f"{source.text}: {error}")
        job.workspace.notify(reasons[-1])
    return reasons


class _Explained:
    """A network that is explained, and a copy of its weights: some explainers write to them."""

    def __init__(self, model: nn.Module) -> None:
        self.prepared = Prepared(model)
        self._weights = Weights(model)

    def put_back(self) -> list[str]:
        """Put back weights that were written to, and return their names; what was traced is forgotten."""
        written = self._weights.put_back()
        if written:
            self.prepared = Prepared(self.prepared.model)
        return written


def _draw(
    job: Job, sources: Sequence[Source], network: _Explained, samples: Samples, block: Block, targets: Tensor
) -> dict[str, Maps | LapbenchError]:
    """Ask explainers for a block's maps, by row.

    They are asked again one by one, if memory does not hold what they share, or if the network has not kept
    its weights: one of them has spoiled the maps of others. That is looked for once a block, for the cost.
    """
    try:
        results, fault = _draw_together(job, sources, network.prepared, samples, block, targets), None
    except ExplainerError as error:  # not even one sample fits
        results, fault = {}, error
    if written := network.put_back():
        fault = _wrote(sources[0], written)
    if fault is None:
        return results
    if len(sources) == 1:
        return {sources[0].explainer.row: fault}
    alone = (_draw(job, [source], network, samples, block, targets) for source in sources)
    return {row: result for found in alone for row, result in found.items()}


def _wrote(source: Source, written: Sequence[str]) -> ExplainerError:
    more = f" and {len(written) - 1} more" if len(written) > 1 else ""
    name = source.spec.name
    return ExplainerError(
        f"explainer {name!r} wrote to the weights of the network ({written[0]}{more}) and left them so: put "
        f"them back in a finally; `lapbench check explainer {name}` shows whether it does"
    )


def _draw_together(
    job: Job, sources: Sequence[Source], network: Prepared, samples: Samples, block: Block, targets: Tensor
) -> dict[str, Maps | LapbenchError]:
    """Ask explainers for a block's maps, by row. Errors: ExplainerError where memory holds no sample."""
    device = resolve_device(job.workspace.device)
    images, ids = samples.images(block), samples.ids(block)
    masks = torch.from_numpy(samples.masks(block))
    results: dict[str, Maps | LapbenchError] = {}

    def batch(start: int, stop: int) -> dict[str, Maps]:
        part, asked = (
            slice(start, stop),
            [source for source in sources if source.explainer.row not in results],
        )
        found = explain_together(
            [Request(source.spec, source.parameters) for source in asked],
            network,
            images[part].to(device),
            targets[part].to(device),
            masks=masks[part],
            ids=ids[part],
        )
        drawn = {source.explainer.row: result for source, result in zip(asked, found, strict=True)}
        results.update({row: result for row, result in drawn.items() if isinstance(result, LapbenchError)})
        return {row: result for row, result in drawn.items() if isinstance(result, Maps)}

    parts = in_batches(batch, len(images), most=MOST[device.type])
    for source in sources:
        if source.explainer.row not in results:
            results[source.explainer.row] = _joined(source, [part[source.explainer.row] for part in parts])
    return results


def _joined(source: Source, parts: Sequence[Maps]) -> Maps | ExplainerError:
    """Join the maps of consecutive batches on the CPU; an error where they differ in kind."""
    sizes = {tuple(part.values.shape[1:]) for part in parts}
    figures = {tuple(sorted(part.diagnostics)) for part in parts}
    if len(sizes) > 1 or len(figures) > 1:
        return ExplainerError(
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
        targets = _predicted(job, source.subject, purpose, block) if source.subject else samples.labels(block)
    return torch.from_numpy(targets.astype(np.int64))


def _predicted(job: Job, subject: Subject, purpose: Purpose, block: Block) -> IntArray:
    """The class that a network predicts for each sample (n,). Errors: StoreError where that is gone."""
    logits = read_logits(job, subject, purpose)
    if logits is None:
        raise StoreError(f"the answers of {subject.text} have gone from {job.store.root}: run again")
    predicted: IntArray = logits.argmax(axis=1)[list(block.indices)]
    return predicted
