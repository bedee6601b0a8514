"""The commands: the only place that prints, draws progress or exits.

Exit codes: 0 done; 1 a check found a fault; 2 wrong usage, definition, data or weights; 3 the leaderboard is
incomplete (some rows or maps have a reason instead of a number); 130 interrupted.
"""

import sys

import typer

from lapbench.cli import about, checks, data, findings, folders, gating, maps, stages

app = typer.Typer(
    name="lapbench",
    help="Measure how well importance maps of CNNs point at what is really there.",
    epilog="Exit codes: 0 done; 1 a check found a fault; 2 wrong usage, definition, data or weights; "
    "3 some rows or maps have a reason instead of a number; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (stages, findings, gating, folders, about):
    app.add_typer(group.app)
app.add_typer(checks.app, name="check")
app.add_typer(data.app, name="data")
app.add_typer(maps.app, name="maps")


def main() -> None:
    """Run the command line."""
    sys.exit(app())
