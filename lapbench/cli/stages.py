"""The stages, alone or in a row: run, train, explain, score, report; and the page that they lead to."""

import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lapbench.cli.console import Bars, err_console, guarded, out_console, print_line, print_table, say
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
    with _job(name, out, cache, data, limit, device, models, explainers, seed) as job:
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
    with _job(name, None, cache, data, limit, device, models, "", seed) as job:
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
    with _job(name, None, cache, data, limit, device, models, explainers, seed) as job:
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
    with _job(name, None, cache, data, limit, "auto", models, explainers, seed) as job:
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
    with _job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline

        board = pipeline.report(job)
        if html:
            pipeline.write_page(job, board)
    _show(board, job)


@app.command()
def claims(
    name: Definition,
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
) -> None:
    """Hold the claims of a benchmark against the scores that are there: each gets a verdict."""
    with _job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline
        from lapbench.report.claims import COLUMNS, LEGEND, cells

        results = pipeline.check_claims(job)
    if not results.claims:
        say(f"{job.benchmark.name} makes no claims")
        return
    print_table(COLUMNS, [cells(result) for result in results.claims])
    print_line(f"\n{LEGEND}\n\nWritten to {job.workspace.out}/claims.md, with every part of every claim")
    if any(part.low is None for result in results.claims for part in result.parts):
        raise typer.Exit(3)


@app.command()
def exits(
    name: Definition,
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
    models: Models = "",
    seed: Seed = None,
) -> None:
    """Cut the networks of a benchmark after each LAP: what accuracy is kept, and what is saved."""
    with _job(name, out, cache, data, limit, device, models, "", seed) as job:
        from lapbench import pipeline
        from lapbench.pipeline.exits import COLUMNS

        lines = pipeline.early_exits(job)
    print_table(COLUMNS, lines)
    print_line(f"\nWritten to {job.workspace.out}/exits.md")


@app.command()
def figures(
    name: Definition,
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="How many images.")] = 4,
    form: Annotated[Literal["pdf", "svg", "png"], typer.Option("--format", help="Of the files.")] = "pdf",
) -> None:
    """Draw a grid of images, predictions and maps for every model, to be printed: first images with truth."""
    with _job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline

        drawn = pipeline.draw_figures(job, pipeline.report(job), images=images, form=form)
    for path in drawn:
        print_line(str(path))


@app.command()
def view(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped benchmark's name, the path of a TOML file, or a folder with an index.html."
        ),
    ],
    out: Out = None,
    cache: Cache = None,
    data: Data = None,
    limit: Limit = None,
    models: Models = "",
    explainers: Explainers = "",
    seed: Seed = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
) -> None:
    """Show the page of a benchmark in the browser, on this machine alone, until Ctrl-C."""
    path = Path(name) / "index.html"
    if not path.is_file():
        with _job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
            from lapbench import pipeline

            path = pipeline.write_page(job, pipeline.report(job))
    with guarded():
        from lapbench.report.page import serve

        with serve(path, port) as server:
            say(f"{path} is shown at {server.address}; Ctrl-C ends it")
            if browser:
                webbrowser.open(server.address)
            server.serve_forever()


@contextmanager
def _job(
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


def _show(board: "Leaderboard", job: "Job") -> None:
    """Print a leaderboard; exit with 3 where a contestant has no number."""
    from lapbench.report import render_terminal

    out_console.print(render_terminal(board))
    where = f"\nWritten to {job.workspace.out}/; weights and maps are kept in {job.workspace.cache}"
    print_line(where)
    if not all(row.complete or row.control or row.randomised for row in board.rows):
        raise typer.Exit(3)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
