import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from lapbench import store as room
from lapbench.errors import StoreError
from lapbench.store import MapStore, Shard

NAME, DIGEST = "maps/resnet18-1f0c22ab/grad_cam/test-0003", "0123456789abcdef" * 4


def shard(n=3, size=(4, 7), seed=0):
    """A small shard with everything in it: names that are not ASCII, NaN, infinity."""
    random_numbers = np.random.default_rng(seed)
    maps = random_numbers.standard_normal((n, *size)).astype(np.float32)
    errors = random_numbers.random(n)
    if n:
        maps[0, 0, :2] = np.nan, np.inf
        errors[0] = np.nan
    return Shard(
        ids=tuple(f"sample {i}/ä€" for i in range(n)),
        targets=np.arange(n, dtype=np.int64),
        arrays={"maps": maps, "logits": random_numbers.random((n, 10)).astype(np.float32)},
        diagnostics={"completeness_error": errors},
        provenance={"explainer": {"name": "grad_cam", "version": 1}, "sizes": [4, 7], "note": "α ≥ 1"},
    )


def same(a, b):
    return (
        a.ids == b.ids
        and a.provenance == b.provenance
        and a.targets.tobytes() == b.targets.tobytes()
        and a.arrays.keys() == b.arrays.keys()
        and all(
            x.tobytes() == b.arrays[k].tobytes() and x.shape == b.arrays[k].shape for k, x in a.arrays.items()
        )
        and all(x.tobytes() == b.diagnostics[k].tobytes() for k, x in a.diagnostics.items())
    )


@pytest.fixture
def notes():
    return []


@pytest.fixture
def store(tmp_path, notes):
    return MapStore(tmp_path / "cache", warn=notes.append)


# --- writing and reading


@pytest.mark.parametrize("n", [0, 1, 3])
def test_what_is_written_is_read_bit_by_bit(store, n, notes):
    assert store.read(NAME, DIGEST) is None and not store.has(NAME, DIGEST)
    path = store.write(NAME, DIGEST, shard(n))
    assert path == store.path(NAME, DIGEST)
    assert path == store.root / "maps/resnet18-1f0c22ab/grad_cam/test-0003-0123456789abcdef.h5"
    assert same(store.read(NAME, DIGEST), shard(n)) and store.has(NAME, DIGEST)
    assert [p.name for p in path.parent.iterdir()] == [path.name] and not notes


def test_the_same_shard_gives_the_same_bytes(store, tmp_path):
    other = MapStore(tmp_path / "other")
    assert store.write(NAME, DIGEST, shard()).read_bytes() == other.write(NAME, DIGEST, shard()).read_bytes()


def test_predictions_are_stored_in_the_same_way(store):
    logits = np.random.default_rng(0).random((3, 10)).astype(np.float32)
    store.write(
        "predictions/test-0000", DIGEST, Shard(("a", "b", "c"), np.zeros(3, np.int64), {"logits": logits})
    )
    found = store.read("predictions/test-0000", DIGEST)
    assert np.array_equal(found.arrays["logits"], logits)
    with pytest.raises(StoreError, match="this shard holds no maps, only logits"):
        _ = found.maps


def test_a_file_opens_anywhere_and_says_what_it_is(store):
    with h5py.File(store.write(NAME, DIGEST, shard()), "r") as file:
        assert file.attrs["format"] == "lapbench-maps" and file.attrs["version"] == 1
        assert file.attrs["digest"] == DIGEST
        assert file["ids"].asstr()[0] == "sample 0/ä€"
        assert file["arrays/maps"].shape == (3, 4, 7) and file["arrays/maps"].dtype == np.float32
        assert json.loads(file["provenance"].asstr()[()])["explainer"]["name"] == "grad_cam"


def test_a_finished_file_is_never_changed(store):
    path = store.write(NAME, DIGEST, shard())
    before, stat = path.read_bytes(), path.stat()
    store.write(NAME, DIGEST, shard(seed=1))
    assert path.read_bytes() == before and path.stat().st_ino == stat.st_ino
    assert path.stat().st_mtime_ns == stat.st_mtime_ns


def test_a_large_provenance_fits(store):
    big = Shard(("a",), np.zeros(1, np.int64), {}, provenance={"classes": ["x" * 100] * 2000})
    store.write(NAME, DIGEST, big)
    assert store.read(NAME, DIGEST).provenance == big.provenance


def test_names_stay_below_the_root_and_fit_every_file_system(store):
    path = store.path("../../etc/LAP (layer 4): a|b/…", DIGEST)
    assert path.parent.parent.parent.parent.parent == store.root or path.is_relative_to(store.root)
    assert ".." not in path.parts and path.relative_to(store.root).as_posix() == (
        "_/_/etc/LAP-layer-4-a-b/_-0123456789abcdef.h5"
    )
    assert len(store.path("x" * 1000, DIGEST).name) < 140
    with pytest.raises(StoreError, match=r"hexadecimal digest of at least 16 digits \(found '../../x'\)"):
        store.path(NAME, "../../x")


def test_no_handle_stays_open_and_a_store_travels_to_other_processes(tmp_path):
    store = pickle.loads(pickle.dumps(MapStore(tmp_path)))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    store.write(NAME, DIGEST, shard())
    found = [store.read(NAME, DIGEST) for _ in range(3)]
    list(store.entries(verify=True))
    assert all(same(s, shard()) for s in found)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("a", "a", "b")}, "sample ids must differ: 1 of 3 repeat another"),
        ({"ids": ("a\0", "b", "c")}, "may not hold a NUL character"),
        ({"ids": ("a", "b")}, r"targets must have one row for each of 2 sample ids \(found shape \(3,\)\)"),
        ({"targets": np.zeros(3, np.int32)}, r"targets must be int64 \(found int32\)"),
        ({"arrays": {"maps": np.zeros((3, 2, 2))}}, r"maps must be float32 \(found float64\)"),
        (
            {"arrays": {"maps": np.zeros((2, 2, 2), np.float32)}},
            r"maps must have one row .*found shape \(2, 2, 2\)",
        ),
        ({"arrays": {"../x": np.zeros((3, 2), np.float32)}}, r"letters, digits and _ only \(found '../x'\)"),
        ({"diagnostics": {"e": np.zeros(3, np.float32)}}, r"e must be float64 \(found float32\)"),
        ({"diagnostics": {"e": np.zeros((3, 2))}}, r"one number a sample, \(n,\); found shape \(3, 2\)"),
    ],
)
def test_a_shard_that_does_not_fit_together_is_refused(change, message):
    parts = {"ids": ("a", "b", "c"), "targets": np.zeros(3, np.int64), "arrays": {}} | change
    with pytest.raises(StoreError, match=message):
        Shard(**parts)


def test_a_provenance_that_json_cannot_hold_is_refused(store):
    bad = Shard(("a",), np.zeros(1, np.int64), {}, provenance={"where": Path("x")})
    with pytest.raises(
        StoreError, match=r"must be made of JSON types: Object of type \w+ is not JSON serializable"
    ):
        store.write(NAME, DIGEST, bad)
    assert not list(store.root.rglob("*"))


# --- files that are no shards


def changed(path, *, without=None, attribute=None, replace=None):
    """Change a finished file through HDF5, as a foreign program would."""
    with h5py.File(path, "r+") as file:
        if without:
            if without in file.attrs:
                del file.attrs[without]
            else:
                del file[without]
        if attribute:
            file.attrs[attribute[0]] = attribute[1]
        if replace:
            name, make = replace
            del file[name]
            make(file, name)


def vlen(file, name):
    file.create_dataset(name, data=["a", "b", "c"], dtype=h5py.string_dtype())


def compressed(file, name):
    file.create_dataset(name, data=np.zeros((3, 4, 7), np.float32), compression="gzip")


def enormous(file, name):
    file.create_dataset(name, shape=(3, 10**6, 10**6), dtype=np.float32)  # claims 12 TB, holds nothing


def outside(file, name):
    file.create_dataset(name, shape=(3, 4, 7), dtype=np.float32, external=[("/etc/hostname", 0, 336)])


def linked(file, name):
    file[name] = h5py.ExternalLink("/etc/other.h5", "/maps")


def numbers(file, name):
    file.create_dataset(name, data=np.zeros((3, 4, 7), np.float64))


def group(file, name):
    file.create_group(name)


FAULTS = {
    "empty": (lambda p: p.write_bytes(b""), "file signature not found|truncated|Unable to"),
    "text": (lambda p: p.write_text("these are no maps"), "file signature not found|Unable to"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated file"),
    "half": (lambda p: p.write_bytes(p.read_bytes()[:1000]), "truncated file|Unable to"),
    "foreign": (lambda p: h5py.File(p, "w").close(), "it is not a file of format lapbench-maps"),
    "newer": (lambda p: changed(p, attribute=("version", 2)), "its version is 2, wanted 1"),
    "unfinished": (lambda p: changed(p, without="complete"), "it was never completed"),
    "of another digest": (
        lambda p: changed(p, attribute=("digest", "ff" * 32)),
        "another digest, ffffffffffffffff",
    ),
    "changed mark": (lambda p: changed(p, attribute=("complete", "00")), "does not match its checksum"),
    "changed map": (
        lambda p: changed(
            p, replace=("arrays/maps", lambda f, n: f.create_dataset(n, data=shard(seed=9).maps))
        ),
        "does not match its checksum",
    ),
    "without ids": (lambda p: changed(p, without="ids"), "ids is missing"),
    "without arrays": (lambda p: changed(p, without="arrays"), "arrays is missing"),
    "ids of any length": (lambda p: changed(p, replace=("ids", vlen)), "ids is no plain data set"),
    "compressed": (
        lambda p: changed(p, replace=("arrays/maps", compressed)),
        r"maps \(3, 4, 7\) does not lie in",
    ),
    "enormous": (
        lambda p: changed(p, replace=("arrays/maps", enormous)),
        r"1000000\) does not lie in the file's",
    ),
    "external storage": (lambda p: changed(p, replace=("arrays/maps", outside)), "does not lie in the file"),
    "external link": (
        lambda p: changed(p, replace=("arrays/maps", linked)),
        "arrays/maps is a link elsewhere",
    ),
    "wrong type": (lambda p: changed(p, replace=("arrays/maps", numbers)), "maps must be float32"),
    "a group": (lambda p: changed(p, replace=("arrays/maps", group)), "arrays/maps is no plain data set"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_is_no_whole_shard_is_named_set_aside_and_made_again(store, notes, fault):
    spoil, why = FAULTS[fault]
    path = store.write(NAME, DIGEST, shard())
    spoil(path)
    spoilt = path.read_bytes()
    (entry,) = store.entries(verify=True)
    if fault != "of another digest":  # only who asks for a digest can tell
        assert entry.fault and not list(path.parent.glob("*.broken*"))
    assert store.read(NAME, DIGEST) is None
    (aside,) = path.parent.glob("*.broken-*")
    assert aside.name == f"{path.name}.broken-1" and aside.read_bytes() == spoilt and not path.exists()
    (note,) = notes
    assert note.startswith(f"{path} is broken (") and note.endswith(
        f"); it is set aside as {aside.name} and will be made again"
    )
    assert any(part in note for part in why.replace("\\", "").split("|")), note
    store.write(NAME, DIGEST, shard())
    assert same(store.read(NAME, DIGEST), shard()) and len(notes) == 1


def test_many_changed_bytes_are_all_noticed(store):
    path = store.write(NAME, DIGEST, shard())
    image = path.read_bytes()
    numbers = random.Random(0)
    wrong = 0
    for _ in range(200):
        at = numbers.randrange(len(image))
        path.write_bytes(image[:at] + bytes([image[at] ^ 1 << numbers.randrange(8)]) + image[at + 1 :])
        found = store.read(NAME, DIGEST)
        assert found is None or same(found, shard())  # a bit that means nothing may differ, content never
        wrong += found is None
        path.unlink(missing_ok=True)
    assert wrong > 20


def test_many_truncations_are_all_noticed(store):
    path = store.write(NAME, DIGEST, shard())
    image = path.read_bytes()
    for length in range(0, len(image), 97):
        path.write_bytes(image[:length])
        assert store.read(NAME, DIGEST) is None


def test_broken_files_are_numbered_and_writing_over_one_sets_it_aside(store, notes):
    path = store.path(NAME, DIGEST)
    path.parent.mkdir(parents=True)
    for _ in range(3):
        path.write_bytes(b"x")
        store.write(NAME, DIGEST, shard())
        assert same(store.read(NAME, DIGEST), shard())
        path.unlink()
    assert sorted(p.name[-8:] for p in path.parent.glob("*.broken-*")) == ["broken-1", "broken-2", "broken-3"]
    assert len(notes) == 3


def test_without_a_listener_a_broken_file_is_a_python_warning(tmp_path):
    store = MapStore(tmp_path)
    store.write(NAME, DIGEST, shard()).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"is broken .* will be made again"):
        store.read(NAME, DIGEST)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom file permissions bind")
def test_a_file_that_may_not_be_read_is_an_error_not_a_broken_file(store):
    path = store.write(NAME, DIGEST, shard())
    path.chmod(0)
    with pytest.raises(StoreError, match=r"cannot read .*: Permission denied"):
        store.read(NAME, DIGEST)


def test_a_folder_in_the_place_of_a_file_is_an_error(store):
    store.path(NAME, DIGEST).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"cannot read .*: Is a directory"):
        store.read(NAME, DIGEST)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*: Not a directory; give another cache folder"):
        MapStore(tmp_path / "file").write(NAME, DIGEST, shard())


def test_a_full_disk_leaves_nothing_behind(store, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write(NAME, DIGEST, shard())
    assert not [p for p in store.root.rglob("*") if p.is_file()]


def test_a_file_system_without_links_serves_as_well(store, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(room.os, "link", refuse)
    path = store.write(NAME, DIGEST, shard())
    inode = path.stat().st_ino
    store.write(NAME, DIGEST, shard())
    assert same(store.read(NAME, DIGEST), shard()) and path.stat().st_ino == inode
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_a_dead_process_left_is_removed_when_it_is_old(store):
    path = store.write(NAME, DIGEST, shard())
    old, new = path.with_name(".a.h5.1.part"), path.with_name(".a.h5.2.part")
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, time.time() - room.ABANDONED_AFTER - 10))
    store.write(NAME.replace("0003", "0004"), DIGEST, shard())
    assert not old.exists() and new.exists()
    assert len(list(store.entries())) == 2


# --- listing, checking, exporting


def test_entries_describe_every_file(store):
    store.write(NAME, DIGEST, shard())
    broken = store.write("a/b", DIGEST, shard())
    broken.write_bytes(b"x")
    first, second = store.entries()
    assert first.path == broken and first.fault and first.bytes == 1 and first.n == 0
    assert second.path == store.path(NAME, DIGEST) and second.fault == "" and second.n == 3
    assert (
        second.shapes == {"maps": (3, 4, 7), "logits": (3, 10)} and second.bytes == second.path.stat().st_size
    )
    assert second.provenance["explainer"]["name"] == "grad_cam"
    assert list(MapStore(store.root / "nowhere").entries()) == []


def test_only_verifying_reads_the_content(store):
    path = store.write(NAME, DIGEST, shard())
    image = bytearray(path.read_bytes())
    at = image.index(shard().maps[1].tobytes())
    image[at] ^= 1
    path.write_bytes(image)
    assert [e.fault for e in store.entries()] == [""]
    assert [e.fault for e in store.entries(verify=True)] == ["its content does not match its checksum"]


def test_export_writes_what_numpy_and_json_read(store, tmp_path):
    store.write(NAME, DIGEST, shard())
    written = store.export(store.entries(), tmp_path / "out")
    stem = tmp_path / "out/maps/resnet18-1f0c22ab/grad_cam/test-0003-0123456789abcdef"
    assert sorted(written) == [Path(f"{stem}{end}") for end in (".json", ".logits.npy", ".maps.npy")]
    assert np.load(f"{stem}.maps.npy", allow_pickle=False).tobytes() == shard().maps.tobytes()
    record = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
    assert record["ids"] == list(shard().ids) and record["targets"] == [0, 1, 2]
    assert record["diagnostics"]["completeness_error"][0] is None  # NaN, for which JSON has no word
    assert (
        record["diagnostics"]["completeness_error"][1:]
        == shard().diagnostics["completeness_error"][1:].tolist()
    )
    assert record["provenance"] == shard().provenance


def test_a_faulty_entry_is_not_exported(store, tmp_path):
    path = store.write(NAME, DIGEST, shard())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"cannot export .*test-0003-0123456789abcdef.h5: .*truncated file"):
        store.export(store.entries(), tmp_path / "out")


def test_a_folder_that_cannot_be_exported_to_is_named(store, tmp_path):
    store.write(NAME, DIGEST, shard())
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot export .*Not a directory"):
        store.export(store.entries(), tmp_path / "file")


# --- processes that die, and processes at once

WRITER = """
import sys, numpy as np
from pathlib import Path
from lapbench.store import MapStore, Shard
store = MapStore(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(10_000):
    if not store.has(f"maps/test-{i:05}", f"{i:064x}"):
        maps = np.random.default_rng(i).random((16, 32, 24)).astype(np.float32)
        shard = Shard(tuple(map(str, range(16))), np.arange(16), {"maps": maps}, provenance={"shard": i})
        store.write(f"maps/test-{i:05}", f"{i:064x}", shard)
"""


def writer_shard(i):
    return np.random.default_rng(i).random((16, 32, 24)).astype(np.float32)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_at_twenty_random_moments_every_file_is_whole_or_absent(tmp_path, notes):
    moments = random.Random(0)
    store = MapStore(tmp_path, warn=notes.append)
    runs = []
    for run in range(20):
        root = tmp_path / str(run % 4)  # a later run finds what the killed ones left
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        runs.append((process, root))
        if len(runs) == 4:
            for process, _ in runs:
                assert process.stdout.readline() == b"ready\n"
            for process, _ in runs:
                time.sleep(moments.uniform(0, 0.15))
                process.send_signal(signal.SIGKILL)
            for process, _ in runs:
                process.wait()
                process.stdout.close()
            runs = []
    entries = list(store.entries(verify=True))
    assert len(entries) > 20 and not [e for e in entries if e.fault]
    for root in map(str, range(4)):
        inner = MapStore(tmp_path / root, warn=notes.append)
        done = sum(1 for _ in inner.entries())
        for i in range(done):  # in order, without a gap, each as it should be
            found = inner.read(f"maps/test-{i:05}", f"{i:064x}")
            assert found is not None and np.array_equal(found.maps, writer_shard(i))
    assert not notes


def write_all(root, start):
    """Write and read forty shards, as one of several runs that share a cache."""
    store = MapStore(root, warn=lambda note: pytest.fail(note))
    start.wait()
    for i in range(40):
        maps = writer_shard(i)
        part = Shard(tuple(map(str, range(16))), np.arange(16), {"maps": maps}, provenance={"shard": i})
        store.write(f"maps/test-{i:05}", f"{i:064x}", part)
        assert np.array_equal(store.read(f"maps/test-{i:05}", f"{i:064x}").maps, maps)


def test_runs_at_once_on_one_cache_both_end_well(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=write_all, args=(tmp_path, start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    entries = list(MapStore(tmp_path).entries(verify=True))
    assert len(entries) == 40 and not [e for e in entries if e.fault]
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.broken*"))
