"""Weights that torchvision publishes, by name: fetched once into torch's own cache."""

from pathlib import Path
from urllib.parse import urlsplit

import torch
from torchvision import models

from lapbench.errors import UnknownNameError, WeightsError


def published_weights(architecture: str, name: str) -> Path:
    """Return the file of an architecture's published weights, as ``IMAGENET1K_V1``.

    Fetched once, it lies where torch.hub keeps checkpoints (`torch.hub.get_dir`, TORCH_HOME); a file that is
    there already, put by hand on a machine without a network, is taken as it is.
    Errors: UnknownNameError for a name that torchvision does not know; WeightsError where the file cannot be
    fetched, or comes with another digest than published.
    """
    known = models.get_model_weights(architecture) if architecture in models.list_models(models) else []
    entries = {entry.name: entry for entry in known}
    if name not in entries:
        raise UnknownNameError(f"published weights of {architecture}", name, entries)
    url: str = entries[name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    digest = path.stem.rpartition("-")[2]  # torchvision's files carry the first of their SHA-256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: could not be fetched from {url} ({error}): fetch it by other means and put it there, "
            "or name a file of yours"
        ) from None
    return path
