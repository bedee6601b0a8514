import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from lapbench.data import digits, load_manifest, open_dataset
from lapbench.data.digits import Scene, draw, lay_out, read_digits
from lapbench.errors import DataError, DefinitionError

SCENE = Scene(3, 64, (18, 22), (3, 4))
GOLDEN = {
    "train-000000": "6114b4c8878a9b198f1e937b3fdcb059ce825f6e2f0734675b3d855387831142",
    "train-000001": "f003291272dc5a927871606cd94adc75e4ba0a827ca2534df2d3bcca08b552b7",
    "val-000123": "cb4ebe5c94dde92ce33355fb3a34a5da011280b07e7f6f2bf4b12998d7f0c494",
    "test-000499": "36746bcc75b7914fcc5a22b6083e524b6c55b4b624edc763a1e6fa968f0055cf",
}


def sha(name):
    return hashlib.sha256(draw(name, SCENE).tobytes()).hexdigest()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_every_machine(name):
    """If this fails, images have changed: raise digits.VERSION and the version of the manifest."""
    assert sha(name) == GOLDEN[name]


def test_an_image_depends_on_its_id_alone():
    code = (
        "import hashlib; from lapbench.data.digits import *;"
        "print(hashlib.sha256(draw('val-000123', Scene(3, 64, (18, 22), (3, 4))).tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    [draw(f"train-{n:06d}", SCENE) for n in range(5)]
    assert fresh.stdout.strip() == sha("val-000123")


def test_images_of_different_ids_differ():
    images = {sha(f"train-{n:06d}") for n in range(200)} | {sha(f"test-{n:06d}") for n in range(200)}
    assert len(images) == 400


def test_boxes_are_tight_around_the_target():
    """Drawn without its target, an image differs in no pixel outside the box, but at each of its sides."""
    for number in range(1, 60, 2):
        name = f"train-{number:06d}"
        target = [p for p in lay_out(name, SCENE) if p.is_target]
        assert len(target) == 1
        opacity = target[0].opacity
        assert opacity.any(0)[[0, -1]].all()
        assert opacity.any(1)[[0, -1]].all()
        box = target[0].box
        changed = draw(name, SCENE) != draw_without_target(name)
        ys, xs = np.nonzero(changed)
        assert box.x0 <= xs.min() <= box.x0 + 2
        assert box.y0 <= ys.min() <= box.y0 + 2
        assert box.x1 - 3 <= xs.max() < box.x1
        assert box.y1 - 3 <= ys.max() < box.y1


def draw_without_target(name):
    original = digits.lay_out
    digits.lay_out = lambda n, s: [p for p in original(n, s) if not p.is_target]
    try:
        return draw(name, SCENE)
    finally:
        digits.lay_out = original


def test_nothing_covers_anything():
    for number in range(300):
        taken = np.zeros((64, 64), int)
        for placed in lay_out(f"train-{number:06d}", SCENE):
            box = placed.box
            assert 0 <= box.x0 < box.x1 <= 64
            assert 0 <= box.y0 < box.y1 <= 64
            taken[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] += 1
        assert taken.max() == 1


def test_brightness_size_and_number_of_digits_give_nothing_away():
    """Two-sample Kolmogorov-Smirnov tests over 2000 images; the data are fixed, so the p-values are, too."""
    scenes = [lay_out(f"train-{n:06d}", SCENE) for n in range(2000)]
    target = [p for scene in scenes for p in scene if p.is_target]
    others = [p for scene in scenes for p in scene if not p.is_target]
    assert stats.ks_2samp([p.brightness for p in target], [p.brightness for p in others]).pvalue > 0.01
    assert abs(np.mean([p.box.height for p in target]) - np.mean([p.box.height for p in others])) < 0.2
    counts = np.array([[sum(len(s) == n for s in scenes[k::2]) for n in (2, 3, 4)] for k in (0, 1)])
    assert stats.chi2_contingency(counts[:, counts.any(0)]).pvalue > 0.01
    means = [[draw(f"train-{n:06d}", SCENE).mean() for n in range(k, 1000, 2)] for k in (0, 1)]
    assert stats.ks_2samp(*means).pvalue > 0.01


def test_target_is_as_large_as_promised():
    boxes = [p.box for n in range(1, 1000, 2) for p in lay_out(f"train-{n:06d}", SCENE) if p.is_target]
    sides = np.sqrt([b.width * b.height for b in boxes])
    assert 16 <= np.median(sides) <= 18
    assert max(b.height for b in boxes) <= 22


def test_splits_write_with_different_hands():
    pools = [{i for d in range(10) for i in digits._pool(split, d)} for split in digits.SPLITS]
    assert sum(map(len, pools)) == 1797 == len(set.union(*pools))
    for split in digits.SPLITS:
        assert all(len(digits._pool(split, d)) >= 15 for d in range(10))


def test_the_shipped_data_set():
    dataset = open_dataset(load_manifest("digits"), image_size=(64, 64), channels=1)
    assert dataset.classes == ("absent", "present")
    assert {name: len(dataset[name]) for name in dataset.splits} == {"train": 4000, "val": 500, "test": 500}
    for name in dataset.splits:
        split = dataset[name]
        np.testing.assert_array_equal(split.has_truth, split.labels == 1)
        assert np.bincount(split.labels).tolist() == [len(split) // 2] * 2
    sample = dataset["val"][0]
    assert sample.image.shape == (1, 64, 64)
    assert (sample.image[0] * 255).round().astype(np.uint8).tobytes() == draw(sample.id, SCENE).tobytes()


def test_other_parameters_are_another_data_set():
    manifest = load_manifest("digits")
    other = manifest.reader.model_copy(update={"parameters": {"digit": 8, "train": 4, "val": 2, "test": 2}})
    small = open_dataset(manifest.model_copy(update={"reader": other}), image_size=(64, 64), limit=2)
    same_ids = open_dataset(manifest, image_size=(64, 64), limit=2)
    assert small.digest != same_ids.digest
    assert small["val"][0].image.shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"height": (20, 18)}, "height goes from the lowest to the greatest"),
        ({"height": (18, 40)}, "between 8 and half of the canvas .32."),
        ({"objects": (3, 40)}, "at most 16 objects"),
    ],
)
def test_contradictory_parameters(parameters, message):
    with pytest.raises(DefinitionError, match=f"reader 'digits': .*{message}"):
        read_digits(None, **parameters)


def test_changed_source_digits_are_noticed(monkeypatch):
    monkeypatch.setattr(digits, "_SOURCE_DIGEST", "0" * 64)
    digits._source.cache_clear()
    try:
        with pytest.raises(
            DataError, match=r"not the ones that lapbench draws from .*another version of scikit-learn"
        ):
            digits._source()
    finally:
        digits._source.cache_clear()


@pytest.mark.speed
def test_more_than_500_images_a_second():
    import time

    draw("train-000000", SCENE)
    start = time.perf_counter()
    for number in range(1000):
        draw(f"train-{number:06d}", SCENE)
    assert 1000 / (time.perf_counter() - start) > 500
