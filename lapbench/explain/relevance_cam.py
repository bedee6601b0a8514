"""Relevance-CAM: class activation maps whose channel weights are relevances, at any layer of any CNN.

"Relevance-CAM: Your Model Already Knows Where to Look" (Lee, Kim, Park, Yang; CVPR 2021). The network runs
forward once; relevance then walks back over the same graph, from the logits to the layer, by one rule for
each kind of operation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.explain.derivatives import passed_on
from lapbench.explain.passes import passes_of
from lapbench.explain.relevance import (
    GLOBAL_AVERAGES,
    LINEAR,
    POOLINGS,
    Layer,
    Ledger,
    Portion,
    Split,
    book,
    in_proportion,
    pooled_in_proportion,
    unweighted,
    weighted,
)
from lapbench.explain.tape import Operation, RuleBook
from lapbench.registry import Card, explainer


@explainer(
    "relevance_cam",
    version=2,
    title="Relevance-CAM",
    paper="Lee et al., CVPR 2021",
    signed=True,
    reach="layer",
    card=Card(
        cost="1 forward, 1 walk back to the layer of 2 forwards and backwards",
        limits="networks that torch.fx cannot trace, or with an operation that has no rule: it is named",
        computed_by="lapbench: Captum has none",
    ),
)
def relevance_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    layer: str = "last",
    start: Literal["constant", "logit"] = "constant",
) -> Tensor:
    """The layer's channels weighted by their mean relevance for the target, Σ_k mean(R_k) A_k, no ReLU.

    layer: as in `layer_of`. start: the contrastive relevance of the logits, (1, −1/N, …) for the target and
    the other N − 1 classes, or (z_c, −z_n / (N − 1), …). LAP and BLA pass relevance through their
    pooling with its weights as constants; their scoring receives none. Returns the map at the layer's own
    resolution.
    Errors: NotApplicableError that names an operation without a rule between layer and logits.
    """
    passes = passes_of(model, images, target)
    activation = passes.activation(layer)
    relevance = passes.relevance(_contrast(passes.logits, target, start), relevance_cam_rules(), layer)
    return (relevance.mean((2, 3), keepdim=True) * activation).sum(1)


def _contrast(logits: Tensor, target: Tensor, start: Literal["constant", "logit"]) -> Tensor:
    """Return the relevance (B, N) of the logits: positive for the target, negative for every other class."""
    classes = logits.shape[1]
    chosen = F.one_hot(target, classes).bool()
    if start == "constant":
        return torch.where(chosen, 1.0, torch.full_like(logits, -1 / classes))
    return torch.where(chosen, logits, -logits / max(classes - 1, 1))


def relevance_cam_rules() -> RuleBook:
    """The published book of rules, which differs in some places from that of `lapbench.explain.lrp`.

    All layers with weights follow z⁺ extended to negative inputs, x⁺ W⁺ + x⁻ W⁻. A linear layer's bias takes
    no part; a convolution's is added to both halves, whatever its sign. Batch norm, always, passes relevance
    on unchanged. Max pooling gives x R / x to the winner, which is nothing where x is 0. Global averages,
    LAP and BLA are in proportion to x⁺. No sum is stabilised: ε = 0.
    """
    ledger = Ledger()  # what biases are given is of no interest here

    def split(operation: Operation) -> Split:
        return partial(_halves, bias=operation.kind not in LINEAR)

    return book(
        "Relevance-CAM",
        {
            **unweighted(ledger),
            **weighted(split, ledger, merge=False),
            nn.BatchNorm2d: passed_on,
            nn.MaxPool2d: in_proportion(ledger),
            **dict.fromkeys(GLOBAL_AVERAGES, in_proportion(ledger, of=torch.relu)),
            **dict.fromkeys(POOLINGS, pooled_in_proportion(ledger, of=torch.relu)),
        },
        ", which lies between the layer and the logits: choose a deeper layer, or leave this network out",
    )


def _halves(layer: Layer, bias: bool) -> Sequence[Portion]:
    x, w, b = layer.x, layer.weight, layer.bias if bias else None
    return [Portion([(x.clamp_min(0), w.clamp_min(0), b), (x.clamp_max(0), w.clamp_max(0), b)])]
