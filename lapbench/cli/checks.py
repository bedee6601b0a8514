"""Checks of what people bring along, and of lapbench's own explainers."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lapbench.cli.console import err_console, guarded, print_line, print_table, say
from lapbench.cli.options import Data, Definition, Device
from lapbench.registry import Layer

app = typer.Typer(help="Check what you bring along before you rank it.", no_args_is_help=True)


@app.command("explainer")
def check_explainer(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|MODULE:FUNCTION", help="A registered explainer, or a function that can be imported."
        ),
    ],
    architecture: Annotated[str, typer.Option(help="The network, with random weights.")] = "resnet18",
    layer: Annotated[
        Layer | None, typer.Option(help="A layer to put into it; if not given, what the explainer needs.")
    ] = None,
    size: Annotated[int, typer.Option(min=32, max=512, help="The images' side in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=2, help="How many images.")] = 3,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="KEY=VALUE", help="A parameter of it; may be repeated."),
    ] = None,
) -> None:
    """Hold an explainer to the contract of all explainers; exit with 1 where it breaks it."""
    with guarded():
        with err_console.status("checking …"):
            from lapbench.pipeline.checking import check_named

            checks = check_named(
                name,
                architecture=architecture,
                layer=layer,
                size=size,
                batch=batch,
                parameters=parameter or (),
            )
        lines = [("ok" if check.passed else "fault", check.name, check.fault) for check in checks]
        print_table(("", "check", "found"), lines)
        if not all(check.passed for check in checks):
            raise typer.Exit(1)


@app.command("golden")
def check_golden_maps(
    name: Definition,
    folder: Annotated[Path, typer.Argument(help="Where the golden maps are.")],
    update: Annotated[
        bool, typer.Option("--update", help="Make the maps of today the golden ones, and exit with 1.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, help="How many of the scored images have golden maps.")] = 4,
    data: Data = None,
    device: Device = "auto",
) -> None:
    """Hold the maps of a benchmark's explainers against golden ones; exit with 1 where one has moved."""
    with guarded(), tempfile.TemporaryDirectory() as cache:
        with err_console.status("loading torch …"):
            from lapbench import benchmark, pipeline
            from lapbench.pipeline.golden import check_golden, update_golden

        few = {"fit_limit": 1, "score_limit": images}
        definition = benchmark.load_benchmark(name)
        definition = definition.model_copy(update={"data": definition.data.model_copy(update=few)})
        workspace = pipeline.Workspace(out=folder, cache=Path(cache), data=data, device=device)
        job = pipeline.Job(definition, workspace)
        if update:
            for row in update_golden(job, folder):
                print_line(f"{row}: written")
            say("Look at what changed (git diff --stat) before you commit it.")
            raise typer.Exit(1)
        findings = check_golden(job, folder)
        lines = [
            (
                "fault" if found.fault else "ok",
                found.row,
                "–" if found.distance is None else f"{found.distance:.1e}",
                f"{found.tolerance:g}",
                found.fault,
            )
            for found in findings
        ]
        print_table(("", "maps", "moved by", "tolerance", "fault"), lines)
        if any(found.fault for found in findings):
            raise typer.Exit(1)
