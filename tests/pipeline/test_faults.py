"""What happens when files are damaged and explainers fail: the others go on, and the next run mends it."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from lapbench import pipeline
from lapbench.errors import DataError, ScoreError, StoreError
from pipeline import tiny

PLAIN = tiny.without_models(tiny.DEFINITION, "WS-LAP")


def row_files(cache, name):
    """The cached rows of an explainer."""
    found = sorted((cache / "rows").glob(f"{name}-*.json"))
    assert found
    return found


def shard_files(cache, name):
    found = sorted(p for p in (cache / "maps").rglob("*.h5") if p.parent.name == name)
    assert found
    return found


def test_damaged_files_are_named_set_aside_and_made_again(copied, finished):
    """Maps and rows, each damaged in several ways: one run mends all of them, to the same bytes."""
    cache = copied / "cache"
    before = tiny.files(cache)
    for path in row_files(cache, "deeplift"):
        path.unlink()
    short, empty, foreign, flipped, *_ = shard_files(cache, "deeplift")
    short.write_bytes(short.read_bytes()[:4000])
    empty.write_bytes(b"")
    shutil.copy(shard_files(cache, "grad-cam")[0], foreign)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 255
    flipped.write_bytes(content)
    faults = {
        row_files(cache, "grad-cam")[0]: "it is cut short or foreign",
        row_files(cache, "grad-cam")[1]: "it belongs to another digest",
        row_files(cache, "random")[0]: "its content does not match its checksum",
        row_files(cache, "centre")[0]: "it is cut short or foreign",
    }
    cut, other, edited, blank = faults
    cut.write_text(cut.read_text()[:-100])
    other.write_text(row_files(cache, "oracle")[0].read_text())
    edited.write_text(edited.read_text().replace('"n": 15', '"n": 14'))
    blank.write_text("")
    notes = []
    board = pipeline.run(tiny.job(copied / "tiny.toml", copied, notes=notes))

    assert len(notes) == 8
    for path, fault in faults.items():
        aside = f"it is set aside as {path.name}.broken-1 and will be made again"
        assert f"{path} is broken ({fault}); {aside}" in notes
    for path in (short, empty, foreign, flipped):
        assert sum(note.startswith(f"{path} is broken (") for note in notes) == 1
    for path in (*faults, short, empty, foreign, flipped):
        assert path.with_name(f"{path.name}.broken-1").is_file()
    assert {name: b for name, b in tiny.files(cache).items() if ".broken" not in name} == before
    assert board == finished.board and tiny.files(copied / "out") == tiny.files(finished.out)


def test_pictures_without_their_maps_say_so_and_are_not_kept(copied, finished):
    cache = copied / "cache"
    shutil.rmtree(cache / "pictures")
    for path in shard_files(cache, "deeplift"):
        path.unlink()
    notes = []
    pipeline.run(tiny.job(copied / "tiny.toml", copied, notes=notes))

    assert [note.partition(":")[0] for note in notes] == [
        "maps.png is without DeepLIFT", "maps-plain.png is without DeepLIFT"
    ]  # fmt: skip
    for path in row_files(cache, "deeplift"):
        path.unlink()
    pipeline.run(tiny.job(copied / "tiny.toml", copied))
    assert tiny.files(copied / "out") == tiny.files(finished.out)


def test_an_explainer_that_raises_is_a_row_with_its_reason(trained, finished, temporary):
    broken = True

    def fragile(model, images, target):
        if broken:
            raise RuntimeError("the wheels came off")
        return images[:, 0]

    temporary("fragile", fragile)
    text = tiny.with_explainers(PLAIN, "grad_cam", "fragile", "oracle")
    path = tiny.write_definition(trained, name="fragile.toml", text=text)
    notes = []
    board = pipeline.run(tiny.job(path, trained, notes=notes))

    reason = "explainer 'fragile' failed: RuntimeError: the wheels came off"
    assert notes == [f"Fragile on plain: {reason}", f"Fragile on plain, random weights: {reason}"]
    failed = [row for row in board.rows if row.explainer == "Fragile"]
    assert {(row.selection, row.randomised) for row in failed} == {
        ("threshold", False), ("threshold", True), ("top-k", False), ("top-k", True)
    }  # fmt: skip
    assert all(
        (row.reason, row.complete, row.rank, row.n_failed) == (reason, False, None, 15) for row in failed
    )
    others = {
        (r.explainer, r.selection, r.randomised): r.mean for r in finished.board.rows if r.model != "WS-LAP"
    }
    for row in board.rows:
        if row.explainer != "Fragile":
            assert row.complete and row.mean == others[row.explainer, row.selection, row.randomised]
    assert reason in (trained / "out" / "leaderboard.md").read_text().replace("\\", "")

    broken, notes = False, []
    mended = pipeline.run(tiny.job(path, trained, notes=notes))
    assert notes == [] and all(row.complete for row in mended.rows)


def in_place(parameter):
    parameter.add_(torch.randn_like(parameter))


def by_data(parameter):
    parameter.data.add_(torch.randn_like(parameter))


def by_other_data(parameter):
    parameter.data = torch.randn_like(parameter).half()


@pytest.mark.parametrize("write", [in_place, by_data, by_other_data])
def test_who_writes_to_the_weights_is_a_row_with_its_reason_and_spoils_no_other(
    trained, finished, temporary, write
):
    def noisy(model, images, target):
        with torch.no_grad():
            for parameter in model.parameters():
                write(parameter)
        return images[:, 0]

    temporary("noisy", noisy)
    text = tiny.with_explainers(PLAIN, "noisy", "grad_cam", "deeplift")
    path = tiny.write_definition(trained, name="noisy.toml", text=text)
    board = pipeline.run(tiny.job(path, trained))

    reasons = {row.reason for row in board.rows if row.explainer == "Noisy"}
    assert reasons == {
        "explainer 'noisy' wrote to the weights of the network (conv1.weight and 37 more) and left them so: "
        "put them back in a finally; `lapbench check explainer noisy` shows whether it does"
    }
    kept = [path.relative_to(trained / "cache") for path in (trained / "cache" / "maps").rglob("*.h5")]
    explained = [path for path in kept if path.parent.name != "predictions"]
    assert {path.parent.name for path in explained} == {"grad-cam", "deeplift"}
    for path in explained:
        with h5py.File(trained / "cache" / path) as found, h5py.File(finished.cache / path) as expected:
            np.testing.assert_array_equal(found["arrays/maps"], expected["arrays/maps"])


def test_who_puts_the_weights_back_is_no_culprit(trained, temporary):
    def tidy(model, images, target):
        own = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            for parameter in model.parameters():
                in_place(parameter)
        model.load_state_dict(own)
        return images[:, 0]

    temporary("tidy", tidy)
    path = tiny.write_definition(trained, name="tidy.toml", text=tiny.with_explainers(PLAIN, "tidy"))
    assert pipeline.explain(tiny.job(path, trained)) == []


def test_maps_with_nan_are_counted_and_the_row_is_incomplete(trained, temporary):
    """One map in every batch of eight."""

    def holes(model, images, target):
        maps = images[:, 0].clone()
        maps[0, 3, 4] = torch.nan
        return maps

    temporary("holes", holes)
    text = tiny.with_explainers(PLAIN, "holes", "random")
    path = tiny.write_definition(trained, name="holes.toml", text=text)
    board = pipeline.run(tiny.job(path, trained))

    rows = [row for row in board.rows if row.explainer == "Holes"]
    for row in rows:
        assert (row.complete, row.rank, row.n, row.n_failed, row.counts.n_nan) == (False, None, 13, 2, 2)
        assert row.reason == "2 of 15 maps hold NaN or infinity" and 0 < row.mean < 1
        [fit] = row.provenance["fits"]
        assert fit["n_nan"] == 3 and fit["n_maps"] == 21
    table = json.loads((trained / "out" / rows[0].image_scores.file).read_text())["scores"]["iou"]
    assert [value is None for value in table[0]].count(True) == 2
    assert all(row.complete for row in board.rows if row.explainer == "Random")


def test_maps_that_are_nan_throughout_have_no_threshold(trained, temporary):
    def void(model, images, target):
        return torch.full_like(images[:, 0], torch.nan)

    temporary("void", void)
    text = tiny.with_explainers(PLAIN, "void", "random")
    board = pipeline.run(tiny.job(tiny.write_definition(trained, name="void.toml", text=text), trained))

    found = {row.selection: row for row in board.rows if row.explainer == "Void" and not row.randomised}
    assert found["threshold"].reason == "no threshold: no map to fit on: all 24 hold NaN or infinity"
    assert found["top-k"].reason == "15 of 15 maps hold NaN or infinity"
    assert all((row.mean, row.n, row.n_failed) == (None, 0, 15) for row in found.values())


@pytest.mark.parametrize("error", [DataError("disk gone"), StoreError("disk gone")])
def test_faults_of_files_stop_the_run_and_are_not_the_explainers(trained, temporary, error):
    def explain(model, images, target):
        raise error

    temporary("unlucky", explain)
    text = tiny.with_explainers(PLAIN, "unlucky")
    job = tiny.job(tiny.write_definition(trained, name="unlucky.toml", text=text), trained)

    with pytest.raises(type(error), match="disk gone"):
        pipeline.explain(job)
    assert not (trained / "cache" / "failures").exists()


def test_maps_of_changing_size_are_a_reason(trained, temporary):
    def fickle(model, images, target):
        return images[:, 0, : len(images)]

    temporary("fickle", fickle)
    text = tiny.with_explainers(PLAIN, "fickle")
    reasons = pipeline.explain(tiny.job(tiny.write_definition(trained, name="f.toml", text=text), trained))

    assert "'fickle' must return maps of one size" in reasons[0] and "(7, 32) and (8, 32)" in reasons[0]


def test_flat_maps_have_no_threshold_and_the_other_selections_are_scored_all_the_same(trained, temporary):
    def flat(model, images, target):
        return torch.ones_like(images[:, 0])

    temporary("flat", flat, native_threshold=0.5)
    text = tiny.with_explainers(PLAIN, "flat")
    board = pipeline.run(tiny.job(tiny.write_definition(trained, name="f.toml", text=text), trained))

    found = {row.selection: row for row in board.rows if not row.randomised}
    assert found["native"].complete and found["native"].fitted_threshold is None
    assert found["top-k"].tied_fraction == 1 and found["top-k"].counts.n_flat == 15
    assert not found["threshold"].complete and "no separation" in found["threshold"].reason


def test_a_diverging_score_is_not_swallowed(copied, monkeypatch):
    """An error while scoring reaches the caller; the rows scored before it stay."""

    def fail(*_, **__):
        raise ScoreError("cannot")

    for path in row_files(copied / "cache", "deeplift"):
        path.unlink()
    monkeypatch.setattr("lapbench.pipeline.scoring.localise", fail)
    with pytest.raises(ScoreError, match="cannot"):
        pipeline.score(tiny.job(copied / "tiny.toml", copied))


FULL = "DefaultCPUAllocator: can't allocate memory"


def test_batches_shrink_where_memory_ends_and_the_maps_stay(trained, finished, monkeypatch):
    """Whatever gives more than two images at once to the network's last layer runs out of memory."""
    ordinary, sizes = torch.nn.functional.linear, set()

    def linear(x, *weights):
        sizes.add(len(x))
        if len(x) > 2:
            raise RuntimeError(FULL)
        return ordinary(x, *weights)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    path = tiny.write_definition(trained, name="small.toml", text=PLAIN)
    assert pipeline.explain(tiny.job(path, trained)) == []
    assert sizes == {1, 2, 4, 8}
    shards = [path.relative_to(trained / "cache") for path in (trained / "cache" / "maps").rglob("*.h5")]
    walked = [path for path in shards if path.parent.name in ("deeplift", "grad-cam")]
    assert len(walked) == 2 * 2 * 2  # explainers × random weights or not × splits
    for path in walked:
        with h5py.File(trained / "cache" / path) as found, h5py.File(finished.cache / path) as expected:
            one, other = (np.asarray(file["arrays/maps"], "f8") for file in (found, expected))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * abs(other).max())


def test_an_explainer_that_never_fits_is_a_reason_and_the_others_go_on(trained, temporary):
    def glutton(model, images, target):
        raise RuntimeError(FULL)

    temporary("glutton", glutton)
    text = tiny.with_explainers(PLAIN, "glutton", "grad_cam")
    board = pipeline.run(tiny.job(tiny.write_definition(trained, name="g.toml", text=text), trained))

    reasons = {row.reason for row in board.rows if row.explainer == "Glutton"}
    assert reasons == {"the device's memory does not hold even one sample"}
    assert all(row.complete for row in board.rows if row.explainer == "Grad-CAM")
