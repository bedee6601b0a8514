"""Maps that networks make while they decide, of LAP and LIP, or beside it, of a weighting network."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from lapbench.errors import ExplainerError, NotApplicableError, UnknownNameError
from lapbench.explain.passes import passes_of
from lapbench.models.lap import LapRecord
from lapbench.models.plug import lap_heads, lap_names, lip_layers
from lapbench.models.weighting import antehoc_layers
from lapbench.registry import Card, explainer

PAPER = "Modegh, Salimi, Rabiee, arXiv 2201.11808"

Concept: TypeAlias = str | int | None
"""A concept head by name or number; None: the head whose concept is present in the target class."""
Decay: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""α of Algorithm 1: a map l counts α^(L − l) against those deeper."""

CARD = Card(
    cost="1 forward pass, which all LAP maps of a batch share",
    limits="Networks with LAP layers only, and classes that a concept head stands for.",
    computed_by="lapbench: the network itself computes these probabilities while it decides",
)


@explainer(
    "lap", version=1, title="LAP", paper=PAPER, needs=("model", "lap"), native_threshold=0.5, card=CARD
)
def lap(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    layer: PositiveInt | Literal["last"] = "last",
    concept: Concept = None,
) -> Tensor:
    """The concept probabilities of one LAP layer, 1 (shallow) to L (deep), at that layer's resolution.

    They have an absolute scale: a pixel is active where its probability is above 0.5, in every image.
    Errors: NotApplicableError for a network without LAP, or where no head stands for a target.
    """
    maps = _concept_maps(model, images, target, concept)
    return maps[_position(layer, len(maps), "LAP")][0]


@explainer(
    "lap_all",
    version=1,
    title="LAP All",
    paper=f"{PAPER}, Algorithm 1",
    needs=("model", "lap"),
    native_threshold=0.5,
    card=CARD,
)
def lap_all(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    mode: Literal["blend", "strict"] = "blend",
    decay: Decay = 0.8,
    resize: Literal["bilinear", "nearest"] = "bilinear",
    concept: Concept = None,
) -> Tensor:
    """All LAP layers in one map: shallow maps prune what deeper ones found (Algorithm 1).

    A pixel r > 0.5 of the deeper map with an active pixel p > 0.5 under its window gives its pixels
    (1 − d) r + d p, d = α^(L − l); every other r is handed down unchanged. ``strict``: the inactive pixels
    under such an r get (1 − d) r. Overlapping windows are averaged; a pixel under no window takes the r of
    its nearest parent. resize brings the deeper map to the output grid of LAP l, where the network has layers
    between the two (Inception). Returns maps at the size of LAP 1's.
    """

    def refine(deep: Tensor, shallow: Tensor, weight: float, record: LapRecord) -> Tensor:
        parents = _resized(deep, record.output_size, resize)
        active = (shallow > 0.5).to(shallow)
        refined = (parents > 0.5) & (_sum_under(active, record) > 0)
        share = weight * refined
        children = shallow * active if mode == "strict" else shallow
        handed_down, outside = _spread(parents * (1 - share), record)
        refined_map = handed_down + _spread(share, record)[0] * children
        nearest = F.interpolate(parents[:, None], size=shallow.shape[-2:], mode="nearest-exact")[:, 0]
        return torch.where(outside, nearest, refined_map)

    return _fold(_concept_maps(model, images, target, concept), decay, refine)


@explainer(
    "lap_average",
    version=1,
    title="LAP average",
    paper="lapbench's own",
    needs=("model", "lap"),
    native_threshold=0.5,
    card=CARD,
)
def lap_average(
    model: nn.Module, images: Tensor, target: Tensor, *, decay: Decay = 0.8, concept: Concept = None
) -> Tensor:
    """All LAP layers averaged from the deepest up: (1 − d) r + d p everywhere, d = α^(L − l).

    Unlike Algorithm 1, shallow maps may add to what deeper ones found. Deeper maps are up-sampled bilinearly;
    returns maps at the size of LAP 1's, on the probabilities' absolute scale.
    """

    def refine(deep: Tensor, shallow: Tensor, weight: float, _record: LapRecord) -> Tensor:
        return (1 - weight) * _resized(deep, shallow.shape[-2:], "bilinear") + weight * shallow

    return _fold(_concept_maps(model, images, target, concept), decay, refine)


@explainer(
    "lap_geometric",
    version=1,
    title="LAP geometric",
    paper="lapbench's own",
    needs=("model", "lap"),
    card=CARD,
)
def lap_geometric(model: nn.Module, images: Tensor, target: Tensor, *, concept: Concept = None) -> Tensor:
    """All LAP layers joined by their geometric mean, exp(mean_l log p_l).

    Every map is up-sampled bilinearly to the size of the image, which is the size of the result. A pixel
    needs the consent of all layers; the mean has no threshold of its own.
    """
    size, tiny = images.shape[-2:], torch.finfo(torch.float32).tiny
    maps = [_resized(p, size, "bilinear") for p, _ in _concept_maps(model, images, target, concept)]
    return torch.stack([p.clamp_min(tiny).log() for p in maps]).mean(0).exp()


@explainer(
    "lip",
    version=1,
    title="LIP",
    paper="Gao, Wang, Wu, ICCV 2019 (arXiv 1908.04156)",
    needs=("model", "lip"),
    class_agnostic=True,
    card=Card(
        cost="1 forward pass",
        limits="Networks with LIP layers only; one map for all classes, without a threshold of its own. Of "
        "LIP as published (channels = 'each') the mean over the channels; by default these share their "
        "weights, which is a variant.",
        computed_by="lapbench: the network itself pools by these weights",
    ),
)
def lip(
    model: nn.Module, images: Tensor, target: Tensor, *, layer: PositiveInt | Literal["last"] = "last"
) -> Tensor:
    """The weights exp(G) of one LIP layer, 1 (shallow) to L (deep), at that layer's resolution.

    They count in proportion only, so each map is divided by its maximum: 1 is the heaviest pixel. Where each
    channel has its own weights, those of a channel, in shares of their sum, are averaged over the channels.
    Errors: NotApplicableError for a network without LIP.
    """
    if not lip_layers(model):
        raise NotApplicableError(f"this {type(model).__name__} has no LIP layers")
    records = passes_of(model, images, target).laps
    logits = records[_position(layer, len(records), "LIP")].logits.float()
    weights = (logits - logits.amax((2, 3), keepdim=True)).exp()
    if weights.shape[1] > 1:
        weights = (weights / weights.sum((2, 3), keepdim=True)).mean(1, keepdim=True)
        weights = weights / weights.amax((2, 3), keepdim=True)
    return weights[:, 0]


@explainer(
    "antehoc",
    version=1,
    title="Ante-hoc (reconstruction)",
    paper="Guna R T, Okkath Krishnanunni, Benítez, 2023; a reconstruction from its abstract",
    needs=("model", "antehoc"),
    class_agnostic=True,
    reach="layer",
    card=Card(
        cost="1 forward pass, and the weighting network",
        limits="A reconstruction: only the paper's abstract was at hand. Networks with a weighting network "
        "beside their global pooling; one map for all classes, without a threshold of its own.",
        computed_by="lapbench: the weighting network was trained together with the network",
    ),
)
def antehoc(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """The map M that the weighting network makes (reconstruction), at the resolution of the last features.

    Each map is stretched to [0, 1], so that its scale is relative; a constant one is 0.
    Errors: NotApplicableError for a network without a weighting network.
    """
    layers = antehoc_layers(model)
    if not layers:
        raise NotApplicableError(
            f"this {type(model).__name__} has no weighting network for ante-hoc maps (a reconstruction)"
        )
    ((name, layer),) = layers.items()
    maps: Tensor = layer.weighting(passes_of(model, images, target).activation(f"{name}.features"))
    return maps[:, 0]


def _position(layer: int | Literal["last"], count: int, kind: str) -> int:
    """Return which of the layers is meant, from 0."""
    number = count if layer == "last" else layer
    if number > count:
        raise ExplainerError(f"the network has {kind} layers 1 to {count}, there is no layer {layer}")
    return number - 1


def _concept_maps(
    model: nn.Module, images: Tensor, target: Tensor, concept: Concept
) -> list[tuple[Tensor, LapRecord]]:
    """Return each LAP's map P (B, H, W) of the head that is asked for, shallow to deep, with its record."""
    heads = _heads(model, target, concept)
    kept = passes_of(model, images, target).laps
    rows = torch.arange(len(images), device=images.device)
    return [(torch.sigmoid(record.logits[rows, heads].float()), record) for record in kept]


def _heads(model: nn.Module, target: Tensor, concept: Concept) -> Tensor:
    """Return the number of the concept head for every sample, (B,)."""
    names, classes = lap_names(model), lap_heads(model)
    if not names:
        raise NotApplicableError(f"this {type(model).__name__} has no LAP layers")
    if concept is not None:
        number = concept if isinstance(concept, int) else _number_of(concept, names)
        if not 0 <= number < len(names):
            raise ExplainerError(f"the network has concept heads 0 to {len(names) - 1}, there is no {number}")
        return torch.full_like(target, number)
    head_of = {c: head for head in reversed(range(len(classes))) for c in classes[head]}
    missing = sorted({int(c) for c in target} - head_of.keys())
    if missing:
        stands_for = [", ".join(map(str, head)) or "no class" for head in classes]
        known = "; ".join(f"{name} → {head}" for name, head in zip(names, stands_for, strict=True))
        raise NotApplicableError(f"no concept head stands for class {missing[0]} (heads: {known})")
    return torch.tensor([head_of[int(c)] for c in target], device=target.device)


def _number_of(concept: str, names: tuple[str, ...]) -> int:
    if concept not in names:
        raise UnknownNameError("concept", concept, names)
    return names.index(concept)


def _fold(
    maps: list[tuple[Tensor, LapRecord]],
    decay: float,
    refine: Callable[[Tensor, Tensor, float, LapRecord], Tensor],
) -> Tensor:
    """Start with the deepest map and refine it by the next shallower one, up to LAP 1's."""
    result = maps[-1][0]
    for distance, (shallow, record) in enumerate(reversed(maps[:-1]), start=1):
        result = refine(result, shallow, decay**distance, record)
    return result


def _resized(maps: Tensor, size: tuple[int, ...], mode: Literal["bilinear", "nearest"]) -> Tensor:
    """Return maps (B, h, w) at another size; the same size is no change."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    corners = False if mode == "bilinear" else None
    return F.interpolate(maps[:, None], size=tuple(size), mode=mode, align_corners=corners)[:, 0]


def _sum_under(maps: Tensor, record: LapRecord) -> Tensor:
    """Sum the pixels of (B, H, W) under each window of a LAP, (B, H', W')."""
    (top, left), (bottom, right) = record.padding, _overhang(record)
    padded = F.pad(maps[:, None], (left, max(right, 0), top, max(bottom, 0)))
    sums = F.conv2d(padded, maps.new_ones(1, 1, *record.kernel), stride=record.stride)
    return sums[:, 0, : record.output_size[0], : record.output_size[1]]


def _spread(parents: Tensor, record: LapRecord) -> tuple[Tensor, Tensor]:
    """Hand values (B, H', W') of windows down to the pixels under them, (B, H, W), overlaps averaged.

    Also returns which pixels (1, H, W) lie under no window, and so get 0: floor mode leaves out a border, and
    a stride above the kernel leaves gaps.
    """
    height, width = record.logits.shape[-2:]
    (top, left), (bottom, right) = record.padding, _overhang(record)

    def down(x: Tensor) -> Tensor:
        full = F.conv_transpose2d(x[:, None], x.new_ones(1, 1, *record.kernel), stride=record.stride)
        full = F.pad(full, (0, max(-right, 0), 0, max(-bottom, 0)))
        return full[:, 0, top : top + height, left : left + width]

    windows = down(torch.ones_like(parents[:1]))
    return down(parents) / windows.clamp_min(1), windows == 0


def _overhang(record: LapRecord) -> tuple[int, int]:
    """Rows and columns by which the last windows reach over the border; negative where they fall short."""
    geometry = record.output_size, record.kernel, record.stride, record.padding, record.logits.shape[-2:]
    bottom, right = ((n - 1) * s + k - p - length for n, k, s, p, length in zip(*geometry, strict=True))
    return bottom, right
