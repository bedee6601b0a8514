import math
from typing import Any

import numpy as np
import pytest

from lapbench.report import Leaderboard
from lapbench.report.ranks import critical_difference, rank_leaderboards, rank_over_data_sets, render_ranks
from tests.report.examples import make_row

# Demšar (2006), table 6: AUC of C4.5 with and without two parameters, on 14 data sets; its
# ranks tell the two 0.975 of the last but one apart
DEMSAR = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def as_scores(values: np.ndarray) -> dict[str, dict[str, float]]:
    return {f"set {k}": {f"row {j}": float(v) for j, v in enumerate(line)} for k, line in enumerate(values)}


def test_the_example_of_the_paper() -> None:
    found = rank_over_data_sets(as_scores(DEMSAR))

    assert found.names == ("row 3", "row 1", "row 2", "row 0")
    assert [round(mean, 3) for mean in found.mean_ranks] == [1.964, 2.0, 2.893, 3.143]
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.groups == (1, 1, 1, 1), "the paper's differences, 1.18 at most, are below 1.25"
    assert found.left_out == ()
    assert 0.01 < found.p_value < 0.05


@pytest.mark.parametrize(("rows", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_values_of_the_paper(rows: int, quantile: float) -> None:
    scale = math.sqrt(rows * (rows + 1) / (6 * 20))

    assert critical_difference(rows, 20) / scale == pytest.approx(quantile, abs=0.001)


def test_ranks_and_the_test_of_friedman_by_hand() -> None:
    values = np.random.default_rng(2).integers(0, 4, (9, 5)) / 4.0
    ranks = [
        [1 + sum(o > v for o in line) + (sum(o == v for o in line) - 1) / 2 for v in line] for line in values
    ]
    means = np.mean(ranks, axis=0)
    statistic = 12 * 9 / (5 * 6) * (sum(means**2) - 5 * 6**2 / 4)
    ties = sum(count**3 - count for line in values for count in np.unique(line, return_counts=True)[1])
    statistic /= 1 - ties / (9 * 5 * (25 - 1))
    x = statistic / 2  # the tail of χ² with 4 degrees of freedom in closed form

    found = rank_over_data_sets(as_scores(values))
    assert found.mean_ranks == pytest.approx(tuple(sorted(means)))
    assert found.p_value == pytest.approx(math.exp(-x) * (1 + x), rel=1e-9)


def test_rows_far_apart_are_in_groups() -> None:
    values = np.tile([0.9, 0.8, 0.5, 0.4, 0.1, 0.0], (12, 1))

    found = rank_over_data_sets(as_scores(values))
    assert found.mean_ranks == (1, 2, 3, 4, 5, 6)
    assert found.critical_difference == pytest.approx(2.18, abs=0.01)
    assert found.groups == (1, 1, 1, 2, 2, 2)


def test_equal_rows_everywhere_are_one_group() -> None:
    found = rank_over_data_sets(as_scores(np.full((4, 3), 0.5)))

    assert (found.p_value, found.groups, found.mean_ranks) == (1, (1, 1, 1), (2, 2, 2))


def test_a_row_that_is_missing_somewhere_is_left_out() -> None:
    scores = as_scores(np.random.default_rng(3).random((4, 5)))
    wanted = rank_over_data_sets(
        {name: {k: v for k, v in row.items() if k < "row 3"} for name, row in scores.items()}
    )
    del scores["set 2"]["row 3"]
    scores["set 0"]["row 4"] = math.nan

    found = rank_over_data_sets(scores)
    assert found.left_out == ("row 3", "row 4")
    assert (found.names, found.mean_ranks, found.p_value) == (wanted.names, wanted.mean_ranks, wanted.p_value)


def test_too_little_to_rank_says_what_is_wanted() -> None:
    wanted = "want at least 2 data sets and 3 rows that are complete on all of them, found"
    with pytest.raises(ValueError, match=f"{wanted} 1 and 4$"):
        rank_over_data_sets(as_scores(DEMSAR[:1]))
    with pytest.raises(ValueError, match=rf"{wanted} 2 and 2 \(left out: row 2\)"):
        rank_over_data_sets({"a": {"row 0": 1, "row 1": 0, "row 2": 0}, "b": {"row 0": 1, "row 1": 0}})
    with pytest.raises(ValueError, match=f"{wanted} 0 and 0$"):
        rank_over_data_sets({})


def board(name: str, *means: float, **fields: Any) -> Leaderboard:
    rows = [make_row(f"row {k}", mean) for k, mean in enumerate(means)]
    rows += [
        make_row("row 0", 0.9, "native"),
        make_row("Random", 0.05, control=True),
        make_row("row 1", 0.1, randomised=True),
        make_row("row 1", 0.7, "top-k"),
    ]
    return Leaderboard(benchmark=name, benchmark_version=1, rows=tuple(rows), **fields)


def test_leaderboards_are_ranked_by_their_contestants() -> None:
    found = rank_leaderboards([board("x", 0.5, 0.4, 0.3), board("y", 0.3, 0.4)], "thresholding")

    assert found.data_sets == ("x", "y")
    assert found.names == ("ws-lap, row 0, own threshold", "ws-lap, row 0", "ws-lap, row 1")
    assert found.mean_ranks == (1, 2.5, 2.5)
    assert found.left_out == ("ws-lap, row 2",)
    assert render_ranks(found).splitlines()[2:] == [
        "| mean rank | group | row |",
        "| --: | --: | :-- |",
        "| 1.00 | 1 | ws-lap, row 0, own threshold |",
        "| 2.50 | 1 | ws-lap, row 0 |",
        "| 2.50 | 1 | ws-lap, row 1 |",
        "",
        "Left out, not complete on every data set: ws-lap, row 2.",
    ]
    assert render_ranks(found).startswith(
        "Mean rank over 2 data sets. Rows of one group cannot be told apart"
    )


@pytest.mark.parametrize(("names", "digests"), [(("x", "x"), ("a", "b")), (("x", "y"), ("a", "a"))])
def test_one_data_set_is_never_two(names: tuple[str, str], digests: tuple[str, str]) -> None:
    boards = [
        board(name, 0.5, 0.4, 0.3, provenance={"data": {"digest": digest}})
        for name, digest in zip((*names, "z"), (*digests, "c"), strict=True)
    ]
    said = f"several leaderboards are over the data of {', '.join(dict.fromkeys(names))}: give one of them"
    with pytest.raises(ValueError, match=said):
        rank_leaderboards(boards, "thresholding")
    assert len(rank_leaderboards(boards[1:], "thresholding").data_sets) == 2


def test_equally_good_rows_are_told_apart_no_more_often_than_said() -> None:
    def alarm(seed: int) -> bool:
        return max(rank_over_data_sets(as_scores(np.random.default_rng(seed).random((15, 5)))).groups) > 1

    assert np.mean([alarm(seed) for seed in range(200)]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)


def test_a_row_that_is_mostly_better_is_found() -> None:
    def found(seed: int) -> bool:
        values = np.random.default_rng(seed).normal([2, 0, 0, 0, 0], 1, (15, 5))
        ranks = rank_over_data_sets(as_scores(values))
        return ranks.names[0] == "row 0" and ranks.groups[1] > 1

    assert np.mean([found(seed) for seed in range(80)]) > 0.6
