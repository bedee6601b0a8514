"""The stages, alone or in a row: run, train, explain, score, report."""

from typing import TYPE_CHECKING, Annotated

import typer

from lapbench.cli.console import out_console, print_line, say
from lapbench.cli.job import opened_job
from lapbench.cli.options import Cache, Data, Definition, Device, Explainers, Limit, Models, Out, Seed

if TYPE_CHECKING:
    from lapbench.pipeline import Job
    from lapbench.report import Leaderboard

app = typer.Typer()


@app.command()
def run(
    name: Definition,
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
) -> None:
    """Do the main job: train, explain, score and rank, making only what is missing."""
    with opened_job(name, out, cache, data, limit, device, models, explainers, seed) as job:
        from lapbench import pipeline

        board = pipeline.run(job)
    _show(board, job)


@app.command()
def train(
    name: Definition,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
    models: Models = "",
    seed: Seed = None,
) -> None:
    """Train the networks of a benchmark that are not in the cache yet, and print where they are."""
    with opened_job(name, None, cache, data, limit, device, models, "", seed) as job:
        from lapbench import pipeline

        paths = pipeline.train(job)
    for path in paths:
        print_line(str(path))


@app.command()
def explain(
    name: Definition,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
) -> None:
    """Draw the maps that are missing, with weights that are there."""
    with opened_job(name, None, cache, data, limit, device, models, explainers, seed) as job:
        from lapbench import pipeline

        reasons = pipeline.explain(job)
    if reasons:
        raise typer.Exit(3)


@app.command()
def score(
    name: Definition,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
) -> None:
    """Fit thresholds and score the maps that are there."""
    with opened_job(name, None, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline

        reasons = pipeline.score(job)
    for reason in reasons:
        say(f"not scored: {reason}")
    if reasons:
        raise typer.Exit(3)


@app.command()
def report(
    name: Definition,
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
    html: Annotated[
        bool, typer.Option("--html", help="Write index.html, too: all of it as one page.")
    ] = False,
) -> None:
    """Write the leaderboard and the pictures from scores that are there."""
    with opened_job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline

        board = pipeline.report(job)
        if html:
            pipeline.write_page(job, board)
    _show(board, job)


def _show(board: "Leaderboard", job: "Job") -> None:
    """Print a leaderboard; exit with 3 where a contestant has no number."""
    from lapbench.report import render_terminal

    out_console.print(render_terminal(board))
    where = f"\nWritten to {job.workspace.out}/; weights and maps are kept in {job.workspace.cache}"
    print_line(where)
    if not all(row.complete or row.control or row.randomised for row in board.rows):
        raise typer.Exit(3)
