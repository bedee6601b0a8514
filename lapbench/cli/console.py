"""What commands print with: lines, tables, progress bars; errors become one message and an exit code."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from lapbench.errors import LapbenchError

WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
"""Columns of what is printed; a file has none of its own, and 80 are too few for a leaderboard."""
out_console = Console(width=WIDTH, emoji=False)  # module:x: is a name, not a cross
err_console = Console(stderr=True, emoji=False)


def print_line(text: str) -> None:
    """Print a result as it is, on one line however long, so that paths in it can be copied."""
    out_console.print(text, markup=False, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a message in the same way where messages go."""
    err_console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_table(headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    """Print a table: folded into a terminal's width, or one line a row where there is no terminal."""
    if not out_console.is_terminal:
        table_lines = [tuple(" ".join(cell.split()) for cell in line) for line in (headings, *lines)]
        widths = [max(map(len, column)) for column in zip(*table_lines, strict=True)]
        for line in table_lines:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            print_line(text)
        return
    table = Table(box=None, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line), style="red" if line[0] == "fault" else "")
    out_console.print(table)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn errors that lapbench raises on purpose into one message and an exit code."""
    try:
        yield
    except LapbenchError as error:
        err_console.print(f"[red]error:[/] {type(error).__name__}", highlight=False)
        say(str(error))
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise  # whoever reads the output has enough of it: click ends quietly
    except OSError as error:
        err_console.print("[red]error:[/] the file system refuses", highlight=False)
        say(f"{error.filename or 'a file'}: {error.strerror or error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("Interrupted. What is finished is kept; the same command goes on from there.")
        raise typer.Exit(130) from None


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
            say(f"{text} ({done}/{total})")

    def note(self, text: str) -> None:
        """Show a message above the bars."""
        say(text)

    def _drop(self, what: "sys.UnraisableHookArgs") -> None:
        """Keep silent about a Ctrl-C that met a destructor: `update` raises it again."""
        if not isinstance(what.exc_value, KeyboardInterrupt):
            self._hook(what)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True
        raise KeyboardInterrupt
