"""Logits of a network for many images, without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module into evaluation mode; afterwards, even an exception, each has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise torch.OutOfMemoryError whichever memory ran out: CPUs say it by other errors."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Logits (n, classes) of normalised images (n, C, H, W), in evaluation mode, on the images' device.

    Errors: torch.OutOfMemoryError, also for a CPU's memory.
    """
    weight = next(model.parameters())
    with evaluating(model), memory_errors():
        batches = torch.split(images, batch_size) if len(images) else (images,)
        return torch.cat([model(batch.to(weight.device)).to(images.device) for batch in batches])
