"""DICOM radiographs become arrays as a viewer would show them; pydicom decodes, and is an optional extra.

The chain is the standard's (PS3.3 C.7.6.3.1.2 and C.11): stored values, rescaled (slope and intercept), seen
through the first window (centre and width) where the file gives one, else through the whole range that its
bits can hold, and turned round where MONOCHROME1 says that small values are bright.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lapbench.errors import DataError, MissingLibraryError
from lapbench.types import Array, FloatArray

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = frozenset((".dcm", ".dicom"))
"""The names by which a file is taken for DICOM."""
EXTRA = "pip install 'lapbench[dicom]'"
_GREY = ("MONOCHROME1", "MONOCHROME2")

Values = npt.NDArray[np.float64]


def is_dicom(path: Path) -> bool:
    """Whether a file's name says that it is DICOM."""
    return path.suffix.lower() in SUFFIXES


def read_dicom(path: Path, *, max_pixels: int, reduce: int = 1) -> FloatArray:
    """Decode a DICOM file: (1, H, W) float32 in [0, 1], as it is meant to be displayed.

    max_pixels: a larger image is refused before it is decoded. reduce: what both sides are divided by (1, 2,
    4 or 8) where the pixels are a baseline JPEG, and where no window comes between decoding and averaging;
    elsewhere the image is returned whole. Errors: DataError naming the file that is
    missing, empty, truncated, too large, in colour, of several frames or without pixels;
    MissingLibraryError without pydicom.
    """
    with _opened(path) as header:
        _check_size(_size(header, path), path, max_pixels)
        _check_kind(header, path)
        least, brightness = _brightness(header, path)
        is_reduced = reduce > 1 and _is_reducible(header)
        stored = _reduced(header, reduce) if is_reduced else header.pixel_array
    # bits above the stored ones may hold anything: some writers leave an overlay there
    image: FloatArray = np.take(brightness, stored - np.int32(least) if least else stored, mode="clip")[None]
    return image


def read_dicom_size(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """Return height and width from the header alone. Errors: as `read_dicom`, but for the pixels."""
    with _opened(path, only=("Rows", "Columns")) as header:
        size = _size(header, path)
    _check_size(size, path, max_pixels)
    return size


@contextmanager
def _opened(path: Path, only: tuple[str, ...] = ()) -> Iterator["Dataset"]:
    """Parse a DICOM file, or only some elements of its header; what goes wrong inside names the file."""
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise MissingLibraryError(
            f"{path}: DICOM needs pydicom, which cannot be imported ({error}): {EXTRA}"
        ) from error
    try:
        yield pydicom.dcmread(path, stop_before_pixels=bool(only), specific_tags=list(only) or None)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such image: complete the data folder, or correct the annotation"
        ) from None
    except InvalidDicomError:
        what = "an empty file" if path.stat().st_size == 0 else "no DICOM file (its preamble has no 'DICM')"
        raise DataError(f"{path}: {what}: fetch the file again") from None
    except Exception as error:  # noqa: BLE001 - on broken files parsers raise whatever they stumble over
        raise DataError(f"{path}: broken or truncated ({error}): fetch the file again") from None


def _size(header: "Dataset", path: Path) -> tuple[int, int]:
    height, width = header.get("Rows"), header.get("Columns")
    if not height or not width:
        raise DataError(
            f"{path}: the DICOM header gives no size of an image (Rows {height}, Columns {width})"
        )
    return int(height), int(width)


def _check_size(size: tuple[int, int], path: Path, max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise DataError(
            f"{path}: the image claims more than {max_pixels:,} pixels and is not decoded: shrink it first"
        )


def _check_kind(header: "Dataset", path: Path) -> None:
    """Refuse what is no single grey image, and look-up tables, which no window could stand in for."""
    if "PixelData" not in header:
        raise DataError(f"{path}: this DICOM file holds no pixels: fetch the file again")
    meaning = header.get("PhotometricInterpretation")
    if meaning not in _GREY:
        raise DataError(
            f"{path}: wanted grey pixels ({' or '.join(_GREY)}), found {meaning}: convert the file to PNG"
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"{path}: wanted one image, found {frames} frames: write each into a file of its own")
    _check_decoder(header, path)
    has_table = "ModalityLUTSequence" in header or (
        "VOILUTSequence" in header and header.get("WindowCenter") is None
    )
    if has_table:
        raise DataError(f"{path}: its grey levels need a look-up table, which is not read: convert it to PNG")


def _check_decoder(header: "Dataset", path: Path) -> None:
    """Tell a compression that nothing installed here decodes from a broken file."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise DataError(
            f"{path}: nothing installed here decodes its compression, {syntax.name}: pip install pylibjpeg"
            " pylibjpeg-libjpeg"
        )


def _brightness(header: "Dataset", path: Path) -> tuple[int, FloatArray]:
    """Return the least stored value, and how bright it and each of the following ones is shown, in [0, 1].

    There are at most 65,536 of them, so the arithmetic is done on them and not on millions of pixels.
    """
    bits = int(header.BitsStored)
    if not 1 <= bits <= 16:
        raise DataError(f"{path}: wanted 1 to 16 bits a pixel, found {bits}: convert the file to PNG")
    least = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    stored = least + np.arange(2**bits, dtype=np.float64)
    values = stored * _slope(header, path) + float(header.get("RescaleIntercept") or 0)
    shown = _window(values, header, path)
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return least, shown.astype(np.float32)


def _is_reducible(header: "Dataset") -> bool:
    """Whether pixels are a JPEG of 8 bits, shown as bright as they are large: averages may come first."""
    from pydicom.uid import JPEGBaseline8Bit

    return (
        header.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        and header.BitsStored == 8
        and not header.PixelRepresentation
        and (_first(header.get("WindowCenter")) is None or _first(header.get("WindowWidth")) is None)
    )


def _reduced(header: "Dataset", reduce: int) -> Array:
    """Decode a grey JPEG, both sides divided by 2, 4 or 8; ValueError where it contradicts the header."""
    from pydicom.encaps import get_frame

    with Image.open(BytesIO(get_frame(header.PixelData, 0, number_of_frames=1)), formats=("JPEG",)) as image:
        found, wanted = (image.mode, image.height, image.width), ("L", header.Rows, header.Columns)
        if found != wanted:
            raise ValueError(f"the JPEG in it has mode and size {found}, the header says {wanted}")
        image.draft(None, (image.width // reduce, image.height // reduce))
        return np.asarray(image)


def _slope(header: "Dataset", path: Path) -> float:
    given = header.get("RescaleSlope")
    slope = 1.0 if given is None else float(given)
    if slope == 0 or not np.isfinite(slope):
        raise DataError(f"{path}: the rescale slope must be a number other than 0, found {slope:g}")
    return slope


def _window(values: Values, header: "Dataset", path: Path) -> Values:
    """Return values in [0, 1] through the file's first window, else through all that its bits can hold.

    The functions of the window are those of PS3.3 C.11.2.1.2 and C.11.2.1.3.
    """
    centre, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    if centre is None or width is None:
        return np.asarray((values - values.min()) / (values.max() - values.min()))
    kind = str(header.get("VOILUTFunction") or "LINEAR")
    if not (width >= 1 if kind == "LINEAR" else width > 0):
        raise DataError(f"{path}: a window of the kind {kind} cannot be {width:g} wide: correct the header")
    if kind == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if kind == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if kind != "LINEAR":
        raise DataError(f"{path}: wanted a window LINEAR, LINEAR_EXACT or SIGMOID, found {kind!r}")
    if width == 1:  # a step: the formula below would divide by 0
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers: where a file offers several windows, that is its choice."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, Sequence) else value)
