"""What a network answers to many images, and what each of its LAPs would answer alone; no trace is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lapbench.models.bla import bla_layers, deciding, record_bla
from lapbench.models.captioner import Captioner
from lapbench.models.lap import record_laps


@dataclass(frozen=True)
class Answers:
    """What a network says about n images, on the CPU.

    logits: (n, classes). peaks, sums: the highest probability of every concept map, and the sum over its
    pixels, (n, L, h) for L LAPs, shallow to deep, with h heads each; without LAP (n, 0, 0). soft, hard: the
    logits by either output of BLA, (n, classes), and the number of positions that are selected, (n,); without
    BLA nothing. tokens: the captions that a `Captioner` writes, (n, T).
    """

    logits: Tensor
    peaks: Tensor
    sums: Tensor
    soft: Tensor | None = None
    hard: Tensor | None = None
    selected: Tensor | None = None
    tokens: Tensor | None = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put every module into evaluation mode; afterwards, even an exception, each has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


def probabilities(logits: Tensor) -> Tensor:
    """The probabilities of classes by their logits, (n, classes); of a single logit by the sigmoid."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


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


@torch.no_grad()
def describe(model: Captioner, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the captions of normalised images, (n, T), and each word's own step, (n, V), on the CPU.

    That is the step, up to the caption's end, which gives the word its score: where its logit is largest.
    Errors: torch.OutOfMemoryError.
    """
    images = images.to(next(model.parameters()).device)
    with evaluating(model), memory_errors():
        captions = model.describe(images)
        behind = (captions == 0).cumsum(1) - (captions == 0).long() > 0
        steps = model(images, captions).masked_fill(behind[:, :, None], -torch.inf).argmax(1)
    return captions.cpu(), steps.cpu()


@torch.no_grad()
def word_probabilities(model: Captioner, images: Tensor, caption: Tensor, steps: Tensor) -> Tensor:
    """Return the probability of each word at its own step (V,), after the words of a caption (T,): (n, V).

    A softmax over the vocabulary at that step alone: words that stand at different steps do not compete.
    images: normalised, (n, C, H, W); the result is on the CPU. Errors: torch.OutOfMemoryError.
    """
    images = images.to(next(model.parameters()).device)
    with evaluating(model), memory_errors():
        said: Tensor = model(images, caption.expand(len(images), -1).to(images.device)).softmax(2)
        return said.gather(1, steps.expand(len(images), 1, -1).to(images.device))[:, 0].cpu()


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> Answers:
    """Answer normalised images (n, C, H, W) in one batch, in evaluation mode, on the model's device.

    Errors: torch.OutOfMemoryError, also for a CPU's memory.
    """
    if bla_layers(model):
        return _answer_both_ways(model, images)
    weight = next(model.parameters())
    with evaluating(model), memory_errors(), record_laps(model) as records:
        logits, tokens = _said(model, images.to(weight.device))
        maps = [record.logits.float().sigmoid().flatten(2) for record in records]
    if not maps:
        none = torch.zeros(len(images), 0, 0)
        return Answers(logits, none, none, tokens=tokens)
    peaks = torch.stack([found.amax(dim=2) for found in maps], dim=1)
    sums = torch.stack([found.sum(dim=2) for found in maps], dim=1)
    return Answers(logits, peaks.cpu(), sums.cpu(), tokens=tokens)


def _answer_both_ways(model: nn.Module, images: Tensor) -> Answers:
    """Answer by the soft and by the hard output of BLA; the network's own output gives the logits."""
    images = images.to(next(model.parameters()).device)
    said = {}
    with evaluating(model), memory_errors(), record_bla(model) as records:
        for way in ("soft", "hard"):
            with deciding(model, way):
                said[way] = _said(model, images)
    selected = records[-1].selected.flatten(1).sum(1).cpu()
    logits, tokens = said[next(iter(bla_layers(model).values())).attention.output]
    none = torch.zeros(len(images), 0, 0)
    return Answers(logits, none, none, said["soft"][0], said["hard"][0], selected, tokens)


def _said(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what a network says on the CPU: its logits, and the caption where it writes one."""
    if isinstance(model, Captioner):
        scores, tokens = model.answer(images)
        return scores.cpu(), tokens.cpu()
    return model(images).cpu(), None
