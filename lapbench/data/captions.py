"""Captions: the words that a network is to write, as numbers, and how right those are that it writes.

A target is one word of the vocabulary, whose first entry is the end of a caption; captions are padded with
it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.errors import DataError, suggest
from lapbench.types import FloatArray

Scores: TypeAlias = npt.NDArray[np.float64]

END = "<end>"
"""The first entry of a vocabulary: what follows the last word."""


def check_vocabulary(targets: Sequence[str]) -> None:
    """Errors: ValueError for a vocabulary that does not begin with the end, or has no word."""
    if len(targets) < 2 or targets[0] != END:
        raise ValueError(
            f"a vocabulary begins with {END!r}, then come its words: found {list(targets[:2])} at its head"
        )


def encode(caption: str, vocabulary: Sequence[str], *, where: str) -> tuple[float, ...]:
    """Return the numbers of a caption's words. Errors: DataError for a word that the vocabulary lacks."""
    numbers = {word: number for number, word in enumerate(vocabulary)}
    words = caption.split()
    for word in words:
        if word not in numbers:
            raise DataError(
                f"{where}: the vocabulary has no word {word!r}, which stands in"
                f" {caption!r}{suggest(word, vocabulary)}"
            )
    return tuple(float(numbers[word]) for word in words)


def decode(tokens: Iterable[float], vocabulary: Sequence[str]) -> str:
    """Return the words up to the first end, with spaces between them."""
    words = []
    for token in tokens:
        if token == 0:
            break
        words.append(vocabulary[int(token)])
    return " ".join(words)


def check_caption(answer: Sequence[float], targets: Sequence[str], label: str) -> None:
    """Errors: ValueError for no words, a number that is none of a word, and a caption without its target."""
    if not answer:
        raise ValueError("the caption is empty: wanted one word or more")
    wrong = [number for number in answer if number not in range(1, len(targets))]
    if wrong:
        raise ValueError(
            f"{wrong[0]:g} is no word: wanted numbers from 1 to {len(targets) - 1}, without the end"
        )
    words = decode(answer, targets)
    if label not in words.split():
        raise ValueError(f"the target {label!r} is no word of the caption {words!r}")


def padded(answers: Sequence[Sequence[float]], length: int) -> FloatArray:
    """Return captions as (n, length), filled up with the number of the end."""
    table = np.zeros((len(answers), length), np.float32)
    for row, answer in enumerate(answers):
        table[row, : len(answer)] = answer
    return table


def counted(tokens: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which tokens (..., length) belong to a caption: its words and its first end."""
    ends = np.cumsum(tokens == 0, axis=-1)
    belongs: npt.NDArray[np.bool_] = ends - (tokens == 0) == 0
    return belongs


def caption_scores(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, Scores]:
    """Return how right captions are, by name: found (..., n, length), truth (n, length), both padded.

    word_accuracy: the share of the true caption's words, its end included, that stand in their place.
    caption_accuracy: whether all do. Both (..., n).
    """
    counts = counted(truth)
    right = (found == truth) & counts
    share = right.sum(axis=-1) / counts.sum(axis=-1)
    return {"word_accuracy": share, "caption_accuracy": (share == 1).astype(np.float64)}
