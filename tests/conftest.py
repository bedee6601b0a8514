"""Fixtures that more than one room needs."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from lapbench.report import Leaderboard

# The tensors of the tests are small: threads cost more than they give, and runs side by side fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts pytest in the background has Ctrl-C ignored, in every child process, too; the tests
    # that interrupt a run need what a user in front of a terminal has.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# A machine that is busy with something else draws examples slowly, which is no fault of what is tested.
settings.register_profile("lapbench", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lapbench")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random tensors in every run, whatever ran before: a failure can be had again."""
    import torch  # only now: the threads that were asked for above are there

    torch.manual_seed(0)


@dataclass(frozen=True)
class Finished:
    """A benchmark that was run: its definition, the folder of its reports and cache, and what came out."""

    definition: Path
    folder: Path
    board: "Leaderboard"
    notes: list[str]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def out(self) -> Path:
        return self.folder / "out"


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """The tiny benchmark, run once for all tests; what it left behind is copied, never changed."""
    from pipeline import tiny  # here: it needs torch, and many rooms do not

    from lapbench import pipeline

    folder = tmp_path_factory.mktemp("tiny")
    definition, notes = tiny.write_definition(folder), []
    board = pipeline.run(tiny.job(definition, folder, notes=notes))
    return Finished(definition, folder, board, notes)


@pytest.fixture
def registered():
    """Forget explainers that a test registers."""
    from lapbench.registry import explainers

    before = set(explainers.names())
    yield
    for name in set(explainers.names()) - before:
        del explainers._entries[name]
