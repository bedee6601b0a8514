"""The gate: whether new results may pass beside a baseline, row by row and paired by image.

It looks both ways, because a bug can raise a score. A row fails when its mean has moved by more than chance
and by more than an effect that matters; when images have moved although the same maps were claimed; when it
is missing; or when it cannot be compared at all, which is so, too, of a move over too few images to tell.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.benchmark import Protocol
from lapbench.errors import ResultError
from lapbench.report.baseline import Baseline, BaselineRow
from lapbench.report.comparison import Comparison, adjusted, chance, compare_all, mean_difference

State: TypeAlias = Literal["ok", "new", "regressed", "improved", "changed", "missing", "incomparable"]
PASSING: tuple[State, ...] = ("ok", "new")
ORDER: tuple[State, ...] = ("regressed", "improved", "changed", "missing", "incomparable", "new", "ok")
"""The order of the table: what fails comes first."""
SAME_MAPS = 1e-3
"""How far the scores of images may lie apart, on average, where the same maps are claimed."""
FEWEST = 5
"""Images that a verdict needs: over fewer, Student's t takes more than three standard errors for chance."""
ASIDE = (
    "averaging",
    "box_accuracy",
    "completeness_bound",
    "confidence",
    "deletion_steps",
    "pointing_tolerance",
    "randomised_weights",
    "removal_grid",
    "resamples",
    "selections",
    "stability_radius",
    "stability_samples",
)
"""Settings of the protocol that decide which rows there are and what else is said of them, no image's IoU."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one row.

    before, now: the means, over `n` images. difference, low, high: now − before, with its 95 % interval.
    p_value: corrected for the number of rows that moved. reason: in a sentence; empty where there is none.
    """

    model: str
    explainer: str
    selection: str
    randomised: bool
    state: State
    reason: str = ""
    n: int = 0
    before: float | None = None
    now: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the row lets the gate open."""
        return self.state in PASSING

    @property
    def row(self) -> str:
        """How the row is called."""
        return f"{self.model}, {self.explainer}{', random net' * self.randomised} ({self.selection})"


@dataclass(frozen=True)
class Gate:
    """All verdicts on new results, those that fail first, and what decided them."""

    benchmark: str
    benchmark_version: int
    alpha: float
    min_effect: float
    verdicts: tuple[Verdict, ...]

    @property
    def passes(self) -> bool:
        """Whether every row passes."""
        return all(verdict.passes for verdict in self.verdicts)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows have each verdict that occurs, in the order of the table."""
        found = Counter(verdict.state for verdict in self.verdicts)
        return {state: found[state] for state in ORDER if found[state]}


def judge(
    baseline: Baseline,
    current: Baseline,
    *,
    min_effect: float = 0.01,
    alpha: float = 0.05,
    models: Sequence[str] = (),
) -> Gate:
    """Hold new results against a baseline.

    min_effect: the smallest difference of means, in IoU, that matters. alpha: the false alarm rate of the
    whole table, as Benjamini and Hochberg control it. models: only their rows; none: all rows.
    Errors: ValueError for an effect outside [0, 1] or a rate outside (0, 1); ResultError where the baseline
    has no row to compare with, for a gate that compares nothing would always pass.
    """
    if not 0 <= min_effect <= 1 or not 0 < alpha < 1:
        raise ValueError(
            f"wanted 0 ≤ min_effect ≤ 1 and 0 < alpha < 1, found min_effect {min_effect} and alpha {alpha}"
        )
    before = {row.key: row for row in baseline.rows if not models or row.model in models}
    now = {row.key: row for row in current.rows if not models or row.model in models}
    if not before:
        of = f" of {', '.join(models)}" if models else ""
        raise ResultError(f"the baseline of {baseline.benchmark} has no row{of}: there is nothing to compare")
    if not any(row.iou for row in before.values()):
        reason = next(iter(before.values())).reason
        raise ResultError(
            f"no row of the baseline of {baseline.benchmark} has a score ({reason}): run the benchmark, and "
            "accept it anew"
        )
    reason = "; ".join(_apart(baseline, current))
    verdicts = {
        key: _unless_comparable(row, now.get(key), baseline, current, reason) for key, row in before.items()
    }
    pairs = {key: (before[key], now[key]) for key, verdict in verdicts.items() if verdict is None}
    found = _compared(list(pairs.values()), min_effect, alpha)
    judged = dict(zip(pairs, found, strict=True))
    listed = [verdict or judged[key] for key, verdict in verdicts.items()]
    listed += [
        _verdict("new", "not in the baseline", None, row) for key, row in now.items() if key not in before
    ]
    return Gate(
        benchmark=current.benchmark,
        benchmark_version=current.benchmark_version,
        alpha=alpha,
        min_effect=min_effect,
        verdicts=tuple(sorted(listed, key=lambda verdict: ORDER.index(verdict.state))),
    )


def _apart(baseline: Baseline, current: Baseline) -> Iterator[str]:
    """Say what makes every row incomparable."""
    for what, wanted, found in (
        ("benchmark", baseline.benchmark, current.benchmark),
        ("benchmark version", baseline.benchmark_version, current.benchmark_version),
    ):
        if wanted != found:
            yield f"{what} {wanted} then, {found} now"
    then, now = baseline.provenance, current.provenance
    data, other = (_table(side.get("data")) for side in (then, now))
    if not (data.get("digest") and other.get("digest")):
        yield "the data has no digest, so nothing says that it is the same"
    elif data["digest"] != other["digest"]:
        names = [f"{d.get('name')} {str(d['digest'])[:12]}…" for d in (data, other)]
        yield f"other data: {names[0]} then, {names[1]} now"
    defaults = Protocol().model_dump(mode="json")  # of settings that are younger than a baseline
    protocol, new = (defaults | {**_table(side.get("protocol"))} for side in (then, now))
    for name in sorted({*protocol, *new} - {*ASIDE}):
        if protocol.get(name) != new.get(name):
            yield f"protocol.{name}: {protocol.get(name)} then, {new.get(name)} now"


def _unless_comparable(
    old: BaselineRow, new: BaselineRow | None, baseline: Baseline, current: Baseline, reason: str
) -> Verdict | None:
    """Return the verdict on a row that is missing or that cannot be compared; None for all others."""
    if new is None:
        return _verdict("missing", "the row is not in the new results", old, None)
    if reason:
        return _verdict("incomparable", reason, old, new)
    if not old.iou:
        if new.iou:
            return _verdict("new", f"had no number: {old.reason}", old, new)
        return _verdict("ok", f"has no number, as before: {new.reason}", old, new)
    if not new.iou:
        return _verdict("missing", f"the row has no number any more: {new.reason}", old, new)
    then, now = baseline.ids(old), current.ids(new)
    if then == now:
        return None
    gone, come = sorted({*then} - {*now}), sorted({*now} - {*then})
    example = f", for instance {(gone or come)[0]!r}" if gone or come else ", in another order"
    counts = f"{len(then)} then, {len(now)} now, {len(gone)} gone and {len(come)} new"
    return _verdict("incomparable", f"other images: {counts}{example}", old, new)


def _compared(
    pairs: Sequence[tuple[BaselineRow, BaselineRow]], min_effect: float, alpha: float
) -> list[Verdict]:
    """Judge rows over the same images, all together."""
    return [
        _judged(old, new, comparison, min_effect, alpha)
        for (old, new), comparison in zip(pairs, _differences(pairs), strict=True)
    ]


def _differences(pairs: Sequence[tuple[BaselineRow, BaselineRow]]) -> list[Comparison]:
    """Compare rows with their baselines; trainings are a source of chance only where they are others.

    p-values are of Student's t, for the claim is about means: the signed-rank test would take a skewed
    difference for one, though its mean is 0. They are corrected for the number of rows that moved at all: one
    that is the same to the last bit (a control, the same random weights) cannot raise an alarm.
    """
    tables = [(new.table, old.table) for old, new in pairs]
    for place, (old, new) in enumerate(pairs):
        if _same(old, new, ("network", "weights")):
            tables[place] = (new.table.mean(axis=0), old.table.mean(axis=0))
    moved = [place for place, (now, then) in enumerate(tables) if not np.array_equal(now, then)]
    found = [Comparison(now.shape[-1], 0.0, 0.0, 0.0, 1.0, 0.5) for now, _ in tables]
    p_values = _corrected([chance(*mean_difference(*tables[place])) for place in moved])
    comparisons = compare_all([tables[place] for place in moved])
    for place, comparison, p_value in zip(moved, comparisons, p_values, strict=True):
        found[place] = replace(comparison, p_value=float(p_value))
    return found


def _corrected(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Correct p-values for being many."""
    if all(p == 1 for p in p_values):
        return np.ones(len(p_values))  # without waiting for scipy
    return adjusted(p_values)


def _judged(
    old: BaselineRow, new: BaselineRow, found: Comparison, min_effect: float, alpha: float
) -> Verdict:
    """Say what a comparison means."""
    state: State = "ok"
    reasons = list(_other_claims(old, new))
    same = bool(old.claims) and not reasons
    moved = _moved(old, new)
    matters = abs(found.difference) >= min_effect and found.difference != 0
    if matters and found.p_value < alpha:
        state = "improved" if found.difference > 0 else "regressed"
    elif same and moved > SAME_MAPS:
        state = "changed"
    elif matters and found.n < FEWEST:
        state = "incomparable"
        reasons.append(f"too few images to tell this from chance: {FEWEST} wanted, {found.n} found")
    if same and state in ("improved", "regressed", "changed"):
        reasons.append(f"the same maps are claimed, yet images moved by {moved:.4f} on average")
    return _verdict(state, "; ".join(reasons), old, new, found)


def _moved(old: BaselineRow, new: BaselineRow) -> float:
    """Return by how much the scores of images moved on average, whichever way."""
    then, now = (row.table if len(old.iou) == len(new.iou) else row.table.mean(axis=0) for row in (old, new))
    return float(np.abs(now - then).mean())


def _other_claims(old: BaselineRow, new: BaselineRow) -> Iterator[str]:
    """Say what the record of a row claims to be other than it was."""
    if not _same(old, new, ("weights",)):
        yield "other weights"
    if not _same(old, new, ("network",)):
        yield "another network"
    then, now = (f"{row.claims.get('explainer')} {row.claims.get('explainer_version')}" for row in (old, new))
    if then != now:
        yield f"explainer {then} then, {now} now"
    if not _same(old, new, ("origin", "parameters", "upsample")):
        yield "other parameters"


def _same(old: BaselineRow, new: BaselineRow, names: Sequence[str]) -> bool:
    return all(old.claims.get(name) == new.claims.get(name) for name in names)


def _verdict(
    state: State,
    reason: str,
    old: BaselineRow | None,
    new: BaselineRow | None,
    found: Comparison | None = None,
) -> Verdict:
    """Return the verdict on a row that was there, that is there, or both."""
    row = new or old
    if row is None:
        raise ValueError("a verdict is on a row")
    return Verdict(
        model=row.model,
        explainer=row.explainer,
        selection=row.selection,
        randomised=row.randomised,
        state=state,
        reason=reason,
        n=found.n if found else 0,
        before=_mean(old),
        now=_mean(new),
        difference=found.difference if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        p_value=found.p_value if found else None,
    )


def _mean(row: BaselineRow | None) -> float | None:
    return float(row.table.mean()) if row and row.iou else None


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
