"""Whole trainings of a tiny network on a tiny data set."""

import dataclasses
import gc
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lapbench import models
from lapbench.benchmark import Augment, Losses, Recipe
from lapbench.errors import TrainingError, WeightsError
from lapbench.train import evaluate, metrics, seeded, train
from lapbench.train import recipe as recipe_module
from lapbench.train.hardware import Hardware
from lapbench.train.images import InMemory
from lapbench.train.lightning import Lesson
from tests.train.squares import CLASSES, DATA, PLUG, dataset, network

SQUARES = dataset()
STEPS = 8  # per epoch: 64 samples in batches of 8


class Interruption(Exception):  # noqa: N818 - it is no error
    pass


def recipe(**fields) -> Recipe:
    return Recipe(**{"supervision": "weak", "epochs": 3, "batch_size": 8, "learning_rate": 0.01, **fields})


def run(workdir: Path, *, model=None, seed=0, progress=None, squares=SQUARES, plug=PLUG, **fields):
    model = network(seed, plugged=plug is not None) if model is None else model
    record = train(
        model, squares, data=DATA, recipe=recipe(**fields), plug=plug,
        seed=seed, device="cpu", workdir=workdir, progress=progress,
    )  # fmt: skip
    return model, record


def stop_at(step: int, error: BaseException):
    def progress(done: int, total: int, text: str) -> None:
        if done == step:
            raise error

    return progress


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(x == y and torch.equal(v, w) for (x, v), (y, w) in pairs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted training, its folder and what it told."""
    told: list[tuple[int, int, str]] = []
    folder = tmp_path_factory.mktemp("finished")
    model, record = run(folder, epochs=4, progress=lambda *what: told.append(what))
    return model, record, folder, told


def test_training_learns_and_says_how_it_went(finished):
    model, record, _, told = finished
    first, last = record.epochs[0], record.epochs[-1]
    for term in ("loss", "cross_entropy", "concept_discrimination", "dsm"):
        assert last[f"train_{term}"] < first[f"train_{term}"], term
    assert {"val_accuracy", "val_balanced_accuracy", "val_sensitivity", "val_specificity"} <= set(last)
    assert [epoch["epoch"] for epoch in record.epochs] == [1, 2, 3, 4]
    best = min(record.epochs, key=lambda epoch: epoch["val_loss"])
    assert record.best_epoch == best["epoch"]
    assert [done for done, _, _ in told] == list(range(1, 4 * STEPS + 1))
    assert {total for _, total, _ in told} == {4 * STEPS}
    assert told[0][2] == "epoch 1/4"
    assert told[-1][2].startswith(f"epoch 4/4, val loss {record.epochs[2]['val_loss']:.3f}, accuracy ")
    assert not model.training


def test_the_record_is_json_and_names_what_decided_it(finished):
    _, record, _, _ = finished
    found = json.loads(json.dumps(record.as_dict()))
    assert found["seed"] == 0
    assert found["recipe"]["learning_rate"] == 0.01
    assert found["plug"]["concepts"][0]["name"] == "square"
    assert found["dataset_digest"] == SQUARES.digest
    assert (found["device"], found["precision"]) == ("cpu", "32-true")
    assert set(found["versions"]) == {"lapbench", "torch", "pytorch-lightning"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 1


def test_the_best_epochs_weights_are_left_in_the_model(finished):
    model, record, _, _ = finished
    found = evaluate(model, SQUARES["val"], DATA, device="cpu")
    best = record.epochs[record.best_epoch - 1]
    for name, value in metrics(found.logits, found.labels).items():
        assert best[f"val_{name}"] == pytest.approx(value), name


def test_weights_go_through_a_file(finished, tmp_path):
    model, record, _, _ = finished
    path = tmp_path / "weights.safetensors"
    models.save_weights(path, model.state_dict(), record.as_dict())
    other = network(seed=9)
    models.copy_weights(other, models.load_weights(path))
    assert same_state(model, other)
    assert models.load_record(path)["best_epoch"] == record.best_epoch


def test_a_finished_training_is_not_repeated(finished):
    model, record, folder, _ = finished
    again, second = run(folder, epochs=4, progress=stop_at(1, AssertionError("a step was taken")))
    assert same_state(model, again)
    assert second == record


def test_a_network_that_asks_for_the_version_of_its_weights_is_given_them(tmp_path):
    model = models.build("mnasnet0_5", num_classes=2, in_channels=1)
    start = tmp_path / "start.safetensors"
    models.save_weights(start, model.state_dict(), {})
    other = models.build("mnasnet0_5", num_classes=2, in_channels=1)
    run(tmp_path, model=other, plug=None, supervision="none", epochs=0, pretrained=start)
    assert same_state(other, model)


def test_images_leave_the_memory_with_the_training(tmp_path):
    """Or a benchmark of many networks would hold them once for each."""
    gc.disable()  # Python itself collects when it pleases
    try:
        run(tmp_path, epochs=1)
        assert not any(type(thing) is InMemory for thing in gc.get_objects())  # isinstance wakes proxies
    finally:
        gc.enable()


@pytest.mark.parametrize(("optimiser", "cycled"), [("sgd", False), ("adam", True)])
def test_the_momentum_is_that_of_the_recipe(tmp_path, optimiser, cycled, monkeypatch):
    """One cycle moves Adam's first beta, as its authors do; what a recipe says of SGD stays."""
    seen = set()

    def watch(lesson, *_):
        (group,) = lesson.optimizers().param_groups
        seen.add(group["betas"][0] if optimiser == "adam" else group["momentum"])

    monkeypatch.setattr(Lesson, "on_train_batch_start", watch)
    run(tmp_path, optimiser=optimiser, momentum=0.5, schedule="one-cycle", epochs=1)
    assert (len(seen) > 1) == cycled and (cycled or seen == {0.5})


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_an_interrupted_training_ends_in_the_same_weights(schedule, tmp_path):
    fields = {
        "schedule": schedule,
        "augment": Augment(horizontal_flip=True, shift=0.1, brightness=0.1),
        "optimiser": "sgd" if schedule == "cosine" else "adam",
    }
    whole, whole_record = run(tmp_path / "whole", **fields)
    with pytest.raises(Interruption):
        run(tmp_path / "parts", progress=stop_at(2 * STEPS + 1, Interruption()), **fields)
    told: list[int] = []
    parts, record = run(tmp_path / "parts", progress=lambda done, *_: told.append(done), **fields)
    assert told == list(range(2 * STEPS + 1, 3 * STEPS + 1)), "only the third epoch was missing"
    assert same_state(whole, parts)
    assert record.best_epoch == whole_record.best_epoch
    for one, two in zip(whole_record.epochs, record.epochs, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_the_noise_of_dropout_is_resumed_too(tmp_path):
    def noisy() -> torch.nn.Module:
        model = network()
        model.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), model.fc)
        return model

    whole, _ = run(tmp_path / "whole", model=noisy(), epochs=2, iterations=3)
    with pytest.raises(Interruption):
        run(tmp_path / "parts", model=noisy(), epochs=2, iterations=3, progress=stop_at(5, Interruption()))
    torch.rand(7)  # whatever else draws in between
    parts, _ = run(tmp_path / "parts", model=noisy(), epochs=2, iterations=3)
    assert same_state(whole, parts)


def test_an_interrupted_model_is_as_it_was_given(tmp_path):
    model = network()
    with pytest.raises(Interruption):
        run(tmp_path, model=model, progress=stop_at(5, Interruption()))
    assert same_state(model, network())


def test_ctrl_c_arrives_as_keyboard_interrupt(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, iterations=3, progress=stop_at(5, KeyboardInterrupt()))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    _, record = run(tmp_path, iterations=3)
    assert len(record.epochs) == 3


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_real_signal_leaves_a_checkpoint(number, code, tmp_path):
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.train.test_recipe import run
        def progress(done, total, text):
            print(done, flush=True)
        try:
            run(Path(sys.argv[1]), epochs=500, progress=progress)
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if int(line) == STEPS + 3:
                process.send_signal(number)
                break
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == ""
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path):
    """Whatever SIGKILL leaves behind, the result is the same."""
    whole, _ = run(tmp_path / "whole", epochs=6, iterations=2)
    program = (
        "import sys; from pathlib import Path; from tests.train.test_recipe import run;"
        "run(Path(sys.argv[1]), epochs=6, iterations=2, progress=lambda *what: print(what, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "killed")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for _ in range(7):
            process.stdout.readline()
        time.sleep(0.02)
        process.kill()
    parts, _ = run(tmp_path / "killed", epochs=6, iterations=2)
    assert same_state(whole, parts)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_set_aside(damage, tmp_path):
    with pytest.raises(Interruption):
        run(tmp_path, epochs=2, iterations=2, progress=stop_at(3, Interruption()))
    path = tmp_path / "last.ckpt"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        torch.save({"lapbench": Path("/")}, path)
    told: list[int] = []
    _, record = run(tmp_path, epochs=2, iterations=2, progress=lambda done, *_: told.append(done))
    assert told[0] == 1
    assert len(record.epochs) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.broken"]


def test_another_trainings_checkpoint_is_set_aside(tmp_path):
    run(tmp_path, epochs=1, iterations=1)
    _, record = run(tmp_path, epochs=1, iterations=1, learning_rate=0.02)
    assert record.recipe["learning_rate"] == 0.02
    assert (tmp_path / "last.ckpt.broken").exists()


def test_a_training_does_not_go_on_from_other_weights_of_the_same_path(tmp_path):
    start, fields = tmp_path / "start.safetensors", {"epochs": 2, "iterations": 2}
    models.save_weights(start, network(1).state_dict(), {})
    with pytest.raises(Interruption):
        run(tmp_path / "a", pretrained=start, progress=stop_at(3, Interruption()), **fields)
    models.save_weights(start, network(2).state_dict(), {})
    again, _ = run(tmp_path / "a", pretrained=start, **fields)
    assert same_state(again, run(tmp_path / "b", pretrained=start, **fields)[0])
    assert (tmp_path / "a" / "last.ckpt.broken").exists()


def test_a_seed_decides_everything(tmp_path):
    fields = {"epochs": 1, "iterations": 4, "augment": Augment(brightness=0.2)}
    first, _ = run(tmp_path / "a", seed=5, **fields)
    second, _ = run(tmp_path / "b", seed=5, **fields)
    assert same_state(first, second)
    assert not same_state(first, run(tmp_path / "c", seed=6, **fields)[0])
    other_order, _ = run(tmp_path / "d", model=network(6), seed=5, **fields)
    assert not same_state(first, other_order)


def test_the_process_is_as_before(tmp_path, capfd, recwarn):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is meant, here and below
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    flags = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    environment, threads = dict(os.environ), torch.get_num_threads()
    here = sorted(p.name for p in Path().iterdir())
    run(tmp_path, epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002
    assert (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()) == flags
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert sorted(p.name for p in Path().iterdir()) == here


def test_seeded_draws_are_repeatable_and_leave_no_trace():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with seeded(11):
        first = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    with seeded(11):
        second = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    assert torch.equal(torch.get_rng_state(), state)


def probability_inside(model: torch.nn.Module) -> float:
    """Mean probability inside the boxes minus outside, over the LAPs and the test images with the object."""
    truth = torch.stack([torch.from_numpy(s.mask) for s in SQUARES["test"] if s.label == 1])
    images = torch.stack([torch.from_numpy(s.image) for s in SQUARES["test"] if s.label == 1])
    with models.record_laps(model) as records, torch.no_grad():
        model.eval()((images - 0.5) / 0.25)
    contrasts = []
    for record in records[:2]:  # the deeper maps have cells as large as the object
        p = torch.nn.functional.interpolate(record.logits.sigmoid(), size=truth.shape[1:])[:, 0]
        contrasts.append((p[truth].mean() - p[~truth].mean()).item())
    return sum(contrasts) / len(contrasts)


def test_boxes_move_probability_into_the_boxes(tmp_path):
    model = network()
    assert probability_inside(model) == 0, "every probability starts at one half"
    run(tmp_path, model=model, supervision="boxes", epochs=5)
    assert probability_inside(model) > 0.3


def test_a_plain_network_is_trained_by_cross_entropy_alone(tmp_path):
    _, record = run(tmp_path, plug=None, supervision="none", epochs=2, losses=Losses(cross_entropy=2.0))
    for epoch in record.epochs:
        assert epoch["train_loss"] == pytest.approx(2 * epoch["train_cross_entropy"])
        assert not {name for name in epoch if "concept" in name or "dsm" in name}
    assert record.plug is None


def test_unbalanced_training_and_images_on_demand_give_what_memory_gives(tmp_path, monkeypatch):
    quick = {"balanced": False, "epochs": 1, "iterations": 5}
    in_memory, _ = run(tmp_path / "a", **quick)
    monkeypatch.setattr(
        recipe_module, "tabulate", lambda split, truth: original(split, truth=truth, budget=0)
    )
    on_demand, _ = run(tmp_path / "b", **quick)
    assert same_state(in_memory, on_demand)


original = recipe_module.tabulate


@pytest.mark.parametrize(
    ("rule", "values", "best"),
    [
        ("val_loss", [(3.0, 0.5), (1.0, 0.6), (2.0, 0.9), (1.0, 0.9)], 2),
        ("balanced_accuracy", [(3.0, 0.5), (2.0, 0.9), (1.0, 0.9), (0.5, 0.8)], 3),
    ],
)
def test_the_best_epoch(rule, values, best, tmp_path, monkeypatch):
    """The measures are given; the rule has to choose: the first lowest loss, or accuracy and then loss."""
    ranks = Lesson._rank

    def given(self: Lesson, entry: dict[str, float]):
        loss, accuracy = values[int(entry["epoch"]) - 1]
        return ranks(self, {"val_loss": loss, "val_balanced_accuracy": accuracy})

    monkeypatch.setattr(Lesson, "_rank", given)
    _, record = run(tmp_path, epochs=4, iterations=1, select_epoch=rule)
    assert record.best_epoch == best


def test_training_starts_from_given_weights(tmp_path):
    with seeded(4):
        parameters = {"width": 4, "blocks": (1, 1, 1, 1), "stem": "3x3", "stem_stride": 1, "stem_pool": False}
        plain = models.build("resnet18", num_classes=10, in_channels=1, parameters=parameters)
    path = tmp_path / "plain.safetensors"
    models.save_weights(path, plain.state_dict(), {})
    slow = {"learning_rate": 1e-12, "weight_decay": 0.0, "epochs": 1, "iterations": 1}
    model, _ = run(tmp_path / "a", pretrained=path, **slow)
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        if name.startswith("fc.") or "running" in name or "num_batches" in name:
            continue
        assert torch.allclose(state[name], value, atol=1e-9), name
    with pytest.raises(WeightsError, match=r"missing\.safetensors"):
        run(tmp_path / "b", pretrained=tmp_path / "missing.safetensors", **slow)


def test_divergence_is_an_error_with_its_place(tmp_path):
    model = network()
    with pytest.raises(TrainingError, match=r"diverged in epoch 1, step \d+: loss nan.*lower learning_rate"):
        run(tmp_path, model=model, learning_rate=1e30, optimiser="sgd")
    assert not (tmp_path / "last.ckpt").exists()
    assert same_state(model, network())


def test_a_class_without_training_samples(tmp_path):
    with pytest.raises(TrainingError, match="split 'train' holds no sample of class 'unsure'"):
        run(tmp_path, squares=dataset(classes=(*CLASSES, "unsure")))


@pytest.mark.parametrize("model", [None, "plain"])
def test_supervision_without_concept_heads(model, tmp_path):
    with pytest.raises(TrainingError) as error:
        run(tmp_path, plug=PLUG if model else None, model=network(plugged=False))
    assert str(error.value) == (
        "supervision 'weak' trains concept heads, but the network has no LAP: "
        "plug it first (and say how in plug), or set supervision = 'none'"
    )


def test_a_plug_with_other_concepts(tmp_path):
    two = PLUG.model_copy(
        update={"concepts": (*PLUG.concepts, PLUG.concepts[0].model_copy(update={"name": "b"}))}
    )
    with pytest.raises(TrainingError) as error:
        run(tmp_path, plug=two, model=network())
    assert str(error.value) == (
        "the network has 1 concept heads, but plug names 2 concepts: "
        "give train() the plug that the network was made with"
    )


@pytest.mark.slow
def test_two_processes_train_together(tmp_path, monkeypatch):
    """Several GPUs in small: two processes on the CPU, each with its share of every batch."""
    monkeypatch.setattr(recipe_module, "choose_hardware", lambda *_: Hardware("cpu", 2, "32-true", "2 × cpu"))
    with pytest.raises(TrainingError, match=r"a training process failed: .*diverged in epoch 1"):
        run(tmp_path / "a", learning_rate=1e30, optimiser="sgd")
    model, record = run(tmp_path / "b", epochs=2)
    assert record.epochs[1]["train_loss"] < record.epochs[0]["train_loss"]
    found = evaluate(model, SQUARES["val"], DATA, device="cpu")
    best = record.epochs[record.best_epoch - 1]
    assert best["val_accuracy"] == pytest.approx(metrics(found.logits, found.labels)["accuracy"])
