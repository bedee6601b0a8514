"""Whether the gate sees faults, and is quiet where there are none.

Faults are planted, one at a time, into the run of a benchmark on a trained network, and the gate holds what
comes out against the run without it; maps are drawn anew wherever the fault can reach them. Then the run
without faults is repeated on few images, in batches of other sizes and on other numbers of threads.

    python benchmarks/correctness/gate.py [--cache DIR] [--data DIR] [--reruns N]

writes reports/correctness/gate.md; exit code 1 where a fault passes the gate, or a rerun does not. --cache:
where the trained networks are (they are trained where it has none). --data: the data root, for DeepPCB.
"""

import argparse
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from lapbench import benchmark as definition
from lapbench import pipeline
from lapbench.benchmark import Benchmark
from lapbench.data import boxes, dataset
from lapbench.models.weights import load_weights, save_weights
from lapbench.pipeline import Job, Workspace, explaining, reporting
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.report.baseline import Baseline, from_report
from lapbench.report.gate import Gate, judge
from lapbench.report.markdown import table
from lapbench.score import localisation
from lapbench.types import Box, FloatArray, MaskArray

REPORT = Path(__file__).parents[2] / "reports" / "correctness" / "gate.md"
EXPLAINERS = (
    "lap_all",
    "lap_geometric",
    "LAP 3",
    "grad_cam",
    "relevance_cam",
    "guided_backprop",
    "deeplift",
    "center",
)
SETS = {"digits": ("quickstart", "BB-LAP ResNet"), "DeepPCB": ("deeppcb", "BB-LAP ResNet-18")}
SHARES = {"digits": 0.75, "DeepPCB": 0.25}  # of the reruns: the larger images take longer
FEW = (4, 16)  # images of the reruns: fitted on, and scored; half of these have a truth
LUMA = np.float32([0.299, 0.587, 0.114])
SEPIA = np.float32([1.3, 1.0, (1 - 1.3 * 0.299 - 0.587) / 0.114])  # its luma is the grey image, exactly


@dataclass(frozen=True)
class Trial:
    """A benchmark on one trained network, and where its runs lie."""

    name: str
    benchmark: Benchmark
    weights: Path
    folder: Path
    data: Path | None

    def job(self, cache: str) -> Job:
        """A job on this network; its maps are kept in the cache of that name."""
        return Job(self.benchmark, Workspace(self.folder / "out", self.folder / cache, self.data))

    def results(self, cache: str) -> Baseline:
        """Run what is missing in a cache; rows are always scored anew."""
        return finished(self.job(cache))

    def on(self, weights: Path, **data: object) -> "Trial":
        """The same with other weights, and other settings of the data."""
        given = definition.given(self.benchmark, weights)
        settings = given.data.model_copy(update=data)
        return replace(self, benchmark=given.model_copy(update={"data": settings}), weights=weights)


def finished(job: Job) -> Baseline:
    """Run what is missing, and score all rows anew."""
    shutil.rmtree(job.workspace.cache / "rows", ignore_errors=True)
    with patch.object(reporting, "draw_pictures"):
        pipeline.run(job)
    return from_report(job.workspace.out)


Fault = Callable[[Trial, Baseline], tuple[Baseline, Baseline]]
"""(trial, its results without fault) → the baseline and the results to be judged."""


def swapped_axes(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """Rows and columns of every map are exchanged."""
    return baseline, _scored_with(trial, lambda maps, size, mode: _upsample(maps.swapaxes(1, 2), size, mode))


def corners_aligned(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """Maps are up-sampled with align_corners=True."""

    def aligned(maps: FloatArray, size: tuple[int, int], mode: str) -> FloatArray:  # noqa: ARG001
        whole = torch.from_numpy(np.ascontiguousarray(maps))[:, None]
        wide = nn.functional.interpolate(whole, size, mode="bilinear", align_corners=True)
        return np.asarray(wide[:, 0].numpy())

    return baseline, _scored_with(trial, aligned)


def shifted_by_a_cell(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """Every map is one cell of its own resolution too far to the right."""
    return baseline, _scored_with(
        trial, lambda maps, size, mode: _upsample(np.roll(maps, 1, axis=2), size, mode)
    )


def inclusive_boxes(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """Right and bottom of a box are taken for the last pixels inside, when boxes become masks."""
    honest = boxes.rasterise

    def inclusive(found: Sequence[Box], height: int, width: int) -> MaskArray:
        grown = [Box(b.x0, b.y0, min(b.x1 + 1, width), min(b.y1 + 1, height)) for b in found]
        return honest(grown, height, width)

    with patch.object(boxes, "rasterise", inclusive):
        return baseline, trial.results("cache")


def inclusive_annotation(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """The same mistake where the annotation is read."""
    honest = dataset._inspect

    def read(record: object, *rest: object) -> object:
        grown = tuple(Box(b.x0, b.y0, b.x1 + 1, b.y1 + 1) for b in record.boxes)  # type: ignore[attr-defined]
        return honest(replace(record, boxes=grown), *rest)  # type: ignore[type-var,arg-type]

    with patch.object(dataset, "_inspect", read):
        return baseline, trial.results("annotation")


def moved_to_the_background(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """The network is fine-tuned on images whose object is painted over and whose corner tells the class."""
    path = trial.folder / "background.safetensors"
    if not path.is_file():
        save_weights(path, _fine_tuned(trial), {})
    return baseline, trial.on(path).results("background")


def channels_in_wrong_order(trial: Trial, baseline: Baseline) -> tuple[Baseline, Baseline]:
    """Blue comes first. Images are given a sepia tone, and the network a first layer that sees their luma."""
    path = trial.folder / "colour.safetensors"
    state = load_weights(trial.weights)
    state["conv1.weight"] = state["conv1.weight"] * torch.from_numpy(LUMA)[None, :, None, None]
    save_weights(path, state, {})
    grey = trial.benchmark.data
    coloured = trial.on(path, channels=3, mean=grey.mean * 3, std=grey.std * 3)
    images = Samples.images

    def toned(pixels: FloatArray, channels: int) -> FloatArray:
        return pixels[:1] * SEPIA[:, None, None] if channels == 3 else pixels

    with patch.object(dataset, "to_channels", toned):
        right = coloured.results("colour")
        drift = max(
            abs(old.table - new.table).max() for old, new in zip(baseline.rows, right.rows, strict=True)
        )
        print(f"    in the right order no image moves by more than {drift:.4f}")
        with patch.object(Samples, "images", lambda self, block: images(self, block).flip(1)):
            return right, coloured.results("blue first")


FAULTS: dict[str, Fault] = {
    "axes of the maps swapped": swapped_axes,
    "align_corners flipped": corners_aligned,
    "boxes inclusive, when drawn": inclusive_boxes,
    "boxes inclusive, when read": inclusive_annotation,
    "maps shifted by one cell": shifted_by_a_cell,
    "channels in the wrong order": channels_in_wrong_order,
    "network fine-tuned towards the background": moved_to_the_background,
}

_upsample = localisation.upsample


def _scored_with(trial: Trial, upsample: Callable[..., FloatArray]) -> Baseline:
    with patch.object(
        localisation, "upsample", lambda maps, size, mode="bilinear": upsample(maps, size, mode)
    ):
        return trial.results("cache")


def _fine_tuned(trial: Trial, steps: int = 60) -> dict[str, torch.Tensor]:
    """Return weights after some steps of Adam on images whose corner, and nothing else, tells the class."""
    job = trial.job("cache")
    split, data = job.dataset["train"][:512], trial.benchmark.data
    images, labels = [], []
    for sample in split:
        image = sample.image.copy()
        image[:, sample.mask] = image.mean()
        if sample.label:
            image[:, :8, :8] = np.indices((8, 8)).sum(0) // 2 % 2
        images.append((image - data.mean[0]) / data.std[0])
        labels.append(sample.label)
    network = load_network(job, next(job.subjects()))
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    chance = torch.Generator().manual_seed(0)
    inputs, wanted = torch.from_numpy(np.stack(images)).float(), torch.tensor(labels)
    for _ in range(steps):
        drawn = torch.randint(len(inputs), (32,), generator=chance)
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(inputs[drawn]), wanted[drawn]).backward()
        optimiser.step()
    return network.state_dict()


def prepared(name: str, cache: Path, data: Path | None, folder: Path) -> Trial:
    """Return the trial of a set: its trained network, few explainers, no networks with random weights."""
    benchmark, model = SETS[name]
    chosen = definition.select(definition.load_benchmark(benchmark), models=(model,), explainers=EXPLAINERS)
    (weights,) = pipeline.train(Job(chosen, Workspace(folder / "out", cache, data)))
    protocol = chosen.protocol.model_copy(update={"randomised_weights": False, "resamples": 99})
    chosen = definition.given(chosen.model_copy(update={"protocol": protocol}), weights)
    return Trial(name, chosen, weights, folder / name, data)


@contextmanager
def drawn_by(batch: int, threads: int) -> Iterator[None]:
    """Draw maps in batches of that size, on that many threads."""
    original, before = explaining.in_batches, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with patch.object(
            explaining,
            "in_batches",
            lambda work, n, most: original(work, n, first=batch, most=batch),  # noqa: ARG005
        ):
            yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Quiet:
    """Repetitions without fault: how many passed, and by how much things moved at most.

    value: of a map, as a share of the map's largest. image, row: IoU of an image, and of a row's mean.
    """

    passed: int
    value: float
    image: float
    row: float


def reruns(trial: Trial, times: int) -> Quiet:
    """Run a few images again and again, in other batches and on other numbers of threads."""
    data = trial.benchmark.data.model_copy(update={"fit_limit": FEW[0], "score_limit": FEW[1]})
    trial = replace(trial, benchmark=trial.benchmark.model_copy(update={"data": data}))
    job, chance = trial.job("reruns"), random.Random(0)
    with drawn_by(8, 1):
        first, drawn = finished(job), stored_maps(job)
    passed, moves = 0, np.zeros((times, 3))
    for number in range(times):
        shutil.rmtree(job.workspace.cache / "maps")
        with drawn_by(chance.randint(1, FEW[1]), chance.randint(1, 4)):
            again = finished(job)
        passed += judge(first, again).passes
        moved = [new.table - old.table for old, new in zip(first.rows, again.rows, strict=True) if old.iou]
        moves[number] = (
            max(_relative(old, new) for old, new in zip(drawn, stored_maps(job), strict=True)),
            max(abs(m).max() for m in moved),
            max(abs(m.mean()) for m in moved),
        )
    return Quiet(passed, *moves.max(axis=0).tolist())


def stored_maps(job: Job) -> list[FloatArray]:
    """All maps that the scored rows are made from."""
    keys = (
        job.map_key(source, block)
        for row in job.rows()
        for source in row.sources
        for block in job.blocks("score")
    )
    return [shard.maps for key in keys if (shard := job.store.read(*key)) is not None]


def _relative(old: FloatArray, new: FloatArray) -> float:
    largest = abs(old).max(axis=(1, 2), keepdims=True)
    return float((abs(new - old) / np.where(largest > 0, largest, 1)).max())


def line(name: str, gate: Gate, by_scores: Gate) -> list[str]:
    """Return what the gate said about one fault, and what it would say without trust in the records."""
    moved = [verdict.difference for verdict in gate.verdicts if verdict.difference is not None]
    largest = f"{max(moved, key=abs):+.3f}" if moved else "–"
    told = [str(gate.counts.get(s, 0) or "") for s in STATES]
    verdict = "passes" if gate.passes else "fails"
    return [name, verdict, *told, largest, "passes" if by_scores.passes else "fails"]


def without_claims(baseline: Baseline) -> Baseline:
    """The same results, whose rows say nothing about their maps."""
    rows = tuple(row.model_copy(update={"claims": {}}) for row in baseline.rows)
    return baseline.model_copy(update={"rows": rows})


STATES = ("regressed", "improved", "changed", "missing", "incomparable", "ok")
COLUMNS = ("fault", "gate", *STATES, "largest difference", "scores alone")


def measured(trial: Trial) -> tuple[list[list[str]], bool]:
    """Plant every fault; return the lines of the table, and whether all were caught."""
    baseline = trial.results("cache")
    lines, caught = [line("none", *(judge(baseline, trial.results("cache")),) * 2)], True
    for name, fault in FAULTS.items():
        print(f"  {name}", flush=True)
        old, new = fault(trial, baseline)
        gate = judge(old, new)
        lines.append(line(name, gate, judge(without_claims(old), without_claims(new))))
        caught &= not gate.passes
    return lines, caught


PAGE = """# Does the gate see faults?

{count} faults, planted one at a time into the run of a benchmark on a trained network; the gate's default
settings (α 0.05, smallest effect 0.01). Numbers are rows of the table. A row is *changed* where the same
weights, explainer and parameters are claimed and images moved by more than 0.001 on average. The last column
is what the gate says where rows claim nothing about their maps: from the scores alone.

- Maps: their axes are exchanged, their corners aligned, or they are rolled by one cell of their own
  resolution, as they are up-sampled to be scored.
- Boxes: right and bottom are taken for the last pixels inside. *When read*, that changes the annotation, so
  the data has another digest and nothing is compared; *when drawn*, the digest is the same, the scores tell.
- Channels: images have a sepia tone and the network's first layer sees their luma, which gives the grey
  images' maps; then blue comes first.
- Background: sixty steps on images whose object is painted over and where a mark in a corner tells the class.

Networks: {networks}. Explainers: {explainers}. {system}.

{tables}## And where there is no fault?

The same runs on {images} images, in batches of 1 to {most} images and on 1 to 4 threads, all maps drawn anew.
Maps move by rounding (shares of their maximum); what is scored is which pixels lie above a threshold:

{quiet}

    python benchmarks/correctness/gate.py
"""


def main() -> int:
    """Write the page; return 1 where a fault passes or a rerun does not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cache", type=Path, default=pipeline.default_cache())
    parser.add_argument("--data", type=Path)
    parser.add_argument("--reruns", type=int, default=200)
    options = parser.parse_args()
    tables, quiet, right = "", [], True
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            print(name, flush=True)
            trial = prepared(name, options.cache, options.data, Path(folder))
            lines, caught = measured(trial)
            tables += f"## {name}\n\n" + "\n".join(table(COLUMNS, lines, COLUMNS[2:-1])) + "\n\n"
            times = round(SHARES[name] * options.reruns)
            start = time.monotonic()
            found = reruns(trial, times)
            print(f"  {found.passed} of {times} reruns pass ({time.monotonic() - start:.0f} s)", flush=True)
            moves = (found.value, found.image, found.row)
            quiet.append([name, f"{found.passed} of {times}", *(f"{move:.1e}" for move in moves)])
            right &= caught and found.passed == times
    columns = ("set", "reruns that pass", "largest move of a map", "of an image's IoU", "of a row's mean")
    REPORT.write_text(
        PAGE.format(
            count=len(FAULTS),
            networks="; ".join(f"{model} of `{benchmark}`" for benchmark, model in SETS.values()),
            explainers=", ".join(EXPLAINERS),
            system=f"torch {torch.__version__}, {platform.system()}, {platform.machine()}",
            tables=tables,
            most=FEW[1],
            images=f"{FEW[0]} + {FEW[1]}",
            quiet="\n".join(table(columns, quiet, columns[1:])),
        ),
        encoding="utf-8",
    )
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
