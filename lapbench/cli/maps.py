"""The maps in the cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lapbench.cli.console import guarded, out_console, print_line, print_table, say
from lapbench.cli.options import Cache

if TYPE_CHECKING:
    from lapbench.store import Entry, MapStore

app = typer.Typer(help="List, check and export the maps in the cache.", no_args_is_help=True)


@app.command("list")
def list_maps(cache: Cache = None) -> None:
    """List the shards in the cache."""
    with guarded():
        store = _store(cache)
        lines = [_entry_line(store, entry) for entry in store.entries()]
        print_table(("shard", "samples", "arrays", "KiB"), lines)


@app.command("check")
def check_maps(cache: Cache = None) -> None:
    """Read every shard in the cache and verify its checksum; exit with 1 where one is broken."""
    with guarded():
        store = _store(cache)
        entries = list(store.entries(verify=True))
        broken = [entry for entry in entries if entry.fault]
        for entry in broken:
            print_line(f"{entry.path}: {entry.fault}")
        out_console.print(
            f"{len(entries)} shards, {len(broken)} broken (the next run sets them aside and remakes them)"
        )
        if broken:
            raise typer.Exit(1)


@app.command("export")
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
        print_line(summary)


def _store(cache: Path | None) -> "MapStore":
    from lapbench.errors import StoreError
    from lapbench.pipeline import default_cache
    from lapbench.store import MapStore

    if cache is not None and not cache.is_dir():
        raise StoreError(f"{cache}: there is no such cache: name the folder that a run was given as --cache")
    return MapStore((cache or default_cache()) / "maps", warn=say)


def _entry_line(store: "MapStore", entry: "Entry") -> tuple[str, ...]:
    name = entry.path.relative_to(store.root).as_posix()
    arrays = "; ".join(f"{key} {'×'.join(map(str, shape[1:]))}" for key, shape in entry.shapes.items())
    return name, str(entry.n), entry.fault or arrays, str(entry.bytes // 1024)
