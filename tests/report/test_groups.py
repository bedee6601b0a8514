import csv
import io
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lapbench.report import (
    ImageScores,
    Leaderboard,
    Row,
    read_leaderboard,
    render_csv,
    render_markdown,
    write_report,
)
from lapbench.report.comparison import compare
from lapbench.report.groups import group_numbers, told_apart
from lapbench.report.leaderboard import boards, power_sentence
from tests.report.examples import make_row
from tests.report.test_leaderboard import in_terminal

rng = np.random.default_rng(77)

MARKDOWN = r"""
| # | group | model | explainer | IoU \[interval\] | random net | threshold | pointing | energy | notes |
| --: | --: | :-- | :-- | --: | --: | --: | --: | --: | :-- |
| 1 | 1 | ws-lap | best | 0.600 \[0.580, 0.630\] | – | 0.412 | 0.750 | 0.500 |  |
| 2 | 1 | ws-lap | close | 0.595 \[0.575, 0.625\] | – | 0.412 | 0.750 | 0.500 |  |
| 3 | 2 | ws-lap | far | 0.400 \[0.380, 0.430\] | – | 0.412 | 0.750 | 0.500 |  |
| – | – | ws-lap | *Random* | 0.100 \[0.080, 0.130\] | – | 0.412 | 0.750 | 0.500 | control |

Told apart: 2 of 3 pairs of ranked rows. A true difference of 0.018 is found with a probability of 80 %.
"""

TERMINAL = """
#  group  explainer        IoU [interval]  random net  threshold  pointing  energy  notes
───────────────────────────────────────────────────────────────────────────────────────────
          ws-lap
1      1  best       0.600 [0.580, 0.630]           –      0.412     0.750   0.500
2      1  close      0.595 [0.575, 0.625]           –      0.412     0.750   0.500
3      2  far        0.400 [0.380, 0.430]           –      0.412     0.750   0.500
–      –  Random     0.100 [0.080, 0.130]           –      0.412     0.750   0.500  control
Told apart: 2 of 3 pairs of ranked rows. A true difference of 0.018 is found with a probability of
80 %.
"""


def images_of(row: Row, table: np.ndarray, ids: Any = None) -> ImageScores:
    return ImageScores(
        benchmark="x", benchmark_version=1, model=row.model, explainer=row.explainer, selection=row.selection,
        randomised=row.randomised, seeds=tuple(range(len(table))),
        ids=tuple(ids or (f"image {k}" for k in range(table.shape[1]))),
        scores={"iou": tuple(map(tuple, table.tolist()))},
    )  # fmt: skip


def board_of(*named: tuple[str, float, Any], **fields: Any) -> tuple[Leaderboard, dict[Any, ImageScores]]:
    """A leaderboard of rows with given means, and scores by image that have them."""
    rows, images = [], {}
    for name, mean, table in named:
        row = make_row(name, mean, control=name == "Random", **fields)
        rows.append(row)
        images[row.key] = images_of(row, np.atleast_2d(table - table.mean() + mean))
    return Leaderboard(benchmark="x", benchmark_version=1, rows=tuple(rows)), images


def noise(count: int = 1, n: int = 200) -> np.ndarray:
    """Of standard deviation 0.06 in every row, so that differences have 0.085."""
    own = np.random.default_rng(5)
    drawn = own.normal(0, 1, (count, n))
    drawn -= drawn.mean(axis=1, keepdims=True)
    return np.linalg.qr(drawn.T)[0].T * 0.06 * (n - 1) ** 0.5


def example() -> tuple[Leaderboard, dict[Any, ImageScores]]:
    hard = rng.normal(0, 0.2, 200)
    a, b, c, d = noise(4)
    return board_of(
        ("best", 0.6, hard + a), ("close", 0.595, hard + b), ("far", 0.4, hard + c), ("Random", 0.1, d)
    )


def test_groups_stand_in_every_form_of_the_board(tmp_path: Path) -> None:
    board, images = example()
    written = write_report(tmp_path, board, images)

    assert MARKDOWN.strip() in (tmp_path / "leaderboard.md").read_text()
    assert TERMINAL.strip() in in_terminal(written, 100)
    assert [row.group for row in read_leaderboard(tmp_path / "leaderboard.json").rows] == [1, 1, 2, None]
    lines = csv.DictReader(io.StringIO(render_csv(written)))
    assert [line["group"] for line in lines] == ["1", "1", "2", ""]
    power = written.power["thresholding"]
    assert (power.pairs, power.told_apart) == (3, 2)
    level = 0.05 * 2 / 3
    error = 0.06 * 2**0.5 / 200**0.5
    wanted = error * (stats.t.ppf(1 - level / 2, 199) + stats.t.ppf(0.8, 199))
    assert power.detectable_effect == pytest.approx(wanted, abs=1e-5)


def test_groups_are_the_same_every_time(tmp_path: Path) -> None:
    board, images = example()
    for name in ("a", "b"):
        written = write_report(tmp_path / name, board, images)
    again = write_report(tmp_path / "c", written, images)

    assert again == written, "grouping again changes nothing"
    found = {(tmp_path / name / "leaderboard.json").read_bytes() for name in "abc"}
    assert len(found) == 1


def test_without_scores_by_image_nothing_is_said_about_groups() -> None:
    board, images = example()
    plain = write_report_of(board, {})
    first = write_report_of(board, {key: one for key, one in images.items() if key[1] != "close"})

    assert not plain.power
    assert "group |" not in render_markdown(plain)
    assert [row.group for row in first.rows] == [1, None, 2, None]
    assert first.power["thresholding"].pairs == 1


def write_report_of(board: Leaderboard, images: dict[Any, ImageScores]) -> Leaderboard:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return write_report(Path(folder), board, images)


def test_a_pooled_mean_is_not_that_of_the_images_and_has_no_group() -> None:
    board, images = example()
    pooled = board.model_copy(
        update={"rows": tuple(row.model_copy(update={"mean": (row.mean or 0) - 0.01}) for row in board.rows)}
    )
    assert not write_report_of(pooled, images).power


def test_rankings_are_grouped_apart() -> None:
    hard = rng.normal(0, 0.2, 200)
    a, b = noise(2)
    first, images = board_of(("best", 0.6, hard + a), ("far", 0.4, hard + b))
    second, others = board_of(("best", 0.7, hard + a), ("far", 0.2, hard + b), selection="top-k")
    board = first.model_copy(update={"rows": first.rows + second.rows})
    found = write_report_of(board, images | others)

    assert [row.group for row in found.rows] == [1, 2, 1, 2]
    assert list(found.power) == ["thresholding", "top-k"]


def test_rows_are_paired_by_the_ids_of_their_images() -> None:
    hard = rng.normal(0.5, 0.2, 60)
    ids = [f"image {k}" for k in range(60)]
    rows = make_row("a", hard.mean()), make_row("b", hard[10:].mean() - 0.02)
    images = {
        rows[0].key: images_of(rows[0], hard[None], ids),
        rows[1].key: images_of(rows[1], hard[None, :9:-1] - 0.02 + 0.01 * noise(1, 50), ids[:9:-1]),
    }
    found = write_report_of(Leaderboard(benchmark="x", benchmark_version=1, rows=rows), images)

    assert [row.group for row in found.rows] == [1, 2], "unpaired, the difference would drown"


def test_rows_without_a_common_image_cannot_be_told_apart() -> None:
    tables = [np.full((1, 4), np.nan), np.full((1, 4), np.nan)]
    tables[0][:, :2], tables[1][:, 2:] = 0.9, 0.1
    apart, power = told_apart(tables, 0.05)

    assert apart == set()
    assert power.detectable_effect is None
    board, _ = example()
    shown = boards(board.model_copy(update={"power": {"thresholding": power}}))[0]
    assert power_sentence(shown) == "Told apart: 0 of 1 pair of ranked rows."


def test_too_few_trainings_say_so() -> None:
    tables = [rng.random((2, 30)) + rng.normal(0, 0.1, (2, 1)) for _ in range(10)]
    apart, power = told_apart(tables, 0.05)
    board, _ = example()
    shown = boards(board.model_copy(update={"power": {"thresholding": power}}))[0]

    assert not apart
    assert power_sentence(shown) == (
        "Told apart: 0 of 45 pairs of ranked rows. "
        "Too few images or trainings to be sure of finding any difference."
    )


def test_pairs_are_told_apart_as_one_by_one() -> None:
    """By scipy's paired t-test, and by hand from the smallest p-value up."""
    hard = rng.normal(0, 0.2, 50)
    tables = [hard[None] + rng.normal(0.01 * k, 0.1, (1, 50)) for k in range(8)]
    pairs = [(i, j) for i in range(8) for j in range(i + 1, 8)]
    p_values = {pair: stats.ttest_rel(tables[pair[0]][0], tables[pair[1]][0]).pvalue for pair in pairs}
    ordered = sorted(pairs, key=p_values.__getitem__)
    most = max((k for k, pair in enumerate(ordered, 1) if p_values[pair] <= 0.05 * k / 28), default=0)

    apart, power = told_apart(tables, 0.05)
    assert apart == set(ordered[:most])
    assert 0 < most < 28
    level = 0.05 * most / 28
    t = stats.t.ppf([1 - level / 2, 0.8], 49).sum()
    errors = [stats.sem(tables[i][0] - tables[j][0]) for i, j in pairs]
    assert power.detectable_effect == pytest.approx(t * median(errors), abs=1e-8)


@pytest.mark.parametrize("shapes", [(3, 3), (3, 2), (2, 1)])
def test_several_trainings_are_tested_as_in_a_comparison(shapes: tuple[int, int]) -> None:
    tables = [rng.random((s, 40)) + rng.normal(0, 0.05, (s, 1)) for s in shapes]
    p = compare(*tables, resamples=9).p_value

    assert told_apart(tables, p + 1e-6)[0] == {(0, 1)}
    assert told_apart(tables, p - 1e-6)[0] == set()


def test_the_numbers_of_groups() -> None:
    assert group_numbers(0, set()) == []
    assert group_numbers(3, set()) == [1, 1, 1]
    assert group_numbers(3, {(0, 1), (0, 2), (1, 2)}) == [1, 2, 3]
    assert group_numbers(4, {(0, 2), (0, 3), (1, 3)}) == [1, 1, 2, 2]
    # a noisy row lower down may still be as good as the best
    assert group_numbers(4, {(0, 1), (0, 2), (1, 2)}) == [1, 2, 3, 1]
    for _ in range(50):
        apart = {(i, j) for i in range(9) for j in range(i + 1, 9) if rng.random() < 0.6}
        numbers = group_numbers(9, apart)
        best = [numbers.index(k) for k in range(1, 1 + max(numbers))]
        for row, number in enumerate(numbers):
            assert (best[number - 1], row) not in apart, "not told apart from the best of its group"
            for head in best[: number - 1]:
                assert (head, row) in apart, "told apart from the best of every group before"


def skewed(rows: int, n: int, own: np.random.Generator) -> list[np.ndarray]:
    """Rows of equal means, (1, n) each, whose differences are skewed."""
    hard = own.normal(0, 0.1, n)
    return [(hard + 0.1 * k * (own.exponential(1, n) - 1))[None] for k in range(1, 1 + rows)]


def test_rows_of_equal_means_are_told_apart_no_more_often_than_said() -> None:
    alarms = [bool(told_apart(skewed(4, 200, np.random.default_rng(k)), 0.05)[0]) for k in range(300)]

    assert np.mean(alarms) <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_the_signed_rank_test_would_tell_rows_of_equal_means_apart() -> None:
    """Why groups do not use it."""
    p_values = []
    for k in range(100):
        low, high = skewed(2, 200, np.random.default_rng(k))
        p_values.append(stats.wilcoxon(high[0], low[0]).pvalue)
    assert np.mean(np.array(p_values) <= 0.05) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1, 3])
def test_rows_of_equal_means_in_many_draws(trainings: int) -> None:
    alarms = 0
    for k in range(2000):
        own = np.random.default_rng([k, trainings])
        tables = [
            np.repeat(table, trainings, axis=0)
            + (trainings > 1) * (own.normal(0, 0.03, (trainings, 1)) + own.normal(0, 0.05, (trainings, 200)))
            for table in skewed(5, 200, own)
        ]
        alarms += bool(told_apart(tables, 0.05)[0])
    assert alarms / 2000 <= 0.05 + 2 * (0.05 * 0.95 / 2000) ** 0.5


def test_the_detectable_effect_of_a_table_is_found_as_often_as_said() -> None:
    """Two rows: one pair, and nothing to correct for."""
    effect = told_apart([*np.split(noise(2, 100), 2)], 0.05)[1].detectable_effect
    found = []
    for k in range(600):
        own = np.random.default_rng(k)
        drawn = own.normal([[[0.0]], [[effect]]], 0.06, (2, 1, 100))
        found.append(bool(told_apart(list(drawn), 0.05)[0]))
    assert 0.76 <= np.mean(found) <= 0.84


@pytest.mark.speed
def test_a_long_ranking_is_grouped_in_no_time() -> None:
    from time import process_time

    for trainings in (1, 3):
        tables = list(rng.random((60, trainings, 300)) + rng.normal(0, 0.1, (60, 1, 1)))
        start = process_time()
        told_apart(tables, 0.05)
        assert process_time() - start < 2
