import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from explain.networks import Counter, Untraceable, images, plugged, small_resnet
from lapbench.errors import ExplainerError
from lapbench.explain import Maps, check_explainer, explain
from lapbench.explain.averaged_gradients import AT_ONCE
from lapbench.registry import check_parameters, explainers

TARGET = torch.tensor([0, 1, 3])
BASELINE = (0.3, -0.2, 0.1)
METHODS = ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]
FEW = {"integrated_gradients": {"steps": 5}, "smoothgrad": {"samples": 5}}


def run(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Maps:
    return explain(explainers.get(name), model, batch, target, parameters)


def maps(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return run(name, model, batch, target, **parameters).values


def slow_gradient(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    x = image[None].clone().requires_grad_()
    return torch.autograd.grad(model(x)[0, label], x)[0][0]


def colour(values: tuple[float, ...] = BASELINE) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def small_batch(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(7))


# --- what both have in common


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("model", [small_resnet(), Untraceable()], ids=["resnet", "user"])
def test_the_contract(name: str, model: nn.Module) -> None:
    check_explainer(explainers.get(name), model, images(2, 24), TARGET[:2], FEW[name])


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("count", [1, 5, AT_ONCE + 6])
def test_the_network_is_never_given_more_than_a_fixed_number_of_points(name: str, count: int) -> None:
    model = Counter(Untraceable())
    maps(name, model, small_batch(count), torch.arange(count) % 4)
    assert max(model.given) <= AT_ONCE


@pytest.mark.parametrize("name", FEW)
def test_a_map_does_not_depend_on_the_block_its_image_is_in(name: str) -> None:
    many, target = small_batch(AT_ONCE + 6), torch.arange(AT_ONCE + 6) % 4
    together = maps(name, Untraceable(), many, target, **FEW[name])
    for number in (0, AT_ONCE - 1, AT_ONCE, AT_ONCE + 5):
        alone = maps(name, Untraceable(), many[[number]], target[[number]], **FEW[name])
        torch.testing.assert_close(together[[number]], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "points"), [("integrated_gradients", 50 + 2), ("smoothgrad", 25)])
def test_the_cost_is_what_the_card_says(name: str, points: int) -> None:
    model = Counter(Untraceable())
    maps(name, model, small_batch(1), TARGET[:1])
    assert sum(model.given) == points


@pytest.mark.parametrize("name", FEW)
def test_channel_reductions(name: str) -> None:
    model, batch = Untraceable(), small_batch(1)
    with torch.no_grad():
        model.body[0].weight[:, 1:] *= 1e-9  # the first channel decides all
    total, mean, largest = (
        maps(name, model, batch, TARGET[:1], reduce=reduce, **FEW[name])
        for reduce in ("sum", "mean", "max_abs")
    )
    torch.testing.assert_close(total, 3 * mean)
    torch.testing.assert_close(total.abs(), largest)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("integrated_gradients", {"steps": 1}, "'steps' .* greater than or equal to 2"),
        ("integrated_gradients", {"method": "riemann_trapezoid"}, "'method' .* 'gausslegendre'"),
        ("smoothgrad", {"samples": 0}, "'samples' .* greater than 0"),
        ("smoothgrad", {"noise": -0.1}, "'noise' .* greater than or equal to 0"),
        ("smoothgrad", {"magnitude": "cubed"}, "'magnitude' .* 'signed', 'absolute' or 'squared'"),
    ],
)
def test_parameters_without_meaning_are_refused(
    name: str, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_parameters("explainer", name, explainers.get(name).parameters, parameters)


def test_a_baseline_needs_one_value_for_each_channel() -> None:
    with pytest.raises(ExplainerError, match=r"one value or one per channel \(3\), found 2"):
        maps("integrated_gradients", Untraceable(), images(), baseline=(0.0, 1.0))


# --- Integrated Gradients


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_integrated_gradients_of_a_linear_network_are_its_closed_form(method: str, steps: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 4))
    weights = model[1].weight.detach()[TARGET].view(3, 3, 8, 12)
    batch = small_batch(3)
    found = run("integrated_gradients", model, batch, baseline=BASELINE, method=method, steps=steps)
    torch.testing.assert_close(found.values, ((batch - colour()) * weights).sum(1))
    assert float(found.diagnostics["completeness_error"].max()) < 1e-4


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_right"])
@pytest.mark.parametrize("model", [small_resnet(), plugged(small_resnet())], ids=["plain", "plugged"])
def test_integrated_gradients_against_a_loop(model: nn.Module, method: str) -> None:
    """The paper's Eq. 3 is the right Riemann sum."""
    if method == "riemann_right":
        places, weights = np.arange(1, 10) / 9, np.full(9, 1 / 9)
    else:
        places, weights = np.polynomial.legendre.leggauss(9)
        places, weights = (places + 1) / 2, weights / 2
    expected = []
    for image, label in zip(images(), TARGET, strict=True):
        way = image - colour()
        gradients = [slow_gradient(model, colour() + float(a) * way, label) for a in places]
        expected.append((sum(float(w) * g for w, g in zip(weights, gradients, strict=True)) * way).sum(0))
    found = maps("integrated_gradients", model, images(), baseline=BASELINE, method=method, steps=9)
    largest = float(found.abs().max())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5 * largest)


def test_integrated_gradients_of_a_cubic_network() -> None:
    """f = Σ w x³: its contributions are ∫ 3 w (b + a (x − b))² (x − b) da = w (x³ − b³)."""

    class Cubic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3 * 8 * 12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1) ** 3)

    torch.manual_seed(0)
    model, batch = Cubic(), small_batch(3)
    weights = model.linear.weight.detach()[TARGET].view(3, 3, 8, 12)
    expected = (weights * (batch**3 - colour() ** 3)).sum(1)
    found = run("integrated_gradients", model, batch, baseline=BASELINE, steps=2)  # exact to the third degree
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    assert float(found.diagnostics["completeness_error"].max()) < 1e-4


def test_captums_trapezoids_are_not_offered_because_they_miss_a_part() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 12, 4)), small_batch(3)
    missing = captum.attr.IntegratedGradients(model).attribute(
        batch, target=TARGET, n_steps=5, method="riemann_trapezoid"
    )
    torch.testing.assert_close(missing.sum(1).detach(), 4 / 5 * maps("integrated_gradients", model, batch))


def test_the_completeness_error_is_captums_delta_and_falls_with_the_steps() -> None:
    model, batch = small_resnet(), images()
    flat = colour().expand_as(batch)
    with torch.no_grad():
        rows = torch.arange(3)
        change = model(batch)[rows, TARGET] - model(flat)[rows, TARGET]
    _, delta = captum.attr.IntegratedGradients(model).attribute(
        batch, flat, TARGET, n_steps=4, return_convergence_delta=True
    )
    coarse = run("integrated_gradients", model, batch, baseline=BASELINE, steps=4)
    error = coarse.diagnostics["completeness_error"]
    torch.testing.assert_close(error, (delta / change).abs().detach().float(), rtol=1e-3, atol=1e-5)
    missed = (coarse.values.sum((1, 2)) - change).abs() / change.abs()
    torch.testing.assert_close(error, missed, rtol=1e-3, atol=1e-5)
    fine = run("integrated_gradients", model, batch, baseline=BASELINE, steps=300)
    assert float(fine.diagnostics["completeness_error"].max()) < 0.1 * float(error.max())


# --- SmoothGrad


def noisy(batch: Tensor, samples: int, noise: float, seed: int) -> list[list[Tensor]]:
    """The points around each image: the same draws for all, scaled by their ranges."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(batch.shape[1:], generator=generator) for _ in range(samples)]
    return [[image + noise * float(image.max() - image.min()) * d for d in draws] for image in batch]


@pytest.mark.parametrize("model", [small_resnet(), plugged(small_resnet())], ids=["plain", "plugged"])
def test_without_noise_smoothgrad_is_the_gradient(model: nn.Module) -> None:
    expected = torch.stack([slow_gradient(model, *pair) for pair in zip(images(), TARGET, strict=True)])
    found = maps("smoothgrad", model, images(), noise=0, samples=2)
    torch.testing.assert_close(found, expected.sum(1), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("magnitude", "by_hand"), [("signed", lambda g: g), ("absolute", torch.abs), ("squared", lambda g: g * g)]
)
def test_smoothgrad_against_a_loop(magnitude: str, by_hand: object) -> None:
    model = small_resnet()
    expected = []
    for points, label in zip(noisy(images(), 14, 0.2, 3), TARGET, strict=True):
        gradients = [by_hand(slow_gradient(model, point, label)) for point in points]  # type: ignore[operator]
        expected.append((sum(gradients) / 14).sum(0))
    found = maps("smoothgrad", model, images(), samples=14, noise=0.2, magnitude=magnitude, seed=3)
    largest = float(found.abs().max())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-4 * largest)


def test_smoothgrad_tends_to_captums_noise_tunnel() -> None:
    """Which draws other noise, of one standard deviation for all images: so one at a time, and many draws."""
    model, batch = Untraceable(), small_batch(2)
    ours = maps("smoothgrad", model, batch, TARGET[:2], samples=1500, noise=0.3)
    theirs = []
    for image, label in zip(batch, TARGET[:2], strict=True):
        deviation = 0.3 * float(image.max() - image.min())
        torch.manual_seed(1)
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        theirs.append(
            tunnel.attribute(
                image[None], nt_type="smoothgrad", nt_samples=1500, stdevs=deviation, target=label, abs=False
            ).sum(1)
        )
    together = torch.cat(theirs)
    plain = maps("smoothgrad", model, batch, TARGET[:2], samples=1, noise=0)
    assert float((ours - together).abs().max()) < 0.15 * float(together.abs().max())
    assert float((plain - together).abs().max()) > 0.5 * float(together.abs().max())


def test_the_seed_decides_every_draw() -> None:
    found = [maps("smoothgrad", Untraceable(), images(), samples=3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
