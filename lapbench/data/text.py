"""Text of annotation files, with the place of every line for errors."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from lapbench.errors import DataError, suggest


def read_text(path: Path) -> str:
    """Return the text of an annotation file. Errors: DataError naming the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such annotation file: complete the data folder, or correct the manifest"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the annotation cannot be read as UTF-8 text: {error}") from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (``file:line``, line) of every line that is not blank. Errors: DataError naming the file."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def read_rows(
    path: Path, columns: Sequence[str], *, delimiter: str = ","
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (``file:line``, row) of a table whose first line names its columns.

    Errors: DataError for a file without the wanted columns and for rows that are longer or shorter.
    """
    table = csv.reader(read_text(path).splitlines(), delimiter=delimiter, strict=True)
    try:
        names = next(table, [])
        for wanted in columns:
            if wanted not in names:
                raise DataError(f"{path}:1: there is no column {wanted!r}{suggest(wanted, names)}")
        for row in table:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(f"{path}:{table.line_num}: wanted {len(names)} cells, found {len(row)}")
            yield f"{path}:{table.line_num}", dict(zip(names, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{table.line_num}: not a valid table: {error}") from None


def numbers(cells: Sequence[str], *, where: str) -> tuple[float, float, float, float]:
    """Turn four cells into the numbers of a box. Errors: DataError naming where."""
    try:
        a, b, c, d = (float(cell) for cell in cells)
    except ValueError:
        raise DataError(f"{where}: a box needs four numbers, found {list(cells)}") from None
    return a, b, c, d
