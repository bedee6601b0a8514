import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lapbench.data import describe, load_manifest, open_dataset
from lapbench.data.images import read_image
from lapbench.data.readers.deeppcb import Board, place_windows, read_deeppcb, shown_boxes
from lapbench.errors import DataError
from lapbench.types import Box

BOXES = {"00041000": [(10, 20, 49, 49), (300, 310, 339, 349)], "20085291": [(600, 600, 639, 639)]}
SPLITS = {"00041000": "trainval", "20085291": "test"}


def write_pair(folder, pair, suffix):
    folder.mkdir(parents=True, exist_ok=True)
    twin = np.zeros((640, 640), np.uint8)
    board = twin.copy()
    for x1, y1, x2, y2 in BOXES[pair]:
        board[y1 : y2 + 1, x1 : x2 + 1] = 255
    Image.fromarray(board).save(folder / f"{pair}_test{suffix}")
    Image.fromarray(twin).save(folder / f"{pair}_temp{suffix}")


@pytest.fixture
def published(tmp_path):
    root = tmp_path / "clone"
    for pair, boxes in BOXES.items():
        group = f"group{pair[:5]}/{pair[:5]}"
        write_pair(root / "PCBData" / group, pair, ".jpg")
        notes = root / f"PCBData/{group}_not"
        notes.mkdir()
        (notes / f"{pair}.txt").write_text("".join(" ".join(map(str, (*b, 3))) + "\n" for b in boxes))
        (root / f"PCBData/{SPLITS[pair]}.txt").write_text(f"{group}/{pair}.jpg {group}_not/{pair}.txt\n")
    return root


@pytest.fixture
def table(tmp_path):
    root = tmp_path / "copy"
    rows = [f"{p},{SPLITS[p]},{','.join(map(str, b))},open" for p, bs in BOXES.items() for b in bs]
    for pair in BOXES:
        write_pair(root / "images", pair, ".png")
    (root / "boxes.csv").write_text("pair,split,x1,y1,x2,y2,cls\n" + "\n".join(rows) + "\n")
    return root


def test_both_layouts_give_the_same_samples(published, table):
    first, second = read_deeppcb(published), read_deeppcb(table)
    assert [(r.id, r.split, r.label, r.boxes, r.window, r.group) for r in first] == [
        (r.id, r.split, r.label, r.boxes, r.window, r.group) for r in second
    ]
    assert [r.source.name for r in first[:2]] == ["00041000_test.jpg", "00041000_temp.jpg"]


def test_windows_hold_the_defect_and_its_inclusive_box(table):
    for record in read_deeppcb(table):
        x0, y0, x1, y1 = record.window
        assert (x1 - x0, y1 - y0) == (128, 128)
        assert 0 <= x0 <= x1 <= 640
        assert 0 <= y0 <= y1 <= 640
        defects = read_image(record.source)[0, y0:y1, x0:x1] > 0.5
        marked = np.zeros((128, 128), bool)
        for box in record.boxes:
            marked[int(box.y0) - y0 : int(box.y1) - y0, int(box.x0) - x0 : int(box.x1) - x0] = True
        np.testing.assert_array_equal(defects, marked)
        assert bool(record.boxes) == (record.label == "defect")


def board(*boxes):
    return Board("p", "trainval", None, None, tuple(boxes), "x")


def test_one_window_for_defects_that_fit_together():
    near = board(Box(100, 100, 130, 130), Box(110, 110, 140, 140), Box(400, 400, 430, 430))
    windows = place_windows(near, 128, 640)
    assert len(windows) == 2
    for box in near.boxes:
        assert any(box in shown_boxes((box,), w) for w in windows)


def test_windows_avoid_cutting_other_defects():
    pair = board(Box(300, 300, 340, 340), Box(430, 300, 470, 340))
    for window in place_windows(pair, 128, 640):
        assert all(box in pair.boxes for box in shown_boxes(pair.boxes, window))


def test_a_cut_box_counts_from_half_of_its_area():
    boxes = (Box(0, 0, 10, 10),)
    assert shown_boxes(boxes, (5, 0, 133, 128)) == (Box(5, 0, 10, 10),)
    assert shown_boxes(boxes, (6, 0, 134, 128)) == ()


def test_a_box_larger_than_the_window():
    large = board(Box(200, 10, 400, 30))
    [window] = place_windows(large, 128, 640)
    assert window[0] == 236
    assert shown_boxes(large.boxes, window) == (Box(236, 10, 364, 30),)


def test_fewer_windows_on_demand(table):
    assert len(read_deeppcb(table)) == 6
    assert len(read_deeppcb(table, windows_per_board=1)) == 4


def test_faults_are_named(tmp_path, published, table):
    with pytest.raises(
        DataError, match=r"no DeepPCB here; looked for PCBData/trainval\.txt .* then for boxes\.csv"
    ):
        read_deeppcb(tmp_path)
    lists = published / "PCBData/trainval.txt"
    text = lists.read_text()
    lists.write_text(text.replace("group00041", "../group00041"))
    with pytest.raises(DataError, match=r"trainval\.txt:1: the path .* must be relative"):
        read_deeppcb(published)
    lists.write_text("one two three\n")
    with pytest.raises(
        DataError, match=r"trainval\.txt:1: wanted 'image\.jpg annotation\.txt', found 'one two three'"
    ):
        read_deeppcb(published)
    lists.write_text(text)
    (published / "PCBData/group00041/00041_not/00041000.txt").write_text("1 2 3\n")
    with pytest.raises(DataError, match=r"00041000\.txt:1: a box needs four numbers"):
        read_deeppcb(published)
    (table / "boxes.csv").write_text("pair,split,x1,y1,x2\n")
    with pytest.raises(DataError, match=r"boxes\.csv:1: there is no column 'y2'"):
        read_deeppcb(table)


def test_a_board_of_another_size_is_refused(table):
    Image.fromarray(np.zeros((600, 640), np.uint8)).save(table / "images/20085291_temp.png")
    manifest = load_manifest("deeppcb").model_copy(update={"splits": {}})
    with pytest.raises(DataError, match=r"says 640×640 pixels .* has 600×640"):
        open_dataset(manifest, root=table, image_size=(128, 128))


# --------------------------------------------------------------------------- the real data, if there


@pytest.fixture(scope="module")
def real_records(request):
    from pathlib import Path

    folder = Path(__file__).parents[2].parent / "shared" / "data" / "deeppcb"
    if not folder.is_dir():
        pytest.skip(f"the real DeepPCB is not in {folder}")
    return read_deeppcb(folder)


def test_real_counts_and_splits(real_records):
    assert len({r.group for r in real_records if r.split == "trainval"}) == 1000
    assert len({r.group for r in real_records if r.split == "test"}) == 500
    labels = [r.label for r in real_records]
    assert labels.count("good") == labels.count("defect") > 8000


def test_real_boards_stay_in_one_split(real):
    dataset = open_dataset(load_manifest("deeppcb"), root=real("deeppcb"), image_size=(128, 128), limit=400)
    boards = {name: {e.record.group for e in dataset[name].entries} for name in dataset.splits}
    assert not boards["train"] & boards["val"]
    assert not boards["test"] & (boards["train"] | boards["val"])
    facts = describe(dataset).splits["val"]
    assert facts.per_class == {"good": 200, "defect": 200}
    assert facts.n_with_truth == 200
    assert 0.2 < facts.median_box_side < 0.4


def test_real_validation_part_is_an_eighth_of_the_boards(real_records):
    from lapbench.data.splits import divide

    divided = divide(real_records, load_manifest("deeppcb").splits, None)
    n_boards = {name: len({r.group for r in rs}) for name, rs in divided.items()}
    assert n_boards["train"] + n_boards["val"] == 1000
    assert 90 <= n_boards["val"] <= 150
    assert n_boards["test"] == 500


def test_real_boxes_end_at_the_last_pixel(real_records):
    """Inclusive boxes turned half-open reach 640 and never go beyond."""
    assert max(max(b.x1, b.y1) for r in real_records for b in r.boxes) == 640
    assert min(min(b.x0, b.y0) for r in real_records for b in r.boxes) == 0


def test_real_defects_lie_inside_inclusive_boxes_with_equal_margins(real, real_records):
    """The same measurement as in the reader's docstring, on fewer boards."""
    images = real("deeppcb") / "images"
    margins = []
    by_board = {r.group: r for r in real_records if r.label == "defect"}
    for pair in sorted(by_board)[::30]:
        board, twin = (read_image(images / f"{pair}_{kind}.png")[0] > 0.5 for kind in ("test", "temp"))
        labels, _ = ndimage.label(ndimage.binary_opening(board != twin, np.ones((3, 3))))
        for box in by_board[pair].boxes:
            x0, y0, x1, y1 = (int(v) for v in (box.x0, box.y0, box.x1, box.y1))
            inside = np.unique(labels[y0:y1, x0:x1])
            if len(inside) != 2 or x0 == 0 or y0 == 0 or x1 == 640 or y1 == 640:
                continue  # no defect, or several, or a box at the border
            ys, xs = np.nonzero(labels == inside[1])
            margins.append((xs.min() - x0, x1 - 1 - xs.max(), ys.min() - y0, y1 - 1 - ys.max()))
    left, right, above, below = np.mean(margins, axis=0)
    assert len(margins) > 20
    assert abs((left + above) - (right + below)) / 2 < 2
    assert min(min(m) for m in margins) >= 0


def test_real_twins_differ_from_boards_inside_the_boxes(real, real_records):
    chosen = [r for r in real_records if r.label == "defect"][::400]
    for record in chosen:
        x0, y0, x1, y1 = record.window
        twin = record.source.with_name(record.source.name.replace("_test", "_temp"))
        change = read_image(record.source)[0, y0:y1, x0:x1] != read_image(twin)[0, y0:y1, x0:x1]
        box = record.boxes[0]
        part = change[int(box.y0) - y0 : int(box.y1) - y0, int(box.x0) - x0 : int(box.x1) - x0]
        assert part.mean() > change.mean()
