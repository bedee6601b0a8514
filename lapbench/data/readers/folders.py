"""Annotation by folders: the class of an image, or its mask, is where its file lies."""

from collections.abc import Iterator
from pathlib import Path

from lapbench.data.paths import inside
from lapbench.data.record import MaskFile, Record
from lapbench.errors import DataError, DefinitionError
from lapbench.registry import reader

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".jp2")
)


@reader("class-folders")
def read_class_folders(
    root: Path, *, splits: dict[str, str] | None = None, labels: dict[str, str] | None = None
) -> list[Record]:
    """Return one record for every image file in folders that are named as the classes; there is no truth.

    splits: the folder of each split, which holds the class folders; none: the class folders lie under the
    data root, and the manifest divides. labels: renames folders. Ids are paths under the root. Errors:
    DataError for a missing or empty folder.
    """
    records = []
    for split, place in (splits or {"": "."}).items():
        folder = _folder(root, place, "reader 'class-folders'")
        for name in sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            label = (labels or {}).get(name, name)
            for path in _images(folder / name):
                where = str(path)
                relative = path.relative_to(root).as_posix()
                records.append(
                    Record(relative, split, label, inside(root, relative, where=where), where=where)
                )
    return records


@reader("mask-folders")
def read_mask_folders(
    root: Path,
    *,
    images: str,
    mask_folder: str,
    mask_suffix: str = ".png",
    value: int | None = None,
    ignore: int | None = None,
    splits: dict[str, str] | None = None,
    label: str | None = None,
    labels_by_mask: tuple[str, str] | None = None,
) -> list[Record]:
    """Return one record for every image of a folder, its truth the mask of that name in another folder.

    mask_suffix: what follows the image's stem in the name of its mask, such as "_mask.png". value: the grey
    level or palette index that is the object; none: everything but 0. ignore: that of pixels that count
    neither as truth nor as background, such as 255 in the masks of Pascal VOC. splits: the subfolder of each
    split, in both folders. The class is ``label`` for all, or named by ``labels_by_mask`` for images without
    and with a mask file. Ids are paths under the folder of images. Errors: DataError for a missing folder or
    mask.
    """
    if (label is None) == (labels_by_mask is None):
        raise DefinitionError("reader 'mask-folders': give either label or labels_by_mask")
    if ignore is not None and ignore == value:
        raise DefinitionError(f"reader 'mask-folders': {value} is the object and ignored: give two levels")
    top = _folder(root, images, "reader 'mask-folders'")
    _folder(root, mask_folder, "reader 'mask-folders'")
    records = []
    for split, place in (splits or {"": "."}).items():
        masks = {}
        for path in _images(_folder(root, f"{images}/{place}", "reader 'mask-folders'")):
            name = path.relative_to(top)
            beside = name.with_name(name.stem + mask_suffix).as_posix()
            masks[path] = inside(root, f"{mask_folder}/{beside}", where=str(path))
        all_masks = set(masks.values())  # which may lie among the images
        for path, mask in masks.items():
            if path == mask:
                raise DefinitionError(
                    f"reader 'mask-folders': {path} would be its own mask: correct mask_folder or mask_suffix"
                )
            if path in all_masks:
                continue
            name = path.relative_to(top)
            if label is not None and not mask.is_file():
                raise DataError(
                    f"{path}: there is no mask {mask}: add it, or name labels_by_mask in the manifest"
                )
            known = label if label is not None else (labels_by_mask or ())[mask.is_file()]
            truth = MaskFile(mask, value, ignore) if mask.is_file() else None
            image = inside(root, path.relative_to(root).as_posix(), where=str(path))
            records.append(Record(name.as_posix(), split, known, image, mask=truth, where=str(path)))
    return records


def _folder(root: Path, place: str, where: str) -> Path:
    folder = inside(root, place, where=where)
    if not folder.is_dir():
        raise DataError(
            f"{where}: there is no folder {folder}: complete the data folder, or correct the manifest"
        )
    return folder


def _images(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder in order of name. Errors: DataError where there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise DataError(
            f"{folder}: this folder holds no images ({', '.join(sorted(SUFFIXES))}): complete the data folder"
        )
    yield from found
