"""Are the scores what their names say? The same maps, scored by lapbench and by those who defined the scores.

Maps of a benchmark that has been run are brought to 224×224 pixels and exported as .npy files. The evaluators
of wsolevaluation (MaxBoxAcc, MaxBoxAccV2, PxAP) read them, 1,000 thresholds as they do by default, and so do
metrics of Quantus (rank accuracy, mass accuracy, AUC, pointing game). Every disagreement is counted, and the
report says where it comes from.

    python benchmarks/correctness/scores.py WSOLEVALUATION [--cache DIR] [--images N]

WSOLEVALUATION: a checkout of github.com/clovaai/wsolevaluation. DIR: the cache of `lapbench run quickstart`.
Writes reports/correctness/scores.md; exit code 1 where a number differs and the reason is not known.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lapbench import Job, Workspace, load_benchmark
from lapbench.data import load_manifest, open_dataset
from lapbench.interop import quantus_scores
from lapbench.pipeline import default_cache
from lapbench.pipeline.job import RowSource
from lapbench.score import localise, normalise, sweep_boxes, sweep_thresholds
from lapbench.store import Shard
from lapbench.types import Box, FloatArray, MaskArray

sys.path.append(str(Path(__file__).parents[1]))
from wsolevaluation import foreign_evaluation

REPORT = Path("reports/correctness/scores.md")
SIDE = 224  # the evaluator resizes boxes and masks to it
THRESHOLDS = np.arange(0, 1, 0.001)
FINE = 4  # images for maps as fine as the images: of each the evaluator follows a million contours


@dataclass(frozen=True)
class Material:
    """The maps of one row, normalised (n, 224, 224), with the truth."""

    title: str
    ids: tuple[str, ...]
    maps: FloatArray
    masks: MaskArray
    ignore: MaskArray
    boxes: tuple[tuple[Box, ...], ...]


@dataclass(frozen=True)
class Compared:
    """One score of one row, by both.

    differing: how much of `of` is not the same. reason: why, where that is known.
    """

    score: str
    ours: float
    theirs: float
    differing: int
    of: int
    reason: str = ""

    @property
    def right(self) -> bool:
        """Whether nothing differs without a reason."""
        return not self.differing or bool(self.reason)


def material(job: Job, n: int) -> Iterator[Material]:
    """Give the maps of every row on the first model, and of the controls, with boxes in whole pixels."""
    block = job.blocks("score")[0]
    split = open_dataset(load_manifest(job.benchmark.data.manifest), image_size=(SIDE, SIDE), channels=1)[
        block.split
    ]
    for row in job.rows():
        if row.randomised or row.model not in (None, job.benchmark.models[0]):
            continue
        shard = job.store.read(*job.map_key(row.sources[0], block))
        if shard is None:
            raise SystemExit(
                f"no maps of {row.sources[0].text} in {job.workspace.cache}: "
                f"lapbench run {job.benchmark.name} --cache {job.workspace.cache}"
            )
        kept = list(range(n if shard.maps.shape[1] < job.benchmark.data.image_size[0] else FINE))
        boxes = tuple(
            tuple(Box(int(b.x0), int(b.y0), int(b.x1), int(b.y1)) for b in split.boxes(block.indices[i]))
            for i in kept
        )
        masks = np.zeros((len(kept), SIDE, SIDE), bool)
        for mask, own in zip(masks, boxes, strict=True):
            for box in own:
                mask[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
        ignore = np.zeros_like(masks)
        ignore[::2, :, : SIDE // 4] = True  # a quarter of every second image
        ignore &= ~masks
        maps = normalise(shard.maps[kept], (SIDE, SIDE), mode=row.sources[0].spec.upsample)
        yield Material(_title(row), tuple(f"image-{i}" for i in kept), maps, masks, ignore, boxes)


def _title(row: RowSource) -> str:
    return row.explainer.row if row.model else f"{row.explainer.row} (control)"


def export(found: Material, folder: Path) -> None:
    """Write maps, boxes and masks as the evaluator wants them: maps in [0, 1], ends of boxes exclusive."""
    lines: dict[str, list[str]] = {"image_ids": [], "class_labels": [], "image_sizes": [], "localization": []}
    for i, (name, values) in enumerate(zip(found.ids, found.maps, strict=True)):
        scaled = values.astype(np.float64)
        scaled -= scaled.min()
        np.save(folder / f"{name}.npy", scaled / scaled.max() if scaled.max() > 0 else scaled)
        Image.fromarray(found.masks[i].astype(np.uint8) * 255).save(folder / f"{name}-mask.png")
        Image.fromarray(found.ignore[i].astype(np.uint8) * 255).save(folder / f"{name}-ignore.png")
        lines["image_ids"].append(name)
        lines["class_labels"].append(f"{name},0")
        lines["image_sizes"].append(f"{name},{SIDE},{SIDE}")
        lines["localization"] += [f"{name},{b.x0},{b.y0},{b.x1},{b.y1}" for b in found.boxes[i]]
    for kind, text in lines.items():
        (folder / f"{kind}.txt").write_text("\n".join(text) + "\n")
    masks = [f"{name},{name}-mask.png,{name}-ignore.png" for name in found.ids]
    (folder / "masks.txt").write_text("\n".join(masks) + "\n")


def evaluated(evaluation: Any, kind: str, folder: Path, ids: Sequence[str], **settings: Any) -> Any:
    """Let an evaluator read the exported maps one by one, and return it."""
    metadata = evaluation.configure_metadata(str(folder))
    metadata["localization"] = str(folder / ("masks.txt" if kind == "MaskEvaluator" else "localization.txt"))
    evaluator = getattr(evaluation, kind)(
        metadata=metadata, dataset_name="OpenImages", split="test", cam_threshold_list=list(THRESHOLDS),
        mask_root=str(folder), **settings,
    )  # fmt: skip
    for name in ids:
        evaluator.accumulate(np.load(folder / f"{name}.npy"), name)
    return evaluator


def against_wsolevaluation(evaluation: Any, found: Material) -> list[Compared]:
    """Compare MaxBoxAcc and MaxBoxAccV2 threshold by threshold, and PxAP count by count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(found, folder)
        alone = evaluated(
            evaluation, "BoxEvaluator", folder, found.ids, iou_threshold_list=[50], multi_contour_eval=False
        )
        several = evaluated(
            evaluation,
            "BoxEvaluator",
            folder,
            found.ids,
            iou_threshold_list=[30, 50, 70],
            multi_contour_eval=True,
        )
        pixels = evaluated(
            evaluation, "MaskEvaluator", folder, found.ids, iou_threshold_list=[50], multi_contour_eval=False
        )
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = float(pixels.compute()) / 100
    sweep = sweep_boxes(found.maps, found.boxes)
    level = (THRESHOLDS * 255).astype(int)
    largest = sweep.largest.sum(axis=0)[level] != alone.num_correct[50]
    each = [
        hit.sum(axis=0)[level] != several.num_correct[iou]
        for hit, iou in zip(sweep.any, (30, 50, 70), strict=True)
    ]
    counted = sweep_thresholds(found.maps, found.masks, ignore=found.ignore)
    inside, outside = (-np.diff(np.append(counts, 0)) for counts in (counted.true, counted.false))
    bins = [
        (ours != foreign[:1001])
        for ours, foreign in ((inside, pixels.gt_true_score_hist), (outside, pixels.gt_false_score_hist))
    ]
    ours = counted.pixel_average_precision
    return [
        Compared("MaxBoxAcc", sweep.hits().mean(), alone.compute()[0] / 100, int(largest.sum()), 1000),
        Compared(
            "MaxBoxAccV2", sweep.hits_v2().mean(), np.mean(several.compute()) / 100, int(np.sum(each)), 3000
        ),
        Compared("PxAP", ours, theirs, int(np.sum(bins)) + (abs(ours - theirs) > 1e-12), 2002),
    ]


def against_quantus(found: Material) -> Iterator[Compared]:
    """Compare rank accuracy (and IoU with p/(2 − p)), mass accuracy, AUC and pointing game image by image."""
    import quantus

    shard = Shard(
        ids=found.ids,
        targets=np.zeros(len(found.ids), np.int64),
        arrays={"maps": found.maps},
        diagnostics={},
        provenance={},
    )
    ours = localise(found.maps, found.masks, selections=("top-k",))
    top = ours.iou["top-k"]
    metrics = {
        name: quantus_scores(getattr(quantus, name)(disable_warnings=True), shard, found.masks).scores
        for name in ("RelevanceRankAccuracy", "RelevanceMassAccuracy", "AUC", "PointingGame")
    }
    p, peaks = metrics["RelevanceRankAccuracy"], metrics["PointingGame"]
    tied, shared = top.tied > 0, (ours.pointing > 0) & (ours.pointing < 1)
    yield _by_image("rank accuracy", top.intersection / top.truth, p, tied, _TIES)
    yield _by_image("top-k IoU = p/(2 − p)", top.iou, p / (2 - p), tied, _TIES)
    yield _by_image("mass accuracy", ours.energy, metrics["RelevanceMassAccuracy"])
    yield _by_image("AUC", ours.sweep.auc, metrics["AUC"])
    yield _by_image("pointing game", ours.pointing, peaks, shared, _PEAKS)


_TIES = "pixels tie at the cut, where Quantus takes those that an unstable sort puts first"
_PEAKS = "several highest pixels, which here share the hit; Quantus counts one inside as a hit"


def _by_image(
    score: str, ours: Any, theirs: Any, explained: MaskArray | None = None, reason: str = ""
) -> Compared:
    """Compare the images that Quantus was asked for; `reason` explains what differs in those `explained`."""
    wrong = _differ(ours, theirs)
    known = explained is not None and not (wrong & ~explained).any()
    asked = np.isfinite(theirs)
    return Compared(
        score,
        _mean(ours[asked]),
        _mean(theirs),
        int(wrong.sum()),
        int(asked.sum()),
        reason if known and wrong.any() else "",
    )


def _differ(ours: Any, theirs: Any) -> MaskArray:
    """Return where numbers differ by more than float32 adds up to, and theirs is one."""
    return np.asarray(np.isfinite(theirs) & ~(np.abs(ours - theirs) <= 1e-5))


def _mean(values: Any) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def rendered(found: dict[str, tuple[int, list[Compared]]], job: Job) -> str:
    """Write the report in Markdown."""
    lines = ["# Are the scores what their names say?", "", *_INTRODUCTION.strip().splitlines(), ""]
    lines += [
        "| maps | images | score | lapbench | theirs | differing |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]
    for title, (n, compared) in found.items():
        for one in compared:
            differing = f"{one.differing:,} of {one.of:,}: {one.reason or '**not explained**'}"
            if not one.differing:
                differing = "·" if one.of else "not asked"
            numbers = (f"{number:.6f}" if one.of else "" for number in (one.ours, one.theirs))
            cells = (title, n, one.score, *numbers, differing)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("lapbench", "numpy", "quantus", "opencv-python-headless")
    )
    lines += [
        "",
        *_REMARKS.strip().splitlines(),
        "",
        "## How it was made",
        "",
        "    python benchmarks/correctness/scores.py WSOLEVALUATION",
        "",
        f"Maps of {job.benchmark.models[0].name} and of controls in `{job.benchmark.name}`, version "
        f"{job.benchmark.version}, "
        f"brought to {SIDE}×{SIDE}. {packages}; wsolevaluation at 96f4b88.",
        "",
    ]
    return "\n".join(lines)


_INTRODUCTION = """
The same maps, scored by lapbench and by the code of those who defined the scores: wsolevaluation's evaluators
(MaxBoxAcc, MaxBoxAccV2 and PxAP over exported maps, at 1,000 thresholds; `numpy.float` and `numpy.int`, which
NumPy no longer has, are put back while they run), and Quantus' metrics. Differing: for box accuracy the
thresholds at which the number of hit images is not the same (V2: three for each), for PxAP the bins of its
histograms and the area, for Quantus the images. A dot: none. In every second image a quarter is a region to
ignore, for PxAP. Quantus is not asked where it is known to be wrong (`lapbench.interop.quantus_scores`).
"""
_REMARKS = """
## What differs by definition, and is not in the table

- *What comes before a score.* wsolevaluation brings maps to the size of the image by OpenCV's bicubic
  interpolation, with height and width exchanged (which shows where they differ); lapbench by the explainer's
  declared rule. The table compares what follows.
- *Maps with NaN.* wsolevaluation sets such a map to 0 and counts a miss; here it is a failed map, which makes
  the row incomplete. Quantus is not asked.
- *Boxes a pixel too wide.* wsolevaluation reads the exclusive ends of boxes of contours as last pixels. With
  boxes of the truth whose ends are exclusive, too, a perfect map has an IoU of 1; with inclusive ends an
  object 10 pixels wide has 100/121. lapbench hands over exclusive ends.
- *Contours.* MaxBoxAcc takes the contour with the largest polygon through pixel centres, holes included; of
  equal ones the lowest in the image. MaxBoxAccV2 takes the box of a hole for a box, too. So does lapbench.
- *Mass accuracy* is the score `energy` here, of the positive part. Quantus divides by the sum of signed
  values, which is unbounded; it is asked for maps without negative values.
"""


def main() -> int:
    """Compare everything, write the report, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wsolevaluation", type=Path, help="a checkout of github.com/clovaai/wsolevaluation")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--images", type=int, default=24, help="of each row")
    given = parser.parse_args()
    evaluation = foreign_evaluation(given.wsolevaluation)
    job = Job(load_benchmark("quickstart"), Workspace(REPORT.parent, given.cache))
    found = {}
    for row in material(job, given.images):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the evaluators' own
            compared = [*against_wsolevaluation(evaluation, row), *against_quantus(row)]
        found[row.title] = len(row.ids), compared
        for one in compared:
            print(
                f"{row.title:22} {one.score:22} {one.ours:.6f} {one.theirs:.6f} {one.differing} {one.reason}",
                flush=True,
            )
    REPORT.write_text(rendered(found, job), encoding="utf-8")
    wrong = [one for _, compared in found.values() for one in compared if not one.right]
    print(f"{len(wrong)} scores differ for an unknown reason; {REPORT}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
