import json

import numpy as np
import pytest
from PIL import Image

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.checking import check_data
from lapbench.data.readers.celeba import FRAME, MOUTH, mouth_box, read_celeba, read_celeba_landmarks
from lapbench.errors import DataError
from lapbench.types import Box

FACES = ("000001.jpg", "000002.jpg", "000003.jpg")
ATTRIBUTES = "3\nBald Smiling Young \n000001.jpg -1  1  1\n000002.jpg -1 -1  1\n000003.jpg  1  1 -1\n"
LANDMARKS = (
    "3\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x"
    " rightmouth_y\n"
    "000001.jpg 69 109 106 113 77 142 73 152 108 154\n"
    "000002.jpg 69 110 107 112 81 135 70 151 108 153\n"
    "000003.jpg 76 112 104 106 108 128 96 152 96 152\n"
)


@pytest.fixture
def faces(tmp_path):
    def write(attributes=ATTRIBUTES, size=FRAME, published=False):
        anno, img = ("Anno/", "Img/") if published else ("", "")
        for name in FACES:
            path = tmp_path / f"{img}img_align_celeba" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*size, 3), 128, np.uint8)).save(path)
        table = tmp_path / f"{anno}list_attr_celeba.txt"
        table.parent.mkdir(exist_ok=True)
        table.write_text(attributes)
        return tmp_path

    return write


@pytest.mark.parametrize("published", [False, True])
def test_faces_and_their_attribute(faces, published):
    records = read_celeba(faces(published=published))
    assert [(r.id, r.label, r.split) for r in records] == [
        ("000001.jpg", "yes", ""), ("000002.jpg", "no", ""), ("000003.jpg", "yes", "")
    ]  # fmt: skip
    assert all(r.boxes == (MOUTH,) and r.declared_size == FRAME for r in records)
    bald = read_celeba(faces(published=published), attribute="Bald", labels=("hair", "bald"))
    assert [r.label for r in bald] == ["hair", "hair", "bald"]


def test_the_mouth_of_faces_that_do_not_smile_is_a_choice(faces):
    root = faces()
    assert [len(r.boxes) for r in read_celeba(root)] == [1, 1, 1]
    assert [len(r.boxes) for r in read_celeba(root, truth="positive")] == [1, 0, 1]


def test_the_box_follows_the_images_size(faces):
    root = faces(size=(109, 89))
    assert read_celeba(root)[0].boxes == (Box(29, 69, 60, 87),)
    (root / "list_landmarks_align_celeba.txt").write_text(LANDMARKS)
    half = read_celeba(root)[0].boxes[0]
    d = np.hypot(35, 2)
    wanted = np.array([73 - 0.4 * d, 152 - 0.45 * d, 108 + 0.4 * d, 154 + 0.6 * d]) / 2
    assert (half.x0, half.y0, half.x1, half.y1) == pytest.approx(wanted.tolist())


def test_the_rule_agrees_with_the_common_box_on_the_mean_face():
    box = mouth_box(72.6, 153.7, 106.5, 153.6)
    found, wanted = (np.array([b.x0, b.y0, b.x1, b.y1]) for b in (box, MOUTH))
    assert np.abs(found - wanted).max() < 2


def test_a_face_turned_aside_keeps_a_mouth(faces):
    root = faces()
    (root / "list_landmarks_align_celeba.txt").write_text(LANDMARKS)
    assert read_celeba(root)[2].boxes == (Box(88, 143, 104, 164),)


def test_the_authors_splits_are_kept_where_they_are_there(faces):
    root = faces()
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    assert [r.split for r in read_celeba(root)] == ["train", "val", "test"]
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 3\n")
    with pytest.raises(DataError, match=r"partition\.txt:2: wanted an image and 0, 1 or 2, found '0000"):
        read_celeba(root)
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match=r"attr_celeba\.txt:4: 000002\.jpg stands in no line of list_eval_"):
        read_celeba(root)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("", r"wanted the number of images in line 1"),
        ("Bald Smiling\n000001.jpg -1 1\n", r"wanted the number of images in line 1 .* found 'Bald Smiling'"),
        (ATTRIBUTES[:-20], r"line 1 promises 3 images, found 2"),
        (ATTRIBUTES.replace("  1 -1\n", "  1\n"), r"attr_celeba\.txt:5: wanted a name and 3 cells, found 2"),
        (ATTRIBUTES.replace("000003", "000001"), r"txt:5: the image 000001\.jpg occurs twice, first at .*:3"),
        (ATTRIBUTES.replace("1.jpg -1  1", "1.jpg -1  0"), r"txt:3: Smiling must be 1 or -1, found '0'"),
        (ATTRIBUTES.replace("Smiling", "Smile"), r"no attribute 'Smiling'; did you mean 'Smile'\?"),
        (ATTRIBUTES.replace("000001", "../../a"), r"txt:3: the path '\.\./\.\./a\.jpg' must be relative"),
    ],
)
def test_faults_of_the_attribute_file(faces, attributes, message):
    with pytest.raises(DataError, match=message):
        read_celeba(faces(attributes))


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (
            LANDMARKS.replace("leftmouth_x", "mouth_x"),
            r"align_celeba\.txt:3: there is no column 'left",
        ),
        (LANDMARKS.replace("73 152", "nan 152"), r"txt:3: landmarks need finite numbers, found nan 152"),
        (LANDMARKS.replace("73 152", "left 152"), r"txt:3: landmarks need finite numbers, found left 152"),
        (LANDMARKS.replace("000002", "000009"), r"attr_celeba\.txt:4: 000002\.jpg has no landmarks: fetch"),
        (LANDMARKS.replace("3\n", "4\n", 1), r"line 1 promises 4 images, found 3"),
    ],
)
def test_faults_of_the_landmarks(faces, landmarks, message):
    root = faces()
    (root / "list_landmarks_align_celeba.txt").write_text(landmarks)
    with pytest.raises(DataError, match=message):
        read_celeba(root)


def test_faces_that_are_not_the_aligned_frame(faces):
    with pytest.raises(DataError, match=r"000001\.jpg: wanted an aligned face of 218×178 .* found 200×200"):
        read_celeba(faces(size=(200, 200)))
    root = faces()
    Image.new("RGB", (89, 109)).save(root / "img_align_celeba/000002.jpg")
    manifest = load_manifest("celeba_smile").model_copy(update={"splits": {}})
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    with pytest.raises(DataError, match=r"says 218×178 pixels .*000002\.jpg has 109×89"):
        open_dataset(manifest, root=root, image_size=(109, 89))


def test_a_wrong_folder_is_one_sentence(tmp_path, faces):
    with pytest.raises(DataError) as caught:
        read_celeba(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no CelebA here; looked for list_attr_celeba.txt (or in Anno) and the folder"
        " img_align_celeba (or in Img), found an empty folder"
    )
    root = faces()
    for name in FACES:
        (root / "img_align_celeba" / name).rename(root / "img_align_celeba" / f"{name}.part")
    with pytest.raises(DataError, match=r"not one of the 3 images is here; looked for 000001\.jpg first"):
        read_celeba(root)


# ------------------------------------------------------------------------------------ the genuine files


def test_genuine_faces(real):
    dataset = open_dataset(load_manifest("celeba_smile"), root=real("celeba"), image_size=(109, 89))
    facts = describe(dataset).splits
    total = {c: sum(f.per_class[c] for f in facts.values()) for c in dataset.classes}
    assert total == {"no_smile": 5178, "smile": 4822}
    shares = {name: len(dataset[name]) / 10_000 for name in dataset.splits}
    assert shares == pytest.approx({"train": 0.7, "val": 0.1, "test": 0.2}, abs=0.015)
    assert not set(dataset["train"].ids) & (set(dataset["val"].ids) | set(dataset["test"].ids))
    wanted = json.loads((real("celeba") / "mouth_box.json").read_text())
    [box] = dataset["test"][0].boxes
    assert [box.x0, box.y0, box.x1, box.y1] == wanted["mouth_box_xyxy"]
    assert list(dataset["test"][0].image.shape[:0:-1]) == wanted["image_size"]


def test_genuine_mouths_are_redder_than_cheeks(real):
    """Lips are red: the box shows them, the same box moved aside shows skin, hair and background."""
    dataset = open_dataset(load_manifest("celeba_smile"), root=real("celeba"), image_size=(109, 89), limit=50)
    redness = []
    for sample in dataset["test"]:
        red = sample.image[0] - sample.image[1]
        inside = sample.mask
        redness.append(red[inside].mean() - red[np.roll(inside, 29, axis=1)].mean())
    assert np.mean(redness) > 0.02


def test_landmarks_as_targets(faces):
    """Of half the size, all coordinates are halved; a training face is one sample, a scored one ten."""
    root = faces(size=(109, 89))
    (root / "list_landmarks_align_celeba.txt").write_text(LANDMARKS)
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    records = read_celeba_landmarks(root, side=0.1)
    assert [r.split for r in records] == ["train"] + ["val"] * 10 + ["test"] * 10
    assert (records[0].id, records[0].label) == ("000001.jpg", "left_eye_x")
    assert records[0].answer == (34.5, 54.5, 53, 56.5, 38.5, 71, 36.5, 76, 54, 77)
    nose = next(r for r in records if r.id == "000002.jpg/nose_y")
    (box,) = nose.boxes
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx(
        (40.5 - 4.45, 67.5 - 4.45, 40.5 + 4.45, 67.5 + 4.45)
    )
    dataset = open_dataset(load_manifest("celeba_landmarks"), root=root, image_size=(40, 20))
    wanted = np.array([34.5, 54.5, 53, 56.5, 38.5, 71, 36.5, 76, 54, 77]) / ([89, 109] * 5)
    np.testing.assert_allclose(dataset["train"].answers[0], wanted, rtol=1e-6)
    assert len(dataset["test"].by_image()) == 1


def test_landmarks_whose_file_is_not_there(faces):
    with pytest.raises(
        DataError, match=r"no landmarks of CelebA here; looked for list_landmarks_align_celeba"
    ):
        read_celeba_landmarks(faces())


def test_a_landmark_outside_its_image(faces):
    root = faces()
    (root / "list_landmarks_align_celeba.txt").write_text(LANDMARKS.replace("81 135", "81 235"))
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n000003.jpg 2\n")
    with pytest.raises(DataError) as caught:
        open_dataset(load_manifest("celeba_landmarks"), root=root, image_size=(40, 20))
    assert str(caught.value) == (
        f"{root}/list_landmarks_align_celeba.txt:4: the landmark at (81, 235) lies outside the image 178"
        " wide and 218 high: correct it, or leave the image out"
    )
    findings = check_data(load_manifest("celeba_landmarks"), root=root).findings
    (found,) = [finding for finding in findings if finding.what == "landmarks outside their images"]
    assert found.state == "fault"
    assert found.detail.startswith("10: ")
