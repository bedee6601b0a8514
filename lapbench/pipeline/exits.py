"""What a network saves that stops at one of its LAPs, and how right it still is."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lapbench import benchmark as definition
from lapbench.errors import StoreError
from lapbench.models.early_exit import cost, cut
from lapbench.models.predict import evaluating
from lapbench.pipeline.classification import summarise
from lapbench.pipeline.job import Job, Subject
from lapbench.pipeline.networks import load_network
from lapbench.report.leaderboard import interval_text
from lapbench.report.markdown import escape, table
from lapbench.report.results import Estimate, write_file
from lapbench.train.hardware import resolve_device

COLUMNS = (
    "network",
    "up to",
    "accuracy",
    "parameters",
    "multiply-adds",
    "of the whole",
    "ms an image",
    "of the whole",
)
ROUNDS = 31


def early_exits(job: Job) -> list[tuple[str, ...]]:
    """Cut every network after each of its LAPs; write exits.md and return its lines, as `COLUMNS` heads them.

    Accuracy is that on the scored split over all seeds; costs and times are those of the first seed's network
    on one image of the benchmark's size, the time alone on the job's device, the median of rounds. A LAP
    whose heads cannot name every class has no line. Errors: StoreError for a network that was not asked yet.
    """
    lines = [line for model in job.benchmark.models for line in _lines(job, model)]
    page = [f"# What early exits save: {escape(job.benchmark.title)}", ""]
    page += [*table(COLUMNS, lines, COLUMNS[2:]), "", f"Times: {_device(job)}, one image at a time."]
    write_file(job.workspace.out / "exits.md", ("\n".join(page) + "\n").encode())
    return lines


def _lines(job: Job, model: definition.Model) -> list[tuple[str, ...]]:
    network = load_network(job, Subject(model, model.seeds[0], job.weights(model, model.seeds[0])))
    summary, data = summarise(job, model), job.benchmark.data
    if not summary.measures:
        raise StoreError(f"{model.name} was not asked about the scored split yet: run `lapbench run` first")
    image = torch.zeros(1, data.channels, *data.image_size, device=next(network.parameters()).device)
    found: list[tuple[str, nn.Module, Estimate]] = [
        ("its end", network, summary.measures.get("accuracy", Estimate()))
    ]
    for number, lap in enumerate(summary.laps, start=1):
        found.append((f"LAP {number}", cut(network, number, n_classes=summary.classes), lap.predictivity))
    costs = [cost(part, image) for _, part, _ in found]
    times = _milliseconds([part for _, part, _ in found], image)
    return [
        (
            model.name,
            name,
            interval_text(accuracy),
            f"{spent.parameters:,}",
            f"{spent.multiply_adds / 1e6:,.1f} M",
            f"{100 * spent.multiply_adds / costs[0].multiply_adds:.0f} %",
            f"{took:.2f}",
            f"{100 * took / times[0]:.0f} %",
        )
        for (name, _, accuracy), spent, took in zip(found, costs, times, strict=True)
    ]


def _milliseconds(networks: Sequence[nn.Module], image: Tensor) -> list[float]:
    """The median time of each network for an image; they take turns, so that all see the same machine."""
    times = np.zeros((ROUNDS + 1, len(networks)))
    with torch.no_grad():
        for line in times:
            for column, network in enumerate(networks):
                with evaluating(network):
                    start = time.perf_counter()
                    network(image)
                    if image.is_cuda:
                        torch.cuda.synchronize()
                    line[column] = time.perf_counter() - start
    medians: list[float] = (1000 * np.median(times[1:], axis=0)).tolist()  # the first warms up
    return medians


def _device(job: Job) -> str:
    if resolve_device(job.workspace.device).type == "cuda":
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of a CPU"
