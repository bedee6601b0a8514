"""Layer-wise relevance propagation to the image, by one rule for all layers or one for each kind."""

from functools import partial
from typing import Literal, TypeAlias

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from lapbench.errors import ExplainerError
from lapbench.explain.attribution import Reduction, reduced
from lapbench.explain.maps import Maps
from lapbench.explain.passes import passes_of
from lapbench.explain.relevance import (
    LINEAR,
    Ledger,
    Split,
    book,
    by_epsilon,
    by_positive,
    by_sign,
    evenly,
    sees_the_image,
    unweighted,
    weighted,
)
from lapbench.explain.tape import Operation, RuleBook, one_hot
from lapbench.registry import Card, explainer

RuleName: TypeAlias = Literal["epsilon", "z_plus", "alpha_beta", "flat", "epsilon_plus", "epsilon_plus_flat"]


@explainer(
    "lrp",
    version=1,
    title="LRP",
    paper="Bach et al., PLoS ONE 2015, Eq. 58 and 60; Montavon et al., LRP: An Overview, 2019",
    signed=True,
    reach="image",
    card=Card(
        cost="1 forward, 1 walk back to the image of 1 (epsilon) to 4 (alpha_beta) forwards and backwards",
        limits="networks that torch.fx cannot trace, or with an operation that has no rule: it is named",
        computed_by="lapbench: Captum's LRP has no rule for ReLU6, SiLU or layer norm (captum #712), and "
        "conserves no relevance on ResNet",
    ),
)
def lrp(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    rule: RuleName = "epsilon_plus",
    epsilon: NonNegativeFloat = 1e-6,
    alpha: float = 2.0,
    beta: NonNegativeFloat = 1.0,
    reduce: Reduction = "sum",
) -> Maps:
    """What share of the target's logit goes back to a pixel, when every layer hands on what it was given.

    rule: for layers with weights, as in `lapbench.explain.relevance`; ``alpha_beta`` takes ``alpha`` and
    ``beta``, α − β = 1. ``epsilon_plus``: z⁺ for convolutions and ε for linear layers;
    ``epsilon_plus_flat``: flat for the first layer besides. epsilon: what is added to the size of every sum
    of signed terms that relevance is divided by, with any rule: of LRP-ε, of residual sums, of average pools,
    of layer norm. Sums of terms of one sign need none; 0 / 0 is 0.

    Diagnostics, as fractions of the logit: ``bias_share`` is what biases were given and did not hand on,
    ``epsilon_share`` what ε kept, or units that nothing adds up in; ``conservation_error`` is by how much
    these and the map's sum miss the logit. Errors: NotApplicableError that names an operation without a rule.
    """
    if abs(alpha - beta - 1) > 1e-9:
        raise ExplainerError(f"LRP needs alpha - beta = 1, found {alpha} - {beta} = {alpha - beta:g}")
    passes, ledger = passes_of(model, images, target), Ledger()
    start = one_hot(passes.logits, target) * passes.logits
    relevance = passes.relevance(start, lrp_rules(ledger, rule, epsilon, alpha, beta))
    return Maps(reduced(relevance, reduce), _balance(start.sum(1), relevance.flatten(1).sum(1), ledger))


def _balance(logit: Tensor, arrived: Tensor, ledger: Ledger) -> dict[str, Tensor]:
    """Where the logit (B,) has gone, in fractions of it; none of nothing."""
    missed = logit - arrived - ledger.bias - ledger.epsilon
    parts = {"conservation_error": missed, "bias_share": ledger.bias, "epsilon_share": ledger.epsilon}
    shares = {name: torch.where(logit == 0, 0, part / logit) for name, part in parts.items()}
    return shares | {"conservation_error": shares["conservation_error"].abs()}


def lrp_rules(
    ledger: Ledger, rule: RuleName, epsilon: float = 1e-6, alpha: float = 2.0, beta: float = 1.0
) -> RuleBook:
    """The book of rules that `lrp` walks back by; what they keep is written into the ledger."""
    plain, signed = partial(by_epsilon, epsilon=epsilon), partial(by_sign, alpha=alpha, beta=beta)
    kinds: dict[RuleName, tuple[Split, Split, Split]] = {
        "epsilon": (plain, plain, plain),
        "z_plus": (by_positive, by_positive, by_positive),
        "alpha_beta": (signed, signed, signed),
        "flat": (evenly, evenly, evenly),
        "epsilon_plus": (plain, by_positive, by_positive),
        "epsilon_plus_flat": (plain, by_positive, evenly),
    }
    linear, convolution, first = kinds[rule]

    def split(operation: Operation) -> Split:
        if sees_the_image(operation.node):
            return first
        return linear if operation.kind in LINEAR else convolution

    return book("LRP", {**unweighted(ledger, epsilon), **weighted(split, ledger)})
