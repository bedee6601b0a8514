"""The page itself: the leaderboard as HTML, everything else as data for its script, all in one file."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from lapbench.report.leaderboard import (
    LEGEND,
    Board,
    boards,
    excuses,
    model_tables,
    power_sentence,
    render_csv,
    row_cells,
)
from lapbench.report.page.content import Gallery, Panel
from lapbench.report.results import Estimate, Leaderboard, Row

if TYPE_CHECKING:
    from jinja2 import Environment

SCRIPTS = ("state.js", "board.js", "curves.js", "viewer.js")
"""Parts of the page's one script, in the order in which they run."""
SHADES = 32
"""Colours of a palette that the page interpolates between."""
LABELS = {
    "iou": "IoU",
    "oracle_iou": "IoU at each image’s best threshold",
    "energy": "Energy inside",
    "auc": "Area under the ROC curve",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "pxap": "PxAP",
    "threshold_gap": "IoU lost to one threshold",
    "tolerant_pointing_game": "Pointing game with tolerance",
}
"""What scores are called whose names do not say it."""
DIGITS = 5
"""Significant digits of the numbers in the page's data; it shows three decimals."""


def render_page(leaderboard: Leaderboard, gallery: Gallery | None = None) -> str:
    """Return the page as HTML: the same content gives the same bytes.

    Without a gallery it has neither curves nor images. Text from outside is escaped, and no script but the
    page's own can run: a policy in the page names its digest.
    """
    style, script = text("page.css"), '"use strict";\n' + "\n".join(map(text, SCRIPTS))
    keys = {} if gallery is None else panel_keys(gallery.panels)
    found = boards(leaderboard)
    tables = [_table(board, keys) for board in found]
    template = templates().get_template("page.html.j2")
    return template.render(
        board=leaderboard,
        heading=leaderboard.title or leaderboard.benchmark,
        tables=tables,
        scores=_score_names(leaderboard.rows),
        models=leaderboard.models,
        model_tables=model_tables(leaderboard.models),
        legend=LEGEND,
        facts=_facts(leaderboard, found),
        provenance=_provenance(leaderboard.provenance),
        gallery=gallery,
        arrival=[] if gallery is None else _arrival(gallery, keys, _favourites(tables)),
        csv=_base64(render_csv(leaderboard).encode()),
        data=_json(_board_data(tables) | ({} if gallery is None else _gallery_data(gallery, keys))),
        style=style,
        script=script,
        style_digest=digest(style),
        script_digest=digest(script),
    )


def templates() -> "Environment":
    """Return where the pages' templates come from; what they are given is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lapbench.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(three=_three, base64=_base64)
    return environment


def panel_keys(panels: Iterable[Panel]) -> dict[tuple[str, str, str], str]:
    """Return for the (model, explainer, selection) of each panel the word that stands for it in an address.

    A top-k row leads to the panel of the same maps.
    """
    panels = list(panels)
    several = len({panel.row.model for panel in panels if not panel.row.control}) > 1
    keys: dict[tuple[str, str, str], str] = {}
    for panel in panels:
        row = panel.row
        parts = [row.model] * (several and not row.control) + [row.explainer]
        word = _slug(" ".join([*parts, *["own"] * (row.selection == "native")]))
        key, number = word, 2
        while key in keys.values():
            key, number = f"{word}-{number}", number + 1
        keys[row.model, row.explainer, row.selection] = key
        keys.setdefault((row.model, row.explainer, "top-k"), key)
    return keys


def _table(board: Board, keys: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    """Return one ranking for the template, its complete rows by mean."""
    rows = sorted(board.complete, key=lambda row: -(row.mean or 0.0))
    return {
        "title": board.title,
        "own": board.own_column,
        "grouped": board.power is not None,
        "remark": power_sentence(board),
        "n": board.n,
        "rows": [_line(row, board, keys) for row in rows],
        "excuses": list(excuses(board.incomplete)),
    }


def _line(row: Row, board: Board, keys: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    """Return one row for the template and for the script."""
    cells = dict(zip(board.columns, row_cells(row, board), strict=True))
    beside = board.randomised.get(row.key[:3])
    return {
        "panel": keys.get((row.model, row.explainer, row.selection), ""),
        "rank": row.rank,
        "group": row.group,
        "model": row.model,
        "explainer": cells["explainer"],
        "native": row.selection == "native",
        "own": cells[board.own_column],
        "own_value": row.tied_fraction if row.selection == "top-k" else row.threshold,
        "notes": "; ".join(note for note in cells["notes"].split("; ") if note != "control"),  # a tag says it
        "control": row.control or row.randomised,
        "scores": {name: _numbers(estimate) for name, estimate in _estimates(row)},
        "random": {name: e.mean for name, e in _estimates(beside)} if beside else {"iou": None},
    }


def _estimates(row: Row) -> Iterable[tuple[str, Estimate]]:
    """Give every score of a row by name, IoU first."""
    yield "iou", Estimate(mean=row.mean, ci_low=row.ci_low, ci_high=row.ci_high)
    if row.pointing_game is not None:
        yield "pointing_game", row.pointing_game
    if row.energy is not None:
        yield "energy", row.energy
    yield from row.measures.items()


def _score_names(rows: Iterable[Row]) -> dict[str, str]:
    """Return the label of every score that a row has."""
    names = dict.fromkeys(name for row in rows for name, _ in _estimates(row))
    return {name: LABELS.get(name, name.replace("_", " ").capitalize()) for name in names}


def _numbers(estimate: Estimate) -> list[float | None]:
    return [estimate.mean, estimate.ci_low, estimate.ci_high]


def _facts(leaderboard: Leaderboard, found: list[Board]) -> list[str]:
    """Return what a reader must know at a glance."""
    rows = [row for board in found for row in board.complete]
    contestants = {row.explainer for row in rows if not (row.control or row.randomised)}
    n = max((board.n for board in found), default=0)
    return [
        f"{n:,} images",
        f"{len(contestants)} explainers",
        f"{len(leaderboard.models)} network{'' if len(leaderboard.models) == 1 else 's'}",
        f"{leaderboard.benchmark}, version {leaderboard.benchmark_version}",
    ]


def _provenance(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what all rows share, one line a field."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in found.items()
        if value is not None
    ]


def _board_data(tables: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the script must know of the rankings; the text of their rows stands in the HTML."""
    return {
        "boards": [[[row["scores"], row["random"]] for row in table["rows"]] for table in tables],
        "favourites": _favourites(tables),
    }


def _favourites(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the rows that the page first compares: the best of the first ranking, and three further down.

    Each is of another explainer.
    """
    best: dict[str, str] = {}
    for table in tables:
        for row in table["rows"]:
            if row["panel"] and not row["control"]:
                best.setdefault(row["explainer"], row["panel"])
        if best:
            break
    panels = list(best.values())
    return list(dict.fromkeys(panels[quarter * len(panels) // 4] for quarter in range(4) if panels))


def _arrival(
    gallery: Gallery, keys: Mapping[tuple[str, str, str], str], favourites: Iterable[str]
) -> list[int]:
    """Return the order of the images' blocks: first come those that the page first shows, the most disputed.

    A large page is used long before it has arrived as a whole.
    """
    chosen = set(favourites)
    shown = [p.iou for p in gallery.panels if keys[p.row.model, p.row.explainer, p.row.selection] in chosen]
    scores = np.nan_to_num(np.array(shown or [np.zeros(len(gallery.pictures))]))
    return [int(i) for i in np.argsort(-np.ptp(scores, axis=0), kind="stable")]


def _gallery_data(gallery: Gallery, keys: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    """Return what the script must know of images and panels."""
    return {
        "size": gallery.size,
        "shown": gallery.shown,
        "grids": [grid.tolist() for grid in gallery.grids],
        "panels": [_panel_data(panel, keys) for panel in gallery.panels],
        "images": [
            {
                "id": picture.id,
                "label": picture.label,
                "truth": picture.truth,
                "boxes": [[round(v, 2) for v in (b.x0, b.y0, b.x1, b.y1)] for b in picture.boxes],
            }
            for picture in gallery.pictures
        ],
        "palettes": {"map": _palette("magma"), "signed": _palette("berlin")},
    }


def _panel_data(panel: Panel, keys: Mapping[tuple[str, str, str], str]) -> dict[str, Any]:
    row = panel.row
    return {
        "key": keys[row.model, row.explainer, row.selection],
        "name": row.explainer,
        "explainer": row.explainer,
        "model": row.model,
        "control": row.control,
        "maps": panel.maps,
        "grid": panel.grid.tolist(),
        "own": panel.own,
        "orientation": panel.orientation,
        "scale": None if panel.scale is None else _rounded(panel.scale),
        "curve": _rounded(panel.curve),
        "iou": _rounded(panel.iou),
        "topK": _rounded(panel.top_k),
        "signed": panel.signed,
        "native": row.selection == "native",
        "seed": panel.seed,
    }


def _rounded(values: Any) -> list[float | None]:
    """Return numbers as JSON may hold them, null for NaN."""
    return [None if math.isnan(v) else float(f"{v:.{DIGITS}g}") for v in np.asarray(values).tolist()]


def _palette(name: str) -> str:
    """Return the colours of a palette as hexadecimal digits, six a colour."""
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(0, 1, SHADES))[:, :3]
    return (colours * 255).round().astype(np.uint8).tobytes().hex()


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that may stand inside a script element, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _slug(text: str) -> str:
    """Return a text as a word of an address."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return "-".join(words) or "maps"


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def text(name: str) -> str:
    """Return a part of the page: a style or a script."""
    return files("lapbench.report.page").joinpath("templates", name).read_text(encoding="utf-8")


def digest(content: str) -> str:
    """Return the digest of a script or a style, as a content security policy names it."""
    return _base64(hashlib.sha256(content.encode()).digest())
