from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lapbench.benchmark import shipped
from lapbench.cli import app
from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.annotation import read_annotation
from lapbench.data.checking import check_data, count_rows
from lapbench.data.readers.rsna import read_rsna
from lapbench.data.splits import divide
from lapbench.errors import DataError, DefinitionError
from lapbench.types import Box

LABELS = """patientId,x,y,width,height,Target
p-well,,,,,0
p-ill,264.0,152.0,213.0,379.0,1
p-ill,562.0,152.0,256.0,453.0,1
p-other,,,,,0
"""
CLASSES = """patientId,class
p-well,Normal
p-ill,Lung Opacity
p-ill,Lung Opacity
p-other,No Lung Opacity / Not Normal
"""


@pytest.fixture
def tables(tmp_path):
    def write(labels=LABELS, classes=CLASSES):
        (tmp_path / "stage_2_train_labels.csv").write_text(labels)
        (tmp_path / "stage_2_detailed_class_info.csv").write_text(classes)
        return tmp_path

    return write


def test_one_record_for_every_patient(tables):
    records = read_rsna(tables())
    assert [(r.id, r.label, len(r.boxes)) for r in records] == [
        ("p-well", "healthy", 0), ("p-ill", "pneumonia", 2), ("p-other", "abnormal", 0)
    ]  # fmt: skip
    ill = records[1]
    assert ill.boxes == (Box(264, 152, 477, 531), Box(562, 152, 818, 605))
    assert ill.group == ill.id
    assert ill.source.name == "p-ill.dcm"
    assert ill.declared_size == (1024, 1024)


def test_boxes_are_scaled_to_smaller_copies(tables):
    ill = read_rsna(tables(), images="png64/{id}.png", side=64)[1]
    assert ill.boxes[0] == Box(16.5, 9.5, 29.8125, 33.1875)
    assert ill.declared_size == (64, 64)


def test_a_class_file_of_some_patients_is_a_declared_subset(tables):
    root = tables(classes="patientId,class\np-ill,Lung Opacity\n")
    with pytest.raises(DataError, match=r"labels\.csv:2: patient 'p-well', and 1 others, have no class in"):
        read_rsna(root)
    assert [r.id for r in read_rsna(root, subset=True)] == ["p-ill"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("", r"labels\.csv:1: there is no column 'patientId'"),
        ("patientId,x,y,w,h,Target\n", r"labels\.csv:1: there is no column 'width'"),
        (LABELS[:-4], r"labels\.csv:5: wanted 6 cells, found 4"),
        (LABELS.replace(",1\n", ",2\n"), r"labels\.csv:3: Target must be 0 or 1, found '2'"),
        (LABELS.replace(",1\n", ",0\n"), r"labels\.csv:3: Target 0 needs no box"),
        (LABELS.replace("p-well,,,,,0", "p-well,,,,,1"), r"labels\.csv:2: Target 1 needs a box"),
        (LABELS + "p-well,,,,,0\n", r"csv:6: patient 'p-well' .* several rows, first at .*csv:2"),
        (LABELS + "p-well,1,1,2,2,1\n", r"csv:6: patient 'p-well' without a box stands in several rows"),
        (LABELS + LABELS.splitlines()[2] + "\n", r"csv:6: the box .* of patient 'p-ill' stands there twice"),
        (LABELS.replace("264.0", "nan"), r"labels\.csv:3: a box needs four finite numbers"),
        (LABELS.replace("264.0", "left"), r"labels\.csv:3: a box needs four numbers"),
        (LABELS.replace("213.0", "-213"), r"labels\.csv:3: the box .* is -213 pixels wide"),
        (LABELS.replace("p-well", "../p"), r"info\.csv:2: patient 'p-well' has no row in"),
    ],
)
def test_faults_of_the_label_file(tables, labels, message):
    with pytest.raises(DataError, match=message):
        read_rsna(tables(labels))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("patient,class\n", r"info\.csv:1: there is no column 'patientId'; did you mean 'patient'"),
        (CLASSES.replace("Normal\n", "Normel\n", 1), r"info\.csv:2: the class must be one of .* 'Normel'"),
        (
            CLASSES + "p-ill,Normal\n",
            r"csv:6: the class of 'p-ill' is 'Normal', but 'Lung Opacity' at .*csv:3",
        ),
        (CLASSES.replace("Opacity\n", "Opacity / Not Normal\n"), r"must be one of"),
        (CLASSES.replace("well,Normal", "well,Lung Opacity"), r"contradicts the 0 boxes at .*labels\.csv:2"),
        (CLASSES + "p-new,Normal\n", r"info\.csv:6: patient 'p-new' has no row in .*labels\.csv"),
    ],
)
def test_faults_of_the_class_file(tables, classes, message):
    with pytest.raises(DataError, match=message):
        read_rsna(tables(classes=classes))


def test_ids_do_not_leave_the_folder(tables):
    root = tables(LABELS.replace("p-well", "../p"), CLASSES.replace("p-well", "../p"))
    with pytest.raises(DataError, match=r"info\.csv:2: the path 'stage_2_train_images/\.\./p\.dcm' must be"):
        read_rsna(root)


def test_a_wrong_folder_is_one_sentence(tmp_path):
    (tmp_path / "stage_1_train_labels.csv").touch()
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as caught:
        read_rsna(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: no RSNA pneumonia data here; looked for stage_2_train_labels.csv,"
        " stage_2_detailed_class_info.csv and stage_2_train_images/{id}.dcm, found images/,"
        " stage_1_train_labels.csv"
    )


def test_the_place_of_the_id_is_declared(tables):
    with pytest.raises(DefinitionError, match=r"images must hold {id}, found 'a\.dcm'"):
        read_rsna(tables(), images="a.dcm")


# ------------------------------------------------------------------ the manifest, on the layout as published


@pytest.fixture
def published(tmp_path, write_dicom):
    """The challenge's folder in small."""
    return publish(tmp_path, write_dicom, patients=24)


def publish(folder, write_dicom, *, patients):
    """Write JPEG radiographs of 1024 pixels, some of them MONOCHROME1, with boxes; return the data root."""
    labels, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number in range(patients):
        name, kind = (
            f"patient-{number:02d}",
            ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")[number % 3],
        )
        pixels = np.full((1024, 1024), 60 + number, np.uint8)
        if kind == "Lung Opacity":
            pixels[100:300, 200:300] = 220
            labels += [f"{name},200.0,100.0,100.0,200.0,1", f"{name},600.0,100.0,100.0,200.0,1"]
            classes.append(f"{name},{kind}")
        else:
            labels.append(f"{name},,,,,0")
        classes.append(f"{name},{kind}")
        is_turned = number % 2
        write_dicom(
            folder / f"rsna/stage_2_train_images/{name}.dcm",
            255 - pixels if is_turned else pixels,
            jpeg=True,
            PhotometricInterpretation="MONOCHROME1" if is_turned else "MONOCHROME2",
        )  # fmt: skip
    (folder / "rsna/stage_2_train_labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "rsna/stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n")
    return folder


def test_the_folder_as_published(published):
    dataset = open_dataset(load_manifest("rsna"), root=published, image_size=(64, 64), channels=1)
    facts = describe(dataset)
    assert set(facts.splits) == {"train", "val", "test"}
    total = {c: sum(f.per_class[c] for f in facts.splits.values()) for c in dataset.classes}
    assert total == {"healthy": 8, "pneumonia": 8}
    for name in dataset.splits:
        for sample in dataset[name]:
            assert sample.mask.sum() == (2 * 7 * 13 if sample.label else 0)
            left = sample.image[0, 8:17, 14:18]
            assert left.mean() == pytest.approx(220 / 255 if sample.label else 0.28, abs=0.06)


def test_a_missing_radiograph_obeys_may_miss(published):
    gone = published / "rsna/stage_2_train_images/patient-01.dcm"
    gone.unlink()
    manifest = load_manifest("rsna")
    with pytest.raises(DataError, match=r"1 of 16 images are not there; the first is .*patient-01\.dcm"):
        open_dataset(manifest, root=published, image_size=(64, 64))
    tolerant = manifest.model_copy(update={"may_miss": 0.1})
    assert open_dataset(tolerant, root=published, image_size=(64, 64)).n_missing == 1


def test_a_radiograph_of_another_size_is_refused(published, write_dicom):
    write_dicom(published / "rsna/stage_2_train_images/patient-01.dcm", np.zeros((512, 512), np.uint8))
    with pytest.raises(DataError, match=r"says 1024×1024 pixels .*patient-01\.dcm has 512×512"):
        open_dataset(load_manifest("rsna"), root=published, image_size=(64, 64))


def test_the_folder_as_published_is_checked(published):
    report = check_data(load_manifest("rsna"), root=published)
    told = {finding.what: finding for finding in report.findings}
    assert [f for f in report.findings if f.state == "fault"] == []
    assert told["rows and images"].detail.startswith("16 boxes in 8 images, 16 images in 16 groups; rows of")
    assert told["classes"].detail == "left out as no class of the manifest: 8 'abnormal'"
    assert sum(count.samples for count in report.counts) == 16
    broken = published / "rsna/stage_2_train_images/patient-01.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    [fault] = [f for f in check_data(load_manifest("rsna"), root=published).findings if f.state == "fault"]
    assert fault.what == "unreadable images"
    assert "patient-01.dcm: broken or truncated" in fault.detail


def test_from_the_folder_to_the_claims(tmp_path, write_dicom, monkeypatch):
    """The shipped definition in short: from the check of the data to Table II, as a laboratory would."""
    data = publish(tmp_path / "data", write_dicom, patients=120)
    monkeypatch.chdir(tmp_path)
    [shipped_file] = [path for path in shipped("benchmarks") if path.stem == "rsna"]
    short = shipped_file.read_text(encoding="utf-8")
    for long, less in (
        ("seeds = [0, 1, 2]", "seeds = [0]"),
        ("epochs = 300", "epochs = 1\niterations = 2"),
        ("batch_size = 64", "batch_size = 4"),
        ('"resnet18"', '"resnet18"\nparameters = { width = 8 }'),
        ("image_size = [224, 224]", "image_size = [64, 64]"),
        ('target = "pneumonia"', 'target = "pneumonia"\nresamples = 99\nrandomised_weights = false'),
    ):
        assert long in short
        short = short.replace(long, less)
    Path("short.toml").write_text(short, encoding="utf-8")

    def lapbench(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--data", str(data)])
        assert result.exit_code in (0, 3), result.output  # networks of two steps draw some flat maps
        return result.stdout

    assert "80 boxes in 40 images" in lapbench("data", "check", "rsna")
    assert "BB-LAP ResNet-18" in lapbench("run", "short.toml", "--cache", "cache")
    verdicts = lapbench("claims", "short.toml", "--cache", "cache")

    for claim in ("T1a-WS", "T1b-boxes", "T2a-BB", "T2b-WS", "C4-BB", "C6"):
        assert claim in verdicts
    assert Path("reports/rsna/claims.md").is_file() and Path("reports/rsna/maps.png").is_file()


# ------------------------------------------------------------------------------------ the genuine files


@pytest.fixture
def genuine_labels(real, tmp_path):
    """The genuine label file, whose negatives get a class by turns: that file is there in part only."""
    labels = (real("rsna") / "stage_2_train_labels.csv").read_text()
    (tmp_path / "stage_2_train_labels.csv").write_text(labels)
    rows, negatives = ["patientId,class"], 0
    for line in labels.splitlines()[1:]:
        name, target = line.split(",")[0], line[-1]
        negatives += target == "0"
        healthy = "Normal" if negatives <= 8851 else "No Lung Opacity / Not Normal"
        rows.append(f"{name},{'Lung Opacity' if target == '1' else healthy}")
    (tmp_path / "stage_2_detailed_class_info.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_rows_are_not_patients(genuine_labels):
    """9,555 positive rows are 6,012 patients, and no patient is in two splits."""
    manifest = load_manifest("rsna")
    annotation = read_annotation(manifest, genuine_labels)
    ill = [r for r in annotation.records if r.label == "pneumonia"]
    assert len(ill) == 6012
    assert sum(len(r.boxes) for r in ill) == 9555
    assert len(annotation.records) == 6012 + 8851
    assert annotation.dropped == {"abnormal": 11_821}
    assert count_rows({"all": annotation.records}).detail.startswith(
        "9,555 boxes in 6,012 images, 14,863 images in 14,863 groups; rows of boxes are not images"
    )
    divided = divide(annotation.records, manifest.splits, genuine_labels)
    assert sum(map(len, divided.values())) == len({r.group for rs in divided.values() for r in rs}) == 14_863
    shares = {name: len(records) / 14_863 for name, records in divided.items()}
    assert shares == pytest.approx({"train": 0.81, "val": 0.09, "test": 0.10}, abs=0.01)


def test_small_copies_of_genuine_radiographs(real):
    manifest = load_manifest("rsna")
    parameters = {
        "images": "png64/{id}.png", "classes_file": "stage_2_detailed_class_info_subset.csv", "side": 64,
        "subset": True,
    }  # fmt: skip
    small = manifest.model_copy(
        update={"reader": manifest.reader.model_copy(update={"parameters": parameters})}
    )
    dataset = open_dataset(small, root=real("rsna"), image_size=(64, 64), channels=1)
    facts = describe(dataset).splits.values()
    assert sum(f.per_class["healthy"] for f in facts) == 54
    assert sum(f.per_class["pneumonia"] for f in facts) == sum(f.n_with_truth for f in facts) == 65
    assert dataset.n_clipped == dataset.n_outside == 0
    sample = dataset["train"][0]
    assert sample.image.shape == (1, 64, 64)
