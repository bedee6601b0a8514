import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lapbench.cli import app
from lapbench.data import load_manifest
from lapbench.data.checking import check_data
from lapbench.errors import DataError

MANIFEST = """
name = "scans"
version = 2
title = "Scans"
licence = "internal"
classes = ["well", "ill"]

[reader]
name = "csv-boxes"

[reader.parameters]
file = "boxes.csv"
image = "{id}.png"
id_column = "id"
box_columns = ["x", "y", "w", "h"]
convention = "xywh"
base = 0
label_column = "label"
split_column = "split"
group_column = "patient"
"""
ROWS = {
    "a": "a,1,1,4,4,ill,train,A\na,9,9,4,4,ill,train,A\n",
    "b": "b,,,,,well,train,B\n",
    "c": "c,2,2,4,4,ill,test,C\n",
    "d": "d,,,,,well,test,D\n",
}


@pytest.fixture
def scans(tmp_path):
    """Write four scans of 20×30 pixels; some rows may be others."""

    def write(**rows):
        (tmp_path / "scans.toml").write_text(MANIFEST)
        text = "id,x,y,w,h,label,split,patient\n" + "".join({**ROWS, **rows}.values())
        (tmp_path / "boxes.csv").write_text(text)
        for number, name in enumerate(ROWS):
            Image.fromarray(np.full((20, 30), number, np.uint8)).save(tmp_path / f"{name}.png")
        return tmp_path

    return write


def found(root, **options):
    report = check_data(load_manifest(root / "scans.toml"), root=root, **options)
    return {f.what: (f.state, f.detail) for f in report.findings}


def test_a_whole_copy(scans):
    root = scans()
    report = check_data(load_manifest(root / "scans.toml"), root=root)
    assert not report.has_fault
    assert [(c.split, c.label, c.samples, c.groups, c.with_truth, c.boxes) for c in report.counts] == [
        ("train", "well", 1, 1, 0, 0), ("train", "ill", 1, 1, 1, 2),
        ("test", "well", 1, 1, 0, 0), ("test", "ill", 1, 1, 1, 1),
    ]  # fmt: skip
    assert [(c.split, c.label, c.boxes) for c in report.totals(1)] == [
        ("train", "2 of 2 classes", 2), ("test", "2 of 2 classes", 1)
    ]  # fmt: skip
    told = {f.what: f for f in report.findings}["rows and images"]
    assert told.state == "note"
    assert told.detail.startswith("3 boxes in 2 images, 4 images in 4 groups; rows of boxes are not images")


def test_digests_name_the_content(scans):
    root = scans()
    manifest = load_manifest(root / "scans.toml")
    before = check_data(manifest, root=root).digests
    assert check_data(manifest, root=root, decode=False).digests == before
    Image.fromarray(np.full((20, 30), 99, np.uint8)).save(root / "c.png")
    after = check_data(manifest, root=root).digests
    assert after["train"] == before["train"]
    assert after["test"] != before["test"]
    scans(a="a,1,1,4,5,ill,train,A\n")
    assert check_data(manifest, root=root).digests["train"] != before["train"]


def test_truncated_and_empty_images(scans):
    root = scans()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(noise).save(root / "a.png", "JPEG")  # a PNG that is cut off shows no header, either
    whole = (root / "a.png").read_bytes()
    (root / "a.png").write_bytes(whole[: len(whole) // 2])
    state, detail = found(root)["unreadable images"]
    assert state == "fault"
    assert "1: " in detail
    assert "a.png: broken or truncated" in detail
    assert found(root, decode=False)["unreadable images"] == (
        "note", "none of 4, by their headers; what is broken inside was not looked for"
    )  # fmt: skip
    (root / "b.png").write_bytes(b"")
    assert "b.png: an empty file" in found(root)["unreadable images"][1]


def test_boxes_outside_and_cut(scans):
    root = scans(a="a,30,0,4,4,ill,train,A\na,28,0,4,4,ill,train,A\n")
    told = found(root)
    assert told["boxes outside their images"][0] == "fault"
    assert "boxes.csv:2: [30, 34) × [0, 4) in an image 30 wide" in told["boxes outside their images"][1]
    assert told["boxes cut at the border"][0] == "note"
    assert "[28, 32)" in told["boxes cut at the border"][1]


def test_the_same_bytes_in_two_splits_are_a_leak(scans):
    root = scans()
    shutil.copy(root / "a.png", root / "c.png")
    told = found(root)
    assert told["same image in several splits"] == ("fault", "1: a (train, ill) = c (test, ill)")
    assert told["same image with several labels"] == ("ok", "none")


def test_the_same_bytes_with_two_labels_contradict_each_other(scans):
    root = scans()
    shutil.copy(root / "a.png", root / "b.png")
    told = found(root)
    assert told["same image with several labels"][0] == "fault"
    assert told["same image in several splits"] == ("ok", "none")


def test_groups_across_splits(scans):
    root = scans(c="c,2,2,4,4,ill,test,A\n")
    assert found(root)["groups across splits"] == ("fault", "1: A in train and test")


def test_missing_images_obey_may_miss(scans):
    root = scans()
    (root / "d.png").unlink()
    state, detail = found(root)["missing images"]
    assert state == "fault"
    assert detail.startswith("1 of 4 (the manifest allows 0.0%), such as")
    (root / "scans.toml").write_text(MANIFEST.replace("version = 2", "version = 2\nmay_miss = 0.3"))
    assert found(root)["missing images"][0] == "note"


def test_annotation_files_of_other_content(scans):
    root = scans()
    (root / "scans.toml").write_text(MANIFEST + f'\n[files]\n"boxes.csv" = "{"0" * 64}"\n')
    assert found(root)["annotation file"][0] == "fault"


def test_labels_that_are_dropped_are_counted(scans):
    root = scans(d="d,,,,,unclear,test,D\n")
    with pytest.raises(DataError, match=r"boxes\.csv:6: the label 'unclear' is no class of the manifest"):
        found(root)
    (root / "scans.toml").write_text(MANIFEST.replace("version = 2", 'version = 2\nunlisted = "drop"'))
    assert found(root)["classes"] == ("note", "left out as no class of the manifest: 1 'unclear'")


def test_masks_are_looked_at(tmp_path):
    for name in ("images/a.png", "masks/a.png", "images/b.png", "masks/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        side = 8 if name == "masks/b.png" else 9
        Image.fromarray(np.full((9, side), len(name), np.uint8)).save(tmp_path / name)
    (tmp_path / "scans.toml").write_text(
        'name = "m"\nversion = 1\ntitle = "m"\nlicence = "x"\nclasses = ["ill"]\n'
        '[reader]\nname = "mask-folders"\n[reader.parameters]\nimages = "images"\nmask_folder = "masks"\n'
        'label = "ill"\n[splits.test]\nseed = 0\n'
    )
    told = found(tmp_path)
    assert told["sizes"][0] == "fault"
    assert "b.png has 9×9 pixels (height × width), wanted 9×8" in told["sizes"][1]
    (tmp_path / "masks/a.png").write_bytes(b"no image")
    assert "a.png: no image that can be read" in found(tmp_path)["unreadable images"][1]
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "masks/a.png")
    assert "a mask needs one number per pixel" in found(tmp_path)["unreadable images"][1]
    Image.fromarray(np.zeros((9, 9), np.int32)).save(tmp_path / "masks/a.tif")
    (tmp_path / "masks/a.tif").replace(tmp_path / "masks/a.png")
    told = found(tmp_path)
    assert told["unreadable images"][0] == "ok"
    assert told["empty masks"][0] == "note" and "a.png" in told["empty masks"][1]
    manifest = tmp_path / "scans.toml"
    manifest.write_text(manifest.read_text().replace('label = "ill"', 'label = "ill"\nvalue = 1'))
    assert found(tmp_path)["empty masks"][0] == "fault", "no mask holds a 1"


# ------------------------------------------------------------------------------------------- the command


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_exit_codes_of_the_command(scans, tmp_path):
    root = scans()
    whole = run(root / "scans.toml", "--data", root)
    assert whole.exit_code == 0, whole.output
    assert f"scans version 2, {root}" in whole.output
    shutil.copy(root / "a.png", root / "c.png")
    faulty = run(root / "scans.toml", "--data", root)
    assert faulty.exit_code == 1
    assert "fault  same image in several splits" in faulty.output
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    wrong = run("celeba_smile", "--data", elsewhere)
    assert wrong.exit_code == 2
    assert "no CelebA here; looked for list_attr_celeba.txt" in wrong.output
    assert run("celeba", "--data", elsewhere).exit_code == 2


def test_no_image_at_all_is_a_wrong_folder(scans):
    root = scans()
    for name in ROWS:
        (root / f"{name}.png").unlink()
    result = run(root / "scans.toml", "--data", root, "--headers-only")
    assert result.exit_code == 2
    assert f"{root}: not one of the 4 images is here; looked for {root / 'a.png'} first, found boxes.csv" in (
        result.output
    )
