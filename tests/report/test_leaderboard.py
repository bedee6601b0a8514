# ruff: noqa: E501 - the lines of a Markdown table are as long as they are
import csv
import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lapbench.report import (
    Estimate,
    Leaderboard,
    ModelSummary,
    Row,
    rank,
    read_leaderboard,
    render_csv,
    render_markdown,
    render_terminal,
    write_report,
)
from lapbench.report.leaderboard import model_tables
from tests.report.examples import make_leaderboard, make_row

MARKDOWN = r"""
# Digits \| \<b\>pasted\</b\> (example, version 3)

## Models

| model | accuracy | balanced accuracy | chance | images | seeds | notes |
| :-- | --: | --: | --: | --: | --: | :-- |
| ws-lap | 0.970 | 0.960 | 0.500 | 1,000 | 0, 1 |  |
| vanilla | 0.900 | 0.550 | 0.500 | 1,000 | – | ⚠ near chance: its maps mean little |

## By thresholding

mean IoU over 200 images [95 % bootstrap interval].

| # | model | explainer | IoU \[interval\] | random net | threshold | pointing | energy | notes |
| --: | :-- | :-- | --: | --: | --: | --: | --: | :-- |
| 1 | ws-lap | LAP All | 0.520 \[0.500, 0.550\] | – | 0.500 own | 0.750 | 0.500 | fitted 0.431 |
| 3 | ws-lap | DeepLIFT | 0.260 \[0.240, 0.290\] | – | 0.412 | 0.750 | 0.500 | completeness error up to 3.4 % (bound 1 %) |
| 3 | ws-lap | Grad-CAM | 0.260 \[0.240, 0.290\] | 0.110 | 0.412 | 0.750 | 0.500 | 14 empty masks; 1 flat map; 2 seeds: 0.240 to 0.280 |
| 2 | vanilla | Guided Backprop | 0.310 \[0.290, 0.340\] | – | \< 0.412 | 0.750 | 0.500 | inverted; 199 images |
| – | no network | *Oracle* | 1.000 \[1.000, 1.000\] | – | 0.412 | 0.750 | 0.500 | control |
| – | no network | *Random* | 0.080 \[0.060, 0.110\] | – | 0.412 | 0.750 | 0.500 | control |

Not ranked:

- vanilla, threshold, Relevance-CAM: no rule for \`Hardswish\` (200 of 200 images without a score)

## By top-k selection

mean IoU over 200 images [95 % bootstrap interval].

| # | model | explainer | IoU \[interval\] | random net | ties | pointing | energy | notes |
| --: | :-- | :-- | --: | --: | --: | --: | --: | :-- |
| 1 | ws-lap | LAP All | 0.550 \[0.530, 0.580\] | – | 25.0 % | 0.750 | 0.500 |  |

IoU: predicted mask against truth.
"""

TERMINAL = """
Digits | <b>pasted</b> (example, version 3)

model    accuracy  balanced accuracy  chance  images  seeds  notes
────────────────────────────────────────────────────────────────────────────────────────────────
ws-lap      0.970              0.960   0.500   1,000   0, 1
vanilla     0.900              0.550   0.500   1,000      –  ⚠ near chance: its maps mean little

By thresholding: mean IoU over 200 images [95 % bootstrap interval]
#  explainer              IoU [interval]  random net  threshold  pointing  energy  notes
────────────────────────────────────────────────────────────────────────────────────────────────────
   ws-lap
1  LAP All          0.520 [0.500, 0.550]           –  0.500 own     0.750   0.500  fitted 0.431
3  DeepLIFT         0.260 [0.240, 0.290]           –      0.412     0.750   0.500  completeness
                                                                                   error up to 3.4 %
                                                                                   (bound 1 %)
3  Grad-CAM         0.260 [0.240, 0.290]       0.110      0.412     0.750   0.500  14 empty masks; 1
                                                                                   flat map; 2
                                                                                   seeds: 0.240 to
                                                                                   0.280

   vanilla
2  Guided Backprop  0.310 [0.290, 0.340]           –    < 0.412     0.750   0.500  inverted; 199
                                                                                   images

   no network
–  Oracle           1.000 [1.000, 1.000]           –      0.412     0.750   0.500  control
–  Random           0.080 [0.060, 0.110]           –      0.412     0.750   0.500  control
not ranked vanilla, threshold, Relevance-CAM: no rule for `Hardswish` (200 of 200 images without a
score)

By top-k selection: mean IoU over 200 images [95 % bootstrap interval]
#  explainer        IoU [interval]  random net    ties  pointing  energy  notes
───────────────────────────────────────────────────────────────────────────────
   ws-lap
1  LAP All    0.550 [0.530, 0.580]           –  25.0 %     0.750   0.500

IoU: predicted mask against truth.
"""


def in_terminal(leaderboard: Leaderboard, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(render_terminal(leaderboard))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def shortened(text: str) -> str:
    """Leave out all of the legend but its first sentence."""
    start, legend = text.strip().split("IoU: predicted")
    return f"\n{start}IoU: predicted{legend.split('.')[0]}.\n"


def test_the_markdown() -> None:
    assert shortened(render_markdown(make_leaderboard())) == MARKDOWN


def test_the_terminal() -> None:
    assert shortened(in_terminal(make_leaderboard(), 100)) == TERMINAL


def test_a_narrow_terminal_loses_columns_and_no_row() -> None:
    text = in_terminal(make_leaderboard(), 80)

    assert max(map(len, text.splitlines())) <= 80
    assert "pointing  energy" not in text
    assert "0.260 [0.240, 0.290]       0.110      0.412  14 empty masks;" in text


def test_terminal_and_markdown_say_the_same() -> None:
    words = "".join(in_terminal(make_leaderboard(), 300).split())

    lines = [line for line in render_markdown(make_leaderboard()).splitlines() if line[:2] in ("| ", "- ")]
    cells = [cell for line in lines if ":--" not in line for cell in line.strip("|- ").split(" | ")]
    assert len(cells) > 100
    for cell in cells:
        assert cell.replace("\\", "").strip("*").replace(" ", "") in words


def test_equal_means_share_a_rank() -> None:
    rows = rank([make_row(name, mean) for name, mean in (("a", 0.5), ("b", 0.4), ("c", 0.5), ("d", 0.3))])

    assert [(row.explainer, row.rank) for row in rows] == [("a", 1), ("c", 1), ("b", 3), ("d", 4)]


def test_own_and_fitted_thresholds_compete_and_top_k_apart() -> None:
    rows = rank(
        [
            make_row("LAP", 0.3, "top-k"),
            make_row("LAP", 0.4),
            make_row("LAP", 0.5, "native"),
            make_row("GC", 0.45),
        ]
    )

    assert [(r.explainer, r.selection, r.rank) for r in rows] == [
        ("LAP", "native", 1),
        ("GC", "threshold", 2),
        ("LAP", "threshold", 3),
        ("LAP", "top-k", 1),
    ]


row_lists = st.lists(
    st.builds(
        lambda explainer, selection, mean, lost, control, randomised, model: make_row(
            explainer,
            math.nan if lost else mean,
            selection,
            control=control,
            randomised=randomised,
            model=model,
        ),
        st.sampled_from("abcdefgh"),
        st.sampled_from(["threshold", "top-k", "native"]),
        st.floats(0, 1),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["m", "n"]),
    ),
    unique_by=lambda row: row.key,
    max_size=30,
)


@settings(max_examples=60)
@given(rows=row_lists, seed=st.randoms())
def test_what_a_ranking_must_be(rows: list[Row], seed: object) -> None:
    ranked = rank(rows)
    mixed = list(rows)
    seed.shuffle(mixed)  # type: ignore[attr-defined]

    assert rank(mixed) == ranked, "the order in which rows come does not matter"
    assert rank(ranked) == ranked, "ranking again changes nothing"
    assert sorted(row.key for row in ranked) == sorted(row.key for row in rows), "no row is lost"
    assert all(row.complete and not row.control and not row.randomised for row in ranked if row.rank)
    for is_top_k in (False, True):
        group = [row for row in ranked if (row.selection == "top-k") == is_top_k]
        contestants = [row for row in group if row.complete and not row.control and not row.randomised]
        for row in contestants:
            better = sum(other.mean > row.mean for other in contestants)  # type: ignore[operator]
            assert row.rank == 1 + better
        complete = [row.complete for row in group]
        assert complete == sorted(complete, reverse=True), "rows that are not complete come last"


def test_an_explainer_that_fails_on_the_trained_network_still_shows_its_control() -> None:
    rows = (
        make_row("Grad-CAM", math.nan, ci_low=None, ci_high=None, n=0, n_failed=200, reason="it raised"),
        make_row("Grad-CAM", 0.11, randomised=True),
    )
    text = render_markdown(Leaderboard(benchmark="x", benchmark_version=1, rows=rows))

    assert "| – | ws-lap | *Grad-CAM, random net* | 0.110" in text
    assert "- ws-lap, threshold, Grad-CAM: it raised (200 of 200 images without a score)" in text


def test_a_board_of_failures_has_no_table() -> None:
    row = make_row("Grad-CAM", math.nan, ci_low=None, ci_high=None, n=0, n_failed=1, reason="it raised")
    board = Leaderboard(benchmark="x", benchmark_version=1, rows=(row,))

    assert "no row is complete" in render_markdown(board)
    assert "| # |" not in render_markdown(board)
    assert "not ranked ws-lap, threshold, Grad-CAM: it raised (1 of 1 image without a score)" in in_terminal(
        board, 120
    )


def test_explainers_that_fail_alike_share_a_line() -> None:
    lost = {"ci_low": None, "ci_high": None, "n": 0, "n_failed": 200, "complete": False}
    rows = [make_row(name, math.nan, reason="no separation", **lost) for name in ("a", "b", "c")]
    rows.append(make_row("d", math.nan, reason="it raised", **lost))
    text = render_markdown(Leaderboard(benchmark="x", benchmark_version=1, rows=tuple(rows)))

    assert "- ws-lap, threshold, a, b, c: no separation (200 of 200 images without a score)\n" in text
    assert "- ws-lap, threshold, d: it raised (200 of 200 images without a score)\n" in text


def test_an_empty_board_is_no_error() -> None:
    board = Leaderboard(benchmark="x", benchmark_version=1)

    assert render_markdown(board).startswith("# x, version 1\n")
    assert render_csv(board) == ""
    assert "x, version 1" in in_terminal(board, 100)


def test_text_from_outside_cannot_act() -> None:
    evil = "=1+1|<img src=x onerror=alert(1)>[red]\x1b[2J\n# `x` \u202eabc"
    rows = (
        make_row(evil, 0.5),
        make_row("b", math.nan, n=0, ci_low=None, ci_high=None, reason=evil, complete=False),
    )
    board = Leaderboard(benchmark=evil, benchmark_version=1, title=evil, rows=rows)

    markdown = render_markdown(board)
    for line in markdown.splitlines():
        assert "<img" not in line.replace("\\<", "")
        assert line.replace("\\|", "").count("|") in (0, 10)
    terminal = in_terminal(board, 200)
    for text in (markdown, terminal, render_csv(board)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[red]" in terminal, "shown, not taken as mark-up"
    assert [line["explainer"][:2] for line in csv.DictReader(io.StringIO(render_csv(board)))] == ["'=", "b"]


def test_the_csv_holds_every_row_in_full() -> None:
    board = make_leaderboard()
    lines = list(csv.DictReader(io.StringIO(render_csv(board))))

    assert len(lines) == len(board.rows)
    for line, row in zip(lines, rank(board.rows), strict=True):
        assert (line["model"], line["explainer"], line["selection"]) == row.key[:3]
        assert line["mean"] == ("" if row.mean is None else repr(row.mean))
        assert line["rank"] == ("" if row.rank is None else str(row.rank))
        assert line["complete"] == str(row.complete).lower()
        assert line["pointing_game_ci_low"] == ("0.7" if row.complete else "")
        assert int(line["n_empty"]) == row.counts.n_empty


def test_the_csv_has_columns_for_every_further_score_that_any_row_has() -> None:
    board = make_leaderboard()
    first, *others = board.rows
    first = first.model_copy(update={"measures": {"auc": Estimate(mean=0.75, ci_low=0.7, ci_high=0.8)}})
    lines = list(csv.DictReader(io.StringIO(render_csv(board.model_copy(update={"rows": (first, *others)})))))
    cells = {(line["auc"], line["auc_ci_low"], line["auc_ci_high"]) for line in lines}
    assert cells == {("0.75", "0.7", "0.8"), ("", "", "")}


def test_a_report_is_the_same_every_time(tmp_path: object) -> None:
    for name in ("a", "b"):
        written = write_report(tmp_path / name, make_leaderboard())  # type: ignore[operator]
        assert read_leaderboard(tmp_path / name / "leaderboard.json") == written  # type: ignore[operator]
    for file in ("leaderboard.json", "leaderboard.md", "leaderboard.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()  # type: ignore[operator]
    assert [row.rank for row in written.rows] == [1, 3, 3, None, 2, None, None, None, 1]


def test_a_model_near_chance_is_one_that_hardly_beats_guessing() -> None:
    def summary(balanced: float | None, classes: int) -> ModelSummary:
        return ModelSummary(name="m", accuracy=0.99, balanced_accuracy=balanced, classes=classes, n=10)

    assert summary(0.59, 2).near_chance
    assert not summary(0.61, 2).near_chance
    assert summary(0.27, 10).near_chance
    assert not summary(0.29, 10).near_chance
    assert summary(None, 2).near_chance
    assert [summary(accuracy, 2).below_chance for accuracy in (0.0, 0.39, 0.41, 0.5, None)] == [
        True,
        True,
    ] + [False] * 3
    assert summary(0.05, 10).below_chance and not summary(0.09, 10).below_chance
    assert summary(0.55, 2).skill is not None
    assert abs((summary(0.55, 2).skill or 0) - 0.1) < 1e-12


@pytest.mark.parametrize(
    ("task", "measures"),
    [
        ("landmarks", ("normalised_error", "landmark_accuracy")),
        ("captions", ("word_accuracy", "caption_accuracy")),
    ],
)
def test_models_of_other_tasks_have_their_own_measures(task, measures):
    """No accuracy, and no level of chance that they could be near."""
    found = {name: Estimate(mean=0.25 + n / 8, ci_low=0.125, ci_high=0.5) for n, name in enumerate(measures)}
    asked = ModelSummary(name="net", task=task, measures=found, classes=10, n=30, seeds=(0, 1))
    unknown = ModelSummary(name="other", task=task, classes=10, n=30)
    ((title, columns, lines),) = model_tables([asked, unknown])
    assert title == "Models"
    assert columns == ("model", *(name.replace("_", " ") for name in measures), "images", "seeds", "notes")
    assert lines[0] == ["net", "0.250 [0.125, 0.500]", "0.375 [0.125, 0.500]", "30", "0, 1", ""]
    assert lines[1] == ["other", "–", "–", "30", "–", "not asked yet"]
    assert not asked.near_chance
    assert not unknown.near_chance
