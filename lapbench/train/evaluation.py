"""What a network answers, and how good the answers are."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from sklearn.metrics import accuracy_score, recall_score
from torch import nn

from lapbench.benchmark import Data
from lapbench.data import Split
from lapbench.errors import TrainingError
from lapbench.models.predict import evaluating
from lapbench.train.hardware import resolve_device
from lapbench.train.images import ahead, normalise, tabulate
from lapbench.types import FloatArray, IntArray


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
