"""Files that list the classes of a data set in the order of their labels."""

import json
from pathlib import Path

from lapbench.data.text import read_lines, read_text
from lapbench.errors import DataError


def read_class_list(path: Path) -> tuple[str, ...]:
    """Return class names in order: the first word of each line, or of each entry of a JSON index.

    The text form is that of wnids.txt and LOC_synset_mapping.txt, or of CUB's classes.txt, where each line
    begins with its number from 1; the JSON form ``{"0": ["n01440764",
    "tench"], …}`` that of imagenet_class_index.json. Errors: DataError for another form and for a name twice.
    """
    if path.suffix == ".json":
        names = _indexed(path)
    else:
        words = [line.split() for _, line in read_lines(path)]
        numbered = all(len(line) > 1 and line[0] == str(n) for n, line in enumerate(words, start=1))
        names = tuple(line[1 if numbered else 0] for line in words)
    if len(set(names)) < len(names):
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise DataError(f"{path}: the class {twice!r} is listed twice")
    return names


def _indexed(path: Path) -> tuple[str, ...]:
    try:
        table = json.loads(read_text(path))
        return tuple(str(table[str(number)][0]) for number in range(len(table)))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f'{path}: wanted {{"0": ["n01440764", "tench"], …}}, numbered from 0 without a gap ({error!r})'
        ) from None
