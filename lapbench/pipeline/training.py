"""Stage 1: train the networks whose weights are missing."""

from pathlib import Path

from filelock import FileLock

from lapbench import benchmark as definition
from lapbench.errors import WeightsError
from lapbench.models.weights import save_weights
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
    name = Subject(model, seed, path).text
    with seeded(seed):
        network = new_network(job, model)
    record = fit(
        network,
        job.dataset,
        data=job.benchmark.data,
        recipe=recipe,
        plug=model.plug,
        seed=seed,
        device=job.workspace.device,
        workdir=path.with_suffix(".training"),
        progress=lambda done, total, text: job.workspace.progress(done, total, f"train {name} · {text}"),
    )
    save_weights(
        path,
        network.state_dict(),
        {
            "model": model.name,
            "architecture": model.architecture,
            "parameters": model.parameters,
            **record.as_dict(),
        },
    )
