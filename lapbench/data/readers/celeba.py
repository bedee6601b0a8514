"""CelebA: aligned faces with forty attributes, in the form that its authors published.

Liu, Luo, Wang, Tang: Deep Learning Face Attributes in the Wild, ICCV 2015. The truth is a box around the
mouth, where a smile is to be seen. Boxes are in pixels of the published aligned frame, 178 wide and 218 high,
and are scaled to the images:

- with the authors' landmarks (list_landmarks_align_celeba.txt): around both corners of the mouth, of whose
  distance d it reaches 0.4 d beyond them to the sides, 0.45 d above the upper and 0.6 d below the lower one.
  d counts as 20 at least, so that a face turned aside keeps a mouth.
- without: MOUTH, the same box for all, which the alignment by the eyes allows. Origin: the mouth's corners
  that an MTCNN found in 249 of 250 faces drawn at random lie at (72.6, 153.7) and (106.5, 153.6), with robust
  standard deviations of at most 3.4 across and 1.6 down; the box holds both with four of them to spare, and
  the lips. On that mean face the rule above gives the same box to within two pixels.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import PositiveFloat

from lapbench.data.boxes import scale
from lapbench.data.images import read_size
from lapbench.data.landmarks import squares
from lapbench.data.paths import describe_folder, inside
from lapbench.data.record import Record, with_targets
from lapbench.data.splits import share_of
from lapbench.data.text import read_lines
from lapbench.errors import DataError, suggest
from lapbench.registry import reader
from lapbench.types import Box

FRAME = (218, 178)
"""Height and width of the published aligned images."""
MOUTH = Box(58, 138, 120, 174)
"""Where the mouth is in the aligned frame; see above."""
_ATTRIBUTES, _LANDMARKS = "list_attr_celeba.txt", "list_landmarks_align_celeba.txt"
_PARTS = "list_eval_partition.txt"
_SPLITS = {"0": "train", "1": "val", "2": "test"}
_POINTS = {
    "lefteye": "left_eye", "righteye": "right_eye", "nose": "nose", "leftmouth": "left_mouth",
    "rightmouth": "right_mouth",
}  # fmt: skip
_CORNERS = ("leftmouth_x", "leftmouth_y", "rightmouth_x", "rightmouth_y")

Row = tuple[str, dict[str, str]]


@reader("celeba")
def read_celeba(
    root: Path,
    *,
    attribute: str = "Smiling",
    labels: tuple[str, str] = ("no", "yes"),
    truth: Literal["both", "positive"] = "both",
) -> list[Record]:
    """Return one record for every face of the attribute file, its truth the box around the mouth.

    labels: the classes of faces without and with the attribute. truth: whether faces without it have the box,
    too: one sees at the mouth that somebody does not smile, so both is the default. Splits are the authors'
    where list_eval_partition.txt is there. The folders read are flat, or the publisher's Anno, Eval and Img.
    Errors: DataError for another folder, for files that are cut off or contradict each other, and for images
    that are not the aligned frame, at whatever scale.
    """
    file, images = _find(root, _ATTRIBUTES, "Anno"), _find(root, "img_align_celeba", "Img")
    if file is None or images is None:
        raise DataError(
            f"{root}: no CelebA here; looked for {_ATTRIBUTES} (or in Anno) and the folder img_align_celeba"
            f" (or in Img), found {describe_folder(root)}"
        )
    faces = _table(file)
    landmarks = _optional(_find(root, _LANDMARKS, "Anno"))
    parts = _parts(_find(root, _PARTS, "Eval"))
    height, width = size = _size(images, faces)
    records = []
    for name, (where, row) in faces.items():
        is_positive = _value(row, attribute, where)
        box = MOUTH if landmarks is None else mouth_box(*_corners(landmarks, name, where))
        shown = (scale(box, width / FRAME[1], height / FRAME[0]),) if is_positive or truth == "both" else ()
        if parts is not None and name not in parts:
            raise DataError(f"{where}: {name} stands in no line of {_PARTS}: fetch that file again")
        records.append(
            Record(
                name, parts[name] if parts else "", labels[is_positive], inside(images, name, where=where),
                shown, declared_size=size, where=where,
            )
        )  # fmt: skip
    return records


@reader("celeba_landmarks")
def read_celeba_landmarks(root: Path, *, side: PositiveFloat = 0.13) -> list[Record]:
    """Return faces with the authors' five landmarks, whose file must be there.

    Of validation and test, every face is ten samples: each coordinate of each landmark is a target, whose
    truth is a square around the landmark, of ``side`` widths of the frame: 0.13 is a fifth of a face. A
    training face is one sample; targets take turns. Splits are the authors' where list_eval_partition.txt is
    there; else 80, 10 and 10 %, by the hash of the image's name.
    Errors: as `read_celeba`; DataError for a folder without the landmarks.
    """
    file, images = _find(root, _LANDMARKS, "Anno"), _find(root, "img_align_celeba", "Img")
    if file is None or images is None:
        raise DataError(
            f"{root}: no landmarks of CelebA here; looked for {_LANDMARKS} (or in Anno) and the folder"
            f" img_align_celeba (or in Img), found {describe_folder(root)}"
        )
    faces, parts = _table(file), _parts(_find(root, _PARTS, "Eval"))
    height, width = size = _size(images, faces)
    columns = [f"{part}_{axis}" for part in _POINTS for axis in "xy"]
    records: list[Record] = []
    for number, (name, (where, row)) in enumerate(faces.items()):
        if parts is not None and name not in parts:
            raise DataError(f"{where}: {name} stands in no line of {_PARTS}: fetch that file again")
        split = parts[name] if parts else _share(name)
        scale_x, scale_y = width / FRAME[1], height / FRAME[0]
        found = iter(_numbers(row, columns, where))
        points = [(x * scale_x, y * scale_y) for x, y in zip(found, found, strict=True)]
        answer = tuple(value for point in points for value in point)
        image = Record(
            name, split, "", inside(images, name, where=where), declared_size=size, where=where, answer=answer
        )
        records += with_targets(image, squares(tuple(_POINTS.values()), points, side * width), number)
    return records


def mouth_box(left_x: float, left_y: float, right_x: float, right_y: float) -> Box:
    """Return the box around a mouth from its corners, all in pixels of the aligned frame; see above."""
    distance = max(math.hypot(right_x - left_x, right_y - left_y), 20)
    return Box(
        min(left_x, right_x) - 0.4 * distance,
        min(left_y, right_y) - 0.45 * distance,
        max(left_x, right_x) + 0.4 * distance,
        max(left_y, right_y) + 0.6 * distance,
    )


def _find(root: Path, name: str, folder: str) -> Path | None:
    """Return the file or folder of that name, directly under the root or in the publisher's folder."""
    candidates = [inside(root, place, where="reader 'celeba'") for place in (name, f"{folder}/{name}")]
    return next((path for path in candidates if path.exists()), None)


def _table(file: Path) -> dict[str, Row]:
    """Read a file of the authors' form: the number of rows, the names of the columns, then the rows.

    Returns, by image name, ``file:line`` and the cells by column.
    """
    lines = read_lines(file)
    count, names = next(lines, ("", ""))[1], next(lines, ("", ""))[1].split()
    if not count.isdigit() or not names:
        raise DataError(
            f"{file}: wanted the number of images in line 1 and the columns in line 2, found {count!r}"
        )
    rows: dict[str, Row] = {}
    for where, line in lines:
        name, *cells = line.split()
        if len(cells) != len(names):
            raise DataError(f"{where}: wanted a name and {len(names)} cells, found {len(cells)} cells")
        if name in rows:
            raise DataError(f"{where}: the image {name} occurs twice, first at {rows[name][0]}")
        rows[name] = where, dict(zip(names, cells, strict=True))
    if len(rows) != int(count) or not rows:
        raise DataError(
            f"{file}: line 1 promises {count} images, found {len(rows)}: fetch the file again, or correct"
            " line 1"
        )
    return rows


def _optional(file: Path | None) -> dict[str, Row] | None:
    return None if file is None else _table(file)


def _parts(file: Path | None) -> dict[str, str] | None:
    """Return the authors' split of every image, or None where there is no such file."""
    return None if file is None else dict(_part_rows(file))


def _part_rows(file: Path) -> Iterator[tuple[str, str]]:
    for where, line in read_lines(file):
        name, _, number = line.partition(" ")
        if number.strip() not in _SPLITS:
            raise DataError(f"{where}: wanted an image and 0, 1 or 2, found {line!r}")
        yield name, _SPLITS[number.strip()]


def _share(name: str) -> str:
    share = share_of(name, 0)
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def _size(images: Path, faces: dict[str, Row]) -> tuple[int, int]:
    """Return the size of the first image that is there, which all must have.

    Errors: DataError where there is none, and where it is no scaled copy of the aligned frame.
    """
    paths = (inside(images, name, where=where) for name, (where, _) in faces.items())
    first = next((path for path in paths if path.is_file()), None)
    if first is None:
        raise DataError(
            f"{images}: not one of the {len(faces)} images is here; looked for {next(iter(faces))} first,"
            f" found {describe_folder(images)}"
        )
    height, width = read_size(first)
    if abs(height - width * FRAME[0] / FRAME[1]) > 1:
        raise DataError(
            f"{first}: wanted an aligned face of 218×178 pixels (height × width) or a scaled copy of it,"
            f" found {height}×{width}: take the folder img_align_celeba, uncropped"
        )
    return height, width


def _value(row: dict[str, str], attribute: str, where: str) -> bool:
    if attribute not in row:
        raise DataError(f"{where}: there is no attribute {attribute!r}{suggest(attribute, row)}")
    if row[attribute] not in ("1", "-1"):
        raise DataError(f"{where}: {attribute} must be 1 or -1, found {row[attribute]!r}")
    return row[attribute] == "1"


def _corners(landmarks: dict[str, Row], name: str, where: str) -> tuple[float, float, float, float]:
    """Return the corners of the mouth. Errors: DataError where the file has no such columns or numbers."""
    if name not in landmarks:
        raise DataError(f"{where}: {name} has no landmarks: fetch {_LANDMARKS} again, or remove it")
    place, row = landmarks[name]
    left_x, left_y, right_x, right_y = _numbers(row, _CORNERS, place)
    return left_x, left_y, right_x, right_y


def _numbers(row: dict[str, str], columns: Sequence[str], where: str) -> tuple[float, ...]:
    """Return the numbers in some columns. Errors: DataError where a column or a finite number is lacking."""
    for wanted in columns:
        if wanted not in row:
            raise DataError(f"{where}: there is no column {wanted!r}{suggest(wanted, row)}")
    cells = [row[column] for column in columns]
    try:
        found = tuple(map(float, cells))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise DataError(f"{where}: landmarks need finite numbers, found {' '.join(cells)}")
    return found
