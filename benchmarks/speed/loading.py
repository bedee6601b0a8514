"""Speed of reading images, in images a second, beside a plain loop that decodes and resizes one by one.

JPEG (500×375, as ImageNet's are) and, where pydicom is installed, DICOM (1024×1024, JPEG inside, as RSNA's
are), drawn here and brought to 224×224. The first epoch decodes into one file, the second reads it. Wanted:
the second epoch is at least 2 times as fast as the loop; its pixels must be those of the first, bit for bit.
The drawn images fit into the memory in which the system keeps files; a split larger than that reads at the
speed of its disk.

    python benchmarks/speed/loading.py [N]          exit code 1 where a target is missed
"""

import io
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from lapbench.data import Split, load_manifest, open_dataset
from lapbench.data.decoded import keep_decoded
from lapbench.types import FloatArray

SIDE = 224
WANTED_RATIO = 2.0
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


def write_jpeg(path: Path, seed: int) -> None:
    """Write a photograph in colour."""
    draw(375, 500, seed).convert("RGB").save(path, "JPEG", quality=90)


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


def rate(read: Callable[[int], object], n: int) -> float:
    """Return images a second."""
    start = time.perf_counter()
    for number in range(n):
        read(number)
    return n / (time.perf_counter() - start)


def opened(folder: Path, suffix: str, n: int) -> Split:
    """Open the drawn images as a data set."""
    rows = [f"{number}{suffix},1,1,20,20,drawn" for number in range(n)]
    (folder / "boxes.csv").write_text("id,x,y,w,h,label\n" + "\n".join(rows) + "\n")
    (folder / "drawn.toml").write_text(MANIFEST)
    manifest = load_manifest(folder / "drawn.toml")
    return open_dataset(manifest, root=folder, image_size=(SIDE, SIDE), decoded_cache=folder / "cache")[
        "train"
    ]


def measure(
    suffix: str, write: Callable[[Path, int], None], plainly: Callable[[Path], FloatArray], n: int
) -> bool:
    """Print the rates for one format and return whether the second epoch is fast enough."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(n):
            write(folder / f"{number}{suffix}", number)
        loop = rate(lambda number: plainly(folder / f"{number}{suffix}"), n)
        split = opened(folder, suffix, n)
        start = time.perf_counter()
        kept = keep_decoded(split)
        first = n / (time.perf_counter() - start)
        second = rate(lambda number: kept[number], n)
        same = all(np.array_equal(kept[number].image, split[number].image) for number in range(0, n, 10))
    ratio = second / loop
    passed = same and ratio >= WANTED_RATIO
    print(
        f"{suffix[1:]:5}  plain loop {loop:7.0f}/s  first epoch {first:7.0f}/s  second epoch {second:7.0f}/s"
        f"  second to loop {ratio:5.1f} (wanted {WANTED_RATIO:g})  {'ok' if passed else 'MISSED'}"
        f"{'' if same else '  other pixels'}"
    )
    return passed


def main() -> int:
    """Measure both formats."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    passed = measure(".jpg", write_jpeg, plainly_jpeg, n)
    if find_spec("pydicom") is None:
        print("dcm    not measured: pydicom is not installed")
        return 0 if passed else 1
    return 0 if measure(".dcm", write_dicom, plainly_dicom, n) and passed else 1


if __name__ == "__main__":
    sys.exit(main())
