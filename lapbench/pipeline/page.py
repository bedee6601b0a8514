"""The page of a benchmark: its images and maps, collected from the store, brought into one HTML file."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from lapbench.data.boxes import rasterise
from lapbench.errors import StoreError
from lapbench.pipeline.job import Block, Job, RowSource
from lapbench.pipeline.rows import ScoredRow, read_row
from lapbench.pipeline.samples import stack_ignored
from lapbench.report.page import (
    Gallery,
    Panel,
    Picture,
    pack,
    render_page,
    shrink,
    threshold_grid,
    to_levels,
)
from lapbench.report.results import Leaderboard, write_file
from lapbench.score import iou_top_k, normalise, upsample
from lapbench.score.pixels import images
from lapbench.score.sweep import iou_at
from lapbench.types import FloatArray, MaskArray, Sample

PAGE = "index.html"
BUDGET = 50_000_000
"""Bytes of a page's images and maps: it opens at once, and hosts of static pages take it."""
SIDES = (256, 192, 128, 96, 64, 48, 32)
"""Pixels of the longer side of a map on the page, where those of the image do not fit the budget."""
TRIED = 16
"""Images that grids of thresholds are drawn from, and the size of a page is estimated from."""
QUALITY = 85
"""Of the images on the page, as JPEG counts."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shown:
    """One explainer on the first training of a model, and the rows that its maps have.

    rows: by a fitted threshold, by its own, or by top-k where it has neither. grids: of thresholds, one a
    row. levels_grid: of the normalised maps, as the page holds them. orientation: of the fitted threshold.
    tried: the raw maps of a few images.
    """

    source: RowSource
    rows: tuple[ScoredRow, ...]
    grids: tuple[Numbers, ...]
    levels_grid: Numbers
    orientation: Literal[1, -1]
    tried: FloatArray


@dataclass(frozen=True, eq=False)
class Part:
    """What the page needs of n maps of one explainer.

    levels: (n, h, w) uint8, at the size that the page shows. tables: the IoU at every threshold, (n, k), one
    table a row. top_k: (n,). scale: (n,), what normalised maps must be multiplied by to be raw ones.
    """

    levels: npt.NDArray[np.uint8]
    tables: tuple[Numbers, ...]
    top_k: Numbers
    scale: Numbers


def write_page(job: Job, leaderboard: Leaderboard) -> Path:
    """Write the page of a leaderboard, with the images and maps that are in the store; return its path."""
    path = job.workspace.out / PAGE
    write_file(path, render_page(leaderboard, collect(job)).encode())
    return path


def collect(job: Job) -> Gallery | None:
    """Collect images and maps for the page; None where no row has maps.

    Networks with random weights are left out. Where even small maps of all images do not fit the budget, the
    page shows every second image, or every third, and so on; curves are over all of them.
    """
    everything = [_shown(job, row, scored) for row, scored in _with_maps(job)]
    if not everything:
        return None
    size, step = _fit(job, everything)
    pictures, parts = _read(job, everything, size, step)
    blocks = job.blocks("score")
    ids = [job.dataset[block.split].ids[i] for block in blocks for i in block.indices]
    panels = [
        panel
        for number, shown in enumerate(everything)
        for panel in _panels(job, shown, number, [found[number] for found in parts], ids, step)
    ]
    height, width = job.benchmark.data.image_size
    grids = tuple(shown.levels_grid for shown in everything)
    return Gallery((height, width), size, grids, tuple(panels), tuple(pictures), len(ids))


def _read(
    job: Job, everything: Sequence[Shown], size: tuple[int, int], step: int
) -> tuple[list[Picture], list[list[Part]]]:
    """Read all maps, block by block; return every step-th image, and the parts by block and explainer."""
    pictures: list[Picture] = []
    parts: list[list[Part]] = []
    blocks, before = job.blocks("score"), 0
    for number, block in enumerate(blocks):
        job.workspace.progress(number, len(blocks), "page")
        samples = [job.dataset[block.split][i] for i in block.indices]
        found = [_part(job, shown, _maps(job, shown.source, block), samples, size) for shown in everything]
        pictures += _pictures(job, samples, found, range(-before % step, len(samples), step))
        parts.append(found)
        before += len(samples)
    job.workspace.progress(len(blocks), len(blocks), "page")
    return pictures, parts


def _tried(job: Job) -> slice:
    """Which images of the first block grids and sizes are estimated from: a few, spread over it."""
    return slice(None, None, -(-len(job.blocks("score")[0].indices) // TRIED))


def _with_maps(job: Job) -> list[tuple[RowSource, tuple[ScoredRow, ...]]]:
    """Return what is scored on trained networks and whose maps are still there, each with its rows."""
    found = [(row, _scored(job, row)) for row in job.rows() if not row.randomised]
    there, gone = list[tuple[RowSource, tuple[ScoredRow, ...]]](), list[str]()
    for row, scored in found:
        paths = [job.store.path(*job.map_key(row.sources[0], block)) for block in job.blocks("score")]
        if scored and all(path.is_file() for path in paths):
            there.append((row, scored))
        elif scored:
            gone.append(row.explainer.row)
    if gone:
        job.workspace.notify(
            f"the page shows no maps of {', '.join(gone)}: they have gone from the cache; to make them "
            f"again, remove {job.workspace.cache / 'rows'}"
        )
    return there


def _scored(job: Job, row: RowSource) -> tuple[ScoredRow, ...]:
    """Return the rows of an explainer that the page has a panel for: top-k only where there is no other."""
    rows = [scored for scored in read_row(job, row) or () if scored.images is not None]
    by_threshold = [scored for scored in rows if scored.row.selection != "top-k"]
    return tuple(by_threshold or rows)


def _maps(job: Job, row: RowSource, block: Block) -> FloatArray:
    """Read the raw maps of a row's first training. Errors: StoreError where they have gone meanwhile."""
    shard = job.store.read(*job.map_key(row.sources[0], block))
    if shard is None:
        raise StoreError(f"maps of {row.sources[0].text} have gone from {job.store.root}: run again")
    return shard.maps


def _shown(job: Job, row: RowSource, rows: tuple[ScoredRow, ...]) -> Shown:
    """Choose the thresholds that the page offers for a row, from a few of its maps."""
    maps = _maps(job, row, job.blocks("score")[0])[_tried(job)]
    normal, raw = _brought_to_size(job, row, maps)
    fits: Any = rows[0].row.provenance["fits"]  # one a training, the same in every row
    fitted = next((s.row.seeds[0].threshold for s in rows if s.row.selection == "threshold"), None)
    levels_grid = threshold_grid(normal, fitted)
    grids = [
        threshold_grid(raw, scored.row.threshold) if scored.row.selection == "native" else levels_grid
        for scored in rows
    ]
    return Shown(row, rows, tuple(grids), levels_grid, fits[0]["orientation"], maps)


def _brought_to_size(job: Job, row: RowSource, maps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return maps as thresholds are fitted on them, and as the explainer's own threshold takes them."""
    protocol, spec, size = job.benchmark.protocol, row.sources[0].spec, job.benchmark.data.image_size
    normal = normalise(maps, size, mode=spec.upsample, sign=protocol.sign, order=protocol.order)
    return normal, normal if spec.native_threshold is None else upsample(maps, size, spec.upsample)


def _part(job: Job, shown: Shown, maps: FloatArray, samples: Sequence[Sample], size: tuple[int, int]) -> Part:
    """Quantise maps at a size, and score them as they are at every threshold of the page."""
    normal, raw = _brought_to_size(job, shown.source, maps)
    masks = np.stack([sample.mask for sample in samples])
    ignored = stack_ignored([sample.ignore for sample in samples])
    tables = [
        _table(raw, masks, grid, 1, ignored)
        if scored.row.selection == "native"
        else _table(normal, masks, grid, shown.orientation, ignored)
        for scored, grid in zip(shown.rows, shown.grids, strict=True)
    ]
    peak, top = raw.max(axis=(1, 2)), normal.max(axis=(1, 2))
    scale = np.divide(peak, top, out=np.ones(len(maps)), where=(top > 0) & np.isfinite(peak))
    levels = to_levels(shrink(normal, size), shown.levels_grid, shown.orientation)
    return Part(levels, tuple(tables), iou_top_k(normal, masks, ignore=ignored).iou, scale)


def _table(
    maps: FloatArray,
    masks: MaskArray,
    grid: Numbers,
    orientation: Literal[1, -1],
    ignored: MaskArray | None = None,
) -> Numbers:
    """Return the IoU of maps at every threshold, (n, k); NaN where a map fails or has no truth."""
    found = np.full((len(maps), len(grid)), np.nan)
    for line, pixels in zip(found, images(maps, masks, ignored), strict=True):
        if pixels.scorable:
            line[:] = iou_at(pixels.ranked, grid, orientation)
    return found


def _fit(job: Job, everything: Sequence[Shown]) -> tuple[tuple[int, int], int]:
    """Return the size of the maps on the page, and which images it shows: every how many-th."""
    block, tried = job.blocks("score")[0], _tried(job)
    samples = [job.dataset[block.split][i] for i in block.indices[tried]]
    n = sum(len(block.indices) for block in job.blocks("score"))
    height, width = job.benchmark.data.image_size
    longer = max(height, width)
    for side in (longer, *(side for side in SIDES if side < longer)):
        size = (max(1, height * side // longer), max(1, width * side // longer))
        parts = [_part(job, shown, shown.tried, samples, size) for shown in everything]
        pictures = _pictures(job, samples, parts, range(len(samples)))
        needed = sum(len(p.block) + len(p.image) * 4 / 3 for p in pictures) * n / len(samples)
        if needed <= BUDGET:
            return size, 1
    return size, math.ceil(needed / BUDGET)


def _pictures(
    job: Job, samples: Sequence[Sample], parts: Sequence[Part], chosen: Sequence[int]
) -> list[Picture]:
    """Return the chosen images of a block with all that the viewer shows of them."""
    size = (parts[0].levels.shape[1], parts[0].levels.shape[2])
    masks = shrink(np.stack([sample.mask for sample in samples]).astype(np.uint8), size)
    pictures = []
    for i in chosen:
        sample = samples[i]
        height, width = sample.mask.shape
        by_boxes = bool((rasterise(sample.boxes, height, width) == sample.mask).all())
        tables = [table[i] for part in parts for table in part.tables]
        pictures.append(
            Picture(
                id=sample.id,
                label=job.dataset.classes[sample.label],
                boxes=sample.boxes if by_boxes else (),
                truth=int(sample.mask.sum()),
                image=_jpeg(sample.image),
                block=pack(masks[i], [part.levels[i] for part in parts], tables),
            )
        )
    return pictures


def _panels(
    job: Job, shown: Shown, maps: int, parts: Sequence[Part], ids: Sequence[str], step: int
) -> Iterator[Panel]:
    """Give the panel of every row of an explainer; images that do not count for a row have no score in it."""
    top_k = np.concatenate([part.top_k for part in parts])
    scale = np.concatenate([part.scale for part in parts])
    signed = shown.source.sources[0].spec.signed and job.benchmark.protocol.sign == "keep"
    for place, (scored, grid) in enumerate(zip(shown.rows, shown.grids, strict=True)):
        row, native = scored.row, scored.row.selection == "native"
        counted = np.isin(ids, scored.images.ids if scored.images else ())
        table = np.concatenate([part.tables[place] for part in parts])
        counting = table[counted & np.isfinite(table[:, 0])]
        threshold = row.threshold if native else row.seeds[0].threshold
        own = None if row.selection == "top-k" or threshold is None else int(np.searchsorted(grid, threshold))
        iou = np.full(len(ids), np.nan) if own is None else np.where(counted, table[:, own], np.nan)
        yield Panel(
            row=row,
            maps=maps,
            grid=grid,
            own=own,
            orientation=1 if native else shown.orientation,
            scale=scale[::step] if native else None,
            curve=counting.mean(axis=0) if len(counting) else np.full(len(grid), np.nan),
            iou=iou[::step],
            top_k=np.where(counted, top_k, np.nan)[::step],
            signed=signed,
            seed=row.seeds[0].seed if len(row.seeds) > 1 else None,
        )


def _jpeg(image: FloatArray) -> bytes:
    """Return an image (C, H, W) in [0, 1] as a JPEG file."""
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)).save(
        file, "JPEG", quality=QUALITY, optimize=True
    )
    return file.getvalue()
