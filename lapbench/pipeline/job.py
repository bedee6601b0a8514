"""One benchmark in one workspace: which files it needs, and what each is called.

Everything that is made is named by the digest of all that could change it, so nothing ever asks whether a
file is fresh: it is there or it is missing. A shard's name holds the weights, a row's name holds its shards.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from platformdirs import user_cache_path

from lapbench import benchmark as definition
from lapbench.benchmark import Benchmark
from lapbench.data import Dataset, Split, describe, load_manifest, open_dataset
from lapbench.digest import digest_of, digest_of_file
from lapbench.errors import DefinitionError, WeightsError, suggest
from lapbench.executor import Key, Progress
from lapbench.models.bla import EVALUATION_VERSION
from lapbench.models.published import published_weights
from lapbench.registry import ExplainerSpec, architectures, explainers
from lapbench.store import MapStore
from lapbench.types import IntArray

SHARD = 128
"""Samples in a shard: what an interruption can lose."""
TRAINING_VERSION = 1
"""Raised when a change of the training code may change the weights it ends with."""
SCORING_VERSION = 2
"""Raised when a change of the scoring code may change a number."""

Purpose = Literal["train", "fit", "score"]


def silent(*_: object) -> None:
    """Show nothing."""


def default_cache() -> Path:
    """The user's cache folder for lapbench."""
    return user_cache_path("lapbench", appauthor=False)


@dataclass(frozen=True)
class Workspace:
    """Where a run reads and writes, and whom it tells.

    out: reports. cache: weights, maps, scores. data: the data root. limit: first samples of each split.
    progress: see `lapbench.executor.Progress`. notify: told, in a sentence, what a user should know.
    """

    out: Path
    cache: Path = field(default_factory=default_cache)
    data: Path | None = None
    limit: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    progress: Progress = silent
    notify: Callable[[str], object] = silent


@dataclass(frozen=True)
class Subject:
    """One network with one set of weights: trained, given, or (as a control) drawn at random."""

    model: definition.Model
    seed: int
    weights: Path
    randomised: bool = False

    @property
    def missing(self) -> str:
        """Why it cannot be asked anything: its weights are not there, and what makes them; or nothing."""
        if self.weights.is_file():
            return ""
        mend = "give the path of a file" if self.model.weights else "run `lapbench train` first"
        return f"no weights for {self.model.name} ({self.weights}): {mend}"

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the weights file. Errors: WeightsError where there is none yet."""
        if self.missing:
            raise WeightsError(self.missing)
        return digest_of_file(self.weights)

    @property
    def text(self) -> str:
        """How progress and errors name it."""
        seed = f", seed {self.seed}" if len(self.model.seeds) > 1 else ""
        return self.model.name + seed + (", random weights" if self.randomised else "")

    def identity(self) -> dict[str, Any]:
        """Everything of the network that can change a map."""
        drawn = self.model.bla is not None and self.model.bla.draws
        return {
            **_structure(self.model),
            **({"evaluation": EVALUATION_VERSION} if drawn else {}),
            "weights": self.weights_digest,
            "randomised": self.randomised,
        }


@dataclass(frozen=True)
class Source:
    """Where one row's maps come from: an explainer, and the network it explains (none for a control)."""

    subject: Subject | None
    explainer: definition.Explainer

    @property
    def spec(self) -> ExplainerSpec:
        """The registered explainer."""
        return explainers.get(self.explainer.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters of the explainer, defaults included."""
        return self.spec.parameters.model_validate(self.explainer.parameters).model_dump()

    @property
    def text(self) -> str:
        """How progress and errors name it."""
        return f"{self.explainer.row} on {self.subject.text}" if self.subject else self.explainer.row

    def identity(self) -> dict[str, Any]:
        """Everything but the samples that can change a map."""
        spec = self.spec
        return {
            "network": self.subject.identity() if self.subject else None,
            "explainer": spec.name,
            "explainer_version": spec.version,
            "origin": spec.origin,
            "parameters": self.parameters,
            "libraries": {name: release(name).partition("+")[0] for name in ("torch", "captum")},
        }


@dataclass(frozen=True)
class Block:
    """The samples of one shard: positions in their split, consecutive among those that are needed."""

    split: str
    number: int
    indices: tuple[int, ...]


@dataclass(frozen=True)
class RowSource:
    """What one row of the leaderboard is made from: an explainer on every seed of a model."""

    model: definition.Model | None
    explainer: definition.Explainer
    randomised: bool
    sources: tuple[Source, ...]


class Job:
    """One benchmark in one workspace: which files it needs, and what they are called."""

    def __init__(self, benchmark: Benchmark, workspace: Workspace) -> None:
        self.benchmark = benchmark
        self.workspace = workspace
        self.store = MapStore(workspace.cache / "maps", warn=workspace.notify)
        self._considered: dict[Purpose, Split] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """The images and their truth. Errors: DataError; DefinitionError where the definition disagrees."""
        data = self.benchmark.data
        dataset = open_dataset(
            load_manifest(data.manifest),
            root=self.workspace.data,
            image_size=data.image_size,
            channels=data.channels,
            limit=self.workspace.limit,
            digest_cache=self.workspace.cache / "digests",
            decoded_cache=self.workspace.cache / "decoded",
        )
        check_names(self.benchmark, dataset)
        if dataset.n_outside:
            self.workspace.notify(
                f"{dataset.n_outside:,} boxes of {dataset.name} lie outside their images and are left out: "
                f"`lapbench data check {data.manifest}` tells which"
            )
        return dataset

    @cached_property
    def median_object_side(self) -> float | None:
        """The side of the scored split's median box as a fraction of the image's; None without boxes."""
        return describe(self.dataset).splits[self.benchmark.data.score].median_box_side

    def considered(self, purpose: Purpose) -> Split:
        """The split that trains, fits thresholds or is scored, as far as the definition goes into it."""
        if purpose not in self._considered:
            data = self.benchmark.data
            limits = {"train": None, "fit": data.fit_limit, "score": data.score_limit}
            self._considered[purpose] = self.dataset[self.split_names[purpose]][: limits[purpose]]
        return self._considered[purpose]

    @property
    def split_names(self) -> dict[Purpose, str]:
        """Which split serves which purpose."""
        data = self.benchmark.data
        return {"train": data.train, "fit": data.fit, "score": data.score}

    def weights(self, model: definition.Model, seed: int) -> Path:
        """The file that holds a model's weights, given or to be trained.

        Errors: WeightsError where the weights that the recipe starts from are missing.
        """
        if model.weights is not None:
            return model.weights
        recipe, data = model.recipe, self.benchmark.data
        key = {
            **_structure(model),
            "recipe": recipe.identity() if recipe else None,
            "pretrained": pretrained_identity(model),
            "seed": seed,
            "data": self.dataset.digest,
            "splits": [data.train, data.select],
            "input": [data.mean, data.std],
            "training": TRAINING_VERSION,
        }
        if earlier := self._earlier(model, seed):
            key["start"] = earlier.weights_digest if earlier.model.weights else earlier.weights.stem
        return self.workspace.cache / "weights" / f"{slug(model.name)}-{digest_of(key)[:16]}.safetensors"

    def start(self, model: definition.Model, seed: int) -> Path | None:
        """The weights that a model's training starts from: given or published ones, or an earlier model's.

        Errors: DefinitionError where that model was left out; those of `published_weights`.
        """
        if earlier := self._earlier(model, seed):
            return earlier.weights
        if model.recipe is None or model.recipe.published is None:
            return model.recipe.pretrained if model.recipe else None
        return published_weights(model.architecture, model.recipe.published)

    def _earlier(self, model: definition.Model, seed: int) -> Subject | None:
        """The network that another one starts from: that of the same seed, or the only one."""
        name = model.recipe.start if model.recipe else None
        if name is None:
            return None
        for earlier in self.benchmark.models:
            if earlier.name == name:
                own = seed if seed in earlier.seeds else earlier.seeds[0]
                return Subject(earlier, own, self.weights(earlier, own))
        raise DefinitionError(f"{model.name} starts from {name}, which was left out: name it, too")

    def subjects(self) -> Iterator[Subject]:
        """Every network that is explained, controls with random weights last."""
        for randomised in (False, True)[: 1 + self.benchmark.protocol.randomised_weights]:
            for model in self.benchmark.models:
                for seed in model.seeds:
                    yield Subject(model, seed, self.weights(model, seed), randomised)

    def rows(self) -> Iterator[RowSource]:
        """What every row is made from, network by network, controls that know no network last."""
        subjects = list(self.subjects())
        for randomised in (False, True)[: 1 + self.benchmark.protocol.randomised_weights]:
            for model in self.benchmark.models:
                own = [s for s in subjects if s.model is model and s.randomised == randomised]
                for explainer in self.benchmark.explainers:
                    if _applies(explainers.get(explainer.name), model):
                        yield RowSource(
                            model, explainer, randomised, tuple(Source(s, explainer) for s in own)
                        )
        for explainer in self.benchmark.explainers:
            if not explainers.get(explainer.name).explains_networks:
                yield RowSource(None, explainer, False, (Source(None, explainer),))

    def blocks(self, purpose: Purpose) -> list[Block]:
        """The samples whose maps are needed, cut into shards.

        Images without truth have no IoU, so of the scored split only the others are explained; in the fit
        they count as all background, unless the protocol leaves them out.
        """
        split = self.considered(purpose)
        everything = purpose == "fit" and self.benchmark.protocol.fit_images == "all"
        wanted = np.arange(len(split)) if everything else np.flatnonzero(split.has_truth)
        return _cut(split.name, wanted)

    def prediction_blocks(self, purpose: Purpose) -> list[Block]:
        """All samples that are considered, cut into shards."""
        split = self.considered(purpose)
        return _cut(split.name, np.arange(len(split)))

    def map_key(self, source: Source, block: Block) -> Key:
        """Name and digest of the maps of a source on a block."""
        what = {"maps": source.identity(), "target": self._target_identity(source), **self._samples(block)}
        network = _network(source.subject) if source.subject else "controls"
        return f"{network}/{slug(source.explainer.row)}/{block.split}-{block.number:04d}", digest_of(what)

    def prediction_key(self, subject: Subject, block: Block) -> Key:
        """Name and digest of the answers of a network on a block."""
        what = {"answers": subject.identity(), **self._samples(block)}
        return f"{_network(subject)}/predictions/{block.split}-{block.number:04d}", digest_of(what)

    def removal_key(self, subject: Subject, block: Block, grid: int) -> Key:
        """Name and digest of what the removal of regions of a block's images costs a network."""
        what = {
            "removals": subject.identity(),
            "grid": grid,
            "target": self.benchmark.protocol.target,
            **self._asked(),
            **self._samples(block),
        }
        return f"{_network(subject)}/removals/{block.split}-{block.number:04d}", digest_of(what)

    def mlp_key(self, subject: Subject, mlp: definition.ConceptMLP) -> Key:
        """Name and digest of what is read in the concepts of a network, over the scored split."""
        what = {
            "answers": [
                self.prediction_key(subject, block)[1]
                for purpose in ("train", "score")
                for block in self.prediction_blocks(purpose)
            ],
            "mlp": mlp,
            "seed": subject.seed,
            "scikit-learn": release("scikit-learn"),
        }
        return f"{_network(subject)}/concepts", digest_of(what)

    def row_digest(self, row: RowSource) -> str:
        """The digest of everything that decides a row's numbers: its maps, and how they are scored."""
        return digest_of(
            {
                "shards": [
                    [
                        self.map_key(source, block)[1]
                        for purpose in ("fit", "score")
                        for block in self.blocks(purpose)
                    ]
                    for source in row.sources
                ],
                "upsample": row.sources[0].spec.upsample,
                "native": row.sources[0].spec.native_threshold,
                "protocol": self.benchmark.protocol,
                "row": [row.model.name if row.model else None, row.explainer.row],
                "benchmark": [self.benchmark.name, self.benchmark.version],
                "scoring": SCORING_VERSION,
                **self._asked(),
                "library": {name: release(name) for name in ("scipy", "scikit-learn")},
            }
        )

    def row_path(self, row: RowSource) -> Path:
        """Where the scores of a row lie."""
        return self.workspace.cache / "rows" / f"{slug(row.explainer.row)}-{self.row_digest(row)[:16]}.json"

    def failure_path(self, source: Source) -> Path:
        """Where it is noted why an explainer failed, to draw the maps that this run wants of it."""
        purposes: tuple[Purpose, ...] = ("fit", "score")
        what = digest_of(
            [self.map_key(source, block) for purpose in purposes for block in self.blocks(purpose)]
        )
        return self.workspace.cache / "failures" / f"{what[:16]}.txt"

    def targets(self, labels: IntArray) -> IntArray | None:
        """The class explained in images with these labels; None where the network's prediction decides."""
        target = self.benchmark.protocol.target
        if target == "predicted":
            return None
        if target == "label":
            return labels
        return np.full(len(labels), self.dataset.classes.index(target), dtype=np.int64)

    def _asked(self) -> dict[str, str]:
        """What is asked of changed images, for a task of which it was once something else."""
        return {"asked": "the word at its own step"} if self.dataset.task == "captions" else {}

    def _target_identity(self, source: Source) -> str:
        return (
            "any" if source.spec.class_agnostic and source.subject is None else self.benchmark.protocol.target
        )

    def _samples(self, block: Block) -> dict[str, Any]:
        split = self.dataset[block.split]
        return {
            "data": self.dataset.digest,
            "ids": [split.ids[i] for i in block.indices],
            "input": [self.benchmark.data.mean, self.benchmark.data.std],
        }


def check_names(benchmark: Benchmark, dataset: Dataset) -> None:
    """Hold a definition against its data. Errors: DefinitionError that lists every disagreement."""
    faults = []
    data = benchmark.data
    for end in ("train", "select", "fit", "score"):
        name = getattr(data, end)
        trained = any(model.recipe for model in benchmark.models)
        if name not in dataset.splits and (trained or end in ("fit", "score")):
            faults.append(f"data.{end}: {dataset.name} has no split {name!r}{suggest(name, dataset.splits)}")
    faults += _task_faults(benchmark, dataset)
    target = benchmark.protocol.target
    if target not in ("label", "predicted", *dataset.classes):
        known = ("label", "predicted", *dataset.classes)
        faults.append(f"protocol.target: {dataset.name} has no class {target!r}{suggest(target, known)}")
    for model in benchmark.models:
        for concept in model.plug.concepts if model.plug else ():
            faults += [
                f"models.{model.name}.plug.concepts.{concept.name}: {dataset.name} has no class {name!r}"
                f"{suggest(name, dataset.classes)}"
                for name in concept.classes
                if name not in dataset.classes
            ]
    if faults:
        raise DefinitionError(
            f"{benchmark.name} does not fit its data\n" + "\n".join(f"  {f}" for f in faults)
        )


def _task_faults(benchmark: Benchmark, dataset: Dataset) -> Iterator[str]:
    """Say what a definition asks for that the task of its data does not have."""
    told = f"{dataset.name} is for {dataset.task}"
    for model in benchmark.models:
        if (model.decoder is not None) != (dataset.task == "captions"):
            mend = "needs" if model.decoder is None else "has no use for"
            yield f"models.{model.name}: {told}, which {mend} [models.decoder]"
    if dataset.task == "classification":
        return
    if benchmark.protocol.target == "predicted":
        yield f"protocol.target: {told}, where a network predicts no single target: take 'label'"
    if benchmark.protocol.score_images != "positives":
        yield f"protocol.score_images: {told}, where no image is classified: take 'positives'"
    for model in benchmark.models:
        if model.concept_mlp is not None:
            yield f"models.{model.name}: {told}, and concept_mlp reads classes"
        if model.recipe is not None and model.recipe.supervision != "none":
            yield f"models.{model.name}: {told}, and supervision {model.recipe.supervision!r} is of classes"


def pretrained_identity(model: definition.Model) -> str | None:
    """What names the weights that a recipe starts from: a file's digest, or whose published ones they are.

    Errors: WeightsError where the file is missing.
    """
    recipe = model.recipe
    if recipe is None or recipe.pretrained is None:
        return None
    if recipe.published:
        return f"torchvision/{model.architecture}/{recipe.published}"
    if not recipe.pretrained.is_file():
        raise WeightsError(
            f"{recipe.pretrained}: there is no such weights file, which {model.name} starts from"
        )
    return digest_of_file(recipe.pretrained)


def _applies(spec: ExplainerSpec, model: definition.Model) -> bool:
    """Whether a model's network has the layers that an explainer draws its maps from."""
    return spec.explains_networks and spec.layers <= model.carries


def _structure(model: definition.Model) -> dict[str, Any]:
    entry = architectures.get(model.architecture)
    tables = {"bla": model.bla, "antehoc": model.antehoc, "decoder": model.decoder}
    younger = {name: value for name, value in tables.items() if value}
    return younger | {  # networks without what is younger keep their names
        "architecture": entry.name,
        "architecture_version": entry.version,
        "origin": entry.origin,
        "parameters": entry.parameters.model_validate(model.parameters).model_dump(),
        "plug": model.plug,
    }


def _cut(split: str, indices: IntArray) -> list[Block]:
    return [
        Block(split, number, tuple(indices[start : start + SHARD].tolist()))
        for number, start in enumerate(range(0, len(indices), SHARD))
    ]


def _network(subject: Subject) -> str:
    return f"{slug(subject.model.name)}-{subject.weights_digest[:8]}{'-random' if subject.randomised else ''}"


@cache
def release(library: str) -> str:
    """The version of an installed library; read from disk once, since every name of a file asks for it."""
    return version(library)


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
