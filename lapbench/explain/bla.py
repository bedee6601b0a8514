"""Maps of networks with bounded logit attention: what it attends to, and which positions it selects."""

import math

import torch
from torch import Tensor, nn

from lapbench.errors import NotApplicableError
from lapbench.explain.passes import passes_of
from lapbench.models.bla import BlaRecord
from lapbench.registry import Card, explainer

PAPER = "Baumhauer et al., arXiv 2105.14824"
CARD = Card(
    cost="1 forward pass",
    limits="Networks with BLA in the place of their global pooling only; the same map for every class.",
    computed_by="lapbench: the network itself computes these weights while it decides",
)


@explainer(
    "bla",
    version=1,
    title="BLA",
    paper=f"{PAPER}; L2X: Chen et al., ICML 2018",
    needs=("model", "bla"),
    class_agnostic=True,
    card=CARD,
)
def bla(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The soft weights by which the network pools its last features, at their resolution.

    Their scale is relative: within an image they tell what counts more.
    Errors: NotApplicableError for a network without BLA.
    """
    return _record(model, images, target).weights


@explainer(
    "bla_selection",
    version=1,
    title="BLA selection",
    paper=PAPER,
    needs=("model", "bla"),
    native_threshold=0.5,
    upsample="nearest",
    class_agnostic=True,
    card=CARD,
)
def bla_selection(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The positions that the network selects: 1 for those that its hard decision averages, 0 for all others.

    Their scale is absolute: a position is in or out. How many are in is up to the image; with L2X-F it is
    the number of draws. Of a network whose logits are NaN the map is NaN.
    Errors: NotApplicableError for a network without BLA.
    """
    record = _record(model, images, target)
    return record.selected.to(torch.float32).masked_fill(record.selection.isnan(), math.nan)


def _record(model: nn.Module, images: Tensor, target: Tensor) -> BlaRecord:
    records = passes_of(model, images, target).bla
    if not records:
        raise NotApplicableError(f"this {type(model).__name__} has no bounded logit attention (BLA)")
    return records[-1]
