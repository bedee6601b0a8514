"""The job that the options of a command describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lapbench.cli.console import Bars, err_console, guarded

if TYPE_CHECKING:
    from lapbench.pipeline import Job


@contextmanager
def opened_job(
    name: str,
    out: Path | None,
    cache: Path | None,
    data: Path | None,
    limit: int | None,
    device: Literal["auto", "cpu", "cuda"],
    models: str,
    explainers: str,
    seed: int | None,
) -> Iterator["Job"]:
    """Give the job that the options of a command describe, with progress bars and exit codes."""
    with guarded():
        with err_console.status("loading torch …"):
            from lapbench import benchmark, pipeline
        definition = benchmark.select(
            benchmark.load_benchmark(name), models=_names(models), explainers=_names(explainers), seed=seed
        )
        with Bars() as bars:
            workspace = pipeline.Workspace(
                out=out or Path("reports") / definition.name,
                cache=cache or pipeline.default_cache(),
                data=data,
                limit=limit,
                device=device,
                progress=bars.update,
                notify=bars.note,
            )
            yield pipeline.Job(definition, workspace)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
