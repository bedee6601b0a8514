"""The figure of a network with a concept head for every class: maps of the classes it holds most probable."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lapbench import pipeline
from lapbench.benchmark import Model
from lapbench.explain import explain
from lapbench.models.predict import predict
from lapbench.pipeline import pictures
from lapbench.pipeline.job import Subject
from lapbench.pipeline.networks import load_network
from lapbench.pipeline.samples import Samples
from lapbench.registry import explainers
from lapbench.score import upsample
from pipeline import tiny

MANIFEST = """
name = "few-digits"
version = 1
title = "Four digits"
licence = "CC BY 4.0"
classes = ["zero", "one", "two", "three"]

[reader]
name = "csv-boxes"

[reader.parameters]
file = "boxes.csv"
image = "{id}.png"
id_column = "id"
split_column = "split"
label_column = "label"
box_columns = ["x", "y", "w", "h"]
convention = "xywh"
base = 0
"""
CLASSES = ("zero", "one", "two", "three")
EACH_CLASS = """
aggregation = "max"
[models.plug.each_class]
min_area = 0.05
max_area = 0.3
inactive_area = 0.05
"""


def write_digits(folder):
    """Write real digits of four kinds, each anywhere on noise, with their boxes."""
    images, labels = load_digits(n_class=4, return_X_y=True)
    random, lines = np.random.default_rng(0), ["id,split,label,x,y,w,h"]
    for number in range(96):
        split = "train" if number < 64 else "val" if number < 80 else "test"
        pixels = random.integers(0, 60, (32, 32))
        x, y = random.integers(0, 17, 2)
        digit = np.kron(images[number].reshape(8, 8), np.ones((2, 2)))
        pixels[y : y + 16, x : x + 16] = np.maximum(pixels[y : y + 16, x : x + 16], digit * 15)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number},{split},{CLASSES[labels[number]]},{x},{y},16,16")
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    (folder / "few-digits.toml").write_text(MANIFEST)


def finished_job(folder):
    text = tiny.with_explainers(tiny.DEFINITION, "lap_all", "grad_cam")
    text = tiny.with_protocol(text, target="predicted")
    start, end = text.index("concepts = ["), text.index("[models.recipe]")
    text = text[:start] + EACH_CLASS.strip() + "\n" + text[end:]
    path = tiny.write_definition(folder, text=text)
    write_digits(folder)
    job = tiny.job(path, folder, data=folder)
    return job, pipeline.run(job)


@pytest.fixture
def drawn(monkeypatch):
    """What draw_maps was given, by the name of the file."""
    given, draw = {}, pictures.draw_maps

    def noted(path, samples, columns, **options):
        given[path.name] = samples, columns, options
        draw(path, samples, columns, **options)

    monkeypatch.setattr(pictures, "draw_maps", noted)
    return given


def test_maps_of_the_likeliest_classes_are_drawn_beside_the_grid(tmp_path, drawn):
    job, board = finished_job(tmp_path)
    files = pipeline.draw_figures(job, board, images=5, form="svg")

    assert [file.name for file in files] == ["ws-lap.svg", "ws-lap-classes.svg", "plain.svg"]
    assert files[1].read_bytes().startswith(b"<?xml")
    samples, columns, options = drawn["ws-lap-classes.svg"]
    model, [block] = job.benchmark.models[0], job.blocks("score")
    network = load_network(job, Subject(model, 0, job.weights(model, 0)))
    images = Samples(job).images(block)[:5]
    probabilities = predict(network, images).softmax(1).numpy()
    spec = explainers.get("lap_all")
    assert len(columns) == 3
    for row, (sample, line) in enumerate(zip(samples, probabilities, strict=True)):
        for column, number in zip(columns, np.argsort(-line), strict=False):
            name, is_true = CLASSES[number], number == sample.label
            assert column.captions[row] == ("✓ " if is_true else "") + f"{name} {line[number]:.2f}"
            assert column.absolute
            [own] = explain(spec, network, images[row : row + 1], torch.tensor([int(number)])).values
            wanted = upsample(own[None].numpy(), (32, 32), spec.upsample)[0]
            np.testing.assert_allclose(column.maps[row], wanted, atol=1e-5)
        assert options["predictions"][row] == f"✓ {CLASSES[sample.label]}"
    assert not np.allclose(columns[0].maps, columns[1].maps)


@pytest.mark.parametrize(
    ("heads", "classes", "has_one_each"),
    [
        ([["zero"], ["one"], ["two"]], ["zero", "one", "two"], True),
        ([["zero"], ["one"], ["two"], ["zero", "one"]], ["zero", "one", "two"], True),
        ([["zero", "one"], ["zero"], ["one"], ["two"]], ["zero", "one", "two"], False),
        ([["zero"], ["one"]], ["zero", "one", "two"], False),
        ([["zero"], ["one"]], ["zero", "one"], False),
        (None, ["zero", "one", "two"], False),
    ],
    ids=["each", "a shared one behind", "a shared one in front", "one missing", "two classes", "no LAP"],
)
def test_which_networks_have_a_head_of_each_class(heads, classes, has_one_each):
    plug = heads and {
        "aggregation": "max",
        "concepts": [{"name": f"head {n}", "classes": names} for n, names in enumerate(heads)],
    }
    model = Model.model_validate({"name": "m", "architecture": "resnet18", "plug": plug, "weights": "w"})
    assert pictures._has_head_of_each_class(model, classes) is has_one_each
