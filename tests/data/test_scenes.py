import hashlib

import numpy as np
import pytest

from lapbench.data import load_manifest, open_dataset, scenes
from lapbench.data.captions import decode
from lapbench.data.scenes import COLOURS, WORDS, caption, draw, lay_out, read_scenes

GOLDEN = {
    "train-000000": "09ed1afe13f732f852e837c2ff188e06b7fa4c08c2af901cc8d4ca66abe1a6c8",
    "train-000001": "5157a67c9ceee491c9e9eca355253d8a0fd63b002eba598700846d82f9112c2c",
    "val-000042": "838ce4c730cc799cc514afe99367bffd4ef544f06564bcdcf64369d80c266f2f",
    "test-000199": "95fe740802426d36ecd7cd3af93a3e59ea8bd817144daf42999692203c8879dd",
}
NAMES = [f"train-{number:06d}" for number in range(200)]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_are_those_of_every_machine(name):
    """If this fails, images have changed: raise scenes.VERSION and the version of the manifest."""
    assert hashlib.sha256(draw(name, 64).tobytes()).hexdigest() == GOLDEN[name]


def test_captions_tell_what_stands_where():
    """Read back word by word: the words lead to the larger object, the relation to where the other one is."""
    for name in NAMES:
        larger, smaller = lay_out(name, 64)
        assert larger.half > smaller.half
        assert larger.shape != smaller.shape
        words = caption(larger, smaller).split()
        assert words[:3] == ["a", larger.colour, larger.shape]
        assert words[-3:] == ["a", smaller.colour, smaller.shape]
        other_way = {"above": (0, 1), "below": (0, -1), "left": (1, 0), "right": (-1, 0)}[words[3]]
        across, down = smaller.x - larger.x, smaller.y - larger.y
        assert np.sign((across, down) if other_way[0] else (0, down))[other_way.index(sum(other_way))] == sum(
            other_way
        )
        assert (abs(across) > abs(down)) == bool(other_way[0])


def test_objects_fill_their_boxes_and_do_not_touch():
    """A pixel of an object is near its colour, without noise and texture; the others are not."""
    for name in NAMES[:60]:
        larger, smaller = lay_out(name, 64)
        assert max(abs(larger.x - smaller.x), abs(larger.y - smaller.y)) > larger.half + smaller.half
        for thing in (larger, smaller):
            box = thing.box
            assert min(box.x0, box.y0) >= 0
            assert max(box.x1, box.y1) <= 64
            x, y = np.arange(64)[None, :] + 0.5 - thing.x, np.arange(64)[:, None] + 0.5 - thing.y
            rows, columns = np.nonzero(scenes._depth(thing, x, y) > -0.5)
            assert (columns.min(), columns.max() + 1) == (box.x0, box.x1)
            # the apex of a triangle is less than half a pixel wide
            assert abs(rows.min() - box.y0) <= (thing.shape == "triangle")
            assert rows.max() + 1 == box.y1


def test_colours_are_those_that_captions_name():
    for name in NAMES[:60]:
        image = draw(name, 64).astype(float)
        for thing in lay_out(name, 64):
            x, y = np.arange(64)[None, :] + 0.5 - thing.x, np.arange(64)[:, None] + 0.5 - thing.y
            found = image[scenes._depth(thing, x, y) > 1].mean(0)
            distance = {colour: np.abs(found - value).sum() for colour, value in COLOURS.items()}
            assert min(distance, key=distance.get) == thing.colour


def test_all_words_occur():
    said = {word for name in NAMES for word in caption(*lay_out(name, 64)).split()}
    assert said == set(WORDS[1:])


def test_the_shipped_data_set():
    manifest = load_manifest("scenes")
    assert manifest.classes == WORDS
    dataset = open_dataset(manifest, image_size=(64, 64), limit=50)
    assert (dataset.task, dataset.answer_size) == ("captions", 9)  # eight words and the end
    split = dataset["test"]
    for index in range(50):
        thing = {t.shape: t for t in lay_out(split.ids[index].partition("/")[0], 64)}[
            WORDS[split.labels[index]]
        ]
        assert split.boxes(index) == (thing.box,)
        assert decode(split.answers[index], WORDS) == caption(
            *lay_out(split.ids[index].partition("/")[0], 64)
        )
    assert {r.label for r in read_scenes(None, train=30, val=0, test=0)} == set(scenes.SHAPES)
