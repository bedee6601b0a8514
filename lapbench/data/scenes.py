"""An embedded data set of drawn scenes with captions: two objects on a texture, each drawn from its id alone.

``a red circle above a blue square``: the larger object comes first, and the relation is that of the greater
distance, across or down, so that a scene has one right caption. The two objects differ in shape: a word for a
shape names one object, whose box is its truth.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt

from lapbench.data.canvas import Chance, Colour, Reals, ellipse, paint, pixel_centres, texture, with_noise
from lapbench.data.captions import END, encode
from lapbench.data.record import Drawn, Record, with_targets
from lapbench.digest import digest_of
from lapbench.registry import reader
from lapbench.types import Array, Box

VERSION = 1
"""Raised whenever a pixel or a caption of any scene may change."""
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: dict[str, Colour] = {
    "red": (214, 52, 48), "green": (62, 172, 76), "blue": (66, 104, 222), "yellow": (232, 206, 66),
    "white": (236, 236, 236),
}  # fmt: skip
RELATIONS = ("above", "below", "left of", "right of")
WORDS = (END, "a", *COLOURS, *SHAPES, "above", "below", "left", "right", "of")
"""The vocabulary, in the order of the manifest."""


@dataclass(frozen=True)
class Thing:
    """An object: its shape and colour by name, its centre, and half its side in pixels."""

    shape: str
    colour: str
    x: int
    y: int
    half: int

    @property
    def box(self) -> Box:
        """The box around it."""
        return Box(self.x - self.half, self.y - self.half, self.x + self.half, self.y + self.half)


@reader("scenes", version=VERSION)
def read_scenes(
    root: Path | None,  # noqa: ARG001 - every reader takes a root; this one needs no files
    *,
    train: NonNegativeInt = 3000,
    val: NonNegativeInt = 200,
    test: NonNegativeInt = 300,
    canvas: Annotated[int, Field(ge=48, le=512)] = 64,
) -> list[Record]:
    """Return the records of the embedded data set; scenes are drawn when they are asked for.

    Of validation and test, every scene is two samples, one for the word of each shape. A training scene is
    one sample, whose target is the shape of the larger and of the smaller object in turn.
    """
    stamp = digest_of(["scenes", VERSION, canvas])
    records: list[Record] = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            name = f"{split}-{number:06d}"
            things = lay_out(name, canvas)
            pixels = Drawn(partial(draw, name, canvas), f"{stamp}:{name}", (canvas, canvas))
            answer = encode(caption(*things), WORDS, where=name)
            image = Record(name, split, "", pixels, answer=answer)
            records += with_targets(image, [(thing.shape, thing.box) for thing in things], number)
    return records


def lay_out(name: str, canvas: int) -> tuple[Thing, Thing]:
    """Decide what stands where: two objects that do not touch, the larger one first."""
    chance = Chance(f"lapbench scenes {VERSION} layout {name}")
    first = chance.below(len(SHAPES))
    second = (first + 1 + chance.below(len(SHAPES) - 1)) % len(SHAPES)
    colours = [tuple(COLOURS)[chance.below(len(COLOURS))] for _ in range(2)]
    large = chance.between(canvas * 11 // 64, canvas * 14 // 64)
    small = chance.between(canvas * 7 // 64, canvas * 9 // 64)
    while True:
        (ax, ay), (bx, by) = (
            (chance.between(h, canvas - h), chance.between(h, canvas - h)) for h in (large, small)
        )
        across, down = abs(ax - bx), abs(ay - by)
        apart = large + small + 2
        # the relation must be plain to see: one of the two distances is the greater by far
        if max(across, down) > apart and 4 * abs(across - down) > canvas:
            return Thing(SHAPES[first], colours[0], ax, ay, large), Thing(
                SHAPES[second], colours[1], bx, by, small
            )


def caption(larger: Thing, smaller: Thing) -> str:
    """Return what is to be said of a scene."""
    across, down = larger.x - smaller.x, larger.y - smaller.y
    if abs(across) > abs(down):
        relation = "left of" if across < 0 else "right of"
    else:
        relation = "above" if down < 0 else "below"
    return f"a {larger.colour} {larger.shape} {relation} a {smaller.colour} {smaller.shape}"


def draw(name: str, canvas: int) -> Array:
    """Return the image of that id: (canvas, canvas, 3) uint8."""
    chance = Chance(f"lapbench scenes {VERSION} texture {name}")
    grey = texture(chance, canvas, (20, 70))
    pixels: Reals = grey[:, :, None] * (np.array([chance.between(150, 255) for _ in range(3)]) / 255)
    x, y = pixel_centres(canvas)
    for thing in lay_out(name, canvas):
        paint(pixels, _depth(thing, x - thing.x, y - thing.y), COLOURS[thing.colour])
    return with_noise(
        np.clip(pixels, 0, 255).astype(np.int32), Chance(f"lapbench scenes {VERSION} noise {name}")
    )


def _depth(thing: Thing, x: Reals, y: Reals) -> Reals:
    """Return how deep pixels, seen from its centre, lie in a shape; all shapes fill their boxes."""
    half = float(thing.half)
    box: Reals = half - np.maximum(np.abs(x), np.abs(y))
    if thing.shape == "square":
        return box
    if thing.shape == "triangle":  # its edge falls two pixels on each across
        edge: Reals = (y + half - 2 * np.abs(x)) / np.sqrt(5.0)
        return np.minimum(edge, half - y)
    if thing.shape == "cross":
        arm = half / 3
        return np.minimum(box, np.maximum(arm - np.abs(x), arm - np.abs(y)))
    disc = ellipse(x, y, half, half)
    return disc if thing.shape == "circle" else np.minimum(disc, 0.45 * half - disc)
