"""Regions that do not count, from annotations of Pascal VOC and COCO to scores, against a slow reference."""

import json
import math
from itertools import chain

import numpy as np
import pytest
from PIL import Image
from score import reference

from lapbench import pipeline
from lapbench.data import load_manifest
from lapbench.data.checking import check_data
from lapbench.pipeline.page import collect
from lapbench.pipeline.pictures import _column
from lapbench.pipeline.scoring import scored_rows
from lapbench.score import normalise, upsample
from pipeline import tiny

SIDE, SEEN = 64, 32
"""Pixels of an image's side in its file, and as the network sees it."""
N = {"train": 16, "val": 6, "test": 8}
READERS = {
    "voc": """
lists = { train = "train.txt", val = "val.txt", test = "test.txt" }
labels_by_boxes = ["absent", "present"]
difficult = "CHOICE"
""",
    "coco": """
files = { train = "train.json", val = "val.json", test = "test.json" }
images = "JPEGImages"
labels_by_boxes = ["absent", "present"]
crowds = "CHOICE"
""",
}
MANIFEST = """
name = "few-digits"
version = 1
title = "Bright squares, some of them hard"
licence = "none"
classes = ["absent", "present"]
[reader]
name = "FORM"
[reader.parameters]
"""


def annotated():
    """Every image by split and name: its clear boxes and its hard ones, x0, y0, x1, y1, all even numbers."""
    random, found = np.random.default_rng(3), {}
    for split, n in N.items():
        for number in range(n):
            corners = 2 * random.integers(0, 20, (4, 2))
            boxes = [(int(x), int(y), int(x) + 20, int(y) + 16) for x, y in corners]
            clear = boxes[: number % 3]  # none, one or two
            found[split, f"{split}{number}"] = clear, boxes[2:] if number % 2 else []
    found["val", "val0"] = [], [(0, 0, SIDE, SIDE)]
    return found


ANNOTATED = annotated()


def write_voc(folder):
    (folder / "Annotations").mkdir()
    for (split, name), (clear, hard) in ANNOTATED.items():
        objects = [(box, 0) for box in clear] + [(box, 1) for box in hard]
        lines = [
            f"<object><name>square</name><difficult>{is_hard}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
            f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for (x0, y0, x1, y1), is_hard in objects
        ]
        text = f"<annotation><filename>{name}.png</filename>{''.join(lines)}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        with (folder / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")


def write_coco(folder):
    for split in N:
        own = {name: found for (part, name), found in ANNOTATED.items() if part == split}
        images = [
            {"id": i, "file_name": f"{name}.png", "height": SIDE, "width": SIDE} for i, name in enumerate(own)
        ]
        objects = [
            {"image_id": i, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": is_crowd}
            for i, kinds in enumerate(own.values())
            for is_crowd, boxes in enumerate(kinds)
            for x0, y0, x1, y1 in boxes
        ]
        content = {
            "images": images,
            "categories": [{"id": 1, "name": "square"}],
            "annotations": [{"id": number} | entry for number, entry in enumerate(objects)],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))


@pytest.fixture(params=READERS)
def job_with(request, tmp_path):
    """Jobs on the same images in one form of annotation; given is what is done with the hard objects."""
    random = np.random.default_rng(0)
    (tmp_path / "JPEGImages").mkdir()
    for (_, name), kinds in ANNOTATED.items():
        pixels = random.integers(0, 100, (SIDE, SIDE), np.uint8)
        for x0, y0, x1, y1 in chain(*kinds):
            pixels[y0:y1, x0:x1] |= 128
        Image.fromarray(pixels).save(tmp_path / "JPEGImages" / f"{name}.png")
    {"voc": write_voc, "coco": write_coco}[request.param](tmp_path)

    def job(choice):
        text = tiny.with_explainers(
            tiny.without_models(tiny.DEFINITION, "plain"), "lap_all", "grad_cam", "random", "oracle"
        )
        path = tiny.write_definition(tmp_path, text=tiny.with_protocol(text, randomised_weights=False))
        manifest = MANIFEST.replace("FORM", request.param) + READERS[request.param].replace("CHOICE", choice)
        (tmp_path / "few-digits.toml").write_text(manifest)
        return tiny.job(path, tmp_path, data=tmp_path, out=choice)

    return job


def regions(name):
    """The truth and what does not count in an image, (SEEN, SEEN) each, pixel by pixel."""
    clear, hard = ANNOTATED[name.rstrip("0123456789"), name]
    truth, out = np.zeros((2, SEEN, SEEN), bool)
    for y in range(SEEN):
        for x in range(SEEN):
            at = ((x + 0.5) * SIDE / SEEN, (y + 0.5) * SIDE / SEEN)
            within = [
                [x0 <= at[0] < x1 and y0 <= at[1] < y1 for x0, y0, x1, y1 in boxes] for boxes in (clear, hard)
            ]
            truth[y, x] = any(within[0])
            out[y, x] = any(within[1]) and not truth[y, x]
    return truth, out


def drawn(job, row, purpose):
    """The name, normalised map and raw map of every image that the protocol asks for, at the image's size."""
    spec = row.sources[0].spec
    for block in job.blocks(purpose):
        shard = job.store.read(*job.map_key(row.sources[0], block))
        normal = normalise(shard.maps, (SEEN, SEEN), mode=spec.upsample)
        raw = upsample(shard.maps, (SEEN, SEEN), spec.upsample)
        for sample, one, other in zip(shard.ids, normal, raw, strict=True):
            yield sample.replace("/", ""), one, other  # the ids of COCO are split/number


def slow_scores(job, row):
    """The fitted threshold, and by selection the IoU of every image, reckoned over the pixels that count."""
    pixels = [(normal[~out], truth[~out]) for name, normal, _ in drawn(job, row, "fit")
              for truth, out in [regions(name)]]  # fmt: skip
    inside = [float(v) for values, truth in pixels for v in values[truth]]
    outside = [float(v) for values, truth in pixels for v in values[~truth]]
    low, high = math.fsum(outside) / len(outside), math.fsum(inside) / len(inside)
    threshold = (low + high) / 2
    found = {"threshold": [], "native": [], "top-k": []}
    for name, normal, raw in drawn(job, row, "score"):
        truth, out = regions(name)
        above = normal > threshold if high > low else normal < threshold
        best = reference.top_k_mask(np.where(out, -np.inf, normal), int(truth.sum()))
        for selection, mask in (("threshold", above), ("native", raw > 0.5), ("top-k", best)):
            found[selection].append(reference.iou(mask & ~out, truth))
    return threshold, found


def test_ignored_objects_count_neither_as_truth_nor_as_background(job_with):
    job = job_with("ignore")
    pipeline.run(job)

    with_truth = [name for (split, name), (clear, _) in ANNOTATED.items() if split == "test" and clear]
    panels = {(p.row.explainer, p.row.selection): p for p in collect(job).panels}
    for row in job.rows():
        threshold, wanted = slow_scores(job, row)
        rows = {scored.row.selection: scored for scored in scored_rows(job, row)}
        assert rows["threshold"].row.seeds[0].threshold == pytest.approx(threshold, rel=1e-6)
        for selection, scored in rows.items():
            (iou,) = scored.images.scores["iou"]
            assert iou == pytest.approx(wanted[selection], abs=1e-12) and len(iou) == len(with_truth)
            if panel := panels.get((row.explainer.row, selection)):  # what the page reckons itself
                np.testing.assert_allclose(panel.iou, iou)
                np.testing.assert_allclose(panel.top_k, wanted["top-k"])
        (block,) = job.blocks("score")
        samples = [job.dataset["test"][index] for index in block.indices]
        column = _column(job, row, block, samples, rows["threshold"].row)
        shown = "native" if "native" in rows else "threshold"
        np.testing.assert_allclose(column.iou, wanted[shown])
    oracle = next(row for row in job.rows() if row.explainer.name == "oracle")
    assert set(slow_scores(job, oracle)[1]["top-k"]) == {1.0}


def test_what_is_ignored_is_not_what_is_dropped_or_kept(job_with):
    rows = {}
    for choice in ("keep", "drop", "ignore"):
        job = job_with(choice)
        pipeline.run(job)
        random = next(row for row in job.rows() if row.explainer.name == "random")
        rows[choice] = scored_rows(job, random)[0].row
    thresholds = {row.seeds[0].threshold for row in rows.values()}
    assert len(thresholds) == 3 and len({row.mean for row in rows.values()}) == 3
    assert rows["drop"].n == rows["ignore"].n < rows["keep"].n


def test_the_check_of_the_data_tells_of_them_and_names_keep_to_data_without(job_with, tmp_path):
    reports, digests = {}, {}
    for choice in ("drop", "ignore"):
        digests[choice] = job_with(choice).dataset.digest
        reports[choice] = check_data(load_manifest(tmp_path / "few-digits.toml"), root=tmp_path)
    boxes = sum(len(hard) for _, hard in ANNOTATED.values())
    told = {finding.what: finding.detail for finding in reports["ignore"].findings}
    assert told["boxes to ignore"] == f"{boxes}, whose pixels count neither way"
    assert "boxes to ignore" not in {finding.what for finding in reports["drop"].findings}
    assert reports["drop"].digests != reports["ignore"].digests and digests["drop"] != digests["ignore"]


def test_samples_carry_what_does_not_count(job_with):
    samples = {sample.id.replace("/", ""): sample for sample in job_with("ignore").dataset["test"]}

    for name, sample in samples.items():
        truth, out = regions(name)
        np.testing.assert_array_equal(sample.mask, truth)
        assert (sample.ignore is None) == (not out.any())
        np.testing.assert_array_equal(np.zeros_like(out) if sample.ignore is None else sample.ignore, out)
        assert sample.label == any(ANNOTATED["test", name]), "an object to ignore is there all the same"
    assert any(sample.ignore is None for sample in samples.values())
    assert any(sample.ignore is not None and not sample.mask.any() for sample in samples.values())
