import json

import numpy as np
import pytest
from PIL import Image

from lapbench.data.readers import (
    read_class_folders,
    read_coco,
    read_csv_boxes,
    read_mask_folders,
    read_voc,
)
from lapbench.errors import DataError, DefinitionError
from lapbench.registry import readers
from lapbench.types import Box

# ---------------------------------------------------------------------------------------------- CSV

COLUMNS = {"id_column": "id", "box_columns": ("x", "y", "width", "height"), "image": "{id}.png"}


@pytest.fixture
def table(tmp_path):
    def read(text, **parameters):
        (tmp_path / "t.csv").write_text(text)
        given = {
            **COLUMNS,
            "file": "t.csv",
            "convention": "xywh",
            "base": 0,
            "labels_by_boxes": ("no", "yes"),
        }
        return read_csv_boxes(tmp_path, **{**given, **parameters})

    return read


def test_rows_are_boxes_not_images(table):
    """The form of the RSNA labels: patients repeat, and an empty box is a healthy patient."""
    records = table(
        "id,x,y,width,height,Target\np1,,,,,0\np2,264.0,152.0,213.0,379.0,1\np2,562,152,256,453,1\n"
    )
    assert [(r.id, r.label, len(r.boxes)) for r in records] == [("p1", "no", 0), ("p2", "yes", 2)]
    assert records[1].boxes[0] == Box(264, 152, 477, 531)


def test_labels_from_a_column(table):
    text = "id,x,y,width,height,Target\np1,,,,,0\np2,1,1,2,2,1\n"
    records = table(text, label_column="Target", labels={"0": "healthy", "1": "ill"}, labels_by_boxes=None)
    assert [r.label for r in records] == ["healthy", "ill"]


def test_declared_convention_and_scale(table):
    text = "id,a,b,c,d\np1,17,33,48,64\n"
    columns = ("a", "b", "c", "d")
    [record] = table(text, box_columns=columns, convention="xyxy-inclusive", base=1, box_scale=1 / 16)
    assert record.boxes == (Box(1, 2, 3, 4),)


def test_images_of_a_second_list_have_no_boxes(table, tmp_path):
    (tmp_path / "all.csv").write_text("id\np1\np2\n")
    records = table("id,x,y,width,height\np2,1,1,2,2\n", images_without_boxes="all.csv")
    assert {r.id: r.label for r in records} == {"p1": "no", "p2": "yes"}


def test_groups_and_splits_from_columns(table):
    text = "id,x,y,width,height,part,patient\np1,,,,,train,A\np2,,,,,train,A\n"
    records = table(text, split_column="part", group_column="patient")
    assert [(r.split, r.group) for r in records] == [("train", "A")] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,x,y,width,hight\n", r"t\.csv:1: there is no column 'height'; did you mean 'hight'"),
        ("id,x,y,width,height\np1,1,1,2\n", r"t\.csv:2: wanted 5 cells, found 4"),
        (
            "id,x,y,width,height\np1,1,1,2,\n",
            r"t\.csv:2: a box needs four numbers, found \['1', '1', '2', ''\]",
        ),
        ("id,x,y,width,height\np1,1,1,two,2\n", r"t\.csv:2: a box needs four numbers"),
        ("id,x,y,width,height\np1,1,1,nan,2\n", r"t\.csv:2: a box needs four finite numbers"),
        ("id,x,y,width,height\np1,,,,\np1,1,1,-3,2\n", r"t\.csv:3: the box .* is -3 pixels wide"),
        ("id,x,y,width,height\np1,1,1,2,2\np2,0.1,0.2,0.5,0.5\n", r"t\.csv:3: the box .* in fractions"),
        ("id,x,y,width,height\n,1,1,2,2\n", r"t\.csv:2: the column 'id' is empty"),
        ("id,x,y,width,height\n../p1,1,1,2,2\n", r"t\.csv:2: the path '../p1.png' must be relative"),
        ('id,x,y,width,height\n"p1,1,1,2,2\n', r"t\.csv:2: not a valid table"),
        ("", r"t\.csv:1: there is no column 'id'"),
    ],
)
def test_bad_rows_are_named(table, text, message):
    with pytest.raises(DataError, match=message):
        table(text)


def test_rows_of_one_image_must_agree(table):
    text = "id,x,y,width,height,part\np1,1,1,2,2,train\np1,4,4,2,2,test\n"
    with pytest.raises(DataError, match=r"t\.csv:3: the split of 'p1' is 'test', but 'train' at .*t\.csv:2"):
        table(text, split_column="part")


def test_the_source_of_the_label_is_declared_once(table):
    for parameters in ({"labels_by_boxes": None}, {"label_column": "id"}):
        with pytest.raises(DefinitionError, match="give either label_column or labels_by_boxes"):
            table("id,x,y,width,height\n", **parameters)
    with pytest.raises(DefinitionError, match=r"image must hold {id}"):
        table("id,x,y,width,height\n", image="a.png")


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=r"t\.csv: the annotation cannot be read as UTF-8 text"):
        read_csv_boxes(
            tmp_path, file="t.csv", convention="xywh", base=0, labels_by_boxes=("a", "b"), **COLUMNS
        )


def test_real_rsna_labels(real):
    """26,684 patients in 30,227 rows, 6,012 of them with boxes; a patient's rows make one record."""
    records = read_csv_boxes(
        real("rsna"), file="stage_2_train_labels.csv", image="png64/{id}.png", id_column="patientId",
        box_columns=("x", "y", "width", "height"), convention="xywh", base=0,
        label_column="Target", labels={"0": "healthy", "1": "pneumonia"}, box_scale=1 / 16,
    )  # fmt: skip
    assert len(records) == 26_684
    assert sum(r.label == "pneumonia" for r in records) == 6012 == sum(bool(r.boxes) for r in records)
    assert sum(len(r.boxes) for r in records) == 9555
    assert max(b.x1 for r in records for b in r.boxes) <= 64


# ---------------------------------------------------------------------------------------------- VOC

VOC = (
    "<annotation><filename>{name}.jpg</filename><size><width>20</width><height>10</height></size>"
    "{objects}</annotation>"
)
DOG = (
    "<object><name>dog</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
    "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path):
    def write(name, objects):
        folder = tmp_path / "Annotations"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.xml").write_text(VOC.format(name=name, objects=objects))
        return tmp_path

    return write


def dog(*box, difficult=0):
    return DOG.format(box=box, difficult=difficult)


def test_voc_counts_from_one_and_includes_the_last_pixel(voc):
    root = voc("1", dog(1, 1, 20, 10) + dog(3, 4, 3, 4))
    [record] = read_voc(root)
    assert record.boxes == (Box(0, 0, 20, 10), Box(2, 3, 3, 4))
    assert record.label == "dog"
    assert record.declared_size == (10, 20)
    assert record.source == root / "JPEGImages/1.jpg"


def test_voc_difficult_objects(voc):
    root = voc("1", dog(1, 1, 5, 5) + dog(2, 2, 3, 3, difficult=1))
    assert len(read_voc(root)[0].boxes) == 2
    assert len(read_voc(root, difficult="drop")[0].boxes) == 1
    [record] = read_voc(root, difficult="ignore")
    assert (record.boxes, record.ignored) == ((Box(0, 0, 5, 5),), (Box(1, 1, 3, 3),))
    assert read_voc(root)[0].ignored == read_voc(root, difficult="drop")[0].ignored == ()


def test_voc_objects_to_ignore_name_the_class(voc):
    root = voc("1", dog(2, 2, 3, 3, difficult=1))
    [record] = read_voc(root, difficult="ignore")
    assert (record.label, record.boxes) == ("dog", ())
    labels = ("no dog", "dog")
    assert read_voc(root, difficult="ignore", labels_by_boxes=labels)[0].label == "dog"
    assert read_voc(root, difficult="drop", labels_by_boxes=labels)[0].label == "no dog"


def test_voc_lists_name_splits_and_objects_name_labels(voc):
    voc("1", dog(1, 1, 5, 5))
    root = voc("2", "")
    (root / "train.txt").write_text("1  1\n")
    (root / "test.txt").write_text("2 -1\n")
    lists = {"train": "train.txt", "test": "test.txt"}
    records = read_voc(root, lists=lists, labels_by_boxes=("no dog", "dog"), objects=("dog",))
    assert [(r.id, r.split, r.label) for r in records] == [("1", "train", "dog"), ("2", "test", "no dog")]
    assert read_voc(root, labels_by_boxes=("no cat", "cat"), objects=("cat",))[0].label == "no cat"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("", "the class must be one object name, found no object"),
        (dog(5, 1, 4, 3) + "", "pixels wide"),
        (dog("x", 1, 4, 3), "a box needs four numbers"),
        ("<object><name>dog</name></object>", "<object> has no <bndbox>"),
        ("<object></object>", "<object> has no <name>"),
        ("<object>", "not valid XML"),
    ],
)
def test_bad_voc_files_are_named(voc, objects, message):
    with pytest.raises(DataError, match=rf"1\.xml: .*{message}"):
        read_voc(voc("1", objects))


def test_xml_entities_are_refused(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/1.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'
    )
    with pytest.raises(
        DataError, match=r"1\.xml: XML that defines entities or refers to other files is not read"
    ):
        read_voc(tmp_path)


def test_voc_file_names_stay_inside(tmp_path, voc):
    root = voc("1", dog(1, 1, 5, 5))
    path = root / "Annotations/1.xml"
    path.write_text(path.read_text().replace("1.jpg", "../../1.jpg"))
    with pytest.raises(DataError, match=r"1\.xml: the path 'JPEGImages/../../1.jpg' must be relative"):
        read_voc(root)


def test_voc_without_annotations(tmp_path):
    with pytest.raises(DataError, match="there is no such folder of annotations"):
        read_voc(tmp_path)


# --------------------------------------------------------------------------------------------- COCO


def coco(**changes):
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 10, "width": 20},
            {"id": 8, "file_name": "b.jpg", "height": 10, "width": 20},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 4.5, 5], "iscrowd": 0, "area": 9},
            {"id": 2, "image_id": 7, "category_id": 17, "bbox": [0, 0, 1, 1], "iscrowd": 0},
            {"id": 3, "image_id": 8, "category_id": 18, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    return {**content, **changes}


@pytest.fixture
def read_json(tmp_path):
    def read(content, **parameters):
        (tmp_path / "c.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return read_coco(tmp_path, files={"val": "c.json"}, **parameters)

    return read


def test_coco_is_left_top_width_height_from_zero(read_json, tmp_path):
    records = read_json(coco(), objects=("dog",), labels_by_boxes=("no dog", "dog"))
    assert [(r.id, r.split, r.label) for r in records] == [
        ("val/7", "val", "dog"),
        ("val/8", "val", "no dog"),
    ]
    assert records[0].boxes == (Box(2, 3, 6.5, 8),)
    assert records[0].declared_size == (10, 20)
    assert records[0].source == tmp_path / "images/a.jpg"


def test_coco_objects_that_do_not_exist_are_named(read_json):
    with pytest.raises(DataError, match="there is no category 'dgo'; did you mean 'dog'"):
        read_json(coco(), objects=("dgo",), labels_by_boxes=("no dog", "dog"))


def test_coco_crowds(read_json):
    labels = ("no dog", "dog")
    assert read_json(coco(), objects=("dog",), labels_by_boxes=labels, crowds="keep")[1].label == "dog"
    dog, crowd = read_json(coco(), objects=("dog",), labels_by_boxes=labels, crowds="ignore")
    assert (dog.label, dog.boxes, dog.ignored) == ("dog", (Box(2, 3, 6.5, 8),), ())
    assert (crowd.label, crowd.boxes, crowd.ignored) == ("dog", (), (Box(0, 0, 9, 9),))


def test_coco_category_as_class(read_json):
    annotations = [
        {"id": 1, "image_id": i, "category_id": c, "bbox": [0, 0, 2, 2]} for i, c in ((7, 17), (8, 18))
    ]
    assert [r.label for r in read_json(coco(annotations=annotations))] == ["cat", "dog"]
    with pytest.raises(
        DataError, match=r"c\.json: image 7: the class must be one category, found \['cat', 'dog'\]"
    ):
        read_json(coco())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "(not a COCO file: nested too deeply|not valid JSON)"),
        ("[]", "not a COCO file"),
        (coco(images=[{"id": 1}]), "not a COCO file, 3 faults: images.0.file_name: Field required"),
        (coco(categories=[]), "annotation 1: there is no category 18"),
        (coco(images=[]), "annotation 1: there is no image 7"),
        (
            coco(annotations=[{"id": 9, "image_id": 7, "category_id": 17, "bbox": [1, 1, 0, 4]}]),
            r"annotation 9: the box .* is 0 pixels wide",
        ),
        (
            coco(images=[{"id": 7, "file_name": "/etc/a.jpg", "height": 1, "width": 1}], annotations=[]),
            "image 7: the path .* must be relative",
        ),
    ],
)
def test_bad_coco_files_are_named(read_json, content, message):
    with pytest.raises(DataError, match=rf"c\.json: {message}"):
        read_json(content, labels_by_boxes=("no", "yes"), images="")


# ------------------------------------------------------------------------------------------ folders


def test_class_folders(tmp_path, write_image):
    write_image(tmp_path / "train/n01/images/1.png", 3, 4)
    write_image(tmp_path / "train/n02/2.png", 3, 4)
    (tmp_path / "train/n02/notes.txt").write_text("no image")
    records = read_class_folders(tmp_path, splits={"train": "train"}, labels={"n01": "tench"})
    assert [(r.id, r.split, r.label) for r in records] == [
        ("train/n01/images/1.png", "train", "tench"),
        ("train/n02/2.png", "train", "n02"),
    ]
    with pytest.raises(DataError, match=r"there is no folder .*/val"):
        read_class_folders(tmp_path, splits={"val": "val"})
    (tmp_path / "train/n03").mkdir()
    with pytest.raises(DataError, match="n03: this folder holds no images"):
        read_class_folders(tmp_path, splits={"train": "train"})


def test_mask_folders(tmp_path, write_image):
    write_image(tmp_path / "images/test/1.png", 3, 4)
    write_image(tmp_path / "images/test/2.png", 3, 4)
    (tmp_path / "masks/test").mkdir(parents=True)
    Image.fromarray(np.eye(3, 4, dtype=np.uint8) * 7).save(tmp_path / "masks/test/1_m.png")
    given = {"images": "images", "mask_folder": "masks", "mask_suffix": "_m.png", "splits": {"test": "test"}}
    records = read_mask_folders(tmp_path, labels_by_mask=("healthy", "ill"), value=7, **given)
    assert [(r.id, r.split, r.label) for r in records] == [
        ("test/1.png", "test", "ill"),
        ("test/2.png", "test", "healthy"),
    ]
    assert records[0].mask.value == 7
    with pytest.raises(DataError, match=r"2\.png: there is no mask .*2_m\.png: add it"):
        read_mask_folders(tmp_path, label="ill", **given)
    with pytest.raises(DefinitionError, match="give either label or labels_by_mask"):
        read_mask_folders(tmp_path, **given)
    with pytest.raises(DataError, match=r"reader 'mask-folders': there is no folder .*maskss: complete"):
        read_mask_folders(tmp_path, labels_by_mask=("healthy", "ill"), images="images", mask_folder="maskss")


def test_masks_beside_their_images_are_no_images(tmp_path, write_image):
    for name in ("a.png", "a_mask.png", "b.png", "deep/c.png", "deep/c_mask.png"):
        write_image(tmp_path / "all" / name, 3, 4)
    given = {"images": "all", "mask_folder": "all", "labels_by_mask": ("no", "yes")}
    records = read_mask_folders(tmp_path, mask_suffix="_mask.png", **given)
    assert [(r.id, r.label) for r in records] == [("a.png", "yes"), ("b.png", "no"), ("deep/c.png", "yes")]
    with pytest.raises(
        DefinitionError, match=r"a\.png would be its own mask: correct mask_folder or mask_suffix"
    ):
        read_mask_folders(tmp_path, mask_suffix=".png", **given)


def test_masks_are_truth_and_resize(tmp_path, write_image):
    from lapbench.data import load_manifest, open_dataset

    mask = np.zeros((6, 4), np.uint8)
    mask[2:4, 0:2] = 255
    for name in "ab":
        write_image(tmp_path / f"images/{name}/1.png", 6, 4)
        (tmp_path / f"masks/{name}").mkdir(parents=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{name}/1.png")
    (tmp_path / "m.toml").write_text(
        'name = "m"\nversion = 1\ntitle = "m"\nlicence = "m"\nclasses = ["x"]\n'
        '[reader]\nname = "mask-folders"\n'
        'parameters = {images = "images", mask_folder = "masks", label = "x", splits = {a = "a", b = "b"}}\n'
    )
    dataset = open_dataset(load_manifest(tmp_path / "m.toml"), root=tmp_path, image_size=(3, 8))
    sample = dataset["a"][0]
    wanted = np.zeros((3, 8), bool)
    wanted[1, 0:4] = True
    np.testing.assert_array_equal(sample.mask, wanted)
    assert sample.boxes == ()
    assert dataset["a"].has_truth.tolist() == [True]
    Image.fromarray(mask[:5]).save(tmp_path / "masks/a/1.png")
    with pytest.raises(DataError, match=r"the mask .*1\.png says 5×4 pixels .* the image .* has 6×4"):
        open_dataset(load_manifest(tmp_path / "m.toml"), root=tmp_path, image_size=(3, 8))


def test_a_level_of_a_mask_is_ignored(tmp_path, write_image):
    """As in the masks of Pascal VOC, where 255 is the border of objects, and what is hard to tell."""
    from lapbench.data import load_manifest, open_dataset

    for name in "ab":
        write_image(tmp_path / f"images/{name}/1.png", 6, 4)
        (tmp_path / f"masks/{name}").mkdir(parents=True)

    def opened(levels, ignore="ignore = 255, "):
        for name in "ab":
            Image.fromarray(levels).save(tmp_path / f"masks/{name}/1.png")
        (tmp_path / "m.toml").write_text(
            'name = "m"\nversion = 1\ntitle = "m"\nlicence = "m"\nclasses = ["x"]\n'
            '[reader]\nname = "mask-folders"\nparameters = {images = "images", mask_folder = "masks", '
            f'{ignore}label = "x", splits = {{a = "a", b = "b"}}}}\n'
        )
        return open_dataset(load_manifest(tmp_path / "m.toml"), root=tmp_path, image_size=(3, 8))

    levels = np.zeros((6, 4), np.uint8)
    levels[2:4, 0:2], levels[2:4, 2], levels[5, 3] = 15, 255, 255
    dataset = opened(levels)
    sample, truth, out = dataset["a"][0], np.zeros((3, 8), bool), np.zeros((3, 8), bool)
    truth[1, 0:4], out[1, 4:6], out[2, 6:8] = True, True, True
    np.testing.assert_array_equal(sample.mask, truth)
    np.testing.assert_array_equal(sample.ignore, out)

    literal = opened(levels, ignore="")
    np.testing.assert_array_equal(literal["a"][0].mask, truth | out)
    assert literal["a"][0].ignore is None and literal.digest != dataset.digest

    hidden = opened(np.where(levels == 15, 255, levels).astype(np.uint8))["a"]
    assert hidden.has_truth.tolist() == [False] and hidden[0].ignore is not None
    with pytest.raises(DefinitionError, match="255 is the object and ignored: give two levels"):
        opened(levels, ignore="ignore = 255, value = 255, ")


def test_every_reader_states_its_parameters():
    assert {"csv-boxes", "voc", "coco", "class-folders", "mask-folders", "digits", "deeppcb"} <= set(
        readers.names()
    )
    for entry in readers:
        assert entry.function.__doc__
        assert entry.parameters.model_fields
