"""What a reader says about one image, before anything is decoded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lapbench.types import Array, Box


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pixels that a function makes: (H, W) or (H, W, 3) uint8, the same bytes on every call and machine.

    digest: names everything that decides the pixels. size: height and width.
    """

    draw: Callable[[], Array]
    digest: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MaskFile:
    """An annotated mask of the image's size.

    value: the grey level or palette index that is the object; None: every one but 0. ignore: that of pixels
    that are neither object nor background; None: there are none.
    """

    path: Path
    value: int | None = None
    ignore: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as its annotation states it.

    id: unique within the data set. split: as the annotation names it; "" where it names none. label: a class
    name; of other tasks the target that the truth belongs to, a landmark's coordinate or a word. source: the
    image file, or pixels to be drawn. boxes: half-open, in pixels of the whole displayed image (after EXIF
    rotation). mask: takes the place of boxes as truth. window: the part (x0, y0, x1, y1) of the image that is
    the sample, None: all. group: what splits may not tear apart (patient, board); "": the id. declared_size:
    the height and width that the annotation claims, checked against the file. where: the file and row that
    errors name. answer: all that a network is to answer about the image, where that is more than the label:
    landmarks x0, y0, x1, y1 and so on in pixels of the whole displayed image, or the numbers of a caption's
    words. ignored: boxes as those of the truth, whose pixels do not count where they are not truth as well.
    """

    id: str
    split: str
    label: str
    source: Path | Drawn
    boxes: tuple[Box, ...] = ()
    mask: MaskFile | None = None
    window: tuple[int, int, int, int] | None = None
    group: str = ""
    declared_size: tuple[int, int] | None = None
    where: str = ""
    answer: tuple[float, ...] = ()
    ignored: tuple[Box, ...] = ()

    @property
    def unit(self) -> str:
        """What splits keep whole: the group, or the sample itself."""
        return self.group or self.id

    @property
    def ignores(self) -> bool:
        """Whether it names pixels that do not count."""
        return bool(self.ignored) or (self.mask is not None and self.mask.ignore is not None)

    @property
    def younger(self) -> list[object]:
        """What digests hold of a record that has it: data sets without keep their names."""
        found: list[object] = [self.answer] if self.answer else []
        if self.ignores:
            found.append({"ignored": corners(self.ignored), "level": self.mask.ignore if self.mask else None})
        return found


def corners(boxes: Iterable[Box]) -> list[list[float]]:
    """Return boxes as digests hold them."""
    return [[box.x0, box.y0, box.x1, box.y1] for box in boxes]


def with_targets(image: Record, truth: Sequence[tuple[str, Box]], number: int) -> Iterator[Record]:
    """Yield an image once for each of its targets, whose box is the truth; a training image only once.

    truth: the targets and their boxes. number: of the image, which decides the target of a training image:
    they take turns, so that all are seen.
    """
    if image.split == "train":
        target, box = truth[number % len(truth)]
        yield replace(image, label=target, boxes=(box,), group=image.unit)
        return
    for target, box in truth:
        yield replace(image, id=f"{image.id}/{target}", label=target, boxes=(box,), group=image.unit)
