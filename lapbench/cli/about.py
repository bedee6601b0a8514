"""What a definition may name, and what is installed."""

from typing import Annotated, Literal

import typer

from lapbench.cli.console import guarded, out_console, print_table, say
from lapbench.cli.options import Cache

app = typer.Typer()


@app.command("ls")
def list_names(
    kind: Annotated[Literal["benchmarks", "explainers", "models", "data"], typer.Argument()],
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the card of every explainer: all that is declared.")
    ] = False,
) -> None:
    """List what a definition may name, and the plug-ins that are broken."""
    if verbose and kind != "explainers":
        raise typer.BadParameter("only explainers have a card", param_hint="--verbose")
    with guarded():
        from lapbench.pipeline import listing

        for fault in listing.broken(kind):
            say(fault)
        if verbose:
            for headings, lines in listing.cards():
                print_table(headings, lines)
                out_console.print()
            return
        kinds = {
            "benchmarks": listing.benchmarks,
            "explainers": listing.explainers_known,
            "models": listing.models,
            "data": listing.data,
        }
        print_table(*kinds[kind]())


@app.command()
def doctor(cache: Cache = None) -> None:
    """Say what is installed, what works and what is missing."""
    with guarded():
        from lapbench.doctor import examine
        from lapbench.pipeline import default_cache

        marks = {"ok": "ok", "absent": "–", "fault": "fault"}
        findings = examine(cache or default_cache())
        print_table(("", "what", "found"), [(marks[f.state], f.what, f.detail) for f in findings])
        if any(finding.state == "fault" for finding in findings):
            raise typer.Exit(1)
