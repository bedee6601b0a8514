"""The pytest plug-in: a test that fails where the gate would stop a build.

    def test_the_model_still_looks_there(lapbench_gate):
        lapbench_gate("reports/mine", baseline="reports/mine-baseline.json")

Nothing of lapbench is imported before a test asks for the fixture.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lapbench.report.gate import Gate


@pytest.fixture
def lapbench_gate() -> "Callable[..., Gate]":
    """Hold a report folder against a baseline, a file or a folder, as `lapbench gate` does.

    lapbench_gate(current, *, baseline, min_effect=0.01, alpha=0.05) fails the test where a row fails, and
    returns the verdicts where none does. Errors: ResultError for files that cannot be used.
    """
    from lapbench.report.baseline import from_report, read_baseline
    from lapbench.report.gate import judge
    from lapbench.report.gate_report import headline, rule, sentences

    def hold(
        current: str | Path, *, baseline: str | Path, min_effect: float = 0.01, alpha: float = 0.05
    ) -> "Gate":
        accepted, new = read_baseline(Path(baseline)), from_report(Path(current))
        gate = judge(accepted, new, min_effect=min_effect, alpha=alpha)
        if not gate.passes:
            pytest.fail("\n".join([headline(gate), *sentences(gate), rule(gate)]), pytrace=False)
        return gate

    return hold
