"""Data sets on this machine: whether a copy is whole."""

from typing import Annotated

import typer

from lapbench.cli.console import Bars, guarded, print_line, print_table
from lapbench.cli.options import Data

app = typer.Typer(help="Look at the data before you train on it.", no_args_is_help=True)
_MANY = 10  # classes, beyond which a table of them tells less than their sum


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A shipped manifest's name, or the path of a TOML file.")],
    data: Data = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Do not decode images: faster, but blind to broken pixels.")
    ] = False,
) -> None:
    """Verify a copy: counts, digests, unreadable files, boxes, leaks; exit with 1 where a fault is found."""
    with guarded(), Bars() as bars:
        from lapbench.data import load_manifest
        from lapbench.data.checking import check_data

        report = check_data(
            load_manifest(name),
            root=data,
            decode=not headers_only,
            progress=lambda done, total: bars.update(done, total, "images"),
        )
    print_line(f"{report.name} version {report.version}, {report.folder or 'embedded'}")
    headings = ("split", "class", "images", "groups", "with truth", "boxes")
    lines = [
        (c.split, c.label, *(f"{n:,}" for n in (c.samples, c.groups, c.with_truth, c.boxes)))
        for c in report.totals(_MANY)
    ]
    print_table(headings, lines)
    print_table(("split", "digest"), list(report.digests.items()))
    print_table(("", "checked", "found"), [(f.state, f.what, f.detail) for f in report.findings])
    if report.has_fault:
        raise typer.Exit(1)
