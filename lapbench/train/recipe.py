"""Training a network by a recipe, from its first epoch or from where it was interrupted."""

import copy
import dataclasses
import gc
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lapbench.benchmark import Data, Plug, Recipe
from lapbench.data import Dataset
from lapbench.digest import digest_of
from lapbench.errors import TrainingError
from lapbench.models import (
    Captioner,
    bla_layers,
    copy_pretrained,
    copy_weights,
    is_added,
    lap_heads,
    lap_layers,
    load_weights,
    weights_digest,
)
from lapbench.models.plug import moved
from lapbench.models.weighting import antehoc_layers
from lapbench.train.batches import check_classes
from lapbench.train.evaluation import measure
from lapbench.train.features import on_features
from lapbench.train.freezing import only
from lapbench.train.hardware import Hardware, choose_hardware
from lapbench.train.images import tabulate
from lapbench.train.lightning import (
    CHECKPOINT,
    Diary,
    Lesson,
    Material,
    Progress,
    fit,
    preserved,
    quiet,
)
from lapbench.train.objective import Objective, make_discriminators
from lapbench.types import Task


@dataclass(frozen=True)
class TrainingRecord:
    """How weights came to be, in JSON types.

    epochs: the measures of each, by name; ``val_loss`` is the recipe's total without the loss of the
    discriminative scoring modules. best_epoch: 1-based, whose weights were kept. minutes: of all epochs
    together.
    """

    recipe: dict[str, Any]
    plug: dict[str, Any] | None
    data: dict[str, Any]
    dataset: str
    dataset_digest: str
    classes: tuple[str, ...]
    seed: int
    epochs: tuple[dict[str, float], ...]
    best_epoch: int
    minutes: float
    parameters: int
    device: str
    precision: str
    threads: int
    versions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return dataclasses.asdict(self)


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    data: Data,
    recipe: Recipe,
    plug: Plug | None = None,
    seed: int = 0,
    device: str = "auto",
    workdir: Path,
    progress: Progress | None = None,
) -> TrainingRecord:
    """Train a network and leave the best epoch's weights in it, in eval mode on the CPU.

    model: plugged by plug where the recipe supervises concept heads; build it inside `seeded` for a seed
    that decides its first weights, too. workdir: keeps one checkpoint, for one training at a time; called
    again after an interruption, the training goes on after the last finished epoch and ends, on the same CPU
    with the same number of threads, in the same weights bit for bit. The interrupted model is left as it was
    given. A checkpoint that is damaged or belongs to another training is set aside as ``last.ckpt.broken``.
    Errors: TrainingError when training cannot start or diverges; WeightsError for the recipe's start
    weights.
    """
    plug = plug.of(dataset.classes) if plug else None
    recipe = _for_task(recipe, dataset)
    objective = _objective(model, recipe, plug, dataset.task)
    if dataset.task == "classification":
        check_classes(dataset[data.train].labels, dataset.classes, recipe, split=data.train)
    hardware = choose_hardware(device, recipe.precision)
    workdir.mkdir(parents=True, exist_ok=True)
    key = _key(model, dataset, data, recipe, plug, seed)
    first_state = copy.deepcopy(model.state_dict())
    try:
        diary = _read_checkpoint(workdir / CHECKPOINT, key)
        if not recipe.epochs:
            diary = _untrained(model, recipe, key)
        elif diary is None or len(diary.epochs) < recipe.epochs:
            with preserved(), quiet(), only(model, recipe.learning):
                _learn(
                    model, dataset, data, objective, hardware, diary or Diary(key), seed, workdir, progress
                )
            gc.collect()  # Lightning's trainer and the lesson hold each other, and with them all images
            diary = _read_checkpoint(workdir / CHECKPOINT, key)
        if diary is None:
            raise TrainingError(
                f"{workdir / CHECKPOINT}: the checkpoint vanished or was changed during training"
            )
    except BaseException:
        model.cpu().load_state_dict(first_state)
        raise
    copy_weights(model.cpu(), diary.best_state)
    model.eval()
    return TrainingRecord(
        recipe=recipe.model_dump(mode="json"),
        plug=None if plug is None else plug.model_dump(mode="json"),
        data=data.model_dump(mode="json"),
        dataset=dataset.name,
        dataset_digest=dataset.digest,
        classes=dataset.classes,
        seed=seed,
        epochs=tuple(diary.epochs),
        best_epoch=diary.best_epoch,
        minutes=sum(epoch["seconds"] for epoch in diary.epochs) / 60,
        parameters=sum(p.numel() for p in model.parameters()),
        device=hardware.name,
        precision=hardware.precision,
        threads=torch.get_num_threads(),
        versions={
            "lapbench": version("lapbench"),
            "torch": torch.__version__,
            "pytorch-lightning": version("pytorch-lightning"),
        },
    )


def _learn(
    model: nn.Module,
    dataset: Dataset,
    data: Data,
    objective: Objective,
    hardware: Hardware,
    diary: Diary,
    seed: int,
    workdir: Path,
    progress: Progress | None,
) -> None:
    """Train from the first epoch, or from the checkpoint where the diary holds epochs."""
    resumed = bool(diary.epochs)
    if resumed:
        copy_weights(model, diary.best_state)  # of what rests, the state of every epoch
    elif objective.recipe.pretrained is not None:
        _start_from(model, objective.recipe.pretrained)
    training, selection = dataset[data.train], dataset[data.select]
    if dataset.task != "classification":  # several samples show one image
        training, selection = training.by_image(), selection.by_image()
    material = Material(
        train=tabulate(training, truth=objective.needs_truth),
        select=tabulate(selection, truth=objective.needs_truth),
        train_labels=training.labels,
        select_labels=selection.labels,
        n_classes=len(dataset.classes),
        data=data,
        task=dataset.task,
        measure=partial(measure, task=dataset.task, targets=dataset.classes, size=data.image_size),
    )
    if hardware.count > 1:
        progress = None  # the training processes are new ones, and a terminal's bars cannot travel there
    torch.manual_seed(seed)  # for the weights of the scoring modules
    discriminators = make_discriminators(lap_layers(model) if objective.needs_discriminators else {})
    recipe = objective.recipe
    with on_features(model, material, recipe, hardware, folder=workdir, progress=progress) as ready:
        tail, given = ready
        lesson = Lesson(
            model, discriminators, objective, given, diary,
            seed=seed, folder=workdir, progress=progress, tail=tail,
        )  # fmt: skip
        lesson.train()
        fit(lesson, hardware, workdir / CHECKPOINT if resumed else None)


def _untrained(model: nn.Module, recipe: Recipe, key: str) -> Diary:
    """The diary of a training without epochs: the weights that it starts from are the best."""
    if recipe.pretrained is not None:
        _start_from(model, recipe.pretrained)
    return Diary(key, best_state={name: value.clone() for name, value in model.state_dict().items()})


def _start_from(model: nn.Module, path: Path) -> None:
    """Copy the weights of a network, trained for any classes, into the network.

    Those of a plain network leave what was put into it as it is. A captioner takes those of a classifier into
    its encoder.
    """
    weights = load_weights(path)
    if isinstance(model, Captioner) and not any(key.startswith("encoder.") for key in weights):
        model = model.encoder
    copy_pretrained(model, moved(model, weights), source=str(path), optional=lambda key: is_added(model, key))


def _for_task(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Return the recipe as it is followed: batches are balanced, and concepts taught, of classes alone.

    Errors: TrainingError for what other tasks do not know.
    """
    if dataset.task == "classification":
        return recipe
    known = Recipe.model_fields["select_epoch"].default
    flips = recipe.augment.horizontal_flip or recipe.augment.vertical_flip
    for is_wrong, found, mend in (
        (recipe.teacher != "labels", f"teacher {recipe.teacher!r}", "teacher = 'labels'"),
        (recipe.supervision != "none", f"supervision {recipe.supervision!r}", "supervision = 'none'"),
        (recipe.select_epoch != known, f"select_epoch {recipe.select_epoch!r}", f"select_epoch = {known!r}"),
        (flips, "flipped images, in which left is right,", "no flip in augment"),
    ):
        if is_wrong:
            raise TrainingError(
                f"{found} is for classification, but the task of {dataset.name} is {dataset.task}: set {mend}"
            )
    return recipe.model_copy(update={"balanced": False})


def _objective(model: nn.Module, recipe: Recipe, plug: Plug | None, task: Task) -> Objective:
    """Join the recipe with the network's concept heads. Errors: TrainingError when they do not fit."""
    if recipe.teacher == "network" and not (bla_layers(model) and recipe.learning == ("bla",)):
        raise TrainingError(
            "teacher 'network' lets BLA learn what the network answers without it: put BLA into the network, "
            'and set learning = ["bla"]'
        )
    if recipe.supervision == "none":
        maps = [layer.spec for layer in antehoc_layers(model).values()]
        return Objective(recipe, task=task, antehoc=maps[0] if maps else None)
    heads = lap_heads(model)
    if plug is None or not heads:
        raise TrainingError(
            f"supervision {recipe.supervision!r} trains concept heads, but the network has no LAP: "
            "plug it first (and say how in plug), or set supervision = 'none'"
        )
    if len(heads) != len(plug.concepts):
        raise TrainingError(
            f"the network has {len(heads)} concept heads, but plug names {len(plug.concepts)} concepts: "
            "give train() the plug that the network was made with"
        )
    return Objective(recipe, plug.concepts, heads)


def _key(model: nn.Module, dataset: Dataset, data: Data, recipe: Recipe, plug: Plug | None, seed: int) -> str:
    """Return the digest of what decides a training, apart from the first weights that the model brings.

    Errors: WeightsError for the recipe's start weights.
    """
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    younger = [repr(layer) for layer in bla_layers(model).values()]  # those of BLA change no shape
    settings = [*younger, *(layer.spec for layer in antehoc_layers(model).values())]
    if recipe.pretrained is not None:  # its path alone would not tell another file of the same name
        settings.append(weights_digest(load_weights(recipe.pretrained)))
    return digest_of([dataset.digest, dataset.classes, data, recipe, plug, seed, shapes, *settings])


def _read_checkpoint(path: Path, key: str) -> Diary | None:
    """Return the diary of a checkpoint; None where there is none, or a useless one, which is set aside."""
    if not path.exists():
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        diary = Diary(**checkpoint["lapbench"])
    except Exception:  # noqa: BLE001 - torch raises nearly anything on a damaged file
        diary = Diary("damaged")
    if diary.key == key:
        return diary
    path.replace(path.with_name(f"{path.name}.broken"))
    return None
