import copy
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.networks import Counter, Untraceable, images, plugged, small_resnet
from lapbench.errors import ExplainerError, NotApplicableError
from lapbench.explain import check_explainer, explain
from lapbench.explain.perturbation import AT_ONCE
from lapbench.registry import check_parameters, explainers

TARGET = torch.tensor([0, 1, 3])
PAINT = (0.3, -0.2, 0.1)
FEW = {
    "occlusion": {"window": 0.5, "stride": 0.25},
    "rise": {"cells": 3, "count": 20},
    "lime": {"cells": 2, "samples": 20},
    "score_cam": {},
}
"""Parameters that keep a test short."""


def maps(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, target, parameters).values


def linear(height: int, width: int) -> tuple[nn.Module, Tensor]:
    """A network that is linear in the pixels, and its weights (classes, C, H, W)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * height * width, 4))
    return model, model[1].weight.detach().view(4, 3, height, width)


def batch_of(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


# --- what all of them have in common


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("model", [small_resnet(), Untraceable()], ids=["resnet", "user"])
def test_the_contract(name: str, model: nn.Module) -> None:
    check_explainer(explainers.get(name), model, images(2, 24), TARGET[:2], FEW[name])


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("count", [5, AT_ONCE + 6])
def test_the_network_is_never_given_more_than_a_fixed_number_of_inputs(name: str, count: int) -> None:
    model = Counter(Untraceable())
    parameters = FEW[name] | ({"layer": "network.body"} if name == "score_cam" else {})
    maps(name, model, batch_of(count, 8, 12), torch.arange(count) % 4, **parameters)
    given = [inputs for inputs in model.given if inputs != count]  # the pass that gives Score-CAM its layer
    assert max(given) <= AT_ONCE


@pytest.mark.parametrize("name", FEW)
def test_a_map_does_not_depend_on_the_block_its_image_is_in(name: str) -> None:
    many, target = batch_of(AT_ONCE + 6, 8, 12), torch.arange(AT_ONCE + 6) % 4
    together = maps(name, Untraceable(), many, target, **FEW[name])
    for number in (0, AT_ONCE - 1, AT_ONCE, AT_ONCE + 5):
        alone = maps(name, Untraceable(), many[[number]], target[[number]], **FEW[name])
        torch.testing.assert_close(together[[number]], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "inputs"), [("occlusion", 226), ("rise", 1000), ("lime", 1000)])
def test_the_cost_is_what_the_card_says(name: str, inputs: int) -> None:
    model = Counter(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))
    maps(name, model, batch_of(1, 64, 64), TARGET[:1])
    assert sum(model.given) == inputs
    assert max(model.given) == AT_ONCE
    assert str(inputs - (name == "occlusion")) in explainers.get(name).card.cost


@pytest.mark.parametrize("name", ["rise", "lime"])
def test_the_seed_decides_every_draw(name: str) -> None:
    found = [maps(name, Untraceable(), images(), seed=seed, **FEW[name]) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("occlusion", {"window": 1.5}, "'window' .* less than or equal to 1"),
        ("occlusion", {"stride": 0}, "'stride' .* greater than 0"),
        ("rise", {"count": 0}, "'count' .* greater than 0"),
        ("rise", {"probability": 1}, "'probability' .* less than 1"),
        ("rise", {"score": "odds"}, "'score' .* 'probability' or 'logit'"),
        ("lime", {"samples": 0}, "'samples' .* greater than 0"),
        ("lime", {"kernel_width": 0}, "'kernel_width' .* greater than 0"),
        ("lime", {"regularisation": math.inf}, "'regularisation' .* finite"),
        ("score_cam", {"weights": "sum"}, "'weights' .* 'softmax' or 'probability'"),
    ],
)
def test_parameters_without_meaning_are_refused(
    name: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_parameters("explainer", name, explainers.get(name).parameters, parameters)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("occlusion", {"window": 0.1, "stride": 0.2}, r"stride \(0.2\) must not exceed window \(0.1\)"),
        ("occlusion", {"baseline": (0.0, 1.0)}, r"one value or one per channel \(3\), found 2"),
        ("rise", {"cells": 33}, r"cells \(33\) must not exceed the pixels of a side, found 32×48"),
        ("lime", {"cells": 33}, r"cells \(33\) must not exceed the pixels of a side, found 32×48"),
        ("lime", {"baseline": (0.0,) * 4}, r"one value or one per channel \(3\), found 4"),
        ("score_cam", {"layer": "layer_4"}, "no layer 'layer_4'; did you mean 'layer4'"),
    ],
)
def test_parameters_that_do_not_fit_the_images_are_refused(
    name: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ExplainerError, match=message):
        maps(name, small_resnet(), images(), **parameters)


# --- Occlusion


def slow_occlusion(
    f: Callable[[Tensor], Tensor], batch: Tensor, window: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """f: images (1, C, H, W) of sample i → its score. One window of one image at a time."""
    height, width = batch.shape[-2:]
    tops = range(0, math.ceil((height - window[0]) / stride[0]) * stride[0] + 1, stride[0])
    lefts = range(0, math.ceil((width - window[1]) / stride[1]) * stride[1] + 1, stride[1])
    found, covered = torch.zeros(len(batch), height, width), torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            place = slice(top, top + window[0]), slice(left, left + window[1])
            covered[place] += 1
            for i, image in enumerate(batch):
                painted = image.clone()
                painted[(slice(None), *place)] = torch.tensor(PAINT).view(3, 1, 1)
                found[(i, *place)] += float(f(image, i) - f(painted, i))
    return found / covered


def test_occlusion_of_a_linear_network_is_its_closed_form() -> None:
    """What falls is Σ w (x − paint) under the window; windows are 2×3, every 1×2, the last ones cut off."""
    model, weights = linear(8, 12)
    batch = batch_of(3, 8, 12)
    parts = ((batch - torch.tensor(PAINT).view(3, 1, 1)) * weights[TARGET]).sum(1)
    found = maps("occlusion", model, batch, window=0.25, stride=0.15, baseline=PAINT, score="logit")
    expected = slow_occlusion(
        lambda image, i: ((image - torch.tensor(PAINT).view(3, 1, 1)) * weights[TARGET[i]]).sum(),
        batch, (2, 3), (1, 2),
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # the corner is in one window alone; with a stride of one window, so is every pixel
    torch.testing.assert_close(found[:, 0, 0], parts[:, :2, :3].sum((1, 2)), rtol=1e-4, atol=1e-5)
    tiles = maps("occlusion", model, batch, window=0.25, stride=0.25, baseline=PAINT, score="logit")
    torch.testing.assert_close(
        tiles, (F.avg_pool2d(parts, (2, 3)) * 6).repeat_interleave(2, 1).repeat_interleave(3, 2)
    )


@pytest.mark.parametrize("model", [small_resnet(), plugged(small_resnet())], ids=["plain", "plugged"])
def test_occlusion_against_a_loop(model: nn.Module) -> None:
    @torch.no_grad()
    def probability(image: Tensor, i: int) -> Tensor:
        return model(image[None]).double().softmax(1)[0, TARGET[i]]

    found = maps("occlusion", model, images(), window=0.25, stride=0.2, baseline=PAINT)
    expected = slow_occlusion(probability, images(), (8, 12), (6, 10))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["occlusion", "lime", "rise"])
def test_a_single_logit_stands_for_the_probability_of_its_class(name: str) -> None:
    """Its softmax is always 1, whatever the network sees."""
    single, batch = (
        nn.Sequential(nn.Conv2d(3, 1, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        batch_of(2, 12, 12),
    )
    both = nn.Sequential(single, Beside())  # the same as one of two classes
    target = torch.tensor([0, 0])
    found = maps(name, single, batch, target)
    torch.testing.assert_close(found, maps(name, both, batch, target))
    assert (found.amax((1, 2)) > found.amin((1, 2))).all()


class Beside(nn.Module):
    """A second class that always has the logit 0."""

    def forward(self, logits: Tensor) -> Tensor:
        return torch.cat([logits, torch.zeros_like(logits)], 1)


def test_occlusion_of_a_network_that_is_surer_than_float32_can_say() -> None:
    """Where 1 − p is about 1e-11, p falls by little, and yet by more here than there."""

    class Sure(Untraceable):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([25.0, 0, -50, -50])

    exact, batch, target = Sure().double(), images(), torch.zeros(3, dtype=torch.int64)

    @torch.no_grad()
    def probability(image: Tensor, _: int) -> Tensor:
        return exact(image[None].double()).softmax(1)[0, 0]

    expected = slow_occlusion(probability, batch, (8, 12), (8, 12))
    assert 0 < float(expected.abs().max()) < 1e-9
    found = maps("occlusion", Sure(), batch, target, window=0.25, stride=0.25, baseline=PAINT)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_window_is_at_least_a_pixel() -> None:
    model, weights = linear(4, 6)
    batch = batch_of(3, 4, 6)
    found = maps("occlusion", model, batch, window=0.01, stride=0.01, score="logit")
    torch.testing.assert_close(found, (batch * weights[TARGET]).sum(1))


# --- RISE


def bilinear(cells: int, size: int) -> np.ndarray:
    """The weights (size, cells) of a bilinear up-sampling of one side, from its definition."""
    weights = np.zeros((size, cells))
    for pixel in range(size):
        place = min(max((pixel + 0.5) * cells / size - 0.5, 0), cells - 1)
        low = min(int(place), cells - 2)
        weights[pixel, low], weights[pixel, low + 1] = 1 - (place - low), place - low
    return weights


def slow_masks(count: int, cells: int, probability: float, seed: int, height: int, width: int) -> np.ndarray:
    """Section 3.2 of the paper, one mask at a time."""
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(count, cells, cells, generator=generator).numpy() < probability
    draws = torch.rand(count, 2, generator=generator).numpy()
    cell = math.ceil(height / cells), math.ceil(width / cells)
    masks = []
    for grid, (down, right) in zip(grids, draws, strict=True):
        y, x = int(down * cell[0]), int(right * cell[1])
        large = bilinear(cells, (cells + 1) * cell[0]) @ grid @ bilinear(cells, (cells + 1) * cell[1]).T
        masks.append(large[y : y + height, x : x + width])
    return np.stack(masks)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_rise_against_a_loop(score: str) -> None:
    model, batch = small_resnet(), images()
    masks = torch.from_numpy(slow_masks(70, 5, 0.3, 4, 32, 48)).float()
    expected = torch.zeros(3, 32, 48)
    for i, image in enumerate(batch):
        for mask in masks:
            with torch.no_grad():
                logits = model((image * mask)[None])
            outputs = logits.softmax(1) if score == "probability" else logits
            expected[i] += outputs[0, TARGET[i]] * mask / (70 * 0.3)
    found = maps("rise", model, batch, cells=5, probability=0.3, count=70, seed=4, score=score)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_rise_of_a_linear_network_tends_to_its_expectation() -> None:
    """E[f(x M) M_λ] / p = b + p Σ_j c_j + (1 − p) Σ_j c_j E[u_j · u_λ]; c = w x, u: up-sampling's weights."""
    side, cells, p = 6, 3, 0.4
    model, weights = linear(side, side)
    batch = batch_of(3, side, side)
    contributions = (batch * weights[TARGET]).sum(1).flatten(1).double().numpy()
    one = bilinear(cells, 8)  # cells of two pixels, and one more of them
    alike = np.zeros((side**2, side**2))
    for y in range(2):
        for x in range(2):
            u = np.kron(one[y : y + side], one[x : x + side])
            alike += u @ u.T / 4
    bias = model[1].bias.detach()[TARGET].double().numpy()[:, None]
    expected = bias + p * contributions.sum(1, keepdims=True) + (1 - p) * contributions @ alike
    found = maps("rise", model, batch, cells=cells, probability=p, count=20_000, score="logit")
    np.testing.assert_allclose(found.flatten(1), expected, atol=0.05 * np.abs(expected).max())
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.999


# --- LIME


def segments_of(cells: int, height: int, width: int) -> Tensor:
    return torch.tensor([[y * cells // height * cells + x * cells // width for x in range(width)]
                         for y in range(height)])  # fmt: skip


def test_lime_recovers_the_weights_of_a_network_that_is_linear_in_segments() -> None:
    model, weights = linear(9, 12)
    batch = batch_of(3, 9, 12)
    parts = ((batch - torch.tensor(PAINT).view(3, 1, 1)) * weights[TARGET]).sum(1)
    segments = segments_of(4, 9, 12)  # of 2 or 3 by 3 pixels
    expected = torch.stack([parts[:, segments == s].sum(1) for s in range(16)], 1)[:, segments]
    found = maps(
        "lime", model, batch, cells=4, samples=100, regularisation=1e-6, baseline=PAINT, score="logit"
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_lime_against_the_normal_equations() -> None:
    model, batch, samples, width, penalty = small_resnet(), images(), 90, 0.4, 2.0
    segments = segments_of(3, 32, 48)
    visible = torch.rand(samples, 9, generator=torch.Generator().manual_seed(6)) < 0.5
    visible[0] = True
    distance = 1 - F.cosine_similarity(visible.double(), torch.ones(1, 9).double())
    closeness = torch.diag(torch.exp(-(distance**2) / width**2))
    rows = torch.cat([visible.double(), torch.ones(samples, 1)], 1)
    ridge = penalty * torch.diag(torch.tensor([1.0] * 9 + [0.0]).double())
    expected = []
    for image, label in zip(batch, TARGET, strict=True):
        with torch.no_grad():
            scores = [model((image * row[segments])[None])[0].softmax(0)[label] for row in visible]
        solved = torch.linalg.solve(
            rows.T @ closeness @ rows + ridge, rows.T @ closeness @ torch.stack(scores).double()
        )
        expected.append(solved[:9][segments].float())
    found = maps(
        "lime", model, batch, cells=3, samples=samples, kernel_width=width, regularisation=penalty, seed=6
    )
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4 * float(found.abs().max()))


def test_lime_against_captum() -> None:
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    model, batch, segments = small_resnet(), images(), segments_of(3, 32, 48)

    def draw(_: Tensor, **__: object) -> Iterator[Tensor]:
        visible = torch.rand(90, 9, generator=torch.Generator().manual_seed(6)) < 0.5
        visible[0] = True
        yield from visible.long().split(1)

    def closeness(_: Tensor, __: Tensor, visible: Tensor, **___: object) -> Tensor:
        distance = 1 - visible.double().mean().sqrt()
        return torch.exp(-(distance**2) / 0.4**2)

    captum = Lime(lambda x: model(x).softmax(1), SkLearnRidge(alpha=2.0), closeness, draw)
    paint = torch.tensor(PAINT).view(1, 3, 1, 1).expand_as(batch[:1])
    theirs = [
        captum.attribute(image[None], paint, label, feature_mask=segments, n_samples=90)[:, 0]
        for image, label in zip(batch, TARGET, strict=True)
    ]
    ours = maps(
        "lime",
        model,
        batch,
        cells=3,
        samples=90,
        kernel_width=0.4,
        regularisation=2.0,
        seed=6,
        baseline=PAINT,
    )
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-3, atol=1e-4 * float(ours.abs().max()))


# --- Score-CAM


def slow_score_cam(
    model: nn.Module, layer: nn.Module, batch: Tensor, weights: str, target: Tensor = TARGET
) -> Tensor:
    """Algorithm 1, with its baseline image, one channel of one image at a time."""
    result = []
    for image, label in zip(batch, target, strict=True):
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _m, _i, output, kept=kept: kept.append(output))
        with torch.no_grad():
            model(image[None])
            handle.remove()
            blank = model(torch.zeros_like(image)[None])[0, label]
            scores, probabilities = [], []
            for channel in kept[0][0]:
                mask = F.interpolate(channel[None, None], size=image.shape[-2:], mode="bilinear")[0, 0]
                span = mask.max() - mask.min()
                mask = (mask - mask.min()) / span if span > 1e-4 else torch.zeros_like(mask)
                logits = model((image * mask)[None])[0]
                scores.append(logits[label] - blank)
                probabilities.append(logits.softmax(0)[label])
        share = torch.stack(scores).softmax(0) if weights == "softmax" else torch.stack(probabilities)
        result.append(sum(w * a for w, a in zip(share, kept[0][0], strict=True)).relu())
    return torch.stack(result)


@pytest.mark.parametrize("weights", ["softmax", "probability"])
@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_score_cam_against_a_loop(layer: str, weights: str) -> None:
    model = plugged(small_resnet()) if layer == "layer4" else small_resnet()
    expected = slow_score_cam(model, model.get_submodule(layer), images(2), weights, TARGET[:2])
    asked = "last" if layer == "layer4" else layer
    found = maps("score_cam", model, images(2), TARGET[:2], layer=asked, weights=weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_channel_without_contrast_masks_all() -> None:
    model = Untraceable()
    with torch.no_grad():
        model.body[0].weight[2] = 0  # constant, and not 0
        model.body[0].weight[3] *= 1e-9  # constant but for rounding
    found = maps("score_cam", model, images(), layer="body")
    torch.testing.assert_close(
        found, slow_score_cam(model, model.body, images(), "softmax"), rtol=1e-4, atol=1e-6
    )


def test_score_cam_against_pytorch_grad_cam() -> None:
    """At a layer of the image's own size, where it does not matter how maps are up-sampled."""
    from pytorch_grad_cam import ScoreCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(36, 4)
    )  # fmt: skip
    ours = maps("score_cam", model, images(), layer="1")
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    foreign = copy.deepcopy(model)  # it changes the model
    with ScoreCAM(model=foreign, target_layers=[foreign[1]]) as method:
        theirs = method(images(), [ClassifierOutputTarget(int(t)) for t in TARGET])
    np.testing.assert_allclose((ours - low) / (high - low), theirs, atol=2e-5)


def test_score_cam_needs_a_feature_map() -> None:
    with pytest.raises(NotApplicableError, match=r"layer 'fc' puts out no .*feature map"):
        maps("score_cam", small_resnet(), images(), layer="fc")
