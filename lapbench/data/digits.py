"""The embedded data set: real handwritten digits among others on textured canvases, drawn from the id alone.

The question is whether one target digit is there; every other digit is a distractor of the same size and
brightness, so that neither brightness nor the number of objects gives the answer away. All arithmetic is on
integers, as that of `lapbench.data.canvas`: the same bytes on every machine.

The handwriting is the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and
Kaynak, 1998), 1797 images of 8×8 pixels, as scikit-learn ships it.
"""

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt, PositiveInt

from lapbench.data.canvas import Chance, texture, with_noise
from lapbench.data.record import Drawn, Record
from lapbench.digest import digest_of
from lapbench.errors import DataError, DefinitionError
from lapbench.registry import reader
from lapbench.types import Array, Box

VERSION = 1
"""Raised whenever a pixel of any image may change."""
SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
_SOURCE_DIGEST = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """What decides the images beside their ids.

    digit: the target. canvas: side in pixels. height: lowest and greatest height of a digit before it is
    trimmed to its ink. objects: fewest and most digits in an image, the target included.
    """

    digit: int
    canvas: int
    height: tuple[int, int]
    objects: tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """A digit on the canvas: its ink (h, w) as opacity 0..255, its upper left pixel, and its brightness."""

    opacity: Bytes
    x: int
    y: int
    brightness: int
    is_target: bool

    @property
    def box(self) -> Box:
        """The tight box of the ink."""
        height, width = self.opacity.shape
        return Box(self.x, self.y, self.x + width, self.y + height)


@reader("digits", version=VERSION)
def read_digits(
    root: Path | None,  # noqa: ARG001 - every reader takes a root; this one needs no files
    *,
    digit: Annotated[int, Field(ge=0, le=9)] = 3,
    train: NonNegativeInt = 4000,
    val: NonNegativeInt = 500,
    test: NonNegativeInt = 500,
    canvas: Annotated[int, Field(ge=32, le=512)] = 64,
    height: tuple[PositiveInt, PositiveInt] = (18, 22),
    objects: tuple[PositiveInt, PositiveInt] = (3, 4),
) -> list[Record]:
    """Return the records of the embedded data set; images are drawn when they are asked for.

    Samples of even number are "absent", of odd number "present". Splits draw on disjoint source digits.
    Errors: DefinitionError where the numbers contradict each other.
    """
    scene = Scene(digit, canvas, height, objects)
    _check(scene)
    stamp = digest_of(["digits", VERSION, _SOURCE_DIGEST, digit, canvas, height, objects])
    counts = {"train": train, "val": val, "test": test}
    records = []
    for split in SPLITS:
        for number in range(counts[split]):
            name = f"{split}-{number:06d}"
            present = number % 2 == 1
            boxes = tuple(placed.box for placed in lay_out(name, scene) if placed.is_target)
            pixels = Drawn(partial(draw, name, scene), f"{stamp}:{name}", (canvas, canvas))
            records.append(Record(name, split, "present" if present else "absent", pixels, boxes))
    return records


def draw(name: str, scene: Scene) -> Array:
    """Return the image of that id: (canvas, canvas) uint8."""
    canvas = texture(Chance(f"lapbench digits {VERSION} texture {name}"), scene.canvas)
    for placed in lay_out(name, scene):
        height, width = placed.opacity.shape
        spot = canvas[placed.y : placed.y + height, placed.x : placed.x + width]
        opacity = placed.opacity.astype(np.int32)
        spot[:] = (spot * (255 - opacity) + placed.brightness * opacity + 127) // 255
    return with_noise(canvas, Chance(f"lapbench digits {VERSION} noise {name}"))


def lay_out(name: str, scene: Scene) -> list[Placed]:
    """Decide which digits stand where; the first is the target, or a distractor in its place.

    No two digits come nearer than a pixel to each other, so that the target is never covered; a distractor
    that finds no room in twelve tries is left out.
    """
    split, _, number = name.partition("-")
    present = int(number) % 2 == 1
    chance = Chance(f"lapbench digits {VERSION} layout {name}")
    others = [d for d in range(10) if d != scene.digit]
    placed: list[Placed] = []
    for position in range(chance.between(*scene.objects)):
        is_target = present and position == 0
        written = scene.digit if is_target else others[chance.below(9)]
        pool = _pool(split, written)
        opacity = _opacity(pool[chance.below(len(pool))], chance.between(*scene.height))
        brightness = chance.between(170, 240)
        height, width = opacity.shape
        for _ in range(12):
            x, y = chance.below(scene.canvas - width + 1), chance.below(scene.canvas - height + 1)
            candidate = Placed(opacity, x, y, brightness, is_target)
            if all(_apart(candidate.box, other.box) for other in placed):
                placed.append(candidate)
                break
    return placed


def _apart(a: Box, b: Box) -> bool:
    return a.x1 < b.x0 or b.x1 < a.x0 or a.y1 < b.y0 or b.y1 < a.y0


@cache
def _opacity(index: int, height: int) -> Bytes:
    """Return a source digit scaled to about that height and trimmed to its ink: (h, w), 0..255."""
    ink = _ink(index)
    old_height, old_width = ink.shape[0] - 2, ink.shape[1] - 2
    width = max(5, (2 * old_width * height + old_height) // (2 * old_height))
    smooth = (_enlarge(old_height, height) @ ink @ _enlarge(old_width, width).T).astype(np.int64)
    level = smooth * 255 // (16 * 2 * height * 2 * width)
    crisp = np.clip((level - 50) * 255 // 100, 0, 255)  # strokes keep an edge of one or two soft pixels
    return _trim(np.where(crisp < 32, 0, crisp).astype(np.uint8), 1)


@cache
def _ink(index: int) -> npt.NDArray[np.float64]:
    """Return a source digit without its pale margins, in a border of zeros."""
    return np.pad(_trim(_source()[0][index], 4), 1).astype(np.float64)


@cache
def _enlarge(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return (new, old + 2): linear interpolation at pixel centres, zero outside, times 2·new."""
    matrix = np.zeros((new, old + 2))
    at = np.arange(new)
    position = (2 * at + 1) * old + new  # of the centre, in units of 1/(2·new) source pixels, border included
    matrix[at, position // (2 * new)] = 2 * new - position % (2 * new)
    matrix[at, position // (2 * new) + 1] = position % (2 * new)
    return matrix


def _trim(image: Bytes, level: int) -> Bytes:
    """Cut away the rows and columns at the border that stay below the level."""
    rows, columns = np.flatnonzero((image >= level).any(1)), np.flatnonzero((image >= level).any(0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@cache
def _pool(split: str, written: int) -> tuple[int, ...]:
    """Return the source digits of one class in a split: about 70, 15 and 15 %, by hash of their index."""
    labels = _source()[1]
    return tuple(i for i in range(len(labels)) if labels[i] == written and _split_of(i) == split)


def _split_of(index: int) -> str:
    share = int.from_bytes(hashlib.sha256(f"digit {index}".encode()).digest()[:4], "little") * 100 >> 32
    return "train" if share < 70 else "val" if share < 85 else "test"


@cache
def _source() -> tuple[Bytes, Bytes]:
    """Return images (1797, 8, 8), 0..16, and labels (1797,), of the source. DataError if changed."""
    from sklearn.datasets import load_digits  # takes seconds to import

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    if found != _SOURCE_DIGEST:
        raise DataError(
            f"scikit-learn's handwritten digits are not the ones that lapbench draws from (SHA-256 {found},"
            f" wanted {_SOURCE_DIGEST}): install another version of scikit-learn"
        )
    return images, labels


def _check(scene: Scene) -> None:
    for name, (low, high) in (("height", scene.height), ("objects", scene.objects)):
        if low > high:
            raise DefinitionError(
                f"reader 'digits': {name} goes from the lowest to the greatest, found {[low, high]}"
            )
    if scene.height[1] * 2 > scene.canvas or scene.height[0] < 8:
        raise DefinitionError(
            f"reader 'digits': height must lie between 8 and half of the canvas ({scene.canvas // 2}),"
            f" found {list(scene.height)}"
        )
    if scene.objects[1] > 16:
        raise DefinitionError(f"reader 'digits': at most 16 objects, found {scene.objects[1]}")
