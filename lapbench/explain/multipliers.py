"""The arithmetic of differences that DeepLIFT's rules share: values of an image, x, and of a reference, x'.

Shapes broadcast: one reference may serve a whole batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lapbench.models.pooling import Pooling

EPS = 1e-10
"""Where |Δin| is smaller, a multiplier is the plain derivative, as in Captum."""


def mean(now: Tensor, before: Tensor) -> Tensor:
    """Half way between image and reference."""
    return (now + before).div_(2)


def multiplier(change_out: Tensor, change_in: Tensor, derivative: Tensor) -> Tensor:
    """Δout/Δin, or the derivative where the input hardly changes."""
    small = change_in.abs() < EPS
    return torch.where(small, derivative, change_out / change_in.masked_fill(small, 1))


def rescaled(
    received: Tensor, x: Tensor, x_: Tensor, y: Tensor, y_: Tensor, plain: Callable[[], Tensor]
) -> Tensor:
    """The rescale rule, received · Δy/Δx; ``plain`` gives what the derivative would hand back."""
    change = x - x_
    small = change.abs() < EPS
    handed_back = (y - y_).div_(change).mul_(received)
    return torch.where(small, plain(), handed_back) if small.any() else handed_back


def given_to_winners(
    received: Tensor,
    x: Tensor,
    x_: Tensor,
    y: Tensor,
    y_: Tensor,
    winners: Tensor,
    winners_: Tensor,
    dim: int,
) -> Tensor:
    """DeepLIFT's rule for maxima y of x along a dimension, at the positions of the winners.

    Of y − y', the part max(y, y') − y' is given to the image's winner, where x is y, and the rest to the
    reference's, where x' is y'.
    """
    top, winners_ = torch.maximum(y, y_), winners_.expand_as(winners)
    to_ours = multiplier(top - y_, y - x_.expand_as(x).gather(dim, winners), received.new_ones(()))
    to_theirs = multiplier(y - top, x.gather(dim, winners_) - y_, received.new_zeros(()))
    handed_back = torch.zeros_like(x).scatter_add_(dim, winners, to_ours.mul_(received))
    return handed_back.scatter_add_(dim, winners_, to_theirs.mul_(received))


def pooled(
    layer: Pooling, received: Tensor, x: Tensor, x_: Tensor, weights: Tensor, weights_: Tensor
) -> tuple[Tensor, Tensor]:
    """The product rule, both orders averaged: from pooled values back to features and to their weights."""
    to_x, to_weights = vjp(layer.pool, received, mean(x, x_), mean(weights, weights_))
    return to_x, to_weights


def softmax(received: Tensor, logits: Tensor, logits_: Tensor) -> Tensor:
    """The rule for softmax along dimension 1, by the index number of Sato (1976) and Vartia (1976).

    Its Jacobian a_u (δ_uv − a_v), with λ and λ / Σλ in place of a; λ: the logarithmic mean of a and a'.
    """
    now, before = logits.log_softmax(1), logits_.log_softmax(1)
    apart = (now - before).abs()
    share = torch.where(apart == 0, 1, -torch.expm1(-apart) / apart.masked_fill(apart == 0, 1))
    average = torch.maximum(now, before).exp() * share  # (a − a') / (log a − log a')
    return average * (received - (received * average).sum(1, keepdim=True) / average.sum(1, keepdim=True))


def vjp(function: Callable[..., Tensor], received: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What the inputs of a function receive by its plain derivative."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, received)
