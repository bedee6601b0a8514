"""The commands: the only place that prints, draws progress or exits.

Exit codes: 0 done; 1 a check found a fault; 2 wrong usage, definition, data or weights; 3 the leaderboard is
incomplete (some rows or maps have a reason instead of a number); 130 interrupted.
"""

import os
import signal
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from lapbench.errors import LapbenchError

if TYPE_CHECKING:
    from lapbench.pipeline import Job
    from lapbench.report import Leaderboard
    from lapbench.report.baseline import Baseline
    from lapbench.report.gate import Gate
    from lapbench.store import Entry, MapStore

app = typer.Typer(
    name="lapbench",
    help="Measure how well importance maps of CNNs point at what is really there.",
    epilog="Exit codes: 0 done; 1 a check found a fault; 2 wrong usage, definition, data or weights; "
    "3 some rows or maps have a reason instead of a number; 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
maps_app = typer.Typer(help="List, check and export the maps in the cache.", no_args_is_help=True)
app.add_typer(maps_app, name="maps")
check_app = typer.Typer(help="Check what you bring along before you rank it.", no_args_is_help=True)
app.add_typer(check_app, name="check")
baseline_app = typer.Typer(help="Renew what the gate compares with.", no_args_is_help=True)
app.add_typer(baseline_app, name="baseline")
WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
"""Columns of what is printed; a file has none of its own, and 80 are too few for a leaderboard."""
out_console = Console(width=WIDTH, emoji=False)  # module:x: is a name, not a cross
err_console = Console(stderr=True, emoji=False)

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
        out_console.print(str(path), markup=False, highlight=False, soft_wrap=True)


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
        _say(f"not scored: {reason}")
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
            _say(f"{path} is shown at {server.address}; Ctrl-C ends it")
            if browser:
                webbrowser.open(server.address)
            server.serve_forever()


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
        said = f"{baseline}: {len(new.rows)} rows accepted"
        out_console.print(said, markup=False, highlight=False, soft_wrap=True)


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
        _print_table(gate_report.COLUMNS, [tuple(cells) for cells in loud])
    for line in (gate_report.headline(verdicts), gate_report.rule(verdicts)):
        out_console.print(line, markup=False, highlight=False, soft_wrap=True)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in gate_report.annotations(verdicts):
            out_console.print(line, markup=False, highlight=False, soft_wrap=True)
    page = gate_report.render_markdown(verdicts)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(page)
    for path, content in ((markdown, page.encode()), (junit, gate_report.render_junit(verdicts))):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


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
    out_console.print(where, markup=False, highlight=False, soft_wrap=True)
    if not all(row.complete or row.control or row.randomised for row in board.rows):
        raise typer.Exit(3)


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
                _say(str(error))
                continue
        board = found.board
        counted = f"{len(board.rows)} rows of {board.benchmark} version {board.benchmark_version}"
        out_console.print(
            f"{folder}: ok, {counted}, by {found.submitter.by}", markup=False, highlight=False, soft_wrap=True
        )
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
        from lapbench.report.merge import folder_name, merge, ranks_of, read_submission, write_merged

        joined = merge([read_submission(folder) for folder in folders])
        for merged in joined:
            board = merged.board
            if out is not None:
                board = write_merged(out / folder_name(merged, joined), merged)
            out_console.print(render_terminal(board))
            for note in merged.notes:
                _say(note)
        ranks = ranks_of(joined)
        if ranks:
            typer.echo(ranks, nl=False)
    if out is not None:
        out_console.print(f"Written to {out}/", markup=False, highlight=False, soft_wrap=True)
    if any(merged.disputed for merged in joined):
        raise typer.Exit(1)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="A folder of report folders.")] = Path("reports"),
) -> None:
    """Write the first page of a folder of reports: all benchmarks in it, with their best rows."""
    with guarded():
        from lapbench.report.page.contents import render_contents
        from lapbench.report.results import write_file

        path = folder / "index.html"
        write_file(path, render_contents(folder).encode())
    out_console.print(f"Written to {path}", markup=False, highlight=False, soft_wrap=True)


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
            _say(fault)
        if verbose:
            for headings, lines in listing.cards():
                _print_table(headings, lines)
                out_console.print()
            return
        kinds = {
            "benchmarks": listing.benchmarks,
            "explainers": listing.explainers_known,
            "models": listing.models,
            "data": listing.data,
        }
        _print_table(*kinds[kind]())


@app.command()
def doctor(cache: Cache = None) -> None:
    """Say what is installed, what works and what is missing."""
    with guarded():
        from lapbench.doctor import examine
        from lapbench.pipeline import default_cache

        marks = {"ok": "ok", "absent": "–", "fault": "fault"}
        findings = examine(cache or default_cache())
        _print_table(("", "what", "found"), [(marks[f.state], f.what, f.detail) for f in findings])
        if any(finding.state == "fault" for finding in findings):
            raise typer.Exit(1)


@check_app.command("explainer")
def check_explainer(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|MODULE:FUNCTION", help="A registered explainer, or a function that can be imported."
        ),
    ],
    architecture: Annotated[str, typer.Option(help="The network, with random weights.")] = "resnet18",
    lap: Annotated[bool, typer.Option("--lap", help="Put LAP layers into it.")] = False,
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
                name, architecture=architecture, lap=lap, size=size, batch=batch, parameters=parameter or ()
            )
        lines = [("ok" if check.passed else "fault", check.name, check.fault) for check in checks]
        _print_table(("", "check", "found"), lines)
        if not all(check.passed for check in checks):
            raise typer.Exit(1)


@check_app.command("golden")
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
                out_console.print(f"{row}: written", markup=False, highlight=False, soft_wrap=True)
            _say("Look at what changed (git diff --stat) before you commit it.")
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
        _print_table(("", "maps", "moved by", "tolerance", "fault"), lines)
        if any(found.fault for found in findings):
            raise typer.Exit(1)


@maps_app.command("list")
def list_maps(cache: Cache = None) -> None:
    """List the shards in the cache."""
    with guarded():
        store = _store(cache)
        lines = [_entry_line(store, entry) for entry in store.entries()]
        _print_table(("shard", "samples", "arrays", "KiB"), lines)


@maps_app.command("check")
def check_maps(cache: Cache = None) -> None:
    """Read every shard in the cache and verify its checksum; exit with 1 where one is broken."""
    with guarded():
        store = _store(cache)
        entries = list(store.entries(verify=True))
        broken = [entry for entry in entries if entry.fault]
        for entry in broken:
            out_console.print(f"{entry.path}: {entry.fault}", markup=False, highlight=False, soft_wrap=True)
        out_console.print(
            f"{len(entries)} shards, {len(broken)} broken (the next run sets them aside and remakes them)"
        )
        if broken:
            raise typer.Exit(1)


@maps_app.command("export")
def export_maps(
    folder: Annotated[Path, typer.Argument(help="Where the .npy files go.")],
    only: Annotated[str, typer.Option(help="Only shards whose path holds this text.")] = "",
    cache: Cache = None,
) -> None:
    """Write maps as .npy files, with ids, targets and provenance as .json beside them."""
    with guarded():
        store = _store(cache)
        entries = [e for e in store.entries() if only in e.path.relative_to(store.root).as_posix()]
        written = store.export(entries, folder)
        summary = f"{len(entries)} shards, {len(written)} files in {folder}"
        out_console.print(summary, markup=False, highlight=False, soft_wrap=True)


def _store(cache: Path | None) -> "MapStore":
    from lapbench.pipeline import default_cache
    from lapbench.store import MapStore

    return MapStore((cache or default_cache()) / "maps", warn=_say)


def _entry_line(store: "MapStore", entry: "Entry") -> tuple[str, ...]:
    name = entry.path.relative_to(store.root).as_posix()
    arrays = "; ".join(f"{key} {'×'.join(map(str, shape[1:]))}" for key, shape in entry.shapes.items())
    return name, str(entry.n), entry.fault or arrays, str(entry.bytes // 1024)


def _print_table(headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    """Print a table: folded into a terminal's width, or one line a row where there is no terminal."""
    if not out_console.is_terminal:
        table_lines = [tuple(" ".join(cell.split()) for cell in line) for line in (headings, *lines)]
        widths = [max(map(len, column)) for column in zip(*table_lines, strict=True)]
        for line in table_lines:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            out_console.print(text, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(box=None, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line), style="red" if line[0] == "fault" else "")
    out_console.print(table)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@contextmanager
def guarded() -> Iterator[None]:
    """Turn errors that lapbench raises on purpose into one message and an exit code."""
    try:
        yield
    except LapbenchError as error:
        err_console.print(f"[red]error:[/] {type(error).__name__}", highlight=False)
        _say(str(error))
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # whoever reads the output has enough of it: click ends quietly
    except OSError as error:
        err_console.print("[red]error:[/] the file system refuses", highlight=False)
        _say(f"{error.filename or 'a file'}: {error.strerror or error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _say("Interrupted. What is finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None


def _say(text: str) -> None:
    """Print a message as it is, on one line however long, so that paths in it can be copied."""
    err_console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars:
    """One progress bar for every piece of work; lines of text where there is no terminal."""

    def __init__(self) -> None:
        self._interrupted = False
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=err_console,
            disable=not err_console.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self._handler = signal.getsignal(signal.SIGINT)
        if self._handler is signal.default_int_handler:  # a shell may have set it to be ignored
            signal.signal(signal.SIGINT, self._interrupt)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._drop
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        sys.unraisablehook = self._hook
        signal.signal(signal.SIGINT, self._handler)

    def update(self, done: int, total: int, text: str) -> None:
        """Draw the state of one piece of work; see `lapbench.executor.Progress` for the words."""
        if self._interrupted:
            raise KeyboardInterrupt  # Python dropped the first one, as it does in a destructor
        work, _, state = text.partition(" · ")
        if work not in self._tasks:
            self._tasks[work] = self._progress.add_task(text, total=total)
        self._progress.update(self._tasks[work], completed=done, total=total, description=text)
        key = f"{work}, finished" if done >= total else text
        if not err_console.is_terminal and (state or done >= total) and key not in self._said:
            self._said.add(key)
            _say(f"{text} ({done}/{total})")

    def note(self, text: str) -> None:
        """Show a message above the bars."""
        _say(text)

    def _drop(self, what: "sys.UnraisableHookArgs") -> None:
        """Keep silent about a Ctrl-C that met a destructor: `update` raises it again."""
        if not isinstance(what.exc_value, KeyboardInterrupt):
            self._hook(what)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    sys.exit(app())
