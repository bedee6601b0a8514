"""Explainers that change the image and look at what the network says then; they need its outputs alone.

Each sends every image through the network many times, under the same changes for all images. Pairs of image
and change are run `AT_ONCE`; never are all changed images of a batch there at the same time.
"""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import torch
import torch.nn.functional as F
from captum.attr import Occlusion
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lapbench.errors import ExplainerError
from lapbench.explain.attribution import Colour, flat_like
from lapbench.explain.passes import passes_of
from lapbench.models.predict import probabilities
from lapbench.registry import Card, explainer

AT_ONCE = 64
"""Changed images in one forward pass: what bounds the memory, however large the batch."""

Score: TypeAlias = Literal["probability", "logit"]
"""What of the target is looked at: its softmax probability, or its logit."""
Fraction: TypeAlias = Annotated[float, Field(gt=0, le=1)]


@explainer(
    "occlusion",
    version=1,
    title="Occlusion",
    paper="Zeiler and Fergus, ECCV 2014, Section 4.2",
    signed=True,
    card=Card(
        cost="1 forward, and 1 for each position of the window (225 at 224 px)",
        limits="evidence that stands in two places: while one is covered, the other is enough",
        computed_by="Captum's Occlusion",
    ),
)
def occlusion(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    window: Fraction = 0.125,
    stride: Fraction = 0.0625,
    baseline: Colour = 0.0,
    score: Score = "probability",
) -> Tensor:
    """How much the target's probability falls when a window around the pixel is painted over.

    window, stride: fractions of each side of the image, rounded to whole pixels, at least one. The windows
    start in the upper left corner; the last ones are cut off at the border. A pixel's value is the mean fall
    over all windows that contain it. baseline: the paint, as in `Colour`. score: the paper looks at the
    probability.
    """
    if stride > window:
        raise ExplainerError(
            f"stride ({stride}) must not exceed window ({window}): pixels in between would never be covered"
        )
    rows, columns = ([max(1, round(part * side)) for part in (window, stride)] for side in images.shape[-2:])
    size, step = ((images.shape[1], rows[i], columns[i]) for i in range(2))
    flat = flat_like(images, baseline)
    fall = Occlusion(_outputs(model, score)).attribute
    maps = [
        fall(block, size, step, flat[:1], wanted, perturbations_per_eval=AT_ONCE // len(block))[:, 0]
        for block, wanted in zip(torch.split(images, AT_ONCE), torch.split(target, AT_ONCE), strict=True)
    ]
    return torch.cat(maps)


@explainer(
    "rise",
    version=1,
    title="RISE",
    paper="Petsiuk et al., BMVC 2018, Eq. 6",
    card=Card(
        cost="`count` (1000) forwards",
        randomness="seeded",
        limits="the map is noisy, by one over the root of count (4000 to 8000 in the paper)",
        computed_by="lapbench: Captum has none",
    ),
)
def rise(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    cells: PositiveInt = 7,
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    count: PositiveInt = 1000,
    seed: int = 0,
    score: Score = "probability",
) -> Tensor:
    """The target's mean probability over random masks that leave the pixel visible, Σ f(x ⊙ M) M / (N p).

    A mask is a grid of cells × cells, each visible with the given probability, up-sampled bilinearly and
    shifted at random by less than a cell. What is masked becomes 0, the mean colour. The same masks, decided
    by the seed alone, for every image of that size.
    """
    _check_cells(cells, images)
    masks = _rise_masks(count, cells, probability, seed, images)
    scores = _scores(
        _outputs(model, score), images, target, count,
        lambda rows, numbers: images[rows, None] * masks(numbers)[:, None],
    )  # fmt: skip
    maps = images.new_zeros(len(images), *images.shape[-2:])
    for numbers in torch.split(torch.arange(count), AT_ONCE):
        maps += torch.einsum("bn,nhw->bhw", scores[:, numbers].to(maps), masks(numbers))
    return maps / (count * probability)


@explainer(
    "lime",
    version=1,
    title="LIME",
    paper="Ribeiro et al., KDD 2016, Eq. 1 and 2",
    signed=True,
    card=Card(
        cost="`samples` (1000) forwards",
        randomness="seeded",
        limits="nothing is told apart within a segment, and segments are rectangles that follow no outline",
        computed_by="lapbench: Captum's Lime takes one image at a time, and draws from the global generator",
    ),
)
def lime(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    cells: PositiveInt = 8,
    samples: PositiveInt = 1000,
    kernel_width: PositiveFloat = 0.25,
    regularisation: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0,
    baseline: Colour = 0.0,
    seed: int = 0,
    score: Score = "probability",
) -> Tensor:
    """The weight of the pixel's segment in a linear model of the target's probability around the image.

    Segments are a regular grid of cells × cells. Every sample paints over each segment with probability ½,
    but the first is the image itself; it weighs exp(−D² / kernel_width²), D being the cosine distance of its
    0s and 1s from all 1s. The linear model is a ridge regression with an intercept; regularisation: its
    penalty on squared weights. The same samples, decided by the seed alone, for every image. baseline: the
    paint, as in `Colour`.
    """
    _check_cells(cells, images)
    row, column = (torch.arange(side, device=images.device) * cells // side for side in images.shape[-2:])
    segments = row[:, None] * cells + column
    visible = _visible_segments(samples, cells**2, seed, images)
    flat = flat_like(images[:1], baseline)
    scores = _scores(
        _outputs(model, score), images, target, samples,
        lambda rows, numbers: torch.where(visible[numbers][:, None, segments], images[rows, None], flat),
    )  # fmt: skip
    distance = 1 - visible.double().mean(1).sqrt()
    slopes = _ridge(visible, scores.T, torch.exp(-(distance**2) / kernel_width**2), regularisation)
    return slopes.T[:, segments].to(images)


@explainer(
    "score_cam",
    version=1,
    title="Score-CAM",
    paper="Wang et al., CVPR workshop 2020, Algorithm 1",
    reach="layer",
    card=Card(
        cost="1 forward, and 1 for each channel of the layer (512 in ResNet-18, 2048 in ResNet-50)",
        limits="layers that put out no feature map",
        computed_by="lapbench: Captum has none",
    ),
)
def score_cam(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    *,
    layer: str = "last",
    weights: Literal["softmax", "probability"] = "softmax",
) -> Tensor:
    """The layer's channels weighted by how the target scores where only they are active, ReLU(Σ_k α_k A_k).

    Every channel, up-sampled bilinearly (align_corners False) and stretched to [0, 1], masks the image once.
    weights: the softmax over the channels of the target's logits, as in Algorithm 1 (what the blank image
    scores cancels out), or the target's softmax probabilities. Returns the map at the layer's own resolution;
    ``layer`` as in `layer_of`.
    """
    activation = passes_of(model, images, target).activation(layer)

    def masked(rows: Tensor, channels: Tensor) -> Tensor:
        maps = activation[rows[:, None], channels]
        maps = F.interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return images[rows, None] * _stretched(maps)[:, :, None]

    outputs = _outputs(model, "logit" if weights == "softmax" else "probability")
    scores = _scores(outputs, images, target, activation.shape[1], masked)
    share = (scores.softmax(1) if weights == "softmax" else scores).to(activation)
    return torch.einsum("bk,bkhw->bhw", share, activation).relu()


Outputs: TypeAlias = Callable[[Tensor], Tensor]


def _outputs(model: nn.Module, score: Score) -> Outputs:
    """Return the network as a function of images; in float64, where a probability near 1 can still fall."""

    @torch.no_grad()
    def outputs(inputs: Tensor) -> Tensor:
        logits: Tensor = model(inputs).double()
        return probabilities(logits) if score == "probability" else logits

    return outputs


def _scores(
    outputs: Outputs,
    images: Tensor,
    target: Tensor,
    count: int,
    changed: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the target's output (B, count) for every image under every change.

    changed: the numbers of some images (b,) and of some changes (n,) → those images under those changes,
    (b, n, C, H, W); it is never asked for more than `AT_ONCE`.
    """
    scores = images.new_empty(len(images), count, dtype=torch.float64)
    for rows in torch.split(torch.arange(len(images), device=images.device), AT_ONCE):
        for numbers in torch.split(torch.arange(count, device=images.device), AT_ONCE // len(rows)):
            found = outputs(changed(rows, numbers).flatten(0, 1))
            wanted = target[rows].repeat_interleave(len(numbers))[:, None]
            scores[rows[:, None], numbers] = found.gather(1, wanted).view(len(rows), len(numbers))
    return scores


def _rise_masks(
    count: int, cells: int, probability: float, seed: int, images: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return a function from the numbers of some masks to these masks (n, H, W), values in [0, 1]."""
    height, width = images.shape[-2:]
    cell = -(-height // cells), -(-width // cells)  # rounded up: a shifted mask still covers the image
    generator = torch.Generator().manual_seed(seed)
    grids = (torch.rand(count, cells, cells, generator=generator) < probability).to(images)
    shifts = (torch.rand(count, 2, generator=generator) * torch.tensor(cell)).long().tolist()
    size = [(cells + 1) * side for side in cell]

    def masks(numbers: Tensor) -> Tensor:
        large = F.interpolate(grids[numbers, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        corners = [shifts[number] for number in numbers.tolist()]
        pieces = [mask[y : y + height, x : x + width] for mask, (y, x) in zip(large, corners, strict=True)]
        return torch.stack(pieces)

    return masks


def _visible_segments(samples: int, segments: int, seed: int, images: Tensor) -> Tensor:
    """Return which segments LIME's samples leave as they are, (samples, segments); the first leaves all."""
    visible = torch.rand(samples, segments, generator=torch.Generator().manual_seed(seed)) < 0.5
    visible[0] = True
    return visible.to(images.device)


def _ridge(inputs: Tensor, outputs: Tensor, weights: Tensor, penalty: float) -> Tensor:
    """Return the slopes (S, B) that minimise Σ w (y − slope·x − intercept)² + penalty |slope|², in float64.

    inputs: x, (n, S). outputs: y, (n, B). weights: w, (n,).
    """
    x, w = inputs.double(), weights[:, None]
    x, y = (values - (w * values).sum(0) / w.sum() for values in (x, outputs))  # the intercept is gone
    normal = x.T @ (w * x) + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    slopes: Tensor = torch.linalg.solve(normal, x.T @ (w * y))
    return slopes


def _stretched(maps: Tensor) -> Tensor:
    """Stretch each map (B, K, H, W) to [0, 1]; one without contrast, but for rounding, becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    rounding = 1e-5 * torch.max(low.abs(), high.abs()) + 1e-8
    return (maps - low) / (high - low).clamp_min(rounding) * (high - low > rounding)


def _check_cells(cells: int, images: Tensor) -> None:
    height, width = images.shape[-2:]
    if cells > min(height, width):
        raise ExplainerError(f"cells ({cells}) must not exceed the pixels of a side, found {height}×{width}")
