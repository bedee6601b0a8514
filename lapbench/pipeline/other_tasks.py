"""How right networks are whose task is not classification: landmarks and captions, image by image."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from lapbench.data.captions import caption_scores, decode
from lapbench.data.landmarks import landmark_scores
from lapbench.pipeline.answering import Answers
from lapbench.pipeline.job import Job
from lapbench.types import IntArray

Scores: TypeAlias = npt.NDArray[np.float64]


def measured(job: Job) -> IntArray:
    """The positions in the scored split whose answers are measured, (n,): each image once.

    Of classification all.
    """
    split = job.considered("score")
    return np.arange(len(split)) if job.dataset.task == "classification" else split.first_of_image


def correctness(job: Job, answers: Sequence[Answers]) -> dict[str, Scores]:
    """Return what every image adds to the measures of landmarks or captions, by name, (seeds, images) each.

    answers: to the whole scored split, one a seed. normalised_error and landmark_accuracy: as
    `lapbench.data.landmarks.landmark_scores`; word_accuracy and caption_accuracy: as
    `lapbench.data.captions.caption_scores`.
    """
    positions = measured(job)
    wanted = job.considered("score").answers[positions]
    if job.dataset.task == "captions":
        return caption_scores(np.stack([one["tokens"][positions] for one in answers]), wanted)
    found = np.stack([one["logits"][positions] for one in answers])
    return landmark_scores(found, wanted, job.dataset.classes, job.benchmark.data.image_size)


def in_words(job: Job, answers: Answers, indices: Sequence[int]) -> list[str]:
    """Say what a network answers to samples of the scored split: a caption, or a target's coordinate."""
    names = job.dataset.classes
    if job.dataset.task == "captions":
        return [decode(answers["tokens"][index], names) for index in indices]
    labels = job.considered("score").labels
    return [f"{names[labels[index]]} {answers['logits'][index, labels[index]]:.2f}" for index in indices]
