"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Definition = Annotated[str, typer.Argument(help="A shipped benchmark's name, or the path of a TOML file.")]
Out = Annotated[Path | None, typer.Option(help="Where reports go; if not given, reports/NAME.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        envvar="LAPBENCH_CACHE", help="Where weights and maps are kept; if not given, the user's cache."
    ),
]
Data = Annotated[
    Path | None, typer.Option(envvar="LAPBENCH_DATA", help="The folder that holds the data set's files.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first N samples of each split.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where networks run.")]
Models = Annotated[str, typer.Option(help="Only these models, separated by commas.")]
Explainers = Annotated[str, typer.Option(help="Only these explainers, separated by commas.")]
Seed = Annotated[int | None, typer.Option(help="Train with this one seed instead of the definition's.")]
