"""When and where a benchmark was run, and how long its stages took: runs.jsonl beside the leaderboard.

It is kept apart from the leaderboard, which the same inputs give again byte for byte.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import torch

from lapbench import __version__
from lapbench.pipeline.job import Job
from lapbench.train.hardware import resolve_device


def run_and_note(job: Job, stages: dict[str, Callable[[Job], Any]]) -> Any:
    """Run stages in order, add a line on them to the history, and return what the last one returns.

    Seconds are of this run: a stage whose files were there already takes next to none. A run that fails or is
    interrupted leaves no line.
    """
    started, seconds, result = datetime.now(UTC), {}, None
    for name, stage in stages.items():
        start = time.perf_counter()
        result = stage(job)
        seconds[name] = round(time.perf_counter() - start, 3)
    line = {
        "started": started.isoformat(timespec="seconds"),
        "lapbench": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": _device(job),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seconds": seconds,
    }
    with (job.workspace.out / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return result


def _device(job: Job) -> str:
    device = resolve_device(job.workspace.device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
