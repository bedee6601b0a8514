"""Does differentiable selection find the subset that decides? Planted subsets, and how much of them is found.

Two kinds of task, where it is known of every sample which positions decide its class:

- positions: a feature map of 7×7 positions with 16 channels. Between 1 and 8 positions at random places carry
  a mark and the evidence for the sample's class; every other position carries evidence for a class drawn at
  random, without the mark. A 1×1 convolution gives the logits, the map is pooled by the weights, and a linear
  layer answers: BLA as in the paper, on features as a frozen trunk gives them.
- features: 10 features drawn from N(0, 1), of which the first few decide, as in the synthetic tasks of L2X
  (Chen et al., ICML 2018, section 4.1): P(y = 1 | x) = σ(x1·x2) for XOR and σ(x1² + … + x4² − 4) for orange
  skin. A selecting network gives the logits from all ten, and a predicting network answers from the features
  times their weights.

Everything learns together from the classes alone. L2X is told how many positions it is to select; BLA finds
the size itself. A selection is compared with the planted subset by intersection over union, on samples that
were not trained on. "all" selects every position.

    python benchmarks/correctness/subset.py [--seeds N]

Writes reports/correctness/subset.md.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch import Tensor, nn

from lapbench.benchmark import Bla
from lapbench.models import BLA, SubsetAttention

REPORT = Path("reports/correctness/subset.md")
SIDE, CHANNELS, CLASSES, LARGEST = 7, 16, 4, 8
FEATURES, HIDDEN = 10, 64
TRAIN, TEST, BATCH = 5000, 2000, 250


@dataclass(frozen=True)
class Samples:
    """inputs (n, …), labels (n,), and which positions decide, (n, positions) bool."""

    inputs: Tensor
    labels: Tensor
    planted: Tensor


@dataclass(frozen=True)
class Found:
    """What a trained selection does on test samples, means of all of them.

    overlap: intersection over union with the planted subset. size: of the selection. soft, hard: accuracies.
    """

    overlap: float
    size: float
    soft: float
    hard: float


@dataclass(frozen=True)
class Task:
    """What is drawn, what learns it, and how many positions L2X is told to select."""

    title: str
    draw: Callable[[int, torch.Generator], Samples]
    network: Callable[[SubsetAttention], "Pooled | Masked"]
    told: int
    epochs: int
    learning_rate: float


def positions(count: int, generator: torch.Generator) -> Samples:
    """Draw feature maps with marked positions that decide."""
    n, places = count, SIDE * SIDE
    sizes = torch.randint(1, LARGEST + 1, (n, 1), generator=generator)
    ranks = torch.rand(n, places, generator=generator).argsort(1).argsort(1)
    planted = ranks < sizes
    labels = torch.randint(CLASSES, (n,), generator=generator)
    others = torch.randint(CLASSES, (n, places), generator=generator)
    evidence = F.one_hot(torch.where(planted, labels[:, None], others), CLASSES)
    x = 0.5 * torch.randn(n, places, CHANNELS, generator=generator)
    x[:, :, 0] += 2 * planted
    x[:, :, 1 : 1 + CLASSES] += 2 * evidence
    return Samples(x.transpose(1, 2).reshape(n, CHANNELS, SIDE, SIDE), labels, planted)


def features(count: int, generator: torch.Generator, *, few: int) -> Samples:
    """Draw vectors whose first two (XOR) or four (orange skin) features decide."""
    x = torch.randn(count, FEATURES, generator=generator)
    logit = x[:, 0] * x[:, 1] if few == 2 else x[:, :few].square().sum(1) - few
    labels = (torch.rand(count, generator=generator) < logit.sigmoid()).long()
    return Samples(x, labels, (torch.arange(FEATURES) < few).expand(count, -1))


class Pooled(nn.Module):
    """BLA and a linear layer."""

    def __init__(self, attention: SubsetAttention) -> None:
        super().__init__()
        self.pool, self.head = BLA(CHANNELS, attention), nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) → logits."""
        return self.head(self.pool(x).flatten(1))

    def logits(self, x: Tensor) -> Tensor:
        """The positions' logits z (B, n)."""
        return self.pool.score(x).flatten(1)

    @property
    def attention(self) -> SubsetAttention:
        """What selects."""
        return self.pool.attention


class Masked(nn.Module):
    """A selecting network, and a predicting one that sees the features times their weights."""

    def __init__(self, attention: SubsetAttention) -> None:
        super().__init__()
        self.attention = attention
        self.logits, self.head = _perceptron(FEATURES), _perceptron(2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 10) → logits; the uniform weight leaves a feature as it is."""
        return self.head(x * FEATURES * self.attention(self.logits(x)))


def _perceptron(outputs: int) -> nn.Sequential:
    hidden = [nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))


def preset(name: str) -> dict[str, Any]:
    """The options of a preset of the paper."""
    return Bla.model_validate({"preset": name}).model_dump(exclude={"preset", "draws"})


TASKS = (
    Task("positions", positions, Pooled, LARGEST, 12, 1e-2),
    Task("features, XOR", partial(features, few=2), Masked, 2, 20, 2e-3),
    Task("features, orange skin", partial(features, few=4), Masked, 4, 20, 2e-3),
)
METHODS: dict[str, dict[str, Any]] = {
    "L2X": {"logits": "linear", "temperature_mode": "divide"},
    "L2X-F": preset("L2X-F"),
    "BLA": preset("BLA"),
    "BLA-T": preset("BLA-T"),
    "BLA, temperature 1": {**preset("BLA"), "temperature": 1.0},
}
"""By name, the options of the attention; those with linear logits draw as many times as the task tells."""


def trained(task: Task, options: dict[str, Any], seed: int) -> Found:
    """Train on fresh samples, and compare what is selected on others with what was planted."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learnt, tested = task.draw(TRAIN, generator), task.draw(TEST, generator)
    attention = SubsetAttention(**options, draws=task.told if options["logits"] == "linear" else 0)
    network = task.network(attention)
    optimiser = torch.optim.Adam(network.parameters(), task.learning_rate)
    for _ in range(task.epochs):
        for rows in torch.randperm(TRAIN).split(BATCH):
            loss = F.cross_entropy(network(learnt.inputs[rows]), learnt.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.eval()
    accuracy = {}
    with torch.no_grad():
        for attention.output in ("soft", "hard"):
            right = network(tested.inputs).argmax(1) == tested.labels
            accuracy[attention.output] = float(right.float().mean())
        selected = attention.hard(network.logits(tested.inputs)) > 0
    size = float(selected.sum(1).float().mean())
    return Found(overlap(selected, tested.planted), size, accuracy["soft"], accuracy["hard"])


def overlap(selected: Tensor, planted: Tensor) -> float:
    """Return the mean intersection over union of subsets, (n, positions) bool each."""
    return float(((selected & planted).sum(1) / (selected | planted).sum(1)).mean())


def interval(values: Sequence[float], most: float = 1.0) -> str:
    """Return the mean with its 95 % interval by Student's t, between 0 and the most there can be."""
    mean, n = float(np.mean(values)), len(values)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return f"{mean:.2f} [{max(mean - half, 0):.2f}, {min(mean + half, most):.2f}]"


def line(task: Task, name: str, found: Sequence[Found]) -> str:
    """Return a line of the table: one task, one method, all seeds."""
    columns = [interval([getattr(one, field) for one in found]) for field in ("overlap", "soft", "hard")]
    sizes = interval([one.size for one in found], np.inf)
    return f"| {task.title} | {name} | {columns[0]} | {sizes} | {columns[1]} | {columns[2]} |"


def everything(task: Task) -> str:
    """Return the line of the selection that leaves nothing out."""
    tested = task.draw(TEST, torch.Generator().manual_seed(0))
    planted = tested.planted
    found, size = overlap(torch.ones_like(planted), planted), float(planted.sum(1).float().mean())
    return f"| {task.title} | all (planted: {size:.2f}) | {found:.2f} | {planted.shape[1]} | | |"


def rendered(lines: Sequence[str], seeds: int, minutes: float) -> str:
    """Return the page."""
    assert __doc__ is not None
    about = __doc__.partition("\n\n    python")[0]
    return "\n".join(
        [
            "# " + about.partition("\n\n")[0],
            "",
            about.partition("\n\n")[2],
            "",
            f"{TRAIN:,} training samples, Adam, batches of {BATCH}; means over {seeds} seeds with 95 % "
            "intervals (Student's t). L2X divides (Gumbel noise + logits) by 0.1, L2X-F and BLA multiply by "
            "0.1. The soft decision of L2X and L2X-F is by the mean weights of 16 samples of the noise, the "
            "hard one by the likeliest positions, without noise.",
            "",
            "| task | selection | overlap with the planted subset | positions selected | accuracy, soft "
            "| accuracy, hard |",
            "| --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
            f"Made by `python benchmarks/correctness/subset.py` in {minutes:.1f} minutes of one core.",
            "",
        ]
    )


def main() -> int:
    """Train everything, write the page, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    started, lines = time.process_time(), []
    for task in TASKS:
        for name, options in METHODS.items():
            lines.append(line(task, name, [trained(task, options, seed) for seed in range(seeds)]))
            print(lines[-1], flush=True)
        lines.append(everything(task))
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(rendered(lines, seeds, (time.process_time() - started) / 60), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
