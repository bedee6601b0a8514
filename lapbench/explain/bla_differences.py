"""DeepLIFT's rule for bounded logit attention: multipliers through its weights and through what they pool.

lapbench's own (the paper of BLA has none), and complete for the soft output. The pooled value is
O = Σ_u w_u x_u, and each step from the features to the weights w has a rule:

    ΔO   = Σ_u mean(w_u) Δx_u + mean(x_u) Δw_u              product, both orders averaged
    w    = g / Σg, where renormalised                       the same, of g and 1 / Σg
    g    = ReLU(· − t / n), and p = −ReLU(z)                rescale rule
    g    = the largest of several draws                     DeepLIFT's rule for max pooling
    w    = the mean over samples of such draws              linear
    Δa_u = λ_u (Δℓ_u − Σ_v λ_v Δℓ_v / Σ_v λ_v)              softmax, as in `lapbench.explain.lap_differences`

The hard output is a step of the logits, which no multiplier describes.
"""

from typing import Any

from torch import Tensor

from lapbench.errors import NotApplicableError
from lapbench.explain.multipliers import given_to_winners, mean, pooled, rescaled, softmax, vjp
from lapbench.explain.tape import Operation
from lapbench.models.bla import BLA, SubsetAttention
from lapbench.models.lap import at_least_float32, per_pixel


def bla_rule(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """Hand multipliers back to the features, as they are pooled and as they are scored."""
    layer: BLA = operation.module
    attention = layer.attention
    if attention.output == "hard":
        raise NotApplicableError(
            "DeepLIFT compares answers that change smoothly, and the hard output of BLA does not: "
            "explain the soft output"
        )
    (x,), (x_,) = operation.inputs, operation.before.inputs
    weights, weights_ = layer.window_weights(x), layer.window_weights(x_)
    to_x, to_weights = pooled(layer, received, x, x_, weights, weights_)
    z, z_ = (at_least_float32(per_pixel(features.flatten(2), layer.score))[:, 0] for features in (x, x_))
    to_z = _attention(attention, to_weights.flatten(1).to(z), z, z_)
    weight = layer.score.weight.flatten().to(x)
    return (to_x + (to_z.to(x)[:, None] * weight[:, None]).view_as(x),)


def _attention(attention: SubsetAttention, received: Tensor, z: Tensor, z_: Tensor) -> Tensor:
    """From the weights (B, n) back to the logits z (B, n)."""

    def noisy(p: Tensor) -> Tensor:  # (B, n) → (B·R, n, k), as many rows as there are samples
        return attention.scaled(attention.noisy(p)).flatten(0, 1).transpose(1, 2)

    p, p_ = attention.values(z), attention.values(z_)
    logits, logits_ = noisy(p), noisy(p_.expand_as(p))
    samples = len(logits) // len(p)
    received = (received / samples).repeat_interleave(samples, 0)
    shares, shares_ = logits.softmax(1), logits_.softmax(1)
    (g, winner), (g_, winner_) = shares.max(2, keepdim=True), shares_.max(2, keepdim=True)
    received = _threshold(attention, received, g[..., 0], g_[..., 0])
    received = given_to_winners(received[..., None], shares, shares_, g, g_, winner, winner_, 2)
    received = softmax(received, logits, logits_)
    (to_p,) = vjp(noisy, received, p)
    (to_z,) = vjp(attention.values, to_p, z)
    return rescaled(to_p, z, z_, p, p_, lambda: to_z)


def _threshold(attention: SubsetAttention, received: Tensor, g: Tensor, g_: Tensor) -> Tensor:
    """From the weights (B, n) back to what the threshold cuts and renormalisation divides."""
    least = attention.threshold / g.shape[1]
    over, over_ = (values - least if least else values for values in (g, g_))
    kept, kept_ = (values.relu() if least else values for values in (over, over_))
    if attention.renormalise:
        total, total_ = kept.sum(1, keepdim=True), kept_.sum(1, keepdim=True)
        to_inverse = (received * mean(kept, kept_)).sum(1, keepdim=True)
        received = received * mean(1 / total, 1 / total_) - to_inverse / (total * total_)
    if not least:
        return received
    return rescaled(received, over, over_, kept, kept_, lambda: received * (over > 0))
