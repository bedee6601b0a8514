import copy
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from lapbench.benchmark import Concept, Plug
from lapbench.errors import WeightsError
from lapbench.models.plug import is_added, lap_layers, plug
from lapbench.models.weights import (
    copy_pretrained,
    copy_weights,
    load_record,
    load_weights,
    randomise,
    save_weights,
    weights_digest,
)
from lapbench.models.zoo import build

SHARED = Path(__file__).parents[2].parent / "shared" / "weights"


def net(**parameters) -> nn.Module:
    return build("resnet18", num_classes=2, parameters={"width": 4, "blocks": [1, 1, 1, 1], **parameters})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def state():
    return net().state_dict()


# Files.


def test_weights_come_back_bit_by_bit(tmp_path, state):
    path = tmp_path / "new" / "net.safetensors"
    save_weights(path, state, {"epochs": 3})

    loaded = load_weights(path)

    assert loaded.keys() == state.keys() == load_file(path).keys()
    assert all(loaded[key].equal(value) and loaded[key].dtype == value.dtype for key, value in state.items())
    assert load_record(path) == {"epochs": 3, "weights_digest": weights_digest(state)}
    assert names(path.parent) == ["net.json", "net.safetensors"]  # no temporary file is left


def test_shared_and_strided_tensors_can_be_saved(tmp_path):
    tensor = torch.randn(4, 6)
    save_weights(tmp_path / "w.safetensors", {"a": tensor, "b": tensor, "c": tensor.T}, {})

    assert load_weights(tmp_path / "w.safetensors")["c"].equal(tensor.T)


def test_a_record_that_is_no_json_leaves_no_file(tmp_path, state):
    with pytest.raises(TypeError):
        save_weights(tmp_path / "w.safetensors", state, {"bad": object()})
    assert names(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, state, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, state, {})
    before = path.read_bytes()

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, net().state_dict(), {})

    assert path.read_bytes() == before
    assert names(tmp_path) == ["w.json", "w.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_torch_are_unwrapped(tmp_path, state, suffix, wrap, prefix):
    content = {prefix + key: value for key, value in state.items()}
    path = tmp_path / f"w{suffix}"
    torch.save({wrap: content, "epoch": 3} if wrap else content, path)

    loaded = load_weights(path)

    assert loaded.keys() == state.keys()
    assert all(loaded[key].equal(value) for key, value in state.items())


def test_old_densenet_names_are_brought_up_to_date(tmp_path):
    new = build("densenet121", num_classes=2).state_dict()
    old = {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for key, value in new.items()}
    torch.save(old, tmp_path / "w.pth")

    assert old.keys() != new.keys()
    assert load_weights(tmp_path / "w.pth").keys() == new.keys()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = net().state_dict()
    save_weights(folder / "whole.safetensors", whole, {})
    torch.save(whole, folder / "whole.pt")
    contents = {
        "cut.safetensors": (folder / "whole.safetensors").read_bytes()[:-100],
        "cut.pt": (folder / "whole.pt").read_bytes()[:-100],
        "empty.safetensors": b"",
        "empty.pt": b"",
        "text.safetensors": b"not weights at all",
        "text.pth": b"not weights at all",
        "huge.safetensors": (2**60).to_bytes(8, "little") + b"{}",
        "code.pt": pickle.dumps(Evil()),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save(Evil(), folder / "code.pth")
    torch.save(net(), folder / "model.pt")
    torch.save([torch.zeros(2)], folder / "list.pt")
    torch.save({}, folder / "nothing.pt")
    torch.save({"epoch": 3}, folder / "number.pt")
    torch.save({"w": torch.tensor([1.0, float("nan")])}, folder / "nan.pt")
    (folder / "weights.bin").write_bytes(b"")
    return {
        "cut.safetensors": "not a whole safetensors file",
        "cut.pt": "not a whole file of tensors only",
        "empty.safetensors": "not a whole safetensors file",
        "empty.pt": "not a whole file of tensors only",
        "text.safetensors": "not a whole safetensors file",
        "text.pth": "not a whole file of tensors only",
        "huge.safetensors": "not a whole safetensors file",
        "code.pt": "a pickled model is never loaded",
        "code.pth": "a pickled model is never loaded",
        "model.pt": "save it again with torch.save(model.state_dict(), ...)",
        "list.pt": "wanted names and tensors, found list: save a state dict",
        "nothing.pt": "wanted names and tensors, found dict: save a state dict",
        "number.pt": "wanted names and tensors, found 'epoch': int: save a state dict",
        "nan.pt": "w holds values that are not finite",
        "weights.bin": "weights end in .safetensors, .pt or .pth, found '.bin'",
        "absent.pt": "there is no such weights file",
    }


def test_broken_foreign_and_dangerous_files_are_named_and_never_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(WeightsError) as caught:
            load_weights(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
        assert message in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the record of w.safetensors cannot be read"),
        ("{", "cannot be read"),
        ("[]", "a record is a JSON object, found list"),
    ],
)
def test_broken_records_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "w.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        load_record(tmp_path / "w.safetensors")


# Digest.


def test_the_digest_is_a_plain_hash_of_names_types_shapes_and_bytes():
    state = {"b": torch.tensor([1, 2], dtype=torch.int64), "a": torch.tensor(0.5)}
    expected = hashlib.sha256(
        b"a\0torch.float32\0()\0"
        + b"\x00\x00\x00\x3f"
        + b"b\0torch.int64\0(2,)\0"
        + b"\x01"
        + bytes(7)
        + b"\x02"
        + bytes(7)
    ).hexdigest()

    assert weights_digest(state) == expected


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([[1.0, 2.0], [3.0, 5.0]])},
        {"v": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
        {"w": torch.tensor([1.0, 2.0, 3.0, 4.0])},
        {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()},
        {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T},
        {},
    ],
)
def test_every_change_changes_the_digest(other):
    assert weights_digest(other) != weights_digest({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})


def test_the_digest_does_not_depend_on_order_or_memory():
    tensor = torch.randn(3, 4)
    a, b = {"x": tensor, "y": tensor.bfloat16()}, {"y": tensor.bfloat16(), "x": tensor.T.contiguous().T}

    assert weights_digest(a) == weights_digest(b)


# Fit.


def test_weights_are_copied_into_the_network(state):
    model = net()
    copy_weights(model, state)
    assert all(model.state_dict()[key].equal(value) for key, value in state.items())


def test_mnasnet_loads_from_a_file_without_versions(tmp_path):
    state = build("mnasnet0_5", num_classes=2).state_dict()
    save_weights(tmp_path / "w.safetensors", state, {})
    model = build("mnasnet0_5", num_classes=2)

    copy_weights(model, load_weights(tmp_path / "w.safetensors"))

    assert weights_digest(model.state_dict()) == weights_digest(state)


def test_concept_heads_of_another_number_are_no_classifier():
    def network(*concepts: str):
        heads = tuple(Concept(name=name, classes=(name,)) for name in concepts)
        spec = Plug(concepts=heads, aggregation="sum" if len(heads) > 1 else "identity")
        model = build("resnet18", num_classes=3, parameters={"width": 8})
        return plug(model, spec, classes=("a", "b", "c"))

    state, model = network("a", "b", "c").state_dict(), network("a")
    with pytest.raises(WeightsError, match=r"of another shape: .*scoring\.head\.weight"):
        copy_pretrained(model, state, optional=lambda key: is_added(model, key))


def test_files_older_than_the_counter_of_batch_norm_load(state):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    copy_weights(net(), old)


def test_long_lists_of_misfits_are_cut(state):
    with pytest.raises(WeightsError) as caught:
        copy_weights(net(), {}, source="empty.pt")
    assert str(caught.value) == (
        "empty.pt do not fit this SizedResNet: missing: conv1.weight, bn1.weight, bn1.bias, "
        f"bn1.running_mean, bn1.running_var and {sum('num_batches' not in key for key in state) - 5} more"
    )


def test_pretrained_weights_leave_out_the_classifier():
    thousand = build("resnet18", num_classes=1000, parameters={"width": 4, "blocks": [1, 1, 1, 1]})
    model = net()
    head = copy.deepcopy(model.fc.state_dict())

    left_out = copy_pretrained(model, thousand.state_dict())

    assert left_out == ("fc.weight", "fc.bias")
    assert model.conv1.weight.equal(thousand.conv1.weight)
    assert all(model.fc.state_dict()[key].equal(value) for key, value in head.items())


def test_pretrained_weights_with_as_many_classes_are_copied_whole(state):
    model = net()
    assert copy_pretrained(model, state) == ()
    assert model.fc.weight.equal(state["fc.weight"])


def test_pretrained_inception_leaves_out_both_classifiers():
    thousand = models.inception_v3(weights=None, num_classes=20, init_weights=False).state_dict()
    full = build("inception_v3", num_classes=2)
    bare = build("inception_v3", num_classes=2, parameters={"aux_logits": False})

    heads = ("AuxLogits.fc.weight", "AuxLogits.fc.bias", "fc.weight", "fc.bias")
    assert set(copy_pretrained(full, thousand)) == set(heads)
    left_out = copy_pretrained(bare, thousand)
    assert all(key.startswith(("AuxLogits.", "fc.")) for key in left_out)


def test_pretrained_colour_weights_serve_a_grey_network():
    colour = net().eval()
    grey = build(
        "resnet18", num_classes=2, in_channels=1, parameters={"width": 4, "blocks": [1, 1, 1, 1]}
    ).eval()
    x = torch.randn(2, 1, 64, 64)

    assert copy_pretrained(grey, colour.state_dict()) == ()
    torch.testing.assert_close(grey(x), colour(x.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)


def test_pretrained_weights_of_another_network_are_refused(state):
    with pytest.raises(WeightsError, match=r"^w\.pth do not fit this SizedResNet: of another shape: conv1"):
        copy_pretrained(net(width=8), state, source="w.pth")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: real ImageNet weights are not at hand")
def test_real_imagenet_weights_load_and_fit_two_classes():
    state = load_weights(SHARED / "squeezenet1_1_imagenet.pth")
    whole, two = build("squeezenet1_1", num_classes=1000), build("squeezenet1_1", num_classes=2)

    copy_weights(whole, state)
    assert copy_pretrained(two, state) == ("classifier.1.weight", "classifier.1.bias")
    with pytest.raises(WeightsError, match=r"classifier\.1\.weight \(found 1000×512×1×1, wanted 2×512×1×1\)"):
        copy_weights(two, state)


# Randomised copies.


@pytest.fixture
def trained():
    model = plug(net(), Plug(concepts=[{"name": "c", "classes": ["x"]}]), classes=["x"])
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(0.37)
    return model.eval()


def test_every_weight_is_drawn_anew(trained):
    for key, tensor in randomise(trained, 0).state_dict().items():
        if tensor.is_floating_point():
            assert not tensor.eq(0.37).any(), key
            assert tensor.isfinite().all()


def test_the_random_network_is_like_a_fresh_one(trained):
    fresh, random = net().state_dict(), randomise(trained, 0).state_dict()

    for key, tensor in fresh.items():
        if "conv" in key and tensor.numel() > 500:
            assert random[key].std() == pytest.approx(float(tensor.std()), rel=0.15)
        elif "bn" in key or "running" in key:
            assert random[key].equal(tensor)


def test_random_laps_have_maps_that_vary(trained):
    random = randomise(trained, 0)
    for name, lap in lap_layers(random).items():
        assert lap.alpha == 1, name
        assert lap.scoring(torch.randn(1, lap.scoring.in_channels, 6, 6)).std() > 0.01


def test_the_seed_decides_and_nothing_else_is_touched(trained):
    before = weights_digest(trained.state_dict())
    generator = torch.get_rng_state()
    digests = [weights_digest(randomise(trained, seed).state_dict()) for seed in (1, 2, 1)]

    assert digests[0] == digests[2] != digests[1]
    assert weights_digest(trained.state_dict()) == before
    assert torch.get_rng_state().equal(generator)
    random = randomise(trained, 1)
    assert not random.training
    assert random.lap_names == ("c",)


def test_scales_without_an_initialisation_keep_their_size():
    model = build("convnext_tiny", num_classes=2)
    scale = model.features[1][0].layer_scale

    torch.testing.assert_close(randomise(model, 0).features[1][0].layer_scale, scale)
