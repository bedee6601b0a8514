"""The exceptions of lapbench, and how they find the nearest right name.

LapbenchError
├── DefinitionError        a benchmark definition or manifest is wrong; every fault is listed
├── UnknownNameError       a name that nothing is registered under
├── DataError              a data file is missing, unreadable or contradictory
├── WeightsError           a weights file is missing, foreign or does not fit the network
├── TrainingError          training cannot start or has diverged
├── ExplainerError         an explainer failed or broke its contract
│   └── NotApplicableError the explainer has no meaning for this network or target
├── StoreError             the cache cannot be read or written
├── ScoreError             scores cannot be computed from these maps and masks
├── MissingLibraryError    an optional library is not installed
└── ResultError            a result file is missing, foreign or contradictory

Every message says where, what was found, what was wanted and what to do.
"""

import difflib
from collections.abc import Iterable

_MOST_NAMES = 60  # of a thousand classes nobody reads the list


class LapbenchError(Exception):
    """The root of all errors that lapbench raises on purpose."""


class DefinitionError(LapbenchError):
    """A benchmark definition or manifest is wrong; the message lists every fault at once."""


class UnknownNameError(LapbenchError):
    """A name that nothing is registered under."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"there is no {kind} {name!r}{suggest(name, known)}")


class DataError(LapbenchError):
    """A data file is missing, unreadable or contradictory; the message names it."""


class WeightsError(LapbenchError):
    """A weights file is missing, foreign, or does not fit the network."""


class TrainingError(LapbenchError):
    """Training cannot start, or has diverged."""


class ExplainerError(LapbenchError):
    """An explainer failed or broke its contract."""


class NotApplicableError(ExplainerError):
    """The explainer has no meaning for this network or target; the message says why."""


class StoreError(LapbenchError):
    """The cache cannot be read or written."""


class ScoreError(LapbenchError):
    """Scores cannot be computed from these maps and masks."""


class MissingLibraryError(LapbenchError):
    """An optional library cannot be imported; the message names what brings it."""


class ResultError(LapbenchError):
    """A result file is missing, foreign or contradictory; the message names it and says how to mend it."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that offers the nearest right name, or known ones when none is near."""
    names = sorted(known)
    if not names:
        return "; nothing is registered"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"; known: {', '.join(names[:_MOST_NAMES])}{more}"
