"""What each LAP says alone, and how good the answers of networks and LAPs are, image by image.

Source: Modegh, Salimi, Rabiee, arXiv 2201.11808: predictivity is how often a LAP alone is right, faithfulness
how often it says what its network says.
"""

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Scores: TypeAlias = npt.NDArray[np.float64]
Labels: TypeAlias = npt.NDArray[np.int64]

ACTIVE = 0.5
"""A pixel is active where its concept is more probable than not."""


def stand_alone(
    peaks: npt.NDArray[Any], sums: npt.NDArray[Any], heads: Sequence[Sequence[int]], n_classes: int
) -> Labels | None:
    """Return the class that each LAP names for each image, (n, L); None where its heads cannot name one.

    peaks, sums: (n, L, h) of the concept maps. heads: the classes in which each concept is present; () marks
    a common head, which names none. One head for one of two classes: that class where any pixel is active,
    the other elsewhere. One head for every class: the class whose map has the larger sum.
    """
    named = [(head, classes[0]) for head, classes in enumerate(heads) if len(classes) == 1]
    if len(named) < sum(bool(classes) for classes in heads):
        return None  # a concept that several classes share
    if len(named) == 1 and n_classes == 2:
        ((head, present),) = named
        return np.where(peaks[:, :, head] > ACTIVE, np.int64(present), np.int64(1 - present))
    ordered = sorted(named, key=lambda pair: pair[1])
    if [name for _, name in ordered] == list(range(n_classes)):
        largest: Labels = sums[:, :, [head for head, _ in ordered]].argmax(axis=2)
        return largest
    return None


def correctness(answers: Labels, labels: Labels, n_classes: int) -> dict[str, Scores]:
    """Return what every image adds to the measures of classification, by name: their means over images.

    answers: (trainings, n). labels: (n,). accuracy: whether the answer is right. balanced_accuracy: the same,
    weighted so that every class that occurs counts equally. With two classes also sensitivity, over the
    images of class 1 alone, and specificity, over those of class 0; NaN elsewhere. Each (trainings, n).
    """
    right = (answers == labels).astype(np.float64)
    counts = np.bincount(labels, minlength=n_classes)
    weights = len(labels) / (np.count_nonzero(counts) * counts[labels])
    found = {"accuracy": right, "balanced_accuracy": right * weights}
    if n_classes == 2:
        found["sensitivity"] = np.where(labels == 1, right, np.nan)
        found["specificity"] = np.where(labels == 0, right, np.nan)
    return found


def learn_to_read(
    sums: npt.NDArray[Any],
    lessons: Labels,
    unseen: npt.NDArray[Any],
    *,
    n_classes: int,
    hidden: int = 128,
    seed: int = 0,
) -> npt.NDArray[np.float32]:
    """Return the class probabilities (m, classes) that a two-layer network reads in concept features.

    sums: F_C of the LAP paper, the sum of every concept map over its pixels, (n, h). lessons: the classes
    (n,) that the network learns. unseen: features (m, h) of other images. The features are standardised; Adam
    ends when a tenth of the lessons, held back, gets no better, and of less than ten lessons a class, when
    the loss does not. Where all lessons are of one class, it is certain.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    taught, counts = np.unique(lessons, return_counts=True)
    probabilities = np.zeros((len(unseen), n_classes), np.float32)
    if len(taught) == 1:
        probabilities[:, taught] = 1
        return probabilities
    scaler = StandardScaler().fit(sums.astype(np.float64))
    held_back = counts.min() > 1 and len(lessons) >= 10 * len(taught)  # some of every class can be
    network = MLPClassifier((hidden,), early_stopping=held_back, max_iter=1000, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of few lessons all is learned long before
        network.fit(scaler.transform(sums.astype(np.float64)), lessons)
    probabilities[:, network.classes_] = network.predict_proba(scaler.transform(unseen.astype(np.float64)))
    return probabilities
