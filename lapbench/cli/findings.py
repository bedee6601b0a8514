"""What a finished benchmark has to tell: verdicts on claims, early exits, figures, and the page."""

import webbrowser
from pathlib import Path
from typing import Annotated, Literal

import typer

from lapbench.cli.console import guarded, print_line, print_table, say
from lapbench.cli.job import opened_job
from lapbench.cli.options import Cache, Data, Definition, Device, Explainers, Limit, Models, Out, Seed

app = typer.Typer()


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
    with opened_job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
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
    with opened_job(name, out, cache, data, limit, device, models, "", seed) as job:
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
    """Draw a grid of images, predictions and maps for every model, to be printed: first images with truth.

    A network with a concept head for every class gets a second one: the maps of its three likeliest classes.
    """
    with opened_job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
        from lapbench import pipeline

        board, _ = pipeline.assemble(job)
        drawn = pipeline.draw_figures(job, board, images=images, form=form)
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
        with guarded():
            _refuse_folder(Path(name))
        with opened_job(name, out, cache, data, limit, "auto", models, explainers, seed) as job:
            from lapbench import pipeline

            path = pipeline.write_page(job, pipeline.shown(job))
    with guarded():
        from lapbench.report.page import serve

        with serve(path, port) as server:
            say(f"{path} is shown at {server.address}; Ctrl-C ends it")
            if browser:
                webbrowser.open(server.address)
            server.serve_forever()


def _refuse_folder(folder: Path) -> None:
    """Raise ResultError for a folder without a page, unless it has the name of a shipped benchmark."""
    from lapbench.benchmark import shipped
    from lapbench.errors import ResultError
    from lapbench.report import read_leaderboard

    if not folder.is_dir() or str(folder) in {path.stem for path in shipped("benchmarks")}:
        return
    board = folder / "leaderboard.json"
    if not board.is_file():
        raise ResultError(f"{folder}: neither index.html nor leaderboard.json is there: name a report folder")
    name = read_leaderboard(board).benchmark
    raise ResultError(
        f"{folder}: there is no index.html: write it with `lapbench report NAME --html --out {folder}`, "
        f"where NAME is {name}, or the TOML file that defines it"
    )
