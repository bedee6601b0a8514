import numpy as np
import pytest
from PIL import Image

from lapbench.data import decoded, load_manifest, open_dataset
from lapbench.data.decoded import keep_decoded
from lapbench.errors import DataError

MANIFEST = """
name = "faces"
version = 1
title = "x"
licence = "x"
classes = ["a", "b"]
[reader]
name = "class-folders"
[splits.train]
seed = 0
"""


@pytest.fixture
def split(tmp_path):
    random = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / f"images/{'ab'[number % 2]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    (tmp_path / "faces.toml").write_text(MANIFEST)
    manifest = load_manifest(tmp_path / "faces.toml")
    return open_dataset(
        manifest, root=tmp_path / "images", image_size=(11, 13), decoded_cache=tmp_path / "cache"
    )["train"]


def test_the_very_same_pixels(split):
    kept = keep_decoded(split)
    assert kept.decoded is not None
    assert kept.digest == split.digest
    for number, sample in enumerate(split):
        np.testing.assert_array_equal(kept[number].image, sample.image)
        assert kept[number].id == sample.id
    np.testing.assert_array_equal(kept[2:5][1].image, split[3].image)


def test_images_are_decoded_once(split):
    first = keep_decoded(split)
    [file] = split.keep_in.iterdir()
    assert file.suffix == ".npy"
    for entry in split.entries:
        entry.record.source.unlink()
    np.testing.assert_array_equal(keep_decoded(split[:])[0].image, first[0].image)
    assert keep_decoded(first) is first


def test_other_samples_are_another_file(split):
    keep_decoded(split)
    part = keep_decoded(split[1:3])
    assert len(list(split.keep_in.iterdir())) == 2
    np.testing.assert_array_equal(part[0].image, split[1].image)


def test_an_image_that_breaks_leaves_no_file(split):
    split.entries[3].record.source.write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        keep_decoded(split)
    assert list(split.keep_in.iterdir()) == []


def test_a_full_disk_and_no_folder_leave_the_split_as_it_is(split, monkeypatch):
    monkeypatch.setattr(decoded, "SHARE_OF_DISK", 0)
    assert keep_decoded(split) is split
    split.keep_in = None
    assert keep_decoded(split) is split
