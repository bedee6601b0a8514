"""Text from data sets and strangers inside Markdown: nothing in it is taken for mark-up."""

import re
from collections.abc import Sequence


def printable(text: str) -> str:
    """Replace what would move the cursor, break the line or turn the writing direction."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def escape(text: str) -> str:
    """Escape what Markdown or HTML could take for its own."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", printable(text))


def table(columns: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[str] = ()) -> list[str]:
    """Return the lines of a table; the columns named in `right` are set to the right."""
    rule = ["--:" if name in right else ":--" for name in columns]
    cells = [[escape(name) for name in columns], rule, *([escape(cell) for cell in line] for line in lines)]
    return ["| " + " | ".join(line) + " |" for line in cells]
