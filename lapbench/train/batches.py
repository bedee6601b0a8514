"""Which samples make the batches of an epoch, decided by the seed and the number of the epoch alone.

So an interrupted training draws the same batches when it goes on, without any state of a generator being
kept.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lapbench.benchmark import Recipe
from lapbench.errors import TrainingError
from lapbench.types import IntArray


def batches_of_epoch(labels: IntArray, n_classes: int, recipe: Recipe, *, seed: int, epoch: int) -> IntArray:
    """Return the sample indices of every batch of one epoch: (iterations, samples).

    balanced: equal numbers of every class in each batch, drawn with replacement; the class blocks stand one
    after the other. Otherwise the samples are shuffled and an incomplete last batch is left out.
    """
    rng = generator(seed, epoch)
    iterations, size = epoch_shape(labels, n_classes, recipe)
    if recipe.balanced:
        blocks = [
            rng.choice(np.flatnonzero(labels == c), size=(iterations, size // n_classes))
            for c in range(n_classes)
        ]
        return np.concatenate(blocks, axis=1)
    rounds = -(-iterations * size // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(rounds)])
    return order[: iterations * size].reshape(iterations, size)


def epoch_shape(labels: IntArray, n_classes: int, recipe: Recipe) -> tuple[int, int]:
    """Return the number of batches in an epoch and of samples in a batch.

    Balanced: ceil(classes · largest class / batch) batches, so that the largest class is seen once on
    average.
    """
    if recipe.balanced:
        size = recipe.batch_size // n_classes * n_classes
        usual = -(-n_classes * int(np.bincount(labels, minlength=n_classes).max()) // size)
    else:
        size = min(recipe.batch_size, len(labels))
        usual = len(labels) // size
    return recipe.iterations or usual, size


def check_classes(labels: IntArray, classes: Sequence[str], recipe: Recipe, *, split: str) -> None:
    """Raise TrainingError when a class has no sample, or a balanced batch cannot hold all classes."""
    counts = np.bincount(labels, minlength=len(classes))
    missing = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise TrainingError(
            f"split {split!r} holds no sample of class {', '.join(map(repr, missing))}, "
            f"but the network is to tell {len(classes)} classes apart: add samples or drop the class"
        )
    if recipe.balanced and recipe.batch_size < len(classes):
        raise TrainingError(
            f"a balanced batch needs at least one sample of each of {len(classes)} classes, "
            f"but batch_size is {recipe.batch_size}: raise it, or set balanced = false"
        )


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Return a generator that the seed and the epoch decide."""
    return np.random.default_rng([seed % 2**64, epoch])


def uniform(seed: int, epoch: int, positions: IntArray, stream: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for every position in an epoch, however the batches are cut.

    stream: tells apart several numbers for one sample. The positions are hashed by SplitMix64 (Steele, Lea
    and Flood, OOPSLA 2014), because one generator object a sample would cost more than the training step.
    """
    start = generator(seed, epoch).integers(2**63, size=stream + 1, dtype=np.uint64)[stream]
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the method
        z = start + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    drawn: npt.NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn
