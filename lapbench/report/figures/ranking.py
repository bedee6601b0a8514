"""Rankings as dots with their intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lapbench.report.figures.canvas import figure_at
from lapbench.report.leaderboard import Board, boards
from lapbench.report.results import Leaderboard, Row

RANKING_DPI = 160
MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
MODEL_LINES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (2, 0.8)), (0, (0.6, 0.6)))


def draw_ranking(path: Path, leaderboard: Leaderboard) -> None:
    """Draw both rankings as dots with their intervals, one lane an explainer, one colour or dash a model.

    Controls are vertical lines (the oracle, always 1, is left out); hollow dots are the same explainers on
    networks with random weights. Errors: ValueError for a leaderboard without a ranked row.
    """
    panels = [board for board in boards(leaderboard) if _contestants(board)]
    if not panels:
        raise ValueError("there is no ranked row to draw")
    names = _explainers_by_mean(panels)
    models = list(dict.fromkeys(row.model for board in panels for row in _contestants(board)))
    ends = [max(_mean(row), row.ci_high or 0) for board in panels for row in _contestants(board)]
    furthest = 1.04 * max(ends) or 1.0
    with figure_at(path, RANKING_DPI) as figure:
        left, panel, gap = 0.15 + 0.058 * max(map(len, names)), 2.9, 0.2
        lanes = len(names) * (0.12 + 0.09 * len(models))
        top = 0.4 + 0.12 * max(len(_yardsticks(board, furthest)) for board in panels)
        wide = left + len(panels) * (panel + gap)
        bottom = 0.4 + _draw_key(figure, _ranking_key(models, panels), wide)  # ticks, their name, and the key
        tall = top + lanes + bottom
        figure.set_size_inches(wide, tall)
        axes = [
            figure.add_axes(((left + k * (panel + gap)) / wide, bottom / tall, panel / wide, lanes / tall))
            for k in range(len(panels))
        ]
        for axis, board in zip(axes, panels, strict=True):
            axis.set_xlim(0, furthest)
            axis.locator_params(axis="x", nbins=6)
            _draw_board(axis, board, names, models)
            axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
            axis.set_ylim(len(names) - 0.5, -0.5)
        title = leaderboard.title or leaderboard.benchmark
        figure.text(0.1 / wide, 1 - 0.1 / tall, title, fontsize=9, fontweight="bold", va="top")


def _contestants(board: Board) -> list[Row]:
    """Return the rows that have a rank."""
    return [row for row in board.complete if row.rank is not None]


def _mean(row: Row) -> float:
    """Return the mean of a complete row, which has one."""
    assert row.mean is not None
    return row.mean


def _explainers_by_mean(panels: Sequence[Board]) -> list[str]:
    """Return the contestants' names, the one with the best mean first."""
    best: dict[str, float] = {}
    for row in (row for board in panels for row in _contestants(board)):
        best[row.explainer] = max(best.get(row.explainer, -1.0), _mean(row))
    return sorted(best, key=lambda name: (-best[name], name))


def _draw_board(axis: Axes, board: Board, names: Sequence[str], models: Sequence[str]) -> None:
    """Draw one ranking: a lane per explainer, in it a line per model, and one more for its own threshold."""
    rows = _contestants(board)
    both = {row.key[:2] for row in rows if row.selection == "native"}
    both &= {row.key[:2] for row in rows if row.selection == "threshold"}
    step = 0.8 / len(models)
    for row in rows:
        place = models.index(row.model)
        height = names.index(row.explainer) + step * (place - (len(models) - 1) / 2)
        if row.key[:2] in both:
            height += step * (-0.22 if row.selection == "native" else 0.22)
        beside = board.randomised.get(row.key[:3])
        if beside:
            axis.plot(
                _mean(beside),
                height,
                "o",
                mfc="white",
                mec="#999999",
                mew=0.6,
                ms=2.6,
                zorder=2,
                clip_on=False,
            )
        _draw_dot(axis, row, height, _line_of(place))
    for lane in range(0, len(names), 2):
        axis.axhspan(lane - 0.5, lane + 0.5, color="#f2f2f2", zorder=0, lw=0)
    _draw_yardsticks(axis, board)
    axis.set_xlabel(f"IoU, {board.title[0].lower()}{board.title[1:]}")
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _line_of(place: int) -> dict[str, Any]:
    """Return the line of a model: in a colour of its own, and dashed where colours have run out."""
    turn, colour = divmod(place, len(MODEL_COLOURS))
    return {"color": MODEL_COLOURS[colour], "ls": MODEL_LINES[turn % len(MODEL_LINES)], "lw": 1.2}


def _draw_dot(axis: Axes, row: Row, height: float, line: dict[str, Any]) -> None:
    """Draw a mean and its interval: a square where the map's own threshold was used."""
    if row.ci_low is not None and row.ci_high is not None:
        ends = [row.ci_low, row.ci_high]
        axis.plot(ends, [height, height], **line, solid_capstyle="butt", dash_capstyle="butt", zorder=3)
    axis.plot(
        _mean(row),
        height,
        "s" if row.selection == "native" else "o",
        color=line["color"],
        ms=3.4,
        zorder=4,
        clip_on=False,
    )


def _yardsticks(board: Board, furthest: float) -> list[tuple[float, str]]:
    """Return each control that lies inside the picture, with its mean over the models; the highest first."""
    means: dict[str, list[float]] = {}
    for row in board.complete:
        if row.control and row.mean is not None and row.mean < furthest:
            means.setdefault(row.explainer, []).append(row.mean)
    return sorted(((sum(values) / len(values), name) for name, values in means.items()), reverse=True)


def _draw_yardsticks(axis: Axes, board: Board) -> None:
    """Draw each control as a line at its mean."""
    points = 72 * axis.bbox.height / axis.figure.dpi
    for steps, (mean, name) in enumerate(_yardsticks(board, axis.get_xlim()[1])):
        top = 1 + (2 + 8 * steps) / points  # labels of lines that are close stand above each other
        line = axis.axvline(mean, 0, top, color="#555555", lw=0.7, ls=(0, (3, 2)), zorder=1, clip_on=False)
        side = "right" if mean > 0.8 * axis.get_xlim()[1] else "left"  # of the label, that ends at the line
        axis.text(
            mean,
            top,
            f" {name} ",
            fontsize=6,
            ha=side,
            va="center",
            color="#444444",
            transform=line.get_transform(),
        )


def _draw_key(figure: Figure, key: Sequence[Line2D], wide: float) -> float:
    """Draw the key at the foot, in the most columns that a figure of this width holds; return its height."""
    figure.set_size_inches(wide, 1)
    for columns in range(min(6, len(key)), 0, -1):
        legend = figure.legend(
            handles=key, loc="lower center", ncols=columns, frameon=False, borderaxespad=0.4
        )
        extent = legend.get_window_extent()
        if extent.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    return extent.height / figure.dpi


def _ranking_key(models: Sequence[str], panels: Sequence[Board]) -> list[Line2D]:
    selections = {row.selection for board in panels for row in _contestants(board)}
    key = [
        Line2D([], [], **_line_of(place), marker="o", ms=3.4, label=model, dash_capstyle="butt")
        for place, model in enumerate(models)
    ]
    if "native" in selections:
        key.append(Line2D([], [], color="#444444", marker="s", ms=3.4, lw=0, label="own threshold"))
    if any(board.randomised for board in panels):
        key.append(
            Line2D([], [], mfc="white", mec="#999999", mew=0.6, marker="o", ms=2.6, lw=0, label="random net")
        )
    if any(row.control for board in panels for row in board.complete):
        key.append(Line2D([], [], color="#555555", lw=0.7, ls=(0, (3, 2)), label="control"))
    return key
