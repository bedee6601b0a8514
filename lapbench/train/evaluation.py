"""What a network answers, and how good the answers are."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.metrics import accuracy_score, recall_score
from torch import nn

from lapbench.benchmark import Data
from lapbench.data import Split
from lapbench.data.captions import caption_scores
from lapbench.data.landmarks import landmark_scores
from lapbench.errors import TrainingError
from lapbench.models.predict import evaluating
from lapbench.train.hardware import resolve_device
from lapbench.train.images import ahead, normalise, tabulate
from lapbench.types import Array, FloatArray, IntArray, Task

HEADLINE: dict[Task, str] = {
    "classification": "accuracy",
    "landmarks": "normalised_error",
    "captions": "token_accuracy",
}
"""The measure of an epoch that is told while training goes on."""


@dataclass(frozen=True)
class Predictions:
    """The logits (n, classes) float32 and the true labels (n,) of a split, in its order."""

    logits: FloatArray
    labels: IntArray


def evaluate(
    model: nn.Module, split: Split, data: Data, *, device: str = "auto", batch_size: int = 64
) -> Predictions:
    """Return what the network answers to every image of a split; its modes and its device are put back.

    Errors: TrainingError when the answers hold NaN or infinity.
    """
    where = resolve_device(device)
    table = tabulate(split, truth=False)
    rows = np.array_split(np.arange(len(split)), -(-len(split) // batch_size))
    home = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.inference_mode():
        try:
            model.to(where)
            found = [
                model(normalise(batch.images.to(where), data)).float().cpu().numpy()
                for batch in ahead(partial(table.take, chunk) for chunk in rows)
            ]
        finally:
            model.to(home)
    predictions = Predictions(np.concatenate(found), split.labels)
    if not np.isfinite(predictions.logits).all():
        wrong = int((~np.isfinite(predictions.logits).all(axis=1)).sum())
        raise TrainingError(
            f"the network answers NaN or infinity to {wrong} of {len(split)} images: its weights are unusable"
        )
    return predictions


def metrics(logits: FloatArray, labels: IntArray) -> dict[str, float]:
    """Return accuracy and balanced accuracy; for two classes also sensitivity and specificity (of class 1).

    A measure without a sample to be computed on is left out.
    """
    answers = logits.argmax(axis=1)
    found = {"accuracy": float(accuracy_score(labels, answers))}
    present = np.unique(labels)
    # balanced_accuracy_score is the same mean, but warns of answers that name a class without samples
    recalls = recall_score(labels, answers, labels=present, average=None, zero_division=0.0)
    found["balanced_accuracy"] = float(recalls.mean())
    if logits.shape[1] == 2:
        for name, positive in (("sensitivity", 1), ("specificity", 0)):
            if positive in present:
                found[name] = float(recalls[int(np.flatnonzero(present == positive)[0])])
    return found


def measure(
    answers: FloatArray, wanted: Array, *, task: Task, targets: tuple[str, ...], size: tuple[int, int]
) -> dict[str, float]:
    """Return how right the answers to a split are, by name: means over its images.

    Of classification as `metrics`. Of landmarks normalised_error and landmark_accuracy, as
    `lapbench.data.landmarks.landmark_scores`; targets and size: their coordinates, and the image's height and
    width. Of captions token_accuracy: the share of a caption's words that are right when those before are
    given; answers: the logits (n, T, V).
    """
    if task == "landmarks":
        scores = landmark_scores(answers, wanted, targets, size)
        return {name: float(np.nanmean(score)) for name, score in scores.items()}
    if task == "captions":
        return {
            "token_accuracy": float(caption_scores(answers.argmax(axis=-1), wanted)["word_accuracy"].mean())
        }
    return metrics(answers, wanted)
