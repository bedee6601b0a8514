"""The relevance rules and attributors of zennit as explainers."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.explain import untouched
from lapbench.interop.library import Explainer, library, named


def from_zennit(
    composite: Callable[..., Any] | None = None,
    *,
    canonizers: Sequence[Any] = (),
    attributor: Callable[..., Any] | None = None,
    start: Literal["logit", "one"] = "logit",
) -> Explainer:
    """Make an explainer of zennit's rules, such as ``EpsilonPlus`` with a ``ResNetCanonizer``.

    composite: a class of composites, or anything that makes one of ``canonizers=``, as
    ``functools.partial(EpsilonGammaBox, low=-3.0, high=3.0)``; none: the plain gradient. canonizers: objects;
    without the one for its architecture, a network's skip connections are counted twice. attributor: a class,
    or anything that makes one of ``model=`` and ``composite=``; zennit's ``Gradient`` where none is given.
    start: what goes back from the target's output, its ``logit`` (Bach et al., 2015: relevance that sums to
    it; also what occlusion compares) or ``one``, which is right for gradients, smoothed and integrated ones
    too, and makes relevance that same map divided by the logit.

    The maps (B, H, W) are the sum over the image's channels, signed. zennit merges batch norms into weights
    for the time of a call, and leaves them merged where that fails half-way; every call therefore works on a
    copy of the network, weights included.
    Errors: MissingLibraryError where zennit cannot be imported.
    """
    make = attributor or library("zennit.attribution", "zennit").Gradient

    def explainer(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        rules = None if composite is None else composite(canonizers=list(canonizers))

        def begin(logits: Tensor) -> Tensor:
            chosen = F.one_hot(target, logits.shape[1]).to(logits)
            return chosen if start == "one" else chosen * logits.detach()

        twin = copy.deepcopy(model)
        with untouched(twin):
            _, relevance = make(model=twin, composite=rules)(images.detach().clone(), begin)
        maps: Tensor = relevance.detach().sum(1)
        return maps

    return named(explainer, composite or make, "of zennit, summed over the channels")
