"""Report folders on disk, as small as a gate can read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lapbench.report import ImageScores, Leaderboard, Row, write_image_scores, write_leaderboard

NETWORK = {"architecture": "resnet18", "plug": None, "weights": "a" * 64}
PROVENANCE = {
    "data": {"name": "digits", "version": 1, "digest": "d" * 64},
    "protocol": {"target": "present", "sign": "keep", "resamples": 9999},
    "limit": None,
}


def claims(**changes: Any) -> dict[str, Any]:
    """What a row says its maps are made of, with changes to the explainer or, by their names, the network."""
    network = NETWORK | {name: changes.pop(name) for name in tuple(changes) if name in NETWORK}
    maps = {
        "explainer": "grad_cam",
        "explainer_version": 1,
        "parameters": {"layer": None},
        "network": network,
    }
    return {"maps": [maps | changes], "upsample": {"mode": "bilinear", "align_corners": False}}


def write_results(
    folder: Path,
    tables: Mapping[str, npt.ArrayLike],
    *,
    ids: Mapping[str, tuple[str, ...]] | None = None,
    claimed: Mapping[str, dict[str, Any]] | None = None,
    failed: Mapping[str, str] | None = None,
    **board: Any,
) -> Path:
    """Write a report folder with a row for each table, (images,) or (seeds, images); return the folder.

    ids: of the images of a row. claimed: its provenance. failed: rows that have a reason instead of numbers.
    """
    common = {"benchmark": "example", "benchmark_version": 1, "provenance": PROVENANCE} | board
    rows = []
    for name, values in tables.items():
        table = np.atleast_2d(np.asarray(values, dtype=np.float64))
        scores = ImageScores(
            benchmark=common["benchmark"],
            benchmark_version=common["benchmark_version"],
            model="net",
            explainer=name,
            selection="threshold",
            seeds=tuple(range(len(table))),
            ids=(ids or {}).get(name) or tuple(f"image-{i}" for i in range(table.shape[1])),
            scores={"iou": tuple(map(tuple, table.tolist()))},
        )
        rows.append(
            Row(
                model="net", explainer=name, selection="threshold", mean=float(table.mean()),
                n=table.shape[1], complete=True, provenance=(claimed or {}).get(name) or claims(),
                image_scores=write_image_scores(folder, scores),
            )
        )  # fmt: skip
    for name, reason in (failed or {}).items():
        rows.append(Row(model="net", explainer=name, selection="threshold", complete=False, reason=reason))
    write_leaderboard(folder / "leaderboard.json", Leaderboard(rows=tuple(rows), **common))
    return folder
