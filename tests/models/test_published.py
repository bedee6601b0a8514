"""Published weights are fetched once, by their names; here from this very machine."""

import hashlib

import pytest
import torch
from torchvision import models

from lapbench.errors import UnknownNameError, WeightsError
from lapbench.models import load_weights
from lapbench.models.published import published_weights


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Publish a small file as weights of SqueezeNet; fetched files go to a folder of the test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def at(digest=None):
        file = tmp_path / "squeezenet.pth"
        torch.save({"features.0.bias": torch.arange(64.0)}, file)
        start = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if digest is None else digest
        published = file.rename(tmp_path / f"squeezenet1_1-{start}.pth")
        entry = models.SqueezeNet1_1_Weights.IMAGENET1K_V1
        other = type(entry.value)(published.as_uri(), entry.transforms, entry.meta)
        monkeypatch.setattr(entry, "_value_", other)
        return published

    return at


def test_they_are_fetched_once(publish):
    source = publish()
    path = published_weights("squeezenet1_1", "IMAGENET1K_V1")

    assert path.name == source.name and path.parent.name == "checkpoints"
    assert load_weights(path)["features.0.bias"].equal(torch.arange(64.0))
    source.unlink()
    assert published_weights("squeezenet1_1", "IMAGENET1K_V1") == path


def test_a_file_that_is_not_what_was_published_is_refused(publish):
    publish("00000000")
    with pytest.raises(WeightsError, match=r"squeezenet1_1-00000000\.pth: could not be fetched from file:"):
        published_weights("squeezenet1_1", "IMAGENET1K_V1")


def test_without_a_network_the_error_says_where_to_put_the_file(publish, tmp_path):
    publish().unlink()
    with pytest.raises(WeightsError, match="fetch it by other means and put it there") as caught:
        published_weights("squeezenet1_1", "IMAGENET1K_V1")
    assert str(tmp_path / "hub" / "checkpoints") in str(caught.value)


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "someones_own"])
def test_unknown_names_are_refused(architecture):
    with pytest.raises(UnknownNameError, match=f"no published weights of {architecture} 'IMAGENET1K_V7'"):
        published_weights(architecture, "IMAGENET1K_V7")
