"""Report folders that are there: whole or not, joined, listed, in the formats of other tools."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lapbench.cli.console import guarded, out_console, print_line, say

app = typer.Typer()

Folders = Annotated[list[Path], typer.Argument(help="Report folders, each with a leaderboard.json.")]


@app.command()
def validate(folders: Folders) -> None:
    """Check that report folders are whole: every row is borne out by its scores by image."""
    faults = 0
    for folder in folders:
        with guarded():
            from lapbench.errors import ResultError
            from lapbench.report.merge import read_submission

            try:
                found = read_submission(folder)
            except ResultError as error:
                faults += 1
                say(str(error))
                continue
        board = found.board
        counted = f"{len(board.rows)} rows of {board.benchmark} version {board.benchmark_version}"
        print_line(f"{folder}: ok, {counted}, by {found.submitter.by}")
    if faults:
        raise typer.Exit(2)


@app.command()
def leaderboard(
    folders: Folders,
    out: Annotated[Path | None, typer.Option(help="Where joined report folders go, one a benchmark.")] = None,
) -> None:
    """Join the results of many people and machines; exit with 1 where they contradict each other."""
    with guarded():
        from lapbench.report import render_terminal
        from lapbench.report.leaderboard import ranked_and_grouped
        from lapbench.report.merge import (
            folder_name,
            merge,
            ranks_of,
            read_submission,
            write_merged,
            write_ranks,
        )
        from lapbench.report.ranks import over_the_same_data

        joined = merge([read_submission(folder) for folder in folders])
        for merged in joined:
            if out is None:
                board = ranked_and_grouped(merged.board, merged.images)
            else:
                board = write_merged(out / folder_name(merged, joined), merged)
            out_console.print(render_terminal(board))
            for note in merged.notes:
                say(note)
        if alike := over_the_same_data([merged.board for merged in joined]):
            names = ", ".join(alike)
            say(f"not ranked over data sets: several are over the data of {names}; give one of them")
        ranks = ranks_of(joined)
        typer.echo(ranks, nl=False)
        if out is not None:
            write_ranks(out, ranks)
    if out is not None:
        print_line(f"Written to {out}/")
    if any(merged.disputed for merged in joined):
        raise typer.Exit(1)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="A folder of report folders.")] = Path("reports"),
) -> None:
    """Write the first page of a folder of reports: all benchmarks in it, with their best rows."""
    with guarded():
        from lapbench.errors import ResultError
        from lapbench.report.page.contents import render_contents
        from lapbench.report.results import write_file

        if not folder.is_dir():
            raise ResultError(f"there is no folder {folder}: name the one that holds the report folders")
        if (folder / "leaderboard.json").is_file():
            raise ResultError(f"{folder} is a report itself: name the folder that holds it")
        path = folder / "index.html"
        write_file(path, render_contents(folder).encode())
    print_line(f"Written to {path}")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="A report folder.")],
    to: Annotated[
        Literal["csv", "github-action-benchmark", "every-eval-ever"], typer.Option("--to", help="The format.")
    ] = "csv",
    organisation: Annotated[str, typer.Option(help="Who evaluated, for every-eval-ever.")] = "unknown",
) -> None:
    """Print a leaderboard in the format of another tool."""
    with guarded():
        import json
        import time

        from lapbench.report import read_leaderboard, render_csv
        from lapbench.report.export import every_eval_ever, github_action_benchmark

        board = read_leaderboard(folder / "leaderboard.json")
    if to == "csv":
        typer.echo(render_csv(board), nl=False)
    elif to == "github-action-benchmark":
        typer.echo(json.dumps(github_action_benchmark(board), indent=1, ensure_ascii=False))
    else:
        records = every_eval_ever(board, organisation=organisation, retrieved=time.time())
        typer.echo(json.dumps(records, indent=1, ensure_ascii=False))
