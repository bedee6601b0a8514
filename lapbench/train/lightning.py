"""The training loop in Lightning: steps, epochs, checkpoints, and silence."""

import logging
import math
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException

from lapbench.benchmark import Data, Recipe
from lapbench.errors import TrainingError
from lapbench.models.lap import record_laps
from lapbench.train.augment import augment
from lapbench.train.batches import batches_of_epoch, epoch_shape, generator
from lapbench.train.evaluation import HEADLINE
from lapbench.train.freezing import rest
from lapbench.train.hardware import Hardware
from lapbench.train.images import Batch, Table, ahead, normalise
from lapbench.train.objective import Objective, map_terms, own_answers, task_terms
from lapbench.types import Array, FloatArray, IntArray, Task

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, text) after every step of training."""

CHECKPOINT = "last.ckpt"

_NOISE = (  # Lightning's remarks on choices that are meant
    r".*does not have many workers.*",
    r".*GPU available but not used.*",
    r".*consider setting `sync_dist=True`.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",  # float16 may skip a step
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


@dataclass(frozen=True)
class Material:
    """What is learnt from: the tables of the training and the selecting split, their labels and classes.

    normalised: the tables hold what the network takes already, rather than images in [0, 1]. measure: from
    the answers to a split and what they should be (labels, or a batch's answers) to the measures of an epoch
    by name.
    """

    train: Table
    select: Table
    train_labels: IntArray
    select_labels: IntArray
    n_classes: int
    data: Data
    measure: Callable[[FloatArray, Array], dict[str, float]]
    normalised: bool = False
    task: Task = "classification"

    def prepared(self, images: Tensor) -> Tensor:
        """Return images from a table as the network takes them."""
        return images if self.normalised else normalise(images, self.data)


@dataclass
class Diary:
    """What has happened so far, as it stands in a checkpoint.

    key: names everything that decides the training. epochs: one dict of measures each. best_state: the
    network's state after the best epoch (1-based).
    """

    key: str
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)


class Lesson(pl.LightningModule):
    """A network, the modules that help to train it, and what one step and one epoch mean."""

    def __init__(
        self,
        model: nn.Module,
        discriminators: nn.ModuleDict,
        objective: Objective,
        material: Material,
        diary: Diary,
        *,
        seed: int,
        folder: Path,
        progress: Progress | None,
        tail: nn.Module | None = None,
    ) -> None:
        """Take the part of the network that the material goes through as tail, where it is not the whole."""
        super().__init__()
        self.model, self.discriminators = model, discriminators
        self.objective, self.material, self.diary = objective, material, diary
        self.seed, self.folder, self.report = seed, folder, progress
        self._answer = (model if tail is None else tail).__call__  # a method: its modules are the network's
        self._learnt = Tally()
        self._selected = Tally()
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._started = time.monotonic()

    @property
    def recipe(self) -> Recipe:
        """The recipe that is followed."""
        return self.objective.recipe

    def train_dataloader(self) -> "TrainBatches":
        """Return the training batches of the current epoch, this process's share of each."""
        return TrainBatches(self)

    def val_dataloader(self) -> "SelectBatches":
        """Return the batches of the selecting split, all of them in every process."""
        return SelectBatches(self.material, self.recipe.batch_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the weighted loss of a batch. Errors: TrainingError when it is not finite."""
        if (
            batch_idx == 0
        ):  # dropout draws from the global generator: an epoch started anew must draw the same
            torch.manual_seed(
                int(generator(self.seed, self.current_epoch).integers(2**62)) + self.global_rank
            )
            self._learnt, self._started = Tally(), time.monotonic()
        total, terms, _ = self._loss(batch)
        values = {"loss": total, **terms}
        if not math.isfinite(total.item()):
            found = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
            raise TrainingError(
                f"training diverged in epoch {self.current_epoch + 1}, step {batch_idx + 1}: {found}; "
                f"lower learning_rate ({self.recipe.learning_rate:g}) or train in 32-true"
            )
        self._learnt.add(values, len(batch.labels))
        self._tell(batch_idx + 1)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Add a batch of the selecting split to the measures of the epoch."""
        total, terms, answer = self._loss(batch)
        # the scoring modules' own loss says nothing about the network
        own = self.objective.weights.get("dsm", 0.0) * terms["dsm"] if "dsm" in terms else 0.0
        self._selected.add({"loss": total - own}, len(batch.labels))
        wanted = batch.labels if batch.answers is None else batch.answers
        self._answers.append((answer.float().cpu(), wanted.cpu()))

    def on_train_epoch_start(self) -> None:
        """Keep the parts that do not learn as they are."""
        rest(self.model, self.recipe.learning)

    def on_validation_epoch_start(self) -> None:
        """Forget the answers of the last epoch."""
        self._selected, self._answers = Tally(), []

    def on_train_epoch_end(self) -> None:
        """Enter the epoch into the diary and write the checkpoint."""
        answers, wanted = (torch.cat(column).numpy() for column in zip(*self._answers, strict=True))
        selected = self._selected.means() | self.material.measure(answers, wanted)
        entry = {"epoch": float(self.current_epoch + 1)}
        entry |= {f"train_{name}": value for name, value in self._learnt.means().items()}
        entry |= {f"val_{name}": value for name, value in selected.items()}
        entry["learning_rate"] = float(self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])  # type: ignore[union-attr]
        entry["seconds"] = time.monotonic() - self._started
        if not math.isfinite(entry["val_loss"]):
            raise TrainingError(
                f"training diverged in epoch {self.current_epoch + 1}: the loss on the split "
                f"{self.material.data.select!r} is {entry['val_loss']}; lower learning_rate"
            )
        self.diary.epochs.append(entry)
        best = min(self.diary.epochs, key=self._rank)
        if best is entry:
            self.diary.best_epoch = self.current_epoch + 1
            self.diary.best_state = {
                name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()
            }
        self._save()

    def configure_optimizers(self) -> Any:
        """Return the recipe's optimiser, and its schedule in steps."""
        recipe = self.recipe
        trained = [p for p in self.parameters() if p.requires_grad]
        optimiser: torch.optim.Optimizer
        if recipe.optimiser == "adam":
            optimiser = torch.optim.Adam(trained, recipe.learning_rate, weight_decay=recipe.weight_decay)
        else:
            optimiser = torch.optim.SGD(
                trained, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )
        schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "one-cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                recipe.learning_rate,
                total_steps=self.steps,
                cycle_momentum=recipe.optimiser == "adam",  # that of SGD is the recipe's
            )
        elif recipe.schedule == "cosine":
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=self.steps)
        else:
            return optimiser
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the diary into the checkpoint."""
        checkpoint["lapbench"] = dict(vars(self.diary))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the diary from the checkpoint."""
        self.diary = Diary(**checkpoint["lapbench"])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch."""
        return epoch_shape(self.material.train_labels, self.material.n_classes, self.recipe)[0]

    @property
    def steps(self) -> int:
        """Steps in the whole training."""
        return self.recipe.epochs * self.steps_per_epoch

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the weighted total, the terms without their weights, and the answer."""
        task, weights = self.objective.task, self.objective.weights
        if self.recipe.teacher == "network":
            answers = own_answers(self.model, batch.images, through=self._answer)
            batch = batch._replace(answers=answers)
        with record_laps(self.model) as records:
            terms, answer = task_terms(self.model, batch, task, through=self._answer)
        terms |= map_terms(self.objective, records, self.discriminators, batch)
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum(), terms, answer

    def _rank(self, entry: dict[str, float]) -> tuple[float, ...]:
        """Return what is smallest in the best epoch."""
        if self.recipe.select_epoch == "val_loss":
            return (entry["val_loss"],)
        return (-entry["val_balanced_accuracy"], entry["val_loss"])  # few samples often tie

    def _tell(self, step: int) -> None:
        if self.report is None:
            return
        text = f"epoch {self.current_epoch + 1}/{self.recipe.epochs}"
        if self.diary.epochs:
            last = self.diary.epochs[-1]
            told = HEADLINE[self.objective.task]
            text += f", val loss {last['val_loss']:.3f}, {told.replace('_', ' ')} {last[f'val_{told}']:.3f}"
        self.report(self.current_epoch * self.steps_per_epoch + step, self.steps, text)

    def _save(self) -> None:
        partial_path = self.folder / f"{CHECKPOINT}.partial"
        self.trainer.save_checkpoint(partial_path)  # every process takes part, the first one writes
        if self.trainer.is_global_zero:
            partial_path.replace(self.folder / CHECKPOINT)
        self.trainer.strategy.barrier()


class Tally:
    """Means of named values over samples."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._samples = 0

    def add(self, values: dict[str, Tensor], samples: int) -> None:
        """Add the values of a batch of so many samples."""
        self._samples += samples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + samples * float(value.detach())

    def means(self) -> dict[str, float]:
        """Return the mean of every value over the samples."""
        return {name: total / self._samples for name, total in self._sums.items()}


class TrainBatches:
    """The training batches of the lesson's current epoch; each process draws its share of every batch."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson

    def __len__(self) -> int:
        return self.lesson.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        # a generator, so that the epoch is read with the first batch: Lightning calls iter() earlier
        lesson, material = self.lesson, self.lesson.material
        seed, epoch = lesson.seed, lesson.current_epoch
        rank, world = lesson.trainer.global_rank, lesson.trainer.world_size
        drawn = batches_of_epoch(
            material.train_labels, material.n_classes, lesson.recipe, seed=seed, epoch=epoch
        )
        positions = np.arange(drawn.size).reshape(drawn.shape)

        def make(indices: IntArray, places: IntArray) -> Batch:
            batch = augment(
                material.train.take(indices),
                lesson.recipe.augment,
                seed=seed,
                epoch=epoch,
                positions=places,
                task=lesson.objective.task,
            )
            return batch._replace(images=material.prepared(batch.images))

        # class blocks stand one after the other, so every process gets the same share of each class
        yield from ahead(
            partial(make, drawn[i, rank::world], positions[i, rank::world]) for i in range(len(drawn))
        )


class SelectBatches:
    """The selecting split in its order, in batches."""

    def __init__(self, material: Material, batch_size: int) -> None:
        n = len(material.select_labels)
        self.material = material
        self.rows = np.array_split(np.arange(n), -(-n // batch_size))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Batch]:
        def make(indices: IntArray) -> Batch:
            batch = self.material.select.take(indices)
            return batch._replace(images=self.material.prepared(batch.images))

        return ahead(partial(make, indices) for indices in self.rows)


def fit(lesson: Lesson, hardware: Hardware, checkpoint: Path | None) -> None:
    """Train until the recipe's last epoch, from a checkpoint if there is one.

    Errors: TrainingError when a loss is not finite; KeyboardInterrupt as it came; SystemExit(143) on SIGTERM.
    """
    try:
        trainer = pl.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            strategy="ddp_spawn" if hardware.count > 1 else "auto",
            precision=hardware.precision,
            max_epochs=lesson.recipe.epochs,
            default_root_dir=lesson.folder,
            plugins=[LightningEnvironment()],  # one machine, whatever cluster it belongs to
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(lesson, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit(1)
            raise KeyboardInterrupt from None
        if isinstance(error, SIGTERMException):  # and SIGTERM into exit(0), which would look like success
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    except ProcessRaisedException as error:
        raise TrainingError(f"a training process failed: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's log and its remarks on choices that are meant."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NOISE:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def preserved() -> Iterator[None]:
    """Put back what training changes in the process: generators, cuDNN's flags, signals, environment."""
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - kept, not used
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    strict = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    environment = dict(os.environ)
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        torch.set_rng_state(generators[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = flags
        torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        if is_main:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw everything inside from a seed, such as a network's first weights; generators are put back."""
    with preserved():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party architectures may draw from it
        torch.manual_seed(seed)
        yield
