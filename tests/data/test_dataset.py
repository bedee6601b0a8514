import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.boxes import rasterise
from lapbench.data.dataset import Entry, Split, View
from lapbench.data.images import fit, read_image
from lapbench.data.record import Drawn, Record
from lapbench.errors import DataError, UnknownNameError
from lapbench.types import Box

MANIFEST = """
name = "mine"
version = 1
title = "Mine"
licence = "none"
classes = ["none", "some"]

[reader]
name = "csv-boxes"

[reader.parameters]
file = "boxes.csv"
image = "images/{id}.png"
id_column = "id"
split_column = "split"
box_columns = ["x", "y", "w", "h"]
convention = "xywh"
base = 0
labels_by_boxes = ["none", "some"]
"""
ROWS = """id,split,x,y,w,h
a,train,2,3,4,5
a,train,8,0,2,2
b,train,,,,
c,test,-2,8,6,9
d,test,,,,
e,test,40,40,2,2
"""


@pytest.fixture
def folder(tmp_path, write_image):
    """Five images, 10 high and 20 wide."""
    for name in "abcde":
        write_image(tmp_path / f"images/{name}.png", 10, 20)
    (tmp_path / "boxes.csv").write_text(ROWS)
    (tmp_path / "mine.toml").write_text(MANIFEST)
    return tmp_path


def opened(folder, size=(10, 20), channels=1, **options):
    return open_dataset(
        load_manifest(folder / "mine.toml"), root=folder, image_size=size, channels=channels, **options
    )


def sample(dataset, name):
    return next(s for part in dataset.splits for s in dataset[part] if s.id == name)


def test_a_sample_is_what_the_annotation_says(folder):
    dataset = opened(folder)
    a = sample(dataset, "a")
    assert a.boxes == (Box(2, 3, 6, 8), Box(8, 0, 10, 2))
    assert a.label == 1
    assert a.mask.sum() == 20 + 4
    assert a.mask[3:8, 2:6].all()
    assert a.image.shape == (1, 10, 20)
    np.testing.assert_allclose(a.image[0, 3, 5] * 255, 3 * 16 + 5, rtol=1e-6)
    b = sample(dataset, "b")
    assert b.label == 0
    assert not b.mask.any()
    assert b.boxes == ()


def test_boxes_move_with_the_image(folder):
    """30 high and 10 wide from 10 high and 20 wide: three times as high, half as wide."""
    a = sample(opened(folder, size=(30, 10)), "a")
    assert a.image.shape == (1, 30, 10)
    assert a.boxes[0] == Box(1, 9, 3, 24)
    np.testing.assert_array_equal(a.mask, rasterise(a.boxes, 30, 10))


def test_boxes_beyond_the_image_are_cut_and_counted(folder):
    dataset = opened(folder)
    assert sample(dataset, "c").boxes == (Box(0, 8, 4, 10),)
    assert (dataset.n_clipped, dataset.n_outside, dataset.n_missing) == (1, 1, 0)
    test = dataset["test"]
    assert dict(zip(test.ids, test.has_truth, strict=True)) == {"c": True, "d": False, "e": False}


def test_has_truth_is_the_mask_without_decoding(folder, monkeypatch):
    dataset = opened(folder)
    expected = [[s.mask.any() for s in dataset[name]] for name in dataset.splits]
    again = opened(folder)
    monkeypatch.setattr("lapbench.data.dataset.read_image", lambda _: pytest.fail("decoded"))
    assert [again[name].has_truth.tolist() for name in again.splits] == expected


def test_three_channels_repeat_grey(folder):
    image = sample(opened(folder, channels=3), "a").image
    assert image.shape == (3, 10, 20)
    assert (image == image[:1]).all()


def test_the_digest_names_everything_that_decides_pixels_and_truth(folder, write_image):
    seen = [opened(folder).digest]
    assert opened(folder).digest == seen[0]
    seen += [
        opened(folder, size=(20, 20)).digest,
        opened(folder, channels=3).digest,
        opened(folder, limit=1).digest,
    ]
    (folder / "boxes.csv").write_text(ROWS.replace("2,3,4,5", "2,3,4,4"))
    seen.append(opened(folder).digest)
    (folder / "boxes.csv").write_text(ROWS)
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(folder / "images/d.png")
    seen.append(opened(folder).digest)
    (folder / "mine.toml").write_text(MANIFEST.replace("version = 1", "version = 2"))
    seen.append(opened(folder).digest)
    assert len(set(seen)) == len(seen)


def test_the_title_does_not_change_the_digest(folder):
    before = opened(folder).digest
    (folder / "mine.toml").write_text(MANIFEST.replace('title = "Mine"', 'title = "Yours"'))
    assert opened(folder).digest == before


def test_a_change_in_one_split_leaves_the_digest_of_the_other(folder):
    before = opened(folder)
    (folder / "boxes.csv").write_text(ROWS.replace("2,3,4,5", "2,3,4,4"))
    after = opened(folder)
    assert before["test"].digest == after["test"].digest
    assert before["train"].digest != after["train"].digest


def test_cached_digests_notice_changed_files(folder, tmp_path):
    cache = tmp_path / "cache"
    plain = opened(folder).digest
    assert opened(folder, digest_cache=cache).digest == plain == opened(folder, digest_cache=cache).digest
    Image.fromarray(np.full((10, 20), 9, np.uint8)).save(folder / "images/d.png")
    assert opened(folder, digest_cache=cache).digest == opened(folder).digest != plain
    file = cache / "image-digests.json"
    file.write_text('{"broken": [1], ')
    assert opened(folder, digest_cache=cache).digest == opened(folder).digest
    assert json.loads(file.read_text())
    assert [p.name for p in cache.iterdir()] == ["image-digests.json"]


def test_limit_keeps_the_first_of_each_split(folder):
    whole, head = opened(folder), opened(folder, limit=1)
    for name in whole.splits:
        assert head[name].ids == whole[name].ids[:1]


def test_splits_are_sequences(folder):
    train = opened(folder)["train"]
    assert len(train) == 2
    assert train[-1].id == train.ids[1]
    assert train[:1].ids == train.ids[:1]
    with pytest.raises(IndexError):
        train[2]
    with pytest.raises(UnknownNameError, match="no split in data set mine 'tst'; did you mean 'test'"):
        opened(folder)["tst"]


def test_missing_images(folder):
    (folder / "images/b.png").unlink()
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert "1 of 5 images are not there; the first is" in str(caught.value)
    assert "boxes.csv:4: complete the data folder, or raise may_miss in the manifest" in str(caught.value)
    (folder / "mine.toml").write_text("may_miss = 0.3" + MANIFEST)
    dataset = opened(folder)
    assert dataset.n_missing == 1
    assert dataset["train"].ids == ("a",)
    (folder / "images/a.png").unlink()
    with pytest.raises(DataError, match=r"2 of 5 images are not there; the manifest allows 30.0%"):
        opened(folder)


def test_annotation_files_are_checked_against_their_digests(folder):
    (folder / "mine.toml").write_text(MANIFEST + f'\n[files]\n"boxes.csv" = "{"0" * 64}"\n')
    with pytest.raises(
        DataError,
        match=r"boxes\.csv: the file is not the one of the manifest \(SHA-256 [0-9a-f]{64}, wanted 0",
    ):
        opened(folder)


def test_a_label_that_is_no_class(folder):
    (folder / "mine.toml").write_text(
        MANIFEST.replace('labels_by_boxes = ["none", "some"]', 'label_column = "split"')
    )
    with pytest.raises(DataError, match=r"boxes\.csv:2: the label 'train' is no class of the manifest"):
        opened(folder)


def view(height, width):
    return View((height, width), 1, ("a", "b"))


def drawn(height, width):
    return Drawn(
        lambda: np.arange(height * width, dtype=np.uint8).reshape(height, width), "x", (height, width)
    )


def test_a_window_cuts_image_and_boxes():
    record = Record("x", "s", "a", drawn(10, 20), (Box(3, 2, 9, 5), Box(0, 0, 2, 2)), window=(4, 1, 8, 7))
    split = Split("s", [Entry(record, (10, 20), "")], view(6, 4))
    shown = split[0]
    np.testing.assert_allclose(shown.image[0] * 255, np.arange(200).reshape(10, 20)[1:7, 4:8], rtol=1e-6)
    assert shown.boxes == (Box(0, 1, 4, 4),)
    assert split.has_truth.tolist() == [True]


def test_what_does_not_count_moves_with_the_image_but_never_covers_truth():
    record = Record(
        "x", "s", "a", drawn(40, 60), (Box(10, 10, 20, 20),), window=(10, 10, 50, 30),
        ignored=(Box(16, 0, 28, 40), Box(52, 0, 60, 40)),
    )  # fmt: skip
    split = Split("s", [Entry(record, (40, 60), "")], view(10, 20))
    out = np.zeros((10, 20), bool)
    out[:, 3:9] = True
    out[0:5, 0:5] = False
    np.testing.assert_array_equal(split[0].ignore, out)
    np.testing.assert_array_equal(split.ignore(0), out)
    covered = Entry(replace(record, ignored=(Box(10, 10, 20, 20),)), (40, 60), "")
    assert Split("s", [covered], view(10, 20))[0].ignore is None


def test_a_box_outside_the_window_is_no_truth():
    record = Record("x", "s", "b", drawn(10, 20), (Box(0, 0, 2, 2),), window=(4, 1, 8, 7))
    split = Split("s", [Entry(record, (10, 20), "")], view(6, 4))
    assert split.has_truth.tolist() == [False] == [split[0].mask.any()]


def bright_square(path, side):
    """Write an image of 128 by 256 pixels, black but for a square whose corner is in row 40, column 100."""
    pixels = np.zeros((128, 256), np.uint8)
    pixels[40 : 40 + side, 100 : 100 + side] = 255
    Image.fromarray(pixels).save(path, quality=95)
    return path


def test_truth_fits_an_image_decoded_at_a_reduced_size(tmp_path):
    path = bright_square(tmp_path / "a.jpg", 48)
    record = Record("x", "s", "b", path, (Box(100, 40, 148, 88),))
    [sample] = Split("s", [Entry(record, (128, 256), "")], view(32, 64))
    assert sample.boxes == (Box(25, 10, 37, 22),)
    np.testing.assert_array_equal(sample.mask, sample.image[0] > 0.5)


def test_a_window_is_cut_from_the_whole_image(tmp_path):
    path = bright_square(tmp_path / "a.jpg", 48)
    record = Record("x", "s", "b", path, (Box(100, 40, 148, 88),), window=(64, 0, 192, 128))
    [sample] = Split("s", [Entry(record, (128, 256), "")], view(16, 16))
    np.testing.assert_array_equal(sample.image, fit(read_image(path)[:, :, 64:192], (16, 16), 1))
    assert sample.boxes == (Box(4.5, 5, 10.5, 11),)
    assert sample.mask[5:11, 5:10].all()


def test_the_digest_tells_how_an_image_is_decoded(tmp_path):
    def digest(name, size):
        record = Record("x", "s", "a", tmp_path / name)
        return Split("s", [Entry(record, size, "")], view(64, 64)).digest

    assert digest("a.jpg", (256, 256)) != digest("a.png", (256, 256)) == digest("a.png", (109, 89))
    assert digest("a.jpg", (109, 89)) == digest("a.png", (109, 89))


def test_the_truth_is_had_without_decoding(folder):
    test = opened(folder)["test"]
    wanted = test[0].mask
    test.entries[0].record.source.unlink()
    np.testing.assert_array_equal(test.mask(0), wanted)


def test_describe(folder):
    facts = describe(opened(folder, size=(20, 20)))
    train = facts.splits["train"]
    assert train.per_class == {"none": 1, "some": 1}
    assert train.n_with_truth == 1
    assert train.boxes_per_image == 2
    assert train.median_box_area == (4 * 10 + 2 * 4) / 2
    assert train.median_box_side == pytest.approx((24 / 400) ** 0.5)
    assert (facts.n_clipped, facts.n_outside) == (1, 1)


def test_describe_without_boxes(tmp_path, write_image):
    for split in ("train", "test"):
        for label in ("a", "b"):
            write_image(tmp_path / split / label / "1.png", 4, 4)
    (tmp_path / "m.toml").write_text(
        'name = "m"\nversion = 1\ntitle = "m"\nlicence = "m"\nclasses = ["a", "b"]\n'
        'reader = {name = "class-folders", parameters = {splits = {train = "train", test = "test"}}}\n'
    )
    facts = describe(open_dataset(load_manifest(tmp_path / "m.toml"), root=tmp_path, image_size=(4, 4)))
    assert facts.splits["test"].boxes_per_image is None
    assert facts.splits["test"].median_box_side is None


def test_the_package_needs_no_torch():
    import subprocess
    import sys

    code = "import lapbench.data, lapbench.data.readers, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("task", "classes", "message"),
    [
        ("landmarks", '["nose_x", "nose_y"]', "wanted 2 coordinates, two a landmark, found 0"),
        ("captions", '["<end>", "none", "some"]', "the caption is empty: wanted one word or more"),
    ],
)
def test_readers_must_give_what_the_task_wants(tmp_path, task, classes, message):
    label = "nose_x" if task == "landmarks" else "none"
    text = MANIFEST.replace('["none", "some"]\n\n', f'{classes}\ntask = "{task}"\n\n')
    (tmp_path / "mine.toml").write_text(text.replace('["none", "some"]', f'["{label}", "{label}"]'))
    (tmp_path / "boxes.csv").write_text(ROWS)
    with pytest.raises(DataError, match=rf"boxes\.csv:\d: {message}"):
        open_dataset(load_manifest(tmp_path / "mine.toml"), root=tmp_path, image_size=(4, 4))


def test_more_than_a_class_needs_a_task():
    manifest = load_manifest("faces").model_copy(update={"task": "classification"})
    with pytest.raises(
        DataError, match="'train-000000': the reader gives more to answer than a class: name its"
    ):
        open_dataset(manifest, image_size=(4, 4), limit=1)


def test_answers_decide_digests_where_they_are_there():
    view = View((4, 4), 3, ("a_x", "a_y"), "landmarks", 2)
    entries = [Entry(Record("a", "train", "a_x", Path("a.png"), answer=(1.0, 2.0)), (4, 4), "digest")]
    plain = Split("train", entries, View((4, 4), 3, ("a_x", "a_y")))
    assert Split("train", entries, view).digest != plain.digest
    np.testing.assert_allclose(Split("train", entries, view).answers, [[0.25, 0.5]])
    assert Split("train", [Entry(Record("a", "", "a", Path("a")), (4, 4), "")], plain.view).answers.shape == (
        1,
        0,
    )
