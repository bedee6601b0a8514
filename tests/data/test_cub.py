import pytest

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.readers.cub import TABLES, read_cub
from lapbench.errors import DataError
from lapbench.types import Box

NAMES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
FILES = (
    f"{NAMES[0]}/Black_0046_18.jpg",
    f"{NAMES[1]}/Laysan_0002_1027.jpg",
    f"{NAMES[1]}/Laysan_0003_1033.jpg",
)
TEXTS = (
    "".join(f"{number} {name}\n" for number, name in enumerate(FILES, start=1)),
    "1 1\n2 2\n3 2\n",
    "".join(f"{number} {name}\n" for number, name in enumerate(NAMES, start=1)),
    "1 0\n2 1\n3 1\n",
    "1 2.0 3.0 10.0 5.0\n2 0.0 0.0 39.0 29.0\n3 7.0 8.0 1.0 1.0\n",
)


@pytest.fixture
def birds(tmp_path, write_image):
    """Three images of 30×40 pixels in the published layout."""
    for name, text in zip(TABLES, TEXTS, strict=True):
        (tmp_path / name).write_text(text)
    for name in FILES:
        write_image(tmp_path / "images" / name, 30, 40)
    return tmp_path


def test_every_image_has_its_split_its_class_and_its_inclusive_box(birds):
    assert [(r.id, r.split, r.label, r.boxes) for r in read_cub(birds)] == [
        ("Black_0046_18", "test", NAMES[0], (Box(2, 3, 13, 9),)),
        ("Laysan_0002_1027", "train", NAMES[1], (Box(0, 0, 40, 30),)),  # the whole image
        ("Laysan_0003_1033", "train", NAMES[1], (Box(7, 8, 9, 10),)),
    ]


def test_boxes_may_be_declared_to_count_from_one(birds):
    (birds / TABLES[4]).write_text(TEXTS[4].replace("0.0 0.0", "1.0 1.0"))
    assert read_cub(birds, base=1)[1].boxes == (Box(0, 0, 40, 30),)


def test_the_manifest_divides_the_training_images(birds, write_image):
    lines = [f"{NAMES[0]}/another_{{0}}.jpg", "1", None, "1", "2 2 5 5"]
    for number in range(4, 34):
        write_image(birds / "images" / lines[0].format(number), 30, 40)
        for name, line in zip(TABLES, lines, strict=True):
            if line:
                with (birds / name).open("a") as file:
                    file.write(f"{number} {line.format(number)}\n")
    manifest = load_manifest("cub")
    few = manifest.model_copy(update={"class_list": manifest.class_list.model_copy(update={"count": 2})})
    dataset = open_dataset(few, root=birds, image_size=(30, 40))

    assert dataset.classes == NAMES
    assert len(dataset["test"]) == 1
    assert len(dataset["train"]) + len(dataset["val"]) == 32 and len(dataset["val"]) < 10
    assert dataset["test"][0].mask.sum() == 11 * 6
    assert describe(dataset).splits["test"].per_class == {NAMES[0]: 1, NAMES[1]: 0}


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (0, "2 002", "1 002", r"images.txt:2: number 1 occurs twice"),
        (0, FILES[2], "", r"images.txt:3: wanted a number and what belongs to it, found '3'"),
        (0, FILES[2], "../x.jpg", r"images.txt:3: .*must be relative and stay inside"),
        (1, "3 2\n", "", r"images.txt:3: .*image_class_labels.txt has no line for number 3"),
        (1, "3 2\n", "3 9\n", r"image_class_labels.txt:3: .*classes.txt has no line for number 9"),
        (3, "3 1\n", "3 2\n", r"train_test_split.txt:3: wanted 1 for train or 0 for test, found '2'"),
        (4, "3 7.0 8.0 1.0 1.0\n", "", r"images.txt:3: .*bounding_boxes.txt has no line for number 3"),
        (4, "7.0 8.0 1.0 1.0", "7.0 8.0 1.0", r"bounding_boxes.txt:3: a box needs four numbers"),
        (4, "7.0 8.0 1.0 1.0", "7.0 8.0 -3 1.0", r"bounding_boxes.txt:3: the box .* is -2 pixels wide"),
        (4, "7.0 8.0 1.0 1.0", "7.0 nan 1.0 1.0", r"bounding_boxes.txt:3: a box needs four finite numbers"),
    ],
)
def test_broken_tables_are_named_with_their_line(birds, table, old, new, message):
    file = birds / TABLES[table]
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        read_cub(birds)


def test_a_wrong_folder_says_what_was_looked_for(birds):
    (birds / TABLES[3]).unlink()
    with pytest.raises(DataError, match=r"no CUB-200-2011 here; looked for images.txt, .* found bounding"):
        read_cub(birds)
