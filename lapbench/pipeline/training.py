"""Stage 1: train the networks whose weights are missing."""

import math
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from lapbench import benchmark as definition
from lapbench.digest import plain
from lapbench.errors import WeightsError
from lapbench.models import evaluating, record_laps, save_weights
from lapbench.pipeline.job import Job, Subject
from lapbench.pipeline.networks import new_network
from lapbench.train import seeded
from lapbench.train import train as fit


def train(job: Job) -> list[Path]:
    """Train every network whose weights are missing, and return the weights files of all.

    One process trains a network at a time; another that wants the same weights waits and then finds them.
    Errors: WeightsError where given weights are not there; those of `lapbench.train.train`.
    """
    paths = []
    for model in job.benchmark.models:
        for seed in model.seeds:
            path = job.weights(model, seed)
            paths.append(path)
            if model.recipe is None:
                if not path.is_file():
                    raise WeightsError(f"{path}: there is no such weights file, which {model.name} needs")
            elif not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_suffix(".lock")):
                    if not path.is_file():
                        _train(job, model, model.recipe, seed, path)
    return paths


def _train(job: Job, model: definition.Model, recipe: definition.Recipe, seed: int, path: Path) -> None:
    name, workdir = Subject(model, seed, path).text, path.with_suffix(".training")
    with seeded(seed):
        network = new_network(job, model)
    _warn_of_coarse_maps(job, model, network)
    record = fit(
        network,
        job.dataset,
        data=job.benchmark.data,
        recipe=recipe.model_copy(update={"pretrained": job.start(model, seed), "start": None}),
        plug=model.plug,
        seed=seed,
        device=job.workspace.device,
        workdir=workdir,
        progress=lambda done, total, text: job.workspace.progress(done, total, f"train {name} · {text}"),
    )
    save_weights(
        path,
        network.state_dict(),
        {
            "model": model.name,
            "architecture": model.architecture,
            "parameters": model.parameters,
            **({"bla": plain(model.bla)} if model.bla else {}),
            **({"antehoc": plain(model.antehoc)} if model.antehoc else {}),
            **record.as_dict(),
            "recipe": plain(
                recipe
            ),  # as defined: it names the model it started from, not a file of the cache
        },
    )
    shutil.rmtree(workdir, ignore_errors=True)  # the checkpoint has served


def _warn_of_coarse_maps(job: Job, model: definition.Model, network: nn.Module) -> None:
    """Tell the user where the deepest LAP map has less than one cell across the median object."""
    side, data = job.median_object_side, job.benchmark.data
    if "lap" not in model.carries or side is None:
        return
    with evaluating(network), torch.no_grad(), record_laps(network) as records:
        network(torch.zeros(1, data.channels, *data.image_size))
        height, width = records[-1].logits.shape[2:]
    cells = side * math.sqrt(height * width)
    if cells < 1:
        job.workspace.notify(
            f"{model.name}: the deepest LAP map ({height}×{width}) has {cells:.1f} cells across the median "
            "object, so LAP All can hardly outline it: take larger images or a stem of smaller stride"
        )
