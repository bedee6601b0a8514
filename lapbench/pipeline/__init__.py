"""The stages of a benchmark in order: train → explain → score → report.

Each reads files, writes files and skips what is there. `Job` says which files a benchmark needs.
"""

from lapbench.pipeline.claims import check_claims
from lapbench.pipeline.exits import early_exits
from lapbench.pipeline.explaining import explain
from lapbench.pipeline.history import run_and_note
from lapbench.pipeline.job import Job, Workspace, default_cache
from lapbench.pipeline.page import write_page
from lapbench.pipeline.pictures import draw_figures
from lapbench.pipeline.reporting import assemble, report, shown
from lapbench.pipeline.scoring import score
from lapbench.pipeline.training import train
from lapbench.report import Leaderboard


def run(job: Job) -> Leaderboard:
    """Do the main job: make what is missing, and return the leaderboard."""
    board: Leaderboard = run_and_note(
        job, {"train": train, "explain": explain, "score": score, "report": report}
    )
    return board


__all__ = [
    "Job", "Workspace", "assemble", "check_claims", "default_cache", "draw_figures", "early_exits", "explain",
    "report", "run", "score", "shown", "train", "write_page",
]  # fmt: skip
