from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapbench.data.manifest import Part
from lapbench.data.record import Record
from lapbench.data.splits import divide, mixed, share_of
from lapbench.errors import DataError


def record(name, split="", label="a", group=""):
    return Record(name, split, label, Path(name), group=group, where=f"table:{name}")


def ids(records):
    return [r.id for r in records]


def test_without_a_declaration_splits_are_the_readers():
    divided = divide([record("x", "train"), record("y", "test"), record("z", "train")], {}, None)
    assert {name: ids(rs) for name, rs in divided.items()} == {"train": ["x", "z"], "test": ["y"]}


def test_shares_keep_groups_together_and_cover_everything():
    records = [
        record(f"{board}-{n}", "trainval", group=str(board)) for board in range(1000) for n in range(3)
    ]
    splits = {
        "train": Part(source="trainval", share=(0, 0.88)),
        "val": Part(source="trainval", share=(0.88, 1)),
    }
    divided = divide(records, splits, None)
    groups = {name: {r.group for r in rs} for name, rs in divided.items()}
    assert not groups["train"] & groups["val"]
    assert len(divided["train"]) + len(divided["val"]) == 3000
    assert 0.09 < len(groups["val"]) / 1000 < 0.15


def test_another_seed_is_another_division():
    first, second = ([share_of(str(n), seed) < 0.5 for n in range(100)] for seed in (0, 1))
    assert first != second


def test_shares_of_groups_are_uniform():
    shares = np.array([share_of(f"g{n}", 0) for n in range(5000)])
    assert np.abs(np.sort(shares) - np.linspace(0, 1, 5000)).max() < 0.03


def test_lists_of_ids(tmp_path):
    (tmp_path / "train.txt").write_text("x\n\ny\n")
    (tmp_path / "bad.txt").write_text("x\nyy\n")
    records = [record("x"), record("y"), record("z")]
    assert ids(divide(records, {"train": Part(ids="train.txt")}, tmp_path)["train"]) == ["x", "y"]
    with pytest.raises(DataError, match=r"bad\.txt:2: there is no sample 'yy' among the 3 .*, such as 'x'"):
        divide(records, {"train": Part(ids="bad.txt")}, tmp_path)
    with pytest.raises(DataError, match="there is no such annotation file"):
        divide(records, {"train": Part(ids="none.txt")}, tmp_path)


def test_a_sample_in_two_splits_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x\n")
    parts = {"train": Part(ids="a.txt"), "test": Part(ids="a.txt")}
    with pytest.raises(DataError, match=r"samples 'x' and 'x' belong together .* 'train' and 'test'"):
        divide([record("x")], parts, tmp_path)


def test_a_group_in_two_splits_is_refused():
    records = [record("x", "train", group="p1"), record("y", "test", group="p1")]
    with pytest.raises(
        DataError, match=r"'x' and 'y' belong together .group 'p1'. .* measured on what was learnt"
    ):
        divide(records, {}, None)


def test_other_faults():
    with pytest.raises(DataError, match="table:x: the id 'x' occurs twice, first at table:x"):
        divide([record("x", "train"), record("x", "train")], {}, None)
    with pytest.raises(DataError, match="names no splits and the manifest declares none"):
        divide([record("x")], {}, None)
    with pytest.raises(
        DataError, match=r"split 'val' has no samples: its source 'vall' .*did you mean 'val'"
    ):
        divide([record("x", "val")], {"val": Part(source="vall")}, None)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(0, 5))
def test_any_head_holds_every_class_in_proportion(labels, salt):
    records = [record(f"{salt}:{n}", label=label) for n, label in enumerate(labels)]
    order = mixed(records, "abc")
    assert sorted(ids(order)) == sorted(ids(records))
    present = set(labels)
    assert {r.label for r in order[: len(present)]} == present
    for head in range(1, len(order) + 1):
        for label in present:
            share = labels.count(label) / len(labels)
            assert abs(sum(r.label == label for r in order[:head]) - share * head) <= len(present)


def test_order_does_not_depend_on_the_order_of_the_annotation():
    records = [record(str(n), label="ab"[n % 2]) for n in range(50)]
    assert ids(mixed(records, "ab")) == ids(mixed(records[::-1], "ab"))
