"""The terms of the training loss, one function each, on the logits of concept maps.

LAP: "LAP: An Attention-Based Module for Faithful Interpretation and Knowledge Injection in CNNs", arXiv
2201.11808. Everywhere z (B, h, H, W) are the logits of h concept heads and p = σ(z). With −log p =
softplus(−z) and −log(1 − p) = softplus(z) every term stays finite for any finite logit; half-precision
input is computed in float32. A term that has no pixel to look at is exactly 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lapbench.benchmark import Concept

Rounding = Literal["round", "floor", "ceil"]


def concept_presence(labels: Tensor, heads: Sequence[Sequence[int]]) -> Tensor:
    """Return which concepts each sample holds: bool (B, h).

    labels: class indices (B,). heads: the classes of every concept head; a common head () is present nowhere.
    """
    columns = [
        torch.isin(labels, torch.tensor(tuple(classes), dtype=labels.dtype, device=labels.device))
        for classes in heads
    ]
    return torch.stack(columns, dim=1)


def concept_discrimination(
    logits: Tensor,
    presence: Tensor,
    concepts: Sequence[Concept],
    *,
    ranking: Tensor | None = None,
    ranking_inactive: Tensor | None = None,
    mean_over_pixels: bool = True,
    over_concepts: Literal["sum", "mean"] = "sum",
    rounding: Rounding = "round",
) -> Tensor:
    """Return the concept discrimination loss of one LAP, LAP Eq. 5: a scalar.

    Where a concept is present, the top MinAR·HW pixels must be active (twice the weight) and the bottom (1
    − MaxAR)·HW inactive; where it is absent, the top IAR·HW must be inactive. An area ratio of None drops
    its term, and so does a batch without a sample for it. A common head has the second term alone, over all
    samples.

    presence: bool (B, h). ranking: scores like z that choose the pixels (None: z itself); ranking_inactive:
    the same for absent concepts. Both choose only and get no gradient; a common head is always ranked by z.
    mean_over_pixels: whether each term is divided by its number of pixels.
    """
    z = _exact(logits)
    common = _common(concepts, z.device)
    by_presence = _choose_ranking(z, ranking, common)
    by_absence = _choose_ranking(z, ranking_inactive, common)
    held, lacking = presence & ~common, ~presence & ~common
    pixels = z.shape[2] * z.shape[3]

    def count(ratio: float | None) -> int | None:
        return None if ratio is None else count_pixels(ratio * pixels, rounding, pixels)

    active = [count(c.min_area) for c in concepts]
    idle = [count(None if c.max_area is None else 1 - c.max_area) for c in concepts]
    absent = [count(c.inactive_area) for c in concepts]
    per_concept = (
        2 * _extreme_pixels(-z, by_presence, held, active, largest=True, mean=mean_over_pixels)
        + _extreme_pixels(z, by_presence, held | common, idle, largest=False, mean=mean_over_pixels)
        + _extreme_pixels(z, by_absence, lacking, absent, largest=True, mean=mean_over_pixels)
    )
    return per_concept.sum() if over_concepts == "sum" else per_concept.mean()


def dsm_loss(
    logits: Tensor,
    presence: Tensor,
    concepts: Sequence[Concept],
    *,
    mean_over_pixels: bool = True,
    over_concepts: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the loss of one discriminative scoring module, LAP Eq. 5 terms 1 and 3 on all pixels: a scalar.

    logits: of the module's own maps q (B, h, H, W). Every pixel is called active where the concept is
    present and inactive where it is absent, each class of sample with the same weight; common heads have no
    label and no term.
    """
    z = _exact(logits)
    common = _common(concepts, z.device)
    cost_present, cost_absent = F.softplus(-z).sum((2, 3)), F.softplus(z).sum((2, 3))
    per_concept = _mean_over(presence & ~common, cost_present) + _mean_over(~presence & ~common, cost_absent)
    if mean_over_pixels:
        per_concept = per_concept / (z.shape[2] * z.shape[3])
    return per_concept.sum() if over_concepts == "sum" else per_concept.mean()


def concordance(
    shallow: Tensor,
    deep: Tensor,
    *,
    threshold: float = 0.1,
    resize: Literal["nearest", "max", "average"] = "nearest",
    form: Literal["bernoulli", "half"] = "bernoulli",
    stop_gradient: Literal["none", "shallow", "deep"] = "none",
    pixels: Literal["both-high", "high-low"] = "both-high",
) -> Tensor:
    """Return the Jensen-Shannon divergence between the maps of two consecutive LAPs, LAP Eq. 6: a scalar.

    shallow (B, h, H, W) and deep (B, h, H', W') are logits. The deep map is brought to the shallow grid
    (nearest), or the shallow one to the deep grid by pooling (max, average). Counted are the pixels whose
    probability is above threshold in both, or above it in the shallow and not in the deep one (high-low);
    mean over samples and concepts. form: the divergence of two Bernoulli distributions, or only its
    p·log(p/m) half. stop_gradient: the side that gets no gradient.
    """
    a, b = _exact(shallow), _exact(deep)
    a = a.detach() if stop_gradient == "shallow" else a
    b = b.detach() if stop_gradient == "deep" else b
    if resize == "nearest":
        b = F.interpolate(b, size=a.shape[2:], mode="nearest")
    elif resize == "max":
        a = F.adaptive_max_pool2d(a, (b.shape[2], b.shape[3]))
    # 1 − p comes from σ(−z), because the difference itself loses all digits near p = 1
    p, p_not, q, q_not = a.sigmoid(), (-a).sigmoid(), b.sigmoid(), (-b).sigmoid()
    if resize == "average":
        p, p_not = (F.adaptive_avg_pool2d(v, (b.shape[2], b.shape[3])) for v in (p, p_not))

    divergence = _half_divergence(p, q)
    if form == "bernoulli":
        divergence = divergence + _half_divergence(p_not, q_not)
    counted = (p > threshold) & ((q > threshold) if pixels == "both-high" else (q <= threshold))
    total = torch.where(counted, divergence, 0).sum((2, 3))
    return (total / counted.sum((2, 3)).clamp_min(1)).mean()


def box_supervision(
    logits: Tensor,
    presence: Tensor,
    truth: Tensor,
    concepts: Sequence[Concept],
    *,
    ranking_inactive: Tensor | None = None,
    positive_weight: float = 2.0,
    over_concepts: Literal["sum", "mean"] = "sum",
    rounding: Rounding = "round",
) -> Tensor:
    """Return the loss of one LAP that is shown where the object is, LAP Appendix A: a scalar.

    truth: bool (B, H, W), the boxes on the LAP's grid (`resize_truth`). Where a concept is present, the top
    half (by p) of the pixels inside the boxes must be active and all pixels outside inactive; where it is
    absent, the top IAR·HW must be inactive. A sample with the concept but without a box says nothing about
    where, so it is left out and not counted. Common heads have no boxes and no term. ranking_inactive: as
    in `concept_discrimination`.
    """
    z = _exact(logits)
    common = _common(concepts, z.device)
    inside = truth.flatten(1).unsqueeze(1)  # (B, 1, HW)
    located = presence & ~common & inside.any(2)
    z_flat = z.flatten(2)

    order = z_flat.detach().masked_fill(~inside, -math.inf).argsort(dim=2, descending=True)
    kept = _round(inside.sum(2).to(z.dtype) / 2, rounding).clamp_min(1)  # (B, 1)
    is_top = torch.arange(order.shape[2], device=z.device) < kept.unsqueeze(2)
    active = torch.where(is_top, F.softplus(-z_flat.gather(2, order)), 0).sum(2) / kept
    outside = torch.where(inside, 0, F.softplus(z_flat)).sum(2) / (~inside).sum(2).clamp_min(1)

    pixels = z_flat.shape[2]
    absent = [
        None if c.inactive_area is None else count_pixels(c.inactive_area * pixels, rounding, pixels)
        for c in concepts
    ]
    by_absence = _choose_ranking(z, ranking_inactive, common)
    per_concept = (
        positive_weight * _mean_over(located, active)
        + _mean_over(located, outside)
        + _extreme_pixels(z, by_absence, ~presence & ~common, absent, largest=True, mean=True)
    )
    return per_concept.sum() if over_concepts == "sum" else per_concept.mean()


def resize_truth(
    masks: Tensor, boxes: Tensor | None, size: tuple[int, int], *, mode: Literal["area", "nearest"] = "area"
) -> Tensor:
    """Bring ground-truth masks (B, H, W) to the grid of a map: bool (B, *size).

    area: a cell belongs to the truth when half of it is covered; so does the cell that holds the centre of
    a box, and the most covered cell where neither leaves one. nearest: the pixel in the middle of the cell
    decides, so small objects may get lost. boxes: (B, m, 4) as x0, y0, x1, y1 in pixels of the masks; NaN
    where there are fewer.
    """
    if mode == "nearest":
        return F.interpolate(masks.unsqueeze(1).float(), size=size, mode="nearest-exact").squeeze(1) > 0.5
    height, width = masks.shape[1:]
    with torch.autocast(masks.device.type, enabled=False):
        rows, columns = _overlap(size[0], height, masks.device), _overlap(size[1], width, masks.device)
        covered = rows @ masks.float() @ columns.T
    truth = covered >= 0.5 - 1e-5  # of a cell; less than a hundredth of a pixel for rounding
    if boxes is not None:
        sample, box = (~boxes.isnan().any(2)).nonzero(as_tuple=True)
        x0, y0, x1, y1 = boxes[sample, box].unbind(1)
        row = ((y0 + y1) / 2 / height * size[0]).long().clamp(0, size[0] - 1)
        column = ((x0 + x1) / 2 / width * size[1]).long().clamp(0, size[1] - 1)
        truth[sample, row, column] = True
    flat = covered.flatten(1)
    lost = ~truth.flatten(1).any(1) & (flat > 0).any(1)
    fullest = F.one_hot(flat.argmax(1), flat.shape[1]).bool().view_as(truth)
    return truth | (fullest & lost[:, None, None])


def count_pixels(wanted: float, rounding: Rounding, pixels: int) -> int:
    """Return a number of pixels as a whole one between 1 and all; halves are rounded up."""
    whole = int(_round(torch.tensor(wanted, dtype=torch.float64), rounding))
    return min(max(1, whole), pixels)


def _round(value: Tensor, rounding: Rounding) -> Tensor:
    # 3·0.1 is a little more than 0.3 in floating point, 0.29·100 a little less than 29: hence the slack
    slack = 1e-6
    how: dict[Rounding, Callable[[Tensor], Tensor]] = {
        "round": lambda v: (v + 0.5 + slack).floor(),
        "floor": lambda v: (v + slack).floor(),
        "ceil": lambda v: (v - slack).ceil(),
    }
    return how[rounding](value)


def _exact(logits: Tensor) -> Tensor:
    """Return the logits in float32 at least: under autocast they arrive in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _common(concepts: Sequence[Concept], device: torch.device) -> Tensor:
    """Return which heads are common ones, without classes: bool (h,)."""
    return torch.tensor([not concept.classes for concept in concepts], device=device)


def _choose_ranking(z: Tensor, ranking: Tensor | None, common: Tensor) -> Tensor:
    """Return the scores that choose pixels (B, h, H, W), detached: the given ones; z for common heads."""
    if ranking is None:
        return z.detach()
    return torch.where(common[:, None, None], z.detach(), ranking.detach().to(z.dtype))


def _extreme_pixels(
    signed: Tensor,
    ranking: Tensor,
    samples: Tensor,
    counts: Sequence[int | None],
    *,
    largest: bool,
    mean: bool,
) -> Tensor:
    """Return softplus summed over the k highest- or lowest-ranked pixels, mean over the samples: (h,).

    signed: (B, h, H, W), −z to reward activity, z to punish it. samples: bool (B, h). counts: k of each
    concept, None where it has no such term. Concepts of equal k are done in one go.
    """
    result = signed.new_zeros(len(counts))
    for k in sorted({count for count in counts if count is not None}):
        heads = torch.tensor([i for i, count in enumerate(counts) if count == k], device=signed.device)
        picked = ranking[:, heads].flatten(2).topk(k, dim=2, largest=largest, sorted=False).indices
        cost = F.softplus(signed[:, heads].flatten(2).gather(2, picked)).sum(2)
        result = result.index_put((heads,), _mean_over(samples[:, heads], cost / k if mean else cost))
    return result


def _mean_over(samples: Tensor, cost: Tensor) -> Tensor:
    """Return the mean of cost (B, h) over the marked samples (B, h), 0 where there is none: (h,)."""
    return torch.where(samples, cost, 0).sum(0) / samples.sum(0).clamp_min(1)


def _half_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return ½·p·log(p/m) + ½·q·log(q/m) with m = (p + q)/2, and 0·log 0 = 0."""
    smallest = torch.finfo(p.dtype).tiny
    p_log, q_log, m_log = (v.clamp_min(smallest).log() for v in (p, q, (p + q) / 2))
    return (p * (p_log - m_log) + q * (q_log - m_log)) / 2


def _overlap(cells: int, pixels: int, device: torch.device) -> Tensor:
    """Return how much of each cell every pixel covers, along one axis: (cells, pixels), rows sum to 1."""
    side = pixels / cells
    start = torch.arange(cells, device=device).unsqueeze(1) * side
    pixel = torch.arange(pixels, device=device)
    shared = torch.minimum(start + side, pixel + 1.0) - torch.maximum(start, pixel.float())
    return shared.clamp_min(0) / side


def coordinate_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared error of coordinates (B, 2K), fractions of the image."""
    return F.mse_loss(found.float(), wanted)


def token_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy of a caption's words and its end.

    logits: (B, T, V) of each step. tokens: (B, T), filled up with 0, of which only the first counts.
    """
    counts = (tokens == 0).cumsum(1) - (tokens == 0).long() == 0
    return F.cross_entropy(logits[counts].float(), tokens[counts])
