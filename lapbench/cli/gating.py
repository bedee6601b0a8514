"""The gate, and the baseline that it compares with."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lapbench.cli.console import Bars, err_console, guarded, print_line, print_table
from lapbench.cli.options import Data, Device, Limit

if TYPE_CHECKING:
    from lapbench.report.baseline import Baseline
    from lapbench.report.gate import Gate

app = typer.Typer()
baseline_app = typer.Typer(help="Renew what the gate compares with.", no_args_is_help=True)
app.add_typer(baseline_app, name="baseline")

Current = Annotated[Path | None, typer.Option(help="The new results: a report folder.")]
Given = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="[NAME=]WEIGHTS",
        help="Instead of new results: weights to be explained now, for a model of --benchmark.",
    ),
]
GivenOn = Annotated[
    str, typer.Option("--benchmark", help="The name or TOML file of the benchmark that --model is put to.")
]
GivenOut = Annotated[
    Path | None, typer.Option(help="Where the report on --model goes; if not given, nowhere.")
]
GivenCache = Annotated[
    Path | None, typer.Option(help="Where maps of --model are kept; if not given, nowhere: all is made anew.")
]
MinEffect = Annotated[
    float, typer.Option(min=0, max=1, help="The smallest difference of mean IoU that matters.")
]
Alpha = Annotated[
    float, typer.Option(min=1e-9, max=0.5, help="How often a gate may fail where nothing has changed.")
]


@app.command()
def gate(
    baseline: Annotated[Path, typer.Option(help="The accepted results: a file, or a report folder.")],
    current: Current = None,
    model: Given = "",
    benchmark: GivenOn = "",
    min_effect: MinEffect = 0.01,
    alpha: Alpha = 0.05,
    markdown: Annotated[Path | None, typer.Option(help="Write the verdicts there, as Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts there, as JUnit XML.")] = None,
    out: GivenOut = None,
    cache: GivenCache = None,
    data: Data = None,
    device: Device = "auto",
) -> None:
    """Hold new results against accepted ones; exit with 1 where a row moved, either way, or is missing."""
    with guarded():
        from lapbench.report.baseline import read_baseline
        from lapbench.report.gate import judge

        accepted = read_baseline(baseline)
        new = _new_results(current, model, benchmark, out, cache, data, device, accepted.limit)
        explained = sorted({row.model for row in new.rows}) if model else ()
        verdicts = judge(accepted, new, min_effect=min_effect, alpha=alpha, models=explained)
        _announce(verdicts, markdown, junit)
        if not verdicts.passes:
            raise typer.Exit(1)


@baseline_app.command("accept")
def accept_baseline(
    baseline: Annotated[Path, typer.Option(help="The file to write; the old one's history is kept.")],
    why: Annotated[str, typer.Option(help="Why these results are right; it is recorded.")],
    current: Current = None,
    model: Given = "",
    benchmark: GivenOn = "",
    out: GivenOut = None,
    cache: GivenCache = None,
    data: Data = None,
    limit: Limit = None,
    device: Device = "auto",
) -> None:
    """Make results the ones that the gate compares with, and record the reason."""
    if not why.strip():
        raise typer.BadParameter("a reason in words is wanted", param_hint="--why")
    with guarded():
        from lapbench.report.baseline import accepted, read_baseline, write_baseline
        from lapbench.report.gate import judge

        old = read_baseline(baseline) if baseline.exists() else None
        new = _new_results(current, model, benchmark, out, cache, data, device, limit)
        verdicts = judge(old, new) if old else None
        if verdicts:
            _announce(verdicts, None, None)
        write_baseline(baseline, accepted(new, why, old=old, verdicts=verdicts.counts if verdicts else {}))
        print_line(f"{baseline}: {len(new.rows)} rows accepted")


def _new_results(
    current: Path | None,
    model: str,
    benchmark: str,
    out: Path | None,
    cache: Path | None,
    data: Path | None,
    device: Literal["auto", "cpu", "cuda"],
    limit: int | None,
) -> "Baseline":
    """Read new results, or make them: all rows of one network with given weights."""
    from lapbench.report.baseline import from_report

    if (current is None) != bool(model) or bool(model) != bool(benchmark):
        raise typer.BadParameter("give either --current, or --model with --benchmark")
    if current is not None:
        return from_report(current)
    name, _, weights = ("", "", model) if Path(model).is_file() else model.rpartition("=")
    with err_console.status("loading torch …"), tempfile.TemporaryDirectory() as folder:
        from lapbench import benchmark as definition
        from lapbench import pipeline

        chosen = definition.given(definition.load_benchmark(benchmark), Path(weights), name)
        with Bars() as bars:
            workspace = pipeline.Workspace(
                out=out or Path(folder) / "report",
                cache=cache or Path(folder) / "cache",
                data=data,
                limit=limit,
                device=device,
                progress=bars.update,
                notify=bars.note,
            )
            pipeline.run(pipeline.Job(chosen, workspace))
        return from_report(workspace.out)


def _announce(verdicts: "Gate", markdown: Path | None, junit: Path | None) -> None:
    """Print what a gate says, mark the run where GitHub asks for it, and write the files asked for."""
    from lapbench.report import gate_report

    loud = [gate_report.cells(verdict) for verdict in verdicts.verdicts if verdict.state != "ok"]
    if loud:
        print_table(gate_report.COLUMNS, [tuple(cells) for cells in loud])
    for line in (gate_report.headline(verdicts), gate_report.rule(verdicts)):
        print_line(line)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in gate_report.annotations(verdicts):
            print_line(line)
    page = gate_report.render_markdown(verdicts)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(page)
    for path, content in ((markdown, page.encode()), (junit, gate_report.render_junit(verdicts))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
