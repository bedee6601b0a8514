"""Speed of reading images, in images a second, beside a plain loop that decodes and resizes one by one.

Drawn here and brought to 224×224: JPEG of 500×375, as ImageNet's are; of 1024×1024, which is decoded at half
that size; and, where pydicom is installed, DICOM of 1024×1024 with JPEG inside, as RSNA's are. The first
epoch decodes: into memory, or, for splits too large for it, into a file, which takes as long as the disk
needs besides. The second reads that file. Wanted of two free cores: see FORMATS. The pixels of both epochs
must be the same, bit for bit.
The drawn images fit into the memory in which the system keeps files; a split larger than that reads at the
speed of its disk. Each rate is the best of ROUNDS, taken in turns.

    python benchmarks/speed/loading.py [N]          exit code 1 where a target is missed
"""

import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from lapbench.data import Split, load_manifest, open_dataset
from lapbench.data.decoded import decode, keep_decoded
from lapbench.types import FloatArray

SIDE = 224
ROUNDS = 5
MANIFEST = """
name = "drawn"
version = 1
title = "Drawn images"
licence = "none"
classes = ["drawn"]
[reader]
name = "csv-boxes"
[reader.parameters]
file = "boxes.csv"
image = "{id}"
id_column = "id"
box_columns = ["x", "y", "w", "h"]
convention = "xywh"
base = 0
label_column = "label"
[splits.train]
seed = 0
"""


def draw(height: int, width: int, seed: int) -> Image.Image:
    """Return a grey image with the coarse structure and some of the grain of a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12), np.uint8)).resize((width, height))
    grain = random.normal(0, 6, (height, width))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def write_jpeg(height: int, width: int, path: Path, seed: int) -> None:
    """Write a photograph in colour."""
    draw(height, width, seed).convert("RGB").save(path, "JPEG", quality=90)


def write_dicom(path: Path, seed: int) -> None:
    """Write a radiograph: grey, JPEG baseline."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    stream = io.BytesIO()
    draw(1024, 1024, seed).save(stream, "JPEG", quality=90)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = f"1.2.3.{seed + 1}"
    header.Rows = header.Columns = 1024
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 8
    header.HighBit, header.PixelRepresentation = 7, 0
    header.PixelData = encapsulate([stream.getvalue()])
    header["PixelData"].is_undefined_length = True
    header.save_as(path, enforce_file_format=True)


def plainly_jpeg(path: Path) -> FloatArray:
    """Decode and resize as everybody does it with Pillow."""
    image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)


def plainly_dicom(path: Path) -> FloatArray:
    """Decode and resize as everybody does it with pydicom and Pillow."""
    import pydicom

    image = Image.fromarray(pydicom.dcmread(path).pixel_array).convert("RGB")
    resized = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32).transpose(2, 0, 1) / np.float32(255)


def rate(read: Callable[[], object], n: int) -> float:
    """Return images a second."""
    start = time.perf_counter()
    read()
    return n / (time.perf_counter() - start)


def read_all(split: Split) -> list[FloatArray]:
    """Return every image of a split, one by one."""
    return [split.image(number) for number in range(len(split))]


def opened(folder: Path, suffix: str, n: int) -> Split:
    """Open the drawn images as a data set."""
    rows = [f"{number}{suffix},1,1,20,20,drawn" for number in range(n)]
    (folder / "boxes.csv").write_text("id,x,y,w,h,label\n" + "\n".join(rows) + "\n")
    (folder / "drawn.toml").write_text(MANIFEST)
    manifest = load_manifest(folder / "drawn.toml")
    return open_dataset(manifest, root=folder, image_size=(SIDE, SIDE), decoded_cache=folder / "cache")[
        "train"
    ]


@dataclass(frozen=True)
class Format:
    """Files to be read, how everybody reads them, and how many times as fast each epoch is to be."""

    title: str
    suffix: str
    write: Callable[[Path, int], None]
    plainly: Callable[[Path], FloatArray]
    wanted_first: float | None
    wanted_second: float = 2.0


FORMATS = (
    # too small for a reduced decode: the second core pays for resizing without rounding to bytes, no more
    Format("JPEG 500×375", ".jpg", partial(write_jpeg, 375, 500), plainly_jpeg, None),
    Format("JPEG 1024×1024", ".jpg", partial(write_jpeg, 1024, 1024), plainly_jpeg, 1.5),
    Format("DICOM 1024×1024", ".dcm", write_dicom, plainly_dicom, 1.5),
)


def measure(form: Format, n: int) -> bool:
    """Print the rates for one format and return whether both epochs are fast enough."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{number}{form.suffix}" for number in range(n)]
        for number, path in enumerate(paths):
            form.write(path, number)
        split = opened(folder, form.suffix, n)
        rates = []
        for _ in range(ROUNDS):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            loop = rate(lambda: [form.plainly(path) for path in paths], n)
            first = rate(lambda: decode(split, np.arange(n)), n)
            written = rate(lambda: keep_decoded(split), n)
            kept = keep_decoded(split)
            second = rate(partial(read_all, kept), n)
            rates.append((loop, first, written, second))
        same = all(np.array_equal(kept.image(number), split.image(number)) for number in range(0, n, 10))
    loop, first, written, second = np.max(rates, axis=0)
    passed = same and first >= (form.wanted_first or 0) * loop and second >= form.wanted_second * loop
    print(
        f"{form.title:15}  plain loop {loop:3.0f}/s"
        f"  first epoch {first:3.0f}/s, {first / loop:4.2f} x (wanted {form.wanted_first or '–'};"
        f" into a file {written:3.0f}/s)"
        f"  second {second:5.0f}/s, {second / loop:5.1f} x (wanted {form.wanted_second:g})"
        f"  {'ok' if passed else 'MISSED'}{'' if same else '  other pixels'}"
    )
    return passed


def main() -> int:
    """Measure every format that can be read here."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    readable = [form for form in FORMATS if form.suffix != ".dcm" or find_spec("pydicom")]
    passed = [measure(form, n) for form in readable]
    if len(readable) < len(FORMATS):
        print("DICOM is not measured: pydicom is not installed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
