"""An embedded data set of drawn faces with exact landmarks, each drawn from its id alone.

A face has its own place, size, tilt, colours, proportions and expression on a textured canvas with patches of
colour; the five landmarks are those of CelebA: both eyes, the tip of the nose and both corners of the mouth,
left and right as the viewer sees them. How a face is drawn stands in face coordinates: u to the right, v
down, in half widths of the face, turned with it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field, NonNegativeInt

from lapbench.data.canvas import (
    Chance,
    Colour,
    Reals,
    ellipse,
    paint,
    pixel_centres,
    texture,
    with_noise,
)
from lapbench.data.landmarks import squares
from lapbench.data.record import Drawn, Record, with_targets
from lapbench.digest import digest_of
from lapbench.registry import reader
from lapbench.types import Array

VERSION = 1
"""Raised whenever a pixel or a landmark of any face may change."""
LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
BOX = 0.2
"""The side of a landmark's box, in widths of the face."""
_SKINS: tuple[Colour, ...] = (
    (244, 208, 177), (231, 180, 143), (208, 150, 110), (166, 114, 78), (128, 84, 57), (96, 62, 44),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (38, 28, 24), (84, 56, 36), (140, 96, 50), (196, 160, 92), (150, 62, 34), (150, 150, 152),
)  # fmt: skip

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Face:
    """What decides how a face looks: x, y, radius in pixels, the rest in face coordinates.

    cosine, sine: of the tilt. radius: half the width. turn: how far the features lie to one side, as of a
    head that looks aside. eyes: half their distance, and their v. nose: v of its tip. mouth: half its width,
    and v of its corners. smile: how far its middle lies below them. gape: how far it is open. brow: how far
    the brows lie above the eyes.
    """

    x: float
    y: float
    radius: float
    cosine: float
    sine: float
    turn: float
    eyes: Point
    nose: float
    mouth: Point
    smile: float
    gape: float
    brow: float
    skin: Colour
    hair: Colour

    @property
    def points(self) -> tuple[Point, ...]:
        """The landmarks in pixels, in the order of `LANDMARKS`."""
        (eye, eye_v), (corner, corner_v) = self.eyes, self.mouth
        places = (
            (-eye, eye_v),
            (eye, eye_v),
            (self.turn / 4, self.nose),
            (-corner, corner_v),
            (corner, corner_v),
        )
        return tuple(self._in_pixels(u + self.turn, v) for u, v in places)

    def _in_pixels(self, u: float, v: float) -> Point:
        return (
            self.x + self.radius * (self.cosine * u - self.sine * v),
            self.y + self.radius * (self.sine * u + self.cosine * v),
        )


@reader("faces", version=VERSION)
def read_faces(
    root: Path | None,  # noqa: ARG001 - every reader takes a root; this one needs no files
    *,
    train: NonNegativeInt = 2000,
    val: NonNegativeInt = 100,
    test: NonNegativeInt = 200,
    canvas: Annotated[int, Field(ge=48, le=512)] = 64,
) -> list[Record]:
    """Return the records of the embedded data set; faces are drawn when they are asked for.

    Of validation and test, every face is ten samples: each coordinate of each landmark is a target, whose
    truth is the box around the landmark. A training face is one sample; targets take turns.
    """
    stamp = digest_of(["faces", VERSION, canvas])
    records: list[Record] = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            name = f"{split}-{number:06d}"
            face = compose(name, canvas)
            pixels = Drawn(partial(draw, name, canvas), f"{stamp}:{name}", (canvas, canvas))
            answer = tuple(value for point in face.points for value in point)
            image = Record(name, split, "", pixels, answer=answer)
            records += with_targets(image, squares(LANDMARKS, face.points, 2 * BOX * face.radius), number)
    return records


def compose(name: str, canvas: int) -> Face:
    """Decide how the face of that id looks; all of its landmarks lie on the canvas."""
    chance = Chance(f"lapbench faces {VERSION} face {name}")

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * chance.below(1001) / 1000

    radius = drawn(0.23, 0.34) * canvas
    half_tilt = drawn(-0.13, 0.13)  # tangent of half the angle: at most 15 degrees, without a cosine
    return Face(
        x=drawn(1.1 * radius, canvas - 1.1 * radius),
        y=drawn(1.4 * radius, canvas - 1.35 * radius),
        radius=radius,
        cosine=(1 - half_tilt * half_tilt) / (1 + half_tilt * half_tilt),
        sine=2 * half_tilt / (1 + half_tilt * half_tilt),
        turn=drawn(-0.16, 0.16),
        eyes=(drawn(0.35, 0.46), drawn(-0.3, -0.12)),
        nose=drawn(0.16, 0.34),
        mouth=(drawn(0.28, 0.46), drawn(0.56, 0.74)),
        smile=drawn(-0.1, 0.2),
        gape=max(0.0, drawn(-0.15, 0.2)),
        brow=drawn(0.2, 0.32),
        skin=_SKINS[chance.below(len(_SKINS))],
        hair=_HAIRS[chance.below(len(_HAIRS))],
    )


def draw(name: str, canvas: int) -> Array:
    """Return the image of that id: (canvas, canvas, 3) uint8."""
    face, pixels = compose(name, canvas), _background(name, canvas)
    x, y = pixel_centres(canvas)
    u = (face.cosine * (x - face.x) + face.sine * (y - face.y)) / face.radius
    v = (face.cosine * (y - face.y) - face.sine * (x - face.x)) / face.radius
    r = face.radius

    def spot(u0: float, v0: float, width: float, height: float, colour: Colour) -> None:
        paint(pixels, ellipse((u - u0) * r, (v - v0) * r, width * r, height * r), colour)

    spot(0, -0.14, 1.08, 1.26, face.hair)
    spot(0, 0, 0.96, 1.22, face.skin)
    for side in (-1, 1):
        at, height = face.turn + side * face.eyes[0], face.eyes[1]
        spot(at, height - face.brow, 0.25, 0.055, face.hair)
        spot(at, height, 0.21, 0.12, (246, 246, 244))
        spot(at, height, 0.11, 0.11, (44, 34, 30))
    shade, tip = _darker(face.skin, 70), face.turn * 1.25
    spot((face.turn + tip) / 2, face.nose - 0.2, 0.06, 0.22, _darker(face.skin, 84))
    spot(tip, face.nose, 0.14, 0.085, shade)
    _paint_lens(pixels, (u - face.turn) * r, (v - face.mouth[1]) * r, face, 0.075, (176, 62, 66))
    if face.gape:
        _paint_lens(pixels, (u - face.turn) * r, (v - face.mouth[1]) * r, face, 0.0, (70, 22, 28))
    return with_noise(
        np.clip(pixels, 0, 255).astype(np.int32), Chance(f"lapbench faces {VERSION} noise {name}")
    )


def _background(name: str, canvas: int) -> Reals:
    """Return a tinted texture (canvas, canvas, 3) with three patches of other colours."""
    chance = Chance(f"lapbench faces {VERSION} texture {name}")
    grey = texture(chance, canvas, (30, 90))
    tint = np.array([chance.between(110, 255) for _ in range(3)]) / 200
    pixels: Reals = grey[:, :, None] * tint
    x, y = pixel_centres(canvas)
    for _ in range(3):
        left, top = chance.below(canvas + 1), chance.below(canvas + 1)
        width, height = chance.between(canvas // 16, canvas // 5), chance.between(canvas // 16, canvas // 5)
        colour = (chance.between(20, 230), chance.between(20, 230), chance.between(20, 230))
        paint(pixels, ellipse(x - left, y - top, width, height), colour)
    return pixels


def _paint_lens(pixels: Reals, across: Reals, down: Reals, face: Face, lip: float, colour: Colour) -> None:
    """Paint what lies between two parabolas that meet in the corners of the mouth."""
    corner = face.mouth[0] * face.radius
    bend = 1 - (across / corner) * (across / corner)
    middle, half = face.smile * face.radius, (face.gape / 2 + lip) * face.radius
    between = np.minimum(down - (middle - half) * bend, (middle + half) * bend - down)
    paint(pixels, np.minimum(between, corner - np.abs(across)), colour)


def _darker(colour: Colour, percent: int) -> Colour:
    red, green, blue = (level * percent // 100 for level in colour)
    return red, green, blue
