"""Claims held against results: each holds, does not hold, or cannot be decided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lapbench.benchmark import NO_NETWORK, Claim
from lapbench.report.comparison import compare
from lapbench.report.markdown import escape, table
from lapbench.report.results import Count, Number, Provenance, Record

Scores: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = tuple[float, float, float]  # a difference, and its bounds
Verdict: TypeAlias = Literal["holds", "does not hold", "not decidable"]
COLUMNS = ("claim", "verdict", "says", "difference [interval]", "images", "trainings", "weakest part")


class Part(Record):
    """One comparison of a claim: ours should be higher than theirs.

    difference: of the means, ours − theirs, in [low, high]; where steadiness is claimed, that of
    `compare_spread`. trainings: of the network with fewer. reason: why there is no difference.
    """

    ours: str
    theirs: str
    difference: Number = None
    low: Number = None
    high: Number = None
    n: Count = 0
    trainings: Count = 0
    reason: str = ""

    @property
    def text(self) -> str:
        """The difference with its interval, or why there is none."""
        if self.low is None:
            return self.reason
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("-", "−")


class ClaimResult(Record):
    """A claim with what was found: its parts in the order of the definition, and its verdict."""

    id: Annotated[str, Field(min_length=1)]
    says: str
    margin: Number = None
    verdict: Verdict
    parts: tuple[Part, ...]

    @property
    def weakest(self) -> Part:
        """The part that decides: one that is not known, or the one that is least sure to be above."""
        return min(self.parts, key=lambda part: -2.0 if part.low is None else part.low)


class ClaimResults(Record):
    """All claims of one benchmark, with the version of it and what all its rows share."""

    schema_version: Literal[1] = 1
    benchmark: Annotated[str, Field(min_length=1)]
    benchmark_version: Annotated[int, Field(ge=1)]
    title: str = ""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    claims: tuple[ClaimResult, ...] = ()
    provenance: Provenance


@dataclass(frozen=True, eq=False)
class Found:
    """The scores of one term, (trainings, images), with the ids of the images; or why there are none."""

    scores: Scores | None = None
    ids: tuple[str, ...] = ()
    reason: str = ""

    def over(self, ids: Sequence[str]) -> Scores:
        """Return the scores of some of the images, in the order given."""
        place = {name: column for column, name in enumerate(self.ids)}
        return np.asarray(self.scores)[:, [place[name] for name in ids]]


def judge_claim(
    claim: Claim, pairs: Sequence[tuple[Found, Found]], *, confidence: float = 0.95, resamples: int = 9999
) -> ClaimResult:
    """Return the verdict on a claim from the scores of its pairs, over the images that both of a pair have.

    It holds where every part's interval of the difference lies above −margin (0 without one): as all parts
    must, no correction for their number is needed (Berger, 1982, intersection-union test). It does not hold
    where the interval of any lies below, at a confidence corrected for the number of parts (Bonferroni).
    Otherwise it is not decidable, as it is where scores are missing. With one training each the interval is
    the bootstrap's, which is too narrow over few images, made as much wider as Student's t is.
    """
    bar, corrected = -(claim.margin or 0.0), 1 - (1 - confidence) / len(pairs)
    parts, contradicted = [], False
    for (ours, theirs), (mine, other) in zip(claim.pairs, pairs, strict=True):
        scores = _in_common(mine, other)
        if not scores[0].size:
            reason = mine.reason or other.reason or "the two have no image in common that both score"
            parts.append(Part(ours=ours.text, theirs=theirs.text, reason=reason))
            continue

        def interval(level: float, scores: tuple[Scores, Scores] = scores) -> Interval:
            if claim.steadier:
                return compare_spread(*scores, confidence=level)
            found = compare(*scores, confidence=level, resamples=resamples)
            if max(map(len, scores)) > 1:  # the interval is Student's already, over trainings
                return found.difference, found.low, found.high
            wider = _of_few(found.n, level)
            below, above = found.difference - found.low, found.high - found.difference
            return found.difference, found.difference - wider * below, found.difference + wider * above

        difference, low, high = interval(confidence)
        contradicted |= interval(corrected)[2] < bar
        trained = zip((ours, theirs), scores, strict=True)
        lone = "two trainings of each are the least" if claim.steadier else "one image alone has no interval"
        parts.append(
            Part(
                ours=ours.text,
                theirs=theirs.text,
                difference=difference,
                low=low,
                high=high,
                n=scores[0].shape[1],
                trainings=min((len(t) for term, t in trained if term.model != NO_NETWORK), default=1),
                reason=lone if math.isnan(low) else "",
            )
        )
    holds = all(part.low is not None and part.low > bar for part in parts)
    verdict: Verdict = "holds" if holds else "does not hold" if contradicted else "not decidable"
    return ClaimResult(id=claim.id, says=claim.says, margin=claim.margin, verdict=verdict, parts=tuple(parts))


def _of_few(n: int, confidence: float) -> float:
    """Return by how much a bootstrap interval of a mean over n images is too narrow.

    Its variance lacks n / (n − 1), and its quantiles are the normal ones (Hesterberg, 2015, Sec. 3).
    """
    from scipy.special import ndtri, stdtrit

    if n < 2:
        return 1.0
    tail = (1 - confidence) / 2
    return float(stdtrit(n - 1, tail) / ndtri(tail) * math.sqrt(n / (n - 1)))


def _in_common(mine: Found, other: Found) -> tuple[Scores, Scores]:
    """Return the scores of both over the images that every training of both has a score of."""
    known = set(other.ids)
    common = [name for name in mine.ids if name in known]
    if not common:
        return np.empty((1, 0)), np.empty((1, 0))
    ours, theirs = mine.over(common), other.over(common)
    scored = np.isfinite(ours).all(axis=0) & np.isfinite(theirs).all(axis=0)
    return ours[:, scored], theirs[:, scored]


def compare_spread(ours: Scores, theirs: Scores, *, confidence: float = 0.95) -> Interval:
    """Return how much steadier ours is between trainings, with its interval: log2 of the ratio of spreads.

    ours, theirs: (trainings, images). The spread is the standard deviation of the trainings' means; the
    interval is that of the F test for two variances, which takes the means as normally distributed. NaN with
    a single training, or where the trainings of either are all equal.
    """
    from scipy.stats import f

    means = ours.mean(axis=1), theirs.mean(axis=1)
    if min(len(ours), len(theirs)) < 2 or not all(np.ptp(mean) > 0 for mean in means):
        return math.nan, math.nan, math.nan
    ratio = means[1].var(ddof=1) / means[0].var(ddof=1)
    tail, freedom = (1 - confidence) / 2, (len(theirs) - 1, len(ours) - 1)
    low, high = ratio / f.ppf(1 - tail, *freedom), ratio / f.ppf(tail, *freedom)
    found, below, above = (float(np.log2(value) / 2) for value in (ratio, low, high))
    return found, below, above


def cells(result: ClaimResult) -> tuple[str, ...]:
    """Return a claim's line, in the order of `COLUMNS`; its weakest part stands for all."""
    part = result.weakest
    says = result.says + (f" (margin {result.margin:g})" if result.margin else "")
    counts = ("", "") if part.low is None else (str(part.n), str(part.trainings))
    compared = f"{part.ours} against {part.theirs}"
    return (result.id, result.verdict, says, part.text, *counts, compared)


def render_claims(results: ClaimResults) -> str:
    """Return all claims as GitHub-flavoured Markdown: a table of verdicts, and every part below it."""
    lines = [f"# Claims: {escape(results.title or results.benchmark)}", ""]
    lines += [*table(COLUMNS, [cells(result) for result in results.claims], ("images", "trainings")), ""]
    lines += [escape(LEGEND), ""]
    for result in results.claims:
        if len(result.parts) > 1:
            lines += [f"## {escape(result.id)}: {result.verdict}", ""]
            found = [(part.ours, part.theirs, part.text) for part in result.parts]
            lines += [*table(("higher", "than", "difference [interval]"), found, ()), ""]
    return "\n".join(lines)


LEGEND = (
    "A claim holds where the interval of every difference lies above zero (above minus the margin, if there "
    "is one), and does not hold where one lies below, corrected for their number. The difference shown is "
    "that of the weakest part, paired by image; of steadiness it is how often the spread between trainings "
    "is halved. With one training it speaks of these networks, with more of the recipe."
)
