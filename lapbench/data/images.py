"""Image files become float32 arrays of the size that the network sees; masks move along.

Whatever the file's form, an image is (C, H, W) in [0, 1] with C = 1 for grey and 3 for colour, as it is meant
to be displayed: rotated as its EXIF tag says, transparent parts composed over white, 16-bit grey divided by
65535, DICOM rescaled and windowed as its header says.

A large JPEG is decoded at a half, a quarter or an eighth of its size, which its format allows; `reduction`
says when.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from scipy import ndimage

from lapbench.data.dicom import is_dicom, read_dicom, read_dicom_size
from lapbench.errors import DataError
from lapbench.types import Array, FloatArray, MaskArray

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""What is decoded; PostScript and its kin are programs and stay out."""
MAX_PIXELS = 100_000_000
"""A larger image is refused before it is decoded."""
REDUCTIONS = (8, 4, 2)
"""What a JPEG decoder can divide both sides of an image by, the largest first."""
_JPEG_SUFFIXES = frozenset((".jpg", ".jpeg"))
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 0x0112, 0x0100, 0x0101, 0x0102, 0x0106
_LOSSY = ("JPEG", "JPEG2000", "WEBP")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: Path) -> FloatArray:
    """Decode an image file: (C, H, W) float32 in [0, 1], C = 1 for grey and 3 for colour.

    Errors: DataError naming the file that is missing, empty, truncated, too large or no image;
    MissingLibraryError for DICOM without pydicom.
    """
    if is_dicom(path):
        return read_dicom(path, max_pixels=MAX_PIXELS)
    with _opened(path) as image:
        _check_levels(image, path)
        return _to_float(ImageOps.exif_transpose(image), image.format, path)


def read_resized(path: Path, size: tuple[int, int], channels: int, *, reduce: int = 1) -> FloatArray:
    """Decode an image file as a network sees it: (channels, *size) float32 in [0, 1].

    The same pixels as `fit` makes of `read_image`, but for reduce: what the sides of a JPEG are divided by
    while it is decoded; see `reduction`. Errors: as `read_image`.
    """
    if is_dicom(path):
        return fit(read_dicom(path, max_pixels=MAX_PIXELS, reduce=reduce), size, channels)
    with _opened(path) as image:
        _check_levels(image, path)
        if reduce > 1:
            image.draft(None, (image.width // reduce, image.height // reduce))
        ImageOps.exif_transpose(image, in_place=True)
        bands = image.getbands()
        if image.mode in ("L", "RGB") and len(bands) in (1, channels) and not image.has_transparency_data:
            resized = np.empty((len(bands), *size), np.float32)
            for plane, band in zip(resized, image.split(), strict=True):
                plane[:] = _resized_band(band, size)
            return to_channels(resized, channels)
        pixels = _to_float(image, image.format, path)
    return fit(pixels, size, channels)


def reduction(path: Path, size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return what both sides of an image are divided by while it is decoded: 8, 4, 2, or 1.

    That is the largest number that leaves at least twice the wanted height and width, so that resizing still
    averages over several pixels, and that divides both sides, so that all pixels show equal parts of the
    image. Files that do not call themselves JPEG or DICOM are decoded whole.
    """
    if not (is_dicom(path) or path.suffix.lower() in _JPEG_SUFFIXES):
        return 1
    for divisor in REDUCTIONS:
        if all(
            side % divisor == 0 and side // divisor >= 2 * least
            for side, least in zip(size, wanted, strict=True)
        ):
            return divisor
    return 1


def fit(image: FloatArray, size: tuple[int, int], channels: int) -> FloatArray:
    """Return (C, H, W) at another size and with 1 or 3 channels."""
    if len(image) == 1:  # grey is resized once, not in every channel that it is repeated in
        return to_channels(resize_image(image, size), channels)
    return resize_image(to_channels(image, channels), size)


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width of the displayed image, from the header alone. Errors: as `read_image`."""
    if is_dicom(path):
        return read_dicom_size(path, max_pixels=MAX_PIXELS)
    with _opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # of which some versions of Pillow give the turned size
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)


def read_mask(path: Path, value: int | None = None, *, ignore: int | None = None) -> MaskArray:
    """Decode a mask file: (H, W) bool, True where the grey level or palette index is ``value`` (None: not 0).

    ignore: a level that is never the object. Of a mask of one bit, white is any value but 0. Errors:
    DataError as `read_image`, for a mask in colour, whose object no single number names, and for one whose
    levels a lossy format has blurred.
    """
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P", "I", *_SIXTEEN_BITS):
            raise DataError(
                f"{path}: a mask needs one number per pixel (grey or palette), found mode {image.mode}:"
                " convert it"
            )
        levels = np.asarray(ImageOps.exif_transpose(image)).astype(np.int64)
        if image.mode == "1" and value is not None:
            value = int(value != 0)
        if image.format in _LOSSY and not np.isin(levels, (0, 255)).all():
            raise DataError(
                f"{path}: {image.format} has blurred the levels of this mask: save it as PNG, without loss"
            )
    mask: MaskArray = levels != 0 if value is None else levels == value
    return mask if ignore is None else mask & (levels != ignore)


def to_channels(image: FloatArray, channels: int) -> FloatArray:
    """Return the image with 1 or 3 channels: grey is repeated, colour becomes luminance (ITU-R BT.601)."""
    if image.shape[0] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    grey: FloatArray = np.einsum("c,chw->hw", _LUMINANCE, image)[None]
    return grey


def resize_image(image: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Return (C, H, W) at another size: bilinear, averaging over the footprint where it shrinks."""
    if image.shape[1:] == size:
        return image
    height, width = size
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in image]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(resized).astype(np.float32, copy=False)


def resize_mask(mask: MaskArray, size: tuple[int, int]) -> MaskArray:
    """Return a mask at another height and width; no structure vanishes.

    A pixel is set when at least half of its area is covered, computed in integers. An 8-connected structure
    that would lose all of its pixels by this rule keeps those that it covers at least half as much as the
    pixel that it covers most: a line thinner than a pixel stays a line.
    """
    if mask.shape == size:
        return mask
    full = mask.shape[0] * mask.shape[1]  # of one new pixel, in the units of _covered
    result: MaskArray = 2 * _covered(mask, size) >= full
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    for structure in range(1, n + 1):
        covered = _covered(labels == structure, size)
        if not (result & (covered > 0)).any():
            result |= 2 * covered >= covered.max()
    return result


def _covered(mask: MaskArray, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Return how much of every new pixel is covered, in whole units of 1 / (old height · old width)."""
    down, across = _overlap(mask.shape[0], size[0]), _overlap(mask.shape[1], size[1])
    covered: npt.NDArray[np.float64] = down @ mask.astype(np.float64) @ across.T
    return covered


@lru_cache(maxsize=16)
def _overlap(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return (new, old): the length that two pixels share, in units of 1 / (old · new) of the side."""
    starts_new, starts_old = np.arange(new)[:, None] * old, np.arange(old)[None] * new
    shared = np.minimum(starts_new + old, starts_old + new) - np.maximum(starts_new, starts_old)
    overlap: npt.NDArray[np.float64] = np.maximum(shared, 0).astype(np.float64)
    return overlap


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong inside is a DataError naming the file."""
    try:
        # by the open file, not by its name: what Pillow maps into memory it may turn wrongly (TIFF)
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(_too_large(path))
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(_too_large(path)) from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such image: complete the data folder, or correct the annotation"
        ) from None
    except UnidentifiedImageError:
        what = "an empty file" if path.stat().st_size == 0 else "no image that can be read"
        raise DataError(f"{path}: {what} (wanted: {', '.join(FORMATS)}): fetch the file again") from None
    except Exception as error:  # noqa: BLE001 - on broken files decoders raise whatever they stumble over
        raise DataError(f"{path}: broken or truncated ({error}): fetch the file again") from None


def _too_large(path: Path) -> str:
    return f"{path}: the image claims more than {MAX_PIXELS:,} pixels and is not decoded: shrink it first"


def _check_levels(image: Image.Image, path: Path) -> None:
    """Refuse a TIFF whose 16-bit pixels are not what Pillow takes them for: 0 is black, 65535 white."""
    if isinstance(image, TiffImageFile) and image.mode in _SIXTEEN_BITS:
        bits, photometric = image.tag_v2.get(_BITS, (16,))[0], image.tag_v2.get(_PHOTOMETRIC, 1)
        if bits != 16 or photometric == 0:
            what = f"{bits} bits a pixel" if bits != 16 else "white at 0"
            raise DataError(
                f"{path}: a TIFF with {what} cannot be read: convert it to 16 bits with black at 0"
            )


def _to_float(image: Image.Image, form: str | None, path: Path) -> FloatArray:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and form in ("PNG", "PPM")):
        return (np.asarray(image).astype(np.float32) / np.float32(65535))[None]
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: pixels of mode {image.mode} (32 bit) have no declared white: convert the file to 8 or"
            " 16 bit"
        )
    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        return _over_white(np.asarray(image.convert("RGBA")), is_grey)
    pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
    return from_bytes(pixels)


def from_bytes(pixels: Array) -> FloatArray:
    """Turn (H, W) or (H, W, 3) uint8 into (C, H, W) float32 in [0, 1]."""
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return np.ascontiguousarray(planes).astype(np.float32) / np.float32(255)


def _resized_band(band: Image.Image, size: tuple[int, int]) -> Array:
    """Do as `from_bytes` and `resize_image` do, bit for bit, without leaving Pillow, which is faster."""
    height, width = size
    unit = band.convert("F").point(lambda level: level * (1 / 255) + 0)
    return np.asarray(unit.resize((width, height), Image.Resampling.BILINEAR))


def _over_white(rgba: Array, is_grey: bool) -> FloatArray:
    colours = from_bytes(rgba)
    opacity = colours[3:]
    composed: FloatArray = colours[: 1 if is_grey else 3] * opacity + (1 - opacity)
    return composed
