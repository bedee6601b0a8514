import json

import numpy as np
import pytest
from PIL import Image

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.annotation import read_annotation
from lapbench.data.manifest import ClassList
from lapbench.data.readers.imagenet import read_imagenet
from lapbench.data.readers.tiny_imagenet import read_tiny_imagenet
from lapbench.errors import DataError
from lapbench.types import Box

FISH, GOLDFISH = "n01440764", "n01443537"
NAMES = ("ILSVRC2012_val_00000001", "ILSVRC2012_val_00000002")
LABELS = dict(zip(NAMES, (GOLDFISH, FISH), strict=True))
SOLUTION = (
    f"ImageId,PredictionString\n{NAMES[0]},{GOLDFISH} 11 6 20 15 {GOLDFISH} 1 1 5 5 \n"
    f"{NAMES[1]},{FISH} 1 1 40 30 \n"
)
OBJECT = (
    "<object><name>{name}</name><pose>Unspecified</pose><bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax>"
    "<ymax>15</ymax></bndbox></object>"
)


def jpeg(path, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, "JPEG")


def xml(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(OBJECT.format(name=name) for name in names)
    path.write_text(f"<annotation><filename>{path.stem}</filename>{objects}</annotation>")


@pytest.fixture
def validation(tmp_path):
    """Write the validation images, flat or in folders of WordNet ids, under any home."""

    def write(home="", nested=False):
        for name, label in LABELS.items():
            jpeg(tmp_path / home / "val" / (f"{label}/" if nested else "") / f"{name}.JPEG")
        return tmp_path

    return write


def seen(records):
    return {r.id: (r.split, r.label, r.boxes) for r in records}


BOTH = {
    NAMES[0]: ("val", GOLDFISH, (Box(10, 5, 20, 15), Box(0, 0, 5, 5))),
    NAMES[1]: ("val", FISH, (Box(0, 0, 40, 30),)),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("home", ["", "ILSVRC/Data/CLS-LOC"])
def test_the_solution_table_gives_class_and_boxes(validation, home, nested):
    """One-based inclusive: 11 to 20 are ten pixels, the first of which is pixel 10."""
    root = validation(home, nested)
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    records = read_imagenet(root)
    assert seen(records) == BOTH
    assert all(r.source.is_file() for r in records)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("folder", ["ILSVRC/Annotations/CLS-LOC", "Annotations/CLS-LOC", "Annotations"])
def test_xml_gives_class_and_boxes(validation, folder, nested):
    root = validation(nested=nested)
    for name, label in LABELS.items():
        xml(root / folder / f"val/{name}.xml", label)
    found = seen(read_imagenet(root))
    assert found == {name: ("val", label, (Box(10, 5, 20, 15),)) for name, label in LABELS.items()}


def test_boxes_counted_from_zero_are_declared(validation):
    root = validation()
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    assert read_imagenet(root, base=0)[0].boxes[0] == Box(11, 6, 21, 16)


@pytest.mark.parametrize("numbered", ["LOC_synset_mapping.txt", "imagenet_class_index.json", None])
def test_a_list_of_labels_with_boxes_from_xml(validation, numbered):
    root = validation()
    labels = list(LABELS.values())
    if numbered == "LOC_synset_mapping.txt":
        (root / numbered).write_text(f"{FISH} tench, Tinca tinca\n{GOLDFISH} goldfish\n")
    elif numbered:
        (root / numbered).write_text(json.dumps({"1": [GOLDFISH, "goldfish"], "0": [FISH, "tench"]}))
    labels = ["1", "0"] if numbered else labels
    (root / "val.txt").write_text("".join(f"{n}.JPEG {v}\n" for n, v in zip(NAMES, labels, strict=True)))
    xml(root / f"Annotations/val/{NAMES[0]}.xml", GOLDFISH)
    assert seen(read_imagenet(root)) == {
        NAMES[0]: ("val", GOLDFISH, (Box(10, 5, 20, 15),)), NAMES[1]: ("val", FISH, ())
    }  # fmt: skip


def test_training_folders(tmp_path):
    for label, number in ((FISH, 18), (GOLDFISH, 2), (GOLDFISH, 3)):
        jpeg(tmp_path / f"train/{label}/{label}_{number}.JPEG")
    xml(tmp_path / f"Annotations/train/{FISH}/{FISH}_18.xml", FISH, FISH)
    (tmp_path / "LOC_train_solution.csv").write_text(
        f"ImageId,PredictionString\n{GOLDFISH}_2,{GOLDFISH} 1 1 2 2\n"
    )
    assert seen(read_imagenet(tmp_path)) == {
        f"{FISH}_18": ("train", FISH, (Box(10, 5, 20, 15),) * 2),
        f"{GOLDFISH}_2": ("train", GOLDFISH, (Box(0, 0, 2, 2),)),
        f"{GOLDFISH}_3": ("train", GOLDFISH, ()),
    }


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("", r"solution\.csv:1: there is no column 'ImageId'"),
        (SOLUTION.replace(" 11 6 20 15", " 11 6 20"), r"csv:2: wanted 'WNID x0 y0 x1 y1' of one class"),
        (SOLUTION.replace(f"{GOLDFISH} 1 1", f"{FISH} 1 1"), r"csv:2: wanted .* of one class, found"),
        (SOLUTION.replace("11 6 20", "11 nan 20"), r"csv:2: a box needs four finite numbers"),
        (SOLUTION.replace("11 6 20", "11 six 20"), r"csv:2: a box needs four numbers"),
        (SOLUTION.replace("11 6 20", "21 6 2"), r"csv:2: the box .* is -18 pixels wide"),
        (SOLUTION.replace(NAMES[1], NAMES[0]), r"csv:3: the image .* occurs twice, first at .*csv:2"),
        (SOLUTION.replace(NAMES[1], "../a"), r"csv:3: the path '\.\./a\.JPEG' must be relative"),
    ],
)
def test_faults_of_the_solution_table(validation, solution, message):
    root = validation()
    (root / "LOC_val_solution.csv").write_text(solution)
    with pytest.raises(DataError, match=message):
        read_imagenet(root)


def test_folder_and_annotation_must_agree(validation):
    root = validation(nested=True)
    xml(root / f"Annotations/val/{NAMES[0]}.xml", FISH)
    with pytest.raises(
        DataError, match=rf"xml: the class of .* is '{FISH}' here, but '{GOLDFISH}' by its folder"
    ):
        read_imagenet(root)
    xml(root / f"Annotations/val/{NAMES[0]}.xml")
    with pytest.raises(DataError, match=r"this annotation holds no <object>"):
        read_imagenet(root)


def test_ids_of_the_development_kit_are_not_taken_for_classes(validation):
    root = validation()
    (root / "val.txt").write_text("490\n361\n")
    with pytest.raises(DataError, match=r"val\.txt:1: wanted .* the bare ids of the development kit are not"):
        read_imagenet(root)


def test_flat_images_that_nothing_labels(validation):
    with pytest.raises(DataError, match=r"nothing says what this image shows; looked for LOC_val"):
        read_imagenet(validation())


def test_a_wrong_folder_is_one_sentence(tmp_path):
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(DataError) as caught:
        read_imagenet(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no ImageNet here; looked for the folders train or val in ILSVRC/Data/CLS-LOC,"
        " Data/CLS-LOC and directly under it, found imagenet/"
    )


# ---------------------------------------------------------------------------------- classes from a file


def test_the_manifest_takes_its_classes_from_the_list(validation):
    root = validation()
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    manifest = load_manifest("imagenet_val")
    with pytest.raises(DataError, match=r"no list of the classes here; looked for LOC_synset_mapping"):
        read_annotation(manifest, root)
    listing = root / "LOC_synset_mapping.txt"
    listing.write_text(f"{FISH} tench\n{GOLDFISH} goldfish\n")
    with pytest.raises(DataError, match=r"mapping\.txt: wanted 1000 classes, found 2: complete the file"):
        read_annotation(manifest, root)
    small = manifest.model_copy(
        update={"class_list": ClassList(files=("a.txt", "LOC_synset_mapping.txt"), count=2)}
    )
    assert read_annotation(small, root).classes == (FISH, GOLDFISH)
    listing.write_text(f"{FISH} tench\n{FISH} goldfish\n")
    with pytest.raises(DataError, match=rf"mapping\.txt: the class '{FISH}' is listed twice"):
        read_annotation(small, root)
    (root / "a.txt").write_text(f"{FISH}\nn09999999\n")
    with pytest.raises(DataError, match=rf"csv:2: the label '{GOLDFISH}' is no class of the manifest"):
        read_annotation(small, root)


@pytest.mark.parametrize("text", ["[]x", '{"0": "n1", "2": "n2"}', '{"0": []}', "3"])
def test_broken_class_indices(validation, text):
    root = validation()
    (root / "imagenet_class_index.json").write_text(text)
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    with pytest.raises(DataError, match=r"index\.json: wanted .* numbered from 0"):
        read_annotation(load_manifest("imagenet_val"), root)


# ------------------------------------------------------------------------------------------ Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path):
    for label in (FISH, GOLDFISH):
        folder = tmp_path / "train" / label
        rows = []
        for number in range(30):
            jpeg(folder / f"images/{label}_{number}.JPEG", (64, 64))
            rows.append(f"{label}_{number}.JPEG\t0\t10\t39\t29\n")
        (folder / f"{label}_boxes.txt").write_text("".join(rows))
        jpeg(tmp_path / f"val/images/val_{label}.JPEG", (64, 64))
    (tmp_path / "val/val_annotations.txt").write_text(
        f"val_{FISH}.JPEG\t{FISH}\t1\t2\t3\t4\nval_{GOLDFISH}.JPEG\t{GOLDFISH}\t0\t0\t63\t63\n"
    )
    (tmp_path / "wnids.txt").write_text(f"{GOLDFISH}\n{FISH}\n")
    return tmp_path


def test_the_layout_of_tiny_imagenet(tiny):
    records = read_tiny_imagenet(tiny)
    assert len(records) == 62
    assert {r.split for r in records} == {"train", "val"}
    assert records[0].boxes == (Box(0, 10, 40, 30),)
    assert records[60].boxes == (Box(1, 2, 4, 5),)
    assert records[60].label == FISH
    assert all(r.source.is_file() and r.declared_size == (64, 64) for r in records)
    assert read_tiny_imagenet(tiny, side=32)[0].boxes == (Box(0, 5, 20, 15),)


def test_the_manifest_wants_all_classes_and_the_subset_its_own(tiny):
    with pytest.raises(DataError, match=r"wnids\.txt: wanted 200 classes, found 2"):
        open_dataset(load_manifest("tiny_imagenet"), root=tiny, image_size=(32, 32))
    dataset = open_dataset(load_manifest("tiny_imagenet_20"), root=tiny, image_size=(32, 32))
    assert len(dataset.classes) == 20
    assert {e.record.label for e in dataset["train"].entries} == {GOLDFISH}
    assert read_annotation(load_manifest("tiny_imagenet_20"), tiny).dropped == {FISH: 31}
    assert dataset["test"].labels.tolist() == [dataset.classes.index(GOLDFISH)]
    assert dataset["test"][0].mask.all()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "val/val_annotations.txt",
            "a.JPEG\t0\t0\t1\t1\n",
            r"s\.txt:1: wanted an image, a class and",
        ),
        ("val/val_annotations.txt", f"a.JPEG\t{FISH}\t5\t0\t1\t1\n", r"s\.txt:1: the box .* -3 pixels wide"),
        ("val/val_annotations.txt", f"../a.JPEG\t{FISH}\t0\t0\t1\t1\n", r"s\.txt:1: the path .* relative"),
        (f"train/{FISH}/{FISH}_boxes.txt", "a.JPEG 1 2 3\n", r"boxes\.txt:1: wanted an image and four num"),
        (f"train/{FISH}/{FISH}_boxes.txt", "a.JPEG 1 2 nan 3\n", r"boxes\.txt:1: a box needs four finite"),
    ],
)
def test_faults_of_tiny_imagenet(tiny, file, text, message):
    (tiny / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_tiny_imagenet(tiny)


def test_a_wrong_folder_is_no_tiny_imagenet(tmp_path, tiny):
    (tiny / f"train/{FISH}/{FISH}_boxes.txt").unlink()
    with pytest.raises(DataError, match=rf"{FISH}_boxes\.txt: there is no such annotation file"):
        read_tiny_imagenet(tiny)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no Tiny-ImageNet here; looked for .* found an empty folder"):
        read_tiny_imagenet(empty)


def test_genuine_tiny_images(real):
    dataset = open_dataset(load_manifest("tiny_imagenet_20"), root=real("tiny-imagenet"), image_size=(64, 64))
    facts = describe(dataset)
    assert facts.n_clipped == facts.n_outside == facts.n_missing == 0
    assert sum(facts.splits[s].per_class[c] for s in ("train", "val") for c in dataset.classes) == 10_000
    assert set(facts.splits["test"].per_class.values()) == {50}
    assert facts.splits["test"].n_with_truth == 1000
    assert 0.08 < len(dataset["val"]) / 10_000 < 0.12
    assert max(b.x1 for i in range(1000) for b in dataset["test"].boxes(i)) == 64
