"""Images are decoded when they are needed, and once."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lapbench import pipeline
from lapbench.data import dataset
from lapbench.pipeline import samples
from lapbench.pipeline.reporting import shared_provenance
from lapbench.pipeline.samples import Samples
from pipeline import tiny

MANIFEST = """
name = "few-digits"
version = 1
title = "Drawn squares"
licence = "none"
classes = ["absent", "present"]

[reader]
name = "csv-boxes"

[reader.parameters]
file = "boxes.csv"
image = "{id}.jpg"
id_column = "id"
split_column = "split"
box_columns = ["x", "y", "w", "h"]
convention = "xywh"
base = 0
labels_by_boxes = ["absent", "present"]
"""
SPLITS = {"train": 16, "val": 8, "test": 8}


@pytest.fixture
def job(tmp_path):
    """A job on JPEGs of 128 by 128 pixels, of which every second shows a bright square."""
    random, lines = np.random.default_rng(0), ["id,split,x,y,w,h"]
    for split, n in SPLITS.items():
        for number in range(n):
            pixels = random.integers(0, 100, (128, 128), np.uint8)
            x, y = (int(v) for v in random.integers(0, 88, 2))
            if number % 2:
                pixels[y : y + 40, x : x + 40] = 255
            Image.fromarray(pixels).save(tmp_path / f"{split}{number}.jpg")
            lines.append(f"{split}{number},{split}," + (f"{x},{y},40,40" if number % 2 else ",,,"))
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    text = tiny.with_explainers(tiny.without_models(tiny.DEFINITION, "plain"), "lap_all", "random")
    path = tiny.write_definition(tmp_path, text=text)
    (tmp_path / "few-digits.toml").write_text(MANIFEST)
    return tiny.job(path, tmp_path, data=tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """How often each image was decoded so far, by the name of its file."""
    counts = Counter()
    read = dataset.read_resized

    def counted(path, *sizes, **options):
        counts[path.stem] += 1
        return read(path, *sizes, **options)

    monkeypatch.setattr(dataset, "read_resized", counted)
    return counts


def once(*splits):
    return {f"{split}{number}": 1 for split in splits for number in range(SPLITS[split])}


def test_every_stage_decodes_an_image_at_most_once(job, decoded):
    pipeline.train(job)
    assert decoded == once("train", "val")
    decoded.clear()
    assert pipeline.explain(job) == []
    assert decoded == once("val", "test")
    decoded.clear()
    assert pipeline.score(job) == []
    assert decoded == {}


@pytest.mark.parametrize("budget", [0, 2**30])
def test_what_is_too_large_for_memory_is_decoded_once_into_a_file(job, decoded, budget, monkeypatch):
    monkeypatch.setattr(samples, "BUDGET", budget)
    [block], [everything] = job.blocks("score"), job.prediction_blocks("score")
    assert set(block.indices) < set(everything.indices)
    asked = Samples(job)
    for _ in range(2):
        np.testing.assert_array_equal(asked.pixels(block), asked.pixels(everything)[list(block.indices)])
        assert asked.masks(block).any(axis=(1, 2)).all()
    assert decoded == once("test")
    assert len(list((job.workspace.cache / "decoded").glob("*"))) == (0 if budget else 1)
    split = job.dataset["test"]
    np.testing.assert_array_equal(asked.pixels(everything), [sample.image for sample in split])


def test_boxes_outside_their_images_are_told_and_counted_in_the_record(job, tmp_path):
    assert "boxes_outside" not in shared_provenance(job)["data"]
    with (tmp_path / "boxes.csv").open("a") as file:
        file.write("test1,test,900,900,5,5\ntest3,test,-9,0,9,9\n")
    notes = []
    changed = tiny.job(tmp_path / "tiny.toml", tmp_path, data=tmp_path, notes=notes)

    assert shared_provenance(changed)["data"]["boxes_outside"] == 2
    mend = f"`lapbench data check {tmp_path / 'few-digits.toml'}` tells which"
    assert notes == [f"2 boxes of few-digits lie outside their images and are left out: {mend}"]
