"""Rows compared over many data sets, by their ranks on each.

Scores of different data sets do not share a scale, so their mean says little; ranks do (Demšar, 2006,
"Statistical comparisons of classifiers over multiple data sets"). Only rows that are complete on every data
set are ranked: a row that is missing on a hard one would rise by it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lapbench.report.groups import group_numbers
from lapbench.report.markdown import escape, table
from lapbench.report.results import Leaderboard, Ranking, Row


@dataclass(frozen=True)
class Ranks:
    """Mean ranks of rows over data sets, the best first.

    p_value: of Friedman's test that all rows are equally good. critical_difference: Nemenyi's; mean ranks
    that differ by less cannot be told apart. groups: by row, as in a leaderboard; all are 1 where Friedman's
    test finds nothing. left_out: rows that are not complete on every data set.
    """

    data_sets: tuple[str, ...]
    names: tuple[str, ...]
    mean_ranks: tuple[float, ...]
    groups: tuple[int, ...]
    p_value: float
    critical_difference: float
    alpha: float
    left_out: tuple[str, ...]


def rank_over_data_sets(scores: Mapping[str, Mapping[str, float]], *, alpha: float = 0.05) -> Ranks:
    """Rank rows over data sets.

    scores: by data set, then by row; higher is better, equal scores share the mean of their ranks. A row
    without a number on a data set is left out. Errors: ValueError for fewer than two data sets, or fewer than
    three rows that are on all of them.
    """
    from scipy.stats import friedmanchisquare, rankdata

    everywhere = dict.fromkeys(name for row in scores.values() for name in row)
    names = [
        name
        for name in everywhere
        if all(math.isfinite(found.get(name, math.nan)) for found in scores.values())
    ]
    left_out = tuple(name for name in everywhere if name not in names)
    if len(scores) < 2 or len(names) < 3:
        raise ValueError(
            "ranks over data sets want at least 2 data sets and 3 rows that are complete on all of them, "
            f"found {len(scores)} and {len(names)}" + (f" (left out: {', '.join(left_out)})" * bool(left_out))
        )
    values = np.array([[found[name] for name in names] for found in scores.values()])
    ranks = rankdata(-values, axis=1)
    p_value = float(friedmanchisquare(*ranks.T).pvalue) if np.ptp(ranks) else 1.0
    means = ranks.mean(axis=0)
    order = np.lexsort((names, means))
    critical = critical_difference(len(names), len(scores), alpha=alpha)
    apart = {
        (i, j)
        for i, j in combinations(range(len(names)), 2)
        if p_value <= alpha and means[order[j]] - means[order[i]] >= critical
    }
    return Ranks(
        data_sets=tuple(scores),
        names=tuple(names[index] for index in order),
        mean_ranks=tuple(float(mean) for mean in means[order]),
        groups=tuple(group_numbers(len(names), apart)),
        p_value=p_value,
        critical_difference=critical,
        alpha=alpha,
        left_out=left_out,
    )


def rank_leaderboards(leaderboards: Sequence[Leaderboard], ranking: Ranking, *, alpha: float = 0.05) -> Ranks:
    """Rank the contestants of one ranking over the data sets of several leaderboards.

    A row is the same on two leaderboards where model, explainer and selection have the same names. Errors:
    ValueError for leaderboards over the same data, and as `rank_over_data_sets`.
    """
    if alike := over_the_same_data(leaderboards):
        raise ValueError(f"several leaderboards are over the data of {', '.join(alike)}: give one of them")
    scores = {
        board.benchmark: {
            _name(row): row.mean
            for row in board.rows
            if row.ranking == ranking and row.complete and row.mean is not None and _competes(row)
        }
        for board in leaderboards
    }
    return rank_over_data_sets(scores, alpha=alpha)


def over_the_same_data(leaderboards: Sequence[Leaderboard]) -> list[str]:
    """Return the names of leaderboards whose data another has, too, as its digest says.

    Versions of one benchmark are never several data sets.
    """
    names = [board.benchmark for board in leaderboards]
    digests = [_digest(board) for board in leaderboards]
    twice = [
        name
        for name, digest in zip(names, digests, strict=True)
        if names.count(name) > 1 or (digest is not None and digests.count(digest) > 1)
    ]
    return list(dict.fromkeys(twice))


def _digest(board: Leaderboard) -> str | None:
    data = board.provenance.get("data")
    found = data.get("digest") if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


def critical_difference(rows: int, data_sets: int, *, alpha: float = 0.05) -> float:
    """Return how far mean ranks must be apart at least to be told apart (Nemenyi, 1963; Demšar, 2006, eq. 5).

    The quantile of the studentised range over √2, times √(k (k + 1) / 6 N) for k rows and N data sets.
    """
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, rows, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(rows * (rows + 1) / (6 * data_sets))


def render_ranks(ranks: Ranks) -> str:
    """Return the ranks as GitHub-flavoured Markdown, with what they mean."""
    lines = [
        (f"{mean:.2f}", str(group), name)
        for mean, group, name in zip(ranks.mean_ranks, ranks.groups, ranks.names, strict=True)
    ]
    text = [
        f"Mean rank over {len(ranks.data_sets)} data sets. Rows of one group cannot be told apart from the "
        f"best of them: their mean ranks differ by less than {ranks.critical_difference:.2f} (Nemenyi, "
        f"{100 * ranks.alpha:.3g} %), or Friedman's test finds no difference (here p = {ranks.p_value:.2g}).",
        "",
        *table(("mean rank", "group", "row"), lines, right=("mean rank", "group")),
    ]
    if ranks.left_out:
        text += ["", f"Left out, not complete on every data set: {escape('; '.join(ranks.left_out))}."]
    return "\n".join([*text, ""])


def _competes(row: Row) -> bool:
    return not (row.control or row.randomised)


def _name(row: Row) -> str:
    return f"{row.model}, {row.explainer}" + ", own threshold" * (row.selection == "native")
