import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explain.networks import images, network, plugged, small_resnet
from lapbench.errors import ExplainerError, LapbenchError, NotApplicableError
from lapbench.explain import ante_hoc, explain
from lapbench.models.lap import LapRecord, record_laps
from lapbench.registry import explainers

TARGET = torch.tensor([0, 1, 3])
ALL = ("lap", "lap_all", "lap_average", "lap_geometric")


def maps(name: str, model: nn.Module, batch: Tensor, target: Tensor = TARGET, **parameters: object) -> Tensor:
    return explain(explainers.get(name), model, batch, target, parameters).values


def record(
    height: int, width: int, kernel: int, stride: int, output: tuple[int, int], padding: int = 0
) -> LapRecord:
    shape = torch.empty(1, 1, height, width)
    return LapRecord("x", shape, shape, (kernel, kernel), (stride, stride), (padding, padding), output)


def fake(monkeypatch: pytest.MonkeyPatch, *layers: tuple[Tensor, LapRecord]) -> None:
    """Let the network have said these maps, shallow to deep."""
    monkeypatch.setattr(ante_hoc, "_concept_maps", lambda *_: list(layers))


def probabilities(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def slow_algorithm_1(layers: list[tuple[Tensor, LapRecord]], decay: float, mode: str, resize: str) -> Tensor:
    """Algorithm 1 for one image, pixel by pixel."""
    r_map = layers[-1][0][0]
    for distance, (p_maps, geometry) in enumerate(reversed(layers[:-1]), start=1):
        d, p_map, size = decay**distance, p_maps[0], geometry.output_size
        if tuple(r_map.shape) != size:
            corners = False if resize == "bilinear" else None
            r_map = F.interpolate(r_map[None, None], size=size, mode=resize, align_corners=corners)[0, 0]
        given: dict[tuple[int, int], list[float]] = {}
        height, width = p_map.shape
        for i in range(size[0]):
            for j in range(size[1]):
                top, left = (
                    n * s - p for n, s, p in zip((i, j), geometry.stride, geometry.padding, strict=True)
                )
                window = [
                    (y, x)
                    for y in range(top, top + geometry.kernel[0])
                    for x in range(left, left + geometry.kernel[1])
                    if 0 <= y < height and 0 <= x < width
                ]
                r = float(r_map[i, j])
                refine = r > 0.5 and any(p_map[pixel] > 0.5 for pixel in window)
                for pixel in window:
                    p = float(p_map[pixel])
                    if not refine:
                        value = r
                    elif mode == "strict" and p <= 0.5:
                        value = r * (1 - d)
                    else:
                        value = (1 - d) * r + d * p
                    given.setdefault(pixel, []).append(value)
        result = torch.empty(height, width)
        for y in range(height):
            for x in range(width):
                parts = given.get((y, x))
                row = min(math.floor((y + 0.5) * size[0] / height), size[0] - 1)
                column = min(math.floor((x + 0.5) * size[1] / width), size[1] - 1)
                result[y, x] = sum(parts) / len(parts) if parts else r_map[row, column]
        r_map = result
    return r_map


RESNET = [(16, 24, 2, 2, (8, 12)), (8, 12, 2, 2, (4, 6)), (4, 6, 2, 2, (2, 3)), (2, 3, 2, 2, (1, 1))]
INCEPTION = [(15, 21, 3, 2, (7, 10)), (5, 8, 2, 2, (3, 4)), (2, 3, 2, 2, (1, 2)), (1, 2, 2, 2, (1, 1))]
ODD = [(9, 7, 3, 2, (5, 4), 1), (5, 4, 2, 2, (3, 2)), (4, 4, 2, 3, (2, 2)), (3, 3, 2, 2, (1, 1))]
FLOOR = [(9, 11, 2, 2, (4, 5)), (6, 6, 3, 2, (2, 2)), (2, 2, 2, 2, (1, 1))]


@pytest.mark.parametrize(
    "grid", [RESNET, INCEPTION, ODD, FLOOR], ids=["resnet", "inception", "padded", "floor"]
)
@pytest.mark.parametrize("mode", ["blend", "strict"])
@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
def test_lap_all_against_a_loop_over_pixels(
    grid: list[tuple[object, ...]], mode: str, resize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [
        (probabilities(1, *geometry[:2], seed=seed) ** 0.5, record(*geometry))  # type: ignore[misc, arg-type]
        for seed, geometry in enumerate(grid)
    ]
    fake(monkeypatch, *layers)
    found = maps("lap_all", small_resnet(), images(1), TARGET[:1], mode=mode, decay=0.7, resize=resize)
    torch.testing.assert_close(found[0], slow_algorithm_1(layers, 0.7, mode, resize))


def test_lap_all_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = torch.tensor([[[0.9, 0.4, 0.8]]])
    shallow = torch.tensor([[[0.6, 0.1, 0.9, 0.9, 0.2, 0.3], [0.1, 0.1, 0.9, 0.9, 0.2, 0.3]]])
    fake(monkeypatch, (shallow, record(2, 6, 2, 2, (1, 3))), (deep, record(1, 3, 1, 1, (1, 1))))
    blend = torch.tensor([[[0.66, 0.26, 0.4, 0.4, 0.8, 0.8], [0.26, 0.26, 0.4, 0.4, 0.8, 0.8]]])
    torch.testing.assert_close(maps("lap_all", small_resnet(), images(1), TARGET[:1]), blend)
    strict = torch.tensor([[[0.66, 0.18, 0.4, 0.4, 0.8, 0.8], [0.18, 0.18, 0.4, 0.4, 0.8, 0.8]]])
    torch.testing.assert_close(maps("lap_all", small_resnet(), images(1), TARGET[:1], mode="strict"), strict)


@pytest.mark.parametrize("model", [plugged(small_resnet()), plugged(network("inception_v3"))])
def test_lap_all_of_networks(model: nn.Module) -> None:
    batch = images(3, 107)
    result, first = maps("lap_all", model, batch), maps("lap", model, batch, layer=1)
    assert result.shape == first.shape
    assert 0 <= result.min() <= result.max() <= 1
    active, parents = result > 0.5, maps("lap", model, batch)
    assert parents.shape[-1] < result.shape[-1]
    if not (parents > 0.5).any():
        assert not active.any()


def test_an_inactive_deepest_map_is_unchanged_by_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = probabilities(2, 4, 6, seed=0) / 2
    layers = (
        (probabilities(2, 8, 12, seed=1), record(8, 12, 2, 2, (4, 6))),
        (deep, record(4, 6, 2, 2, (2, 3))),
    )
    fake(monkeypatch, *layers)
    found = maps("lap_all", small_resnet(), images(2), TARGET[:2])
    assert torch.equal(found, deep.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.parametrize("name", ["lap_all", "lap_average"])
def test_a_single_layer_is_its_own_map(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    only = probabilities(2, 8, 12, seed=0)
    fake(monkeypatch, (only, record(8, 12, 2, 2, (4, 6))))
    assert torch.equal(maps(name, small_resnet(), images(2), TARGET[:2]), only)


def test_lap_average_against_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (8, 12), (4, 6), (2, 3)
    one, two, three = (probabilities(2, *size, seed=seed) for seed, size in enumerate(sizes))
    fake(monkeypatch, *((p, record(*p.shape[1:], 2, 2, (1, 1))) for p in (one, two, three)))

    def up(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]

    expected = 0.36 * up(0.2 * up(three, (4, 6)) + 0.8 * two, (8, 12)) + 0.64 * one
    torch.testing.assert_close(maps("lap_average", small_resnet(), images(2), TARGET[:2]), expected)


def test_lap_geometric_against_its_formula() -> None:
    model, batch = plugged(small_resnet()), images()
    product = torch.ones(3, 32, 48)
    for layer in (1, 2, 3, 4):
        p = maps("lap", model, batch, layer=layer)
        product *= F.interpolate(p[:, None], size=(32, 48), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(maps("lap_geometric", model, batch), product**0.25)


def test_lap_geometric_bears_a_probability_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, (torch.zeros(1, 4, 6), record(4, 6, 2, 2, (2, 3))))
    assert maps("lap_geometric", small_resnet(), images(1), TARGET[:1]).max() < 1e-30


def test_lap_is_the_probability_of_the_head_that_stands_for_the_target() -> None:
    model, batch = plugged(small_resnet()), images()
    with torch.no_grad(), record_laps(model) as records:
        model(batch)
        logits = [r.logits for r in records]
    for layer, z in enumerate(logits, start=1):
        expected = torch.stack([z[0, 0], z[1, 1], z[2, 1]]).sigmoid()  # a: class 0; b: classes 1 to 3
        assert torch.equal(maps("lap", model, batch, layer=layer), expected)
    assert torch.equal(maps("lap", model, batch), maps("lap", model, batch, layer=4))
    assert torch.equal(maps("lap", model, batch, concept="b"), logits[-1][:, 1].sigmoid())
    assert torch.equal(maps("lap", model, batch, concept=0), logits[-1][:, 0].sigmoid())


@pytest.mark.parametrize("name", ALL)
def test_a_plain_network_has_no_lap_maps(name: str) -> None:
    with pytest.raises(NotApplicableError, match="this SizedResNet has no LAP layers"):
        maps(name, small_resnet(), images())


@pytest.mark.parametrize(
    ("target", "parameters", "message"),
    [
        (TARGET, {"layer": 5}, "the network has LAP layers 1 to 4, there is no layer 5"),
        (TARGET, {"concept": "c"}, "there is no concept 'c'; known: a, b"),
        (TARGET, {"concept": 2}, "the network has concept heads 0 to 1, there is no 2"),
        (TARGET, {"concept": -1}, "the network has concept heads 0 to 1, there is no -1"),
        (
            torch.tensor([0, 2, 2]),
            {},
            r"no concept head stands for class 2 \(heads: a → 0; b → 1; any → no class\)",
        ),
    ],
)
def test_what_is_not_there_is_named(target: Tensor, parameters: dict[str, object], message: str) -> None:
    from lapbench.benchmark import Concept

    concepts = (Concept(name="a", classes=("c0",)), Concept(name="b", classes=("c1",)), Concept(name="any"))
    model = plugged(small_resnet(), concepts=concepts) if not parameters else plugged(small_resnet())
    with pytest.raises(LapbenchError, match=message) as caught:
        maps("lap", model, images(), target, **parameters)
    assert isinstance(caught.value, ExplainerError) or "concept 'c'" in message
