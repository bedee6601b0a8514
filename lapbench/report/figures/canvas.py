"""What all figures share: a style that is not the user's, and files without a date."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from lapbench.report.results import write_file

UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Date": None},
}
"""The formats, and what keeps dates and versions out of the files."""
LARGEST = 1_000_000  # bytes; beyond, a picture makes do with 256 colours
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.linewidth": 0.6,
    "text.parse_math": False,
    "svg.hashsalt": "lapbench",  # names of clip paths, drawn at random otherwise
}


@contextmanager
def figure_at(path: Path, dpi: int) -> Iterator[Figure]:
    """Give a figure to draw on, and write it when the block ends well."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an id in a script that the font lacks
        figure = Figure(dpi=dpi, facecolor="white")
        yield figure
        content = io.BytesIO()
        form = path.suffix[1:]
        figure.savefig(content, format=form, metadata=UNDATED[form])
    if form == "png" and len(content.getvalue()) > LARGEST:
        picture = Image.open(io.BytesIO(content.getvalue())).convert("RGB")
        content = io.BytesIO()
        picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(content, "PNG")
    write_file(path, content.getvalue())
