"""What a recipe trains for: which loss terms, summed over the LAPs, with which weights."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc, Concept, Recipe
from lapbench.errors import TrainingError
from lapbench.models.bla import deciding
from lapbench.models.lap import LAP, ConceptScoring, LapRecord
from lapbench.models.predict import evaluating
from lapbench.models.weighting import antehoc_layers, second_pass
from lapbench.train import losses
from lapbench.train.images import Batch
from lapbench.types import Task

TERMS: dict[Task, str] = {
    "classification": "cross_entropy",
    "landmarks": "coordinate_error",
    "captions": "token_cross_entropy",
}
"""The name of each task's own loss."""
Output: TypeAlias = Tensor | tuple[Tensor | None, ...]
"""What a network returns in training: its answer, with auxiliary ones where it has such."""

AUXILIARY_WEIGHTS = {"InceptionOutputs": 0.4, "GoogLeNetOutputs": 0.3}
"""Weight of the auxiliary classifiers' cross-entropy, by the type of what the network returns in training.

0.3: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 5. 0.4: customary for Inception V3.
"""


@dataclass(frozen=True)
class Objective:
    """A recipe with the concepts of the plugged network; heads: the classes of every concept head.

    antehoc: of a network with ante-hoc maps (reconstruction).
    """

    recipe: Recipe
    concepts: tuple[Concept, ...] = ()
    heads: tuple[tuple[int, ...], ...] = ()
    task: Task = "classification"
    antehoc: AnteHoc | None = None

    @property
    def needs_truth(self) -> bool:
        """Whether masks and boxes take part."""
        return self.recipe.supervision == "boxes"

    @property
    def needs_discriminators(self) -> bool:
        """Whether a discriminative scoring module ranks the pixels of any term."""
        switches = self.recipe.losses
        if self.recipe.supervision == "none" or switches.rank_source == "self":
            return False
        return self.recipe.supervision == "weak" or switches.rank_source_iar == "dsm"

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term in the total, by its name."""
        switches = self.recipe.losses
        own = TERMS[self.task]
        weights = {own: switches.cross_entropy}
        if self.antehoc is not None:
            weights[f"masked_{own}"] = self.antehoc.masked * switches.cross_entropy
            weights["map_area"] = self.antehoc.area
        if self.recipe.supervision == "weak":
            weights["concept_discrimination"] = switches.concept_discrimination
            weights["concordance"] = switches.concordance
        elif self.recipe.supervision == "boxes":
            weights["boxes"] = switches.boxes
        if self.needs_discriminators:
            served = switches.boxes if self.recipe.supervision == "boxes" else switches.concept_discrimination
            weights["dsm"] = served if switches.dsm_weight is None else switches.dsm_weight
        return weights


def make_discriminators(laps: Mapping[str, LAP]) -> nn.ModuleDict:
    """Return a discriminative scoring module for every LAP, made like its own one but drawn anew."""
    modules = nn.ModuleDict()
    for name, lap in laps.items():
        module: ConceptScoring = copy.deepcopy(lap.scoring)
        module.aggregator = None  # it ranks pixels; there is nothing to pool
        module.reset_parameters()
        modules[_key(name)] = module
    return modules


def task_loss(output: Output, batch: Batch, task: Task = "classification") -> tuple[Tensor, Tensor]:
    """Return the task's loss and the answer itself of a network's output, auxiliary answers included.

    Cross-entropy of logits (B, classes), with a batch's answers where it has such; squared error of
    coordinates (B, 2K); or cross-entropy of the words of logits (B, T, V).
    """

    def loss(answer: Tensor) -> Tensor:
        return _LOSSES[task](answer, batch)

    if isinstance(output, Tensor):
        return loss(output), output
    answer, *auxiliary = output
    kind = type(output).__name__
    if kind not in AUXILIARY_WEIGHTS:
        raise TrainingError(
            f"in training the network returns {kind}, but a tensor of logits was wanted, "
            f"or logits with auxiliary ones ({', '.join(AUXILIARY_WEIGHTS)})"
        )
    weight, answer = AUXILIARY_WEIGHTS[kind], cast(Tensor, answer)
    extras = [weight * loss(extra) for extra in auxiliary if extra is not None]
    return sum(extras, start=loss(answer)), answer


def _of_classes(answer: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(answer.float(), batch.labels if batch.answers is None else batch.answers)


def _of_coordinates(answer: Tensor, batch: Batch) -> Tensor:
    return losses.coordinate_error(answer, cast(Tensor, batch.answers))


def _of_words(answer: Tensor, batch: Batch) -> Tensor:
    return losses.token_cross_entropy(answer, _tokens(batch))


def _tokens(batch: Batch) -> Tensor:
    return cast(Tensor, batch.answers).long()


_LOSSES: dict[Task, Callable[[Tensor, Batch], Tensor]] = {
    "classification": _of_classes,
    "landmarks": _of_coordinates,
    "captions": _of_words,
}


@torch.no_grad()
def own_answers(model: nn.Module, images: Tensor, *, through: Callable[..., Any] | None = None) -> Tensor:
    """Return what a network with BLA answers where that leaves nothing out, as probabilities (B, classes).

    As long as nothing else learns, these are the answers that it gave before BLA stood in the place of its
    average pooling. Attention that learns to keep them explains that network: L2X (Chen et al., ICML 2018,
    section 2), max E log q(Y | X_S) over Y ~ p(Y | X). through: as `task_terms`.
    """
    with evaluating(model), deciding(model, "all"):
        answers: Tensor = (through or model)(images)
    return answers.float().softmax(1)


def task_terms(
    model: nn.Module,
    batch: Batch,
    task: Task = "classification",
    *,
    through: Callable[..., Any] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the terms of a network's answers by name, without their weights, and the answers themselves.

    With ante-hoc maps (reconstruction) its head answers a second time, to what the map keeps of the features;
    auxiliary classifiers, which lie before the map, do not. A captioner is told the words so far. through:
    what the images go through, where that is not the whole network.
    """
    asked, term = through or model, TERMS[task]
    given = (batch.images, _tokens(batch)) if task == "captions" else (batch.images,)
    layers = list(antehoc_layers(model).values())
    if not layers:
        loss, answer = task_loss(asked(*given), batch, task)
        return {term: loss}, answer
    with second_pass(layers[0]) as maps:
        output = asked(*given)
    plain, masked = (output if isinstance(output, Tensor) else output[0]).chunk(2)
    if type(output).__name__ in AUXILIARY_WEIGHTS:
        output = output._replace(logits=plain)
    loss, answer = task_loss(plain if isinstance(output, Tensor) else output, batch, task)
    kept, _ = task_loss(masked, batch, task)
    return {term: loss, f"masked_{term}": kept, "map_area": maps[0].mean()}, answer


def map_terms(
    objective: Objective, records: Sequence[LapRecord], discriminators: nn.ModuleDict, batch: Batch
) -> dict[str, Tensor]:
    """Return the terms on concept maps by name, each summed over the recorded LAPs, without their weights."""
    if objective.recipe.supervision == "none":
        return {}
    switches = objective.recipe.losses
    presence = losses.concept_presence(batch.labels, objective.heads)
    scores: list[Tensor | None] = [None] * len(records)
    terms = {}
    if objective.needs_discriminators:
        # detached: the module must not bend the features to its own purpose
        own = [discriminators[_key(record.name)](record.inputs.detach()) for record in records]
        terms["dsm"] = _total(
            losses.dsm_loss(
                q,
                presence,
                objective.concepts,
                mean_over_pixels=switches.cd_mean_over_pixels,
                over_concepts=switches.cd_over_concepts,
            )
            for q in own
        )
        scores = list(own)
    if objective.recipe.supervision == "weak":
        return terms | _weak_terms(objective, records, scores, presence)
    return terms | {"boxes": _box_term(objective, records, scores, presence, batch)}


def _weak_terms(
    objective: Objective, records: Sequence[LapRecord], scores: Sequence[Tensor | None], presence: Tensor
) -> dict[str, Tensor]:
    switches = objective.recipe.losses
    discrimination = [
        losses.concept_discrimination(
            record.logits,
            presence,
            objective.concepts,
            ranking=ranking,
            ranking_inactive=ranking if switches.rank_source_iar == "dsm" else None,
            mean_over_pixels=switches.cd_mean_over_pixels,
            over_concepts=switches.cd_over_concepts,
            rounding=switches.k_rounding,
        )
        for record, ranking in zip(records, scores, strict=True)
    ]
    agreement = [
        losses.concordance(
            shallow.logits,
            deep.logits,
            threshold=switches.js_threshold,
            resize=switches.js_resize,
            form=switches.js_form,
            stop_gradient=switches.js_stop_gradient,
            pixels=switches.js_pixels,
        )
        for shallow, deep in pairwise(records)
    ]
    return {"concept_discrimination": _total(discrimination), "concordance": _total(agreement)}


def _box_term(
    objective: Objective,
    records: Sequence[LapRecord],
    scores: Sequence[Tensor | None],
    presence: Tensor,
    batch: Batch,
) -> Tensor:
    switches = objective.recipe.losses
    if batch.masks is None:
        raise ValueError("supervision by boxes needs batches with masks")
    terms = []
    for record, ranking in zip(records, scores, strict=True):
        size = (record.logits.shape[2], record.logits.shape[3])
        truth = losses.resize_truth(batch.masks, batch.boxes, size, mode=switches.box_resize)
        terms.append(
            losses.box_supervision(
                record.logits,
                presence,
                truth,
                objective.concepts,
                ranking_inactive=ranking if switches.rank_source_iar == "dsm" else None,
                positive_weight=switches.bb_positive_weight,
                over_concepts=switches.cd_over_concepts,
                rounding=switches.k_rounding,
            )
        )
    return _total(terms)


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms) or [torch.zeros(())]).sum()


def _key(name: str) -> str:
    """Return a LAP's name as a key of a ModuleDict, which allows no dots."""
    return name.replace(".", "/")
