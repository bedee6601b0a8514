"""DeepLIFT's rules for LAP, which multiplies, divides and takes maxima of several values, and for LIP.

With plain gradients the contributions miss the difference of the outputs by per cents. The rule here is
lapbench's own (the paper of LAP has none), and complete. With window weights a = softmax(ℓ), ℓ_u = log N(V)_u
of Eq. 4, the pooled value is O = Σ_u a_u x_u, and

    ΔO   = Σ_u mean(a_u) Δx_u + mean(x_u) Δa_u              product, both orders averaged
    Δa_u = λ_u (Δℓ_u − Σ_v λ_v Δℓ_v / Σ_v λ_v)              λ: logarithmic mean of a and a'
    Δℓ_u = ℓ(V, m) − ℓ(V', m')                              V or the maximum m first, averaged
    Δm   = (max(m, m') − m') + (m − max(m, m'))             to the image's, to the reference's winner

The second line is the index number of Sato (1976) and Vartia (1976), the third a Shapley value, the fourth
DeepLIFT's rule for max pooling. No step blows up where all scores of a window vanish. Probabilities σ(z), the
scoring module's ReLU and a trainable aggregation follow the rescale rule. LIP has the first two lines in
common; its ℓ is G itself, so that nothing comes between but, where each channel has its own, the gate
G = 12 σ(z), by the rescale rule.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lapbench.explain.multipliers import given_to_winners, multiplier, pooled, rescaled, softmax, vjp
from lapbench.explain.tape import Operation
from lapbench.models.lap import LAP, ConceptScoring, at_least_float32, per_pixel
from lapbench.models.lip import LIP, ChannelScoring
from lapbench.models.pooling import Pooling, under_windows, validity

_OUTSIDE = -1e4
"""ℓ beyond the border: a weight of 0, and a finite one."""


def lap_rule(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """Hand multipliers back to the features that are pooled, and to those that are scored."""
    lap: LAP = operation.module
    (x, *_, scored), (x_, *_, scored_) = _both(operation.inputs), _both(operation.before.inputs)
    values, values_ = (lap.scoring.aggregate(lap.scoring(features)) for features in (scored, scored_))
    window = lap.window(*values.shape[2:])
    valid = validity(values, window)
    (v, m, logs), (v_, m_, logs_) = (
        _log_weights(lap, under_windows(V, window), valid) for V in (values, values_)
    )

    to_x, to_logs = _pooled_by_logs(lap, received, x, x_, logs, logs_)
    to_v, to_m = _log_weight(to_logs, lap, v, v_, m, m_)
    to_m = to_m.sum(1, keepdim=True)
    to_v = to_v + given_to_winners(
        to_m, v, v_, m, m_, v.argmax(1, keepdim=True), v_.argmax(1, keepdim=True), 1
    )
    (to_values,) = vjp(lambda V: under_windows(V, window), to_v, values)
    to_scored = _scoring(lap.scoring, to_values, scored, scored_).to(x)
    return (to_x + to_scored,) if len(operation.inputs) == 1 else (to_x, to_scored)


def lip_rule(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """The same for LIP."""
    lip: LIP = operation.module
    (x, *_, scored), (x_, *_, scored_) = _both(operation.inputs), _both(operation.before.inputs)
    (hidden, z), (hidden_, z_) = _scored(lip.scoring, scored), _scored(lip.scoring, scored_)
    gate = lip.scoring.bounded if isinstance(lip.scoring, ChannelScoring) else None
    G, G_ = (flat if gate is None else gate(flat) for flat in (z, z_))
    logits, logits_ = (flat.view(*flat.shape[:2], *scored.shape[2:]) for flat in (G, G_))
    logs, logs_ = (lip.under_windows(g, outside=_OUTSIDE) for g in (logits, logits_))

    to_x, to_logs = _pooled_by_logs(lip, received, x, x_, logs, logs_)
    (to_logits,) = vjp(lip.under_windows, to_logs, logits)
    to_z = to_logits.flatten(2)
    if gate is not None:
        plain = vjp(gate, to_z, z)[0]
        to_z = rescaled(to_z, z, z_, G, G_, lambda: plain)
    to_scored = _logits(lip.scoring, to_z.to(x), hidden, hidden_).view_as(scored)
    return (to_x + to_scored,) if len(operation.inputs) == 1 else (to_x, to_scored)


def _pooled_by_logs(
    layer: Pooling, received: Tensor, x: Tensor, x_: Tensor, logs: Tensor, logs_: Tensor
) -> tuple[Tensor, Tensor]:
    """From the pooled values back to the features, and to the logarithms ℓ of their weights."""
    to_x, to_weights = pooled(layer, received, x, x_, logs.softmax(1), logs_.softmax(1))
    return to_x, softmax(to_weights.to(logs), logs, logs_).masked_fill(logs == _OUTSIDE, 0)


def _both(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs if len(inputs) == 2 else (inputs[0], inputs[0])


def _log_weights(lap: LAP, under: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values V under windows (B, n, H', W'), their maximum m, ℓ(V, m); `_OUTSIDE` beyond the border."""
    largest = under.amax(1, keepdim=True)
    return under, largest, _log(lap, under, largest).masked_fill(valid == 0, _OUTSIDE)


def _log(lap: LAP, v: Tensor, m: Tensor) -> Tensor:
    """ℓ(V, m) = log(V exp(−α² (m − V)²) + ε), the logarithm of Eq. 4."""
    return torch.log(v * torch.exp(-(lap.alpha.to(v) ** 2) * (m - v) ** 2) + lap.eps)


def _log_weight(
    received: Tensor, lap: LAP, v: Tensor, v_: Tensor, m: Tensor, m_: Tensor
) -> tuple[Tensor, Tensor]:
    now, value_only, largest_only, before = (_log(lap, a, b) for a, b in ((v, m), (v, m_), (v_, m), (v_, m_)))
    by_value = (now - largest_only + value_only - before) / 2
    by_largest = (now - value_only + largest_only - before) / 2
    square = lap.alpha.to(v) ** 2
    gaussian, steepness = torch.exp(-square * (m - v) ** 2), 2 * square * (m - v)
    weight = v * gaussian + lap.eps
    to_value = multiplier(by_value, v - v_, (gaussian + v * gaussian * steepness) / weight)
    to_largest = multiplier(by_largest, m - m_, -v * gaussian * steepness / weight)
    return received * to_value, received * to_largest


def _scoring(scoring: ConceptScoring, received: Tensor, x: Tensor, x_: Tensor) -> Tensor:
    """From the joint value V back to the features that were scored."""
    (hidden, logits), (hidden_, logits_) = _scored(scoring, x), _scored(scoring, x_)
    p, p_ = scoring.probability(logits), scoring.probability(logits_)
    received = _aggregation(scoring, received.flatten(2), p, p_)
    received = _through(scoring.probability, received, logits, logits_)
    return _logits(scoring, received.to(x), hidden, hidden_).view_as(x)


def _scored(scoring: ConceptScoring, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the scoring module's ReLU takes, or x where it has none, and the logits, (B, …, HW)."""
    flat = x.flatten(2)
    if scoring.hidden is None:
        return flat, at_least_float32(per_pixel(flat, scoring.head))
    hidden = per_pixel(flat, scoring.hidden)
    return hidden, at_least_float32(per_pixel(scoring.activation(hidden), scoring.head))


def _logits(scoring: ConceptScoring, received: Tensor, hidden: Tensor, hidden_: Tensor) -> Tensor:
    """From the logits back to the features that were scored, (B, C, HW)."""
    received = _back(received, scoring.head)
    if scoring.hidden is not None:
        received = _back(_through(scoring.activation, received, hidden, hidden_), scoring.hidden)
    return received


def _aggregation(scoring: ConceptScoring, received: Tensor, p: Tensor, p_: Tensor) -> Tensor:
    """From V = A(P) back to the concepts' probabilities."""
    if scoring.aggregator is not None:
        weight = scoring.aggregator.weight
        raw, raw_ = (at_least_float32(per_pixel(y.to(weight), scoring.aggregator)) for y in (p, p_))
        return _back(_through(scoring.positive, received, raw, raw_), scoring.aggregator)
    if scoring.aggregation == "max":
        (m, winner), (m_, winner_) = (y.max(1, keepdim=True) for y in (p, p_))
        return given_to_winners(received, p, p_, m, m_, winner, winner_, 1)
    return received.expand_as(p)


def _back(received: Tensor, convolution: nn.Conv2d) -> Tensor:
    """From the outputs of a 1×1 convolution (B, C', HW) back to its inputs (B, C, HW)."""
    return convolution.weight.flatten(1).T.to(received) @ received


def _through(module: nn.Module, received: Tensor, x: Tensor, x_: Tensor) -> Tensor:
    """The rescale rule for an element-wise module."""
    return rescaled(received, x, x_, module(x), module(x_), lambda: vjp(module, received, x)[0])
