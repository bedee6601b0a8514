"""What is not imported: scores and reports must answer at once, and torch takes seconds."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "captum", "pytorch_lightning")
PLOTTING = ("matplotlib", "pandas")


def imported(statement: str, names: tuple[str, ...]) -> set[str]:
    """Return which of the names a fresh interpreter has imported after a statement."""
    code = f"import sys; {statement}; print(*sys.modules.keys() & set({names!r}))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(found.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import lapbench",
        "import lapbench.score",
        "import lapbench.score.threshold, lapbench.score.localisation",
        "import lapbench.report",
        "import lapbench.report.figures, lapbench.report.statistics",
        "from lapbench.report import read_leaderboard, bootstrap_means, render_terminal",
        "import lapbench.store",
        "import lapbench.data",
    ],
)
def test_no_torch(statement: str) -> None:
    assert imported(statement, HEAVY) == set()


def test_reading_results_does_not_wait_for_plots_or_statistics() -> None:
    statement = "from lapbench.report import read_leaderboard, render_markdown"

    assert imported(statement, (*HEAVY, *PLOTTING, "scipy.stats", "rich")) == set()


def test_every_public_name_of_the_report_is_there() -> None:
    from lapbench import report

    assert sorted(report.__all__) == report.__all__ == dir(report)
    for name in report.__all__:
        assert getattr(report, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'lapbench\.report' has no attribute 'leaderbord'"):
        report.leaderbord  # noqa: B018


def test_public_names_are_no_rooms_of_the_same_name() -> None:
    """A room takes its name in the package as soon as it is imported, and the main job imports them all."""
    import lapbench
    import lapbench.pipeline

    for name in set(lapbench.__all__) - {"interop"}:
        assert callable(getattr(lapbench, name)), name
    assert set(lapbench.__all__) <= set(dir(lapbench))


def test_this_test_can_fail() -> None:
    assert imported("import torch", HEAVY) == {"torch"}
