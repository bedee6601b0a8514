"""The loss terms against slow loops written from the paper's equations, in float64."""

import math

import pytest
import torch
from torch import Tensor

from lapbench.benchmark import Concept
from lapbench.train.losses import (
    box_supervision,
    concept_discrimination,
    concept_presence,
    concordance,
    count_pixels,
    dsm_loss,
    resize_truth,
)

SMILE = (
    Concept(name="negative", classes=("no",), min_area=0.02, max_area=0.2, inactive_area=0.01),
    Concept(name="positive", classes=("yes",), min_area=0.3, max_area=0.6, inactive_area=0.25),
    Concept(name="common", classes=(), min_area=None, max_area=0.1, inactive_area=None),
)
LESION = (Concept(name="lesion", classes=("ill",), min_area=0.1, max_area=0.5, inactive_area=0.1),)


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost_high(z: float) -> float:
    """−log σ(z)."""
    return math.log1p(math.exp(-z)) if z > 0 else math.log1p(math.exp(z)) - z


def cost_low(z: float) -> float:
    return cost_high(-z)


def whole(value: float, rounding: str) -> int:
    near = round(value, 6)
    return max(
        1, {"round": math.floor(near + 0.5), "floor": math.floor(near), "ceil": math.ceil(near)}[rounding]
    )


def ranked(scores: Tensor) -> list[int]:
    """Pixel numbers, highest score first."""
    values = scores.flatten().tolist()
    return sorted(range(len(values)), key=lambda i: -values[i])


def slow_discrimination(
    z, presence, concepts, q=None, q_inactive=None, mean=True, over="sum", rounding="round"
):
    total, pixels = 0.0, z.shape[2] * z.shape[3]
    for c, concept in enumerate(concepts):
        common = not concept.classes
        having = [s for s in range(len(z)) if presence[s, c] or common]
        lacking = [s for s in range(len(z)) if not presence[s, c] and not common]
        for s in range(len(z)):
            values = z[s, c].flatten().tolist()
            order = ranked((z if q is None or common else q)[s, c])
            order_inactive = ranked((z if q_inactive is None or common else q_inactive)[s, c])
            if s in having and concept.min_area is not None and not common:
                k = whole(concept.min_area * pixels, rounding)
                total += 2 * sum(cost_high(values[i]) for i in order[:k]) / len(having) / (k if mean else 1)
            if s in having and concept.max_area is not None:
                k = whole((1 - concept.max_area) * pixels, rounding)
                total += sum(cost_low(values[i]) for i in order[-k:]) / len(having) / (k if mean else 1)
            if s in lacking and concept.inactive_area is not None:
                k = whole(concept.inactive_area * pixels, rounding)
                total += (
                    sum(cost_low(values[i]) for i in order_inactive[:k]) / len(lacking) / (k if mean else 1)
                )
    return total / (len(concepts) if over == "mean" else 1)


def slow_concordance(shallow, deep, t, form="bernoulli", pixels="both-high"):
    """Equal grids; the divergence pixel by pixel."""

    def kl(a: float, b: float) -> float:
        first = a * math.log(a / b)
        return first if form == "half" else first + (1 - a) * math.log((1 - a) / (1 - b))

    results = []
    for s in range(shallow.shape[0]):
        for c in range(shallow.shape[1]):
            found = []
            for a, b in zip(shallow[s, c].flatten().tolist(), deep[s, c].flatten().tolist(), strict=True):
                p, r = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
                if p > t and (r > t) == (pixels == "both-high"):
                    m = (p + r) / 2
                    found.append((kl(p, m) + kl(r, m)) / 2)
            results.append(sum(found) / len(found) if found else 0.0)
    return sum(results) / len(results)


def slow_boxes(z, presence, truth, concepts, q_inactive=None, weight=2.0, rounding="round"):
    total, pixels = 0.0, z.shape[2] * z.shape[3]
    for c, concept in enumerate(concepts):
        if not concept.classes:
            continue
        having = [s for s in range(len(z)) if presence[s, c] and truth[s].any()]
        lacking = [s for s in range(len(z)) if not presence[s, c]]
        for s in having:
            values, inside = z[s, c].flatten().tolist(), truth[s].flatten().tolist()
            box = [i for i in ranked(z[s, c]) if inside[i]]
            outside = [i for i in range(pixels) if not inside[i]]
            k = whole(len(box) / 2, rounding)
            total += weight * sum(cost_high(values[i]) for i in box[:k]) / k / len(having)
            if outside:
                total += sum(cost_low(values[i]) for i in outside) / len(outside) / len(having)
        for s in lacking:
            if concept.inactive_area is not None:
                k = whole(concept.inactive_area * pixels, rounding)
                order = ranked((z if q_inactive is None else q_inactive)[s, c])
                total += sum(cost_low(z[s, c].flatten()[i].item()) for i in order[:k]) / k / len(lacking)
    return total


def smile_presence(labels: list[int]) -> Tensor:
    return concept_presence(torch.tensor(labels), ((0,), (1,), ()))


def test_presence_follows_the_classes_of_the_heads():
    assert concept_presence(torch.tensor([0, 2, 1]), ((0,), (1, 2), ())).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, True, False],
    ]


@pytest.mark.parametrize("rounding", ["round", "floor", "ceil"])
@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("over", ["sum", "mean"])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]])
def test_discrimination_is_the_double_sum_of_eq_5(rounding, mean, over, labels):
    z, q, r = draw(5, 3, 6, 7), draw(5, 3, 6, 7, seed=1), draw(5, 3, 6, 7, seed=2)
    presence = smile_presence(labels)
    found = concept_discrimination(
        z, presence, SMILE, ranking=q, ranking_inactive=r,
        mean_over_pixels=mean, over_concepts=over, rounding=rounding,
    )  # fmt: skip
    assert found.item() == pytest.approx(
        slow_discrimination(z, presence, SMILE, q, r, mean, over, rounding), rel=1e-12
    )


def test_discrimination_ranks_by_its_own_maps_when_no_other_scores_are_given():
    z, presence = draw(4, 3, 5, 5), smile_presence([0, 1, 0, 1])
    own = slow_discrimination(z, presence, SMILE)
    assert concept_discrimination(z, presence, SMILE).item() == pytest.approx(own, rel=1e-12)
    assert concept_discrimination(z, presence, SMILE, ranking=z, ranking_inactive=z).item() == pytest.approx(
        own
    )


@pytest.mark.parametrize("missing", ["min_area", "max_area", "inactive_area"])
def test_an_absent_area_ratio_drops_its_term(missing):
    concepts = (LESION[0].model_copy(update={missing: None}),)
    z, presence = draw(4, 1, 5, 5), torch.tensor([[True], [False], [True], [False]])
    assert concept_discrimination(z, presence, concepts).item() == pytest.approx(
        slow_discrimination(z, presence, concepts), rel=1e-12
    )


def test_with_every_ratio_absent_nothing_is_left():
    concepts = (Concept(name="x", classes=("a",), min_area=None, max_area=None, inactive_area=None),)
    assert concept_discrimination(draw(2, 1, 3, 3), torch.tensor([[True], [False]]), concepts).item() == 0


def test_a_thousand_heads():
    concepts = tuple(
        Concept(name=str(c), classes=(str(c),), min_area=0.01, max_area=None, inactive_area=0.01)
        for c in range(1000)
    )
    z, q = draw(3, 1000, 7, 7), draw(3, 1000, 7, 7, seed=1)
    presence = concept_presence(torch.tensor([3, 999, 3]), [(c,) for c in range(1000)])
    found = concept_discrimination(z, presence, concepts, ranking=q, ranking_inactive=q)
    assert found.item() == pytest.approx(slow_discrimination(z, presence, concepts, q, q), rel=1e-10)
    mean = concept_discrimination(z, presence, concepts, ranking=q, ranking_inactive=q, over_concepts="mean")
    assert mean.item() == pytest.approx(found.item() / 1000)


def test_scores_that_rank_get_no_gradient():
    z, q = draw(4, 3, 4, 4).requires_grad_(), draw(4, 3, 4, 4, seed=1).requires_grad_()
    concept_discrimination(z, smile_presence([0, 1, 1, 0]), SMILE, ranking=q, ranking_inactive=q).backward()
    assert q.grad is None
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wanted", "rounding", "pixels", "count"),
    [
        (1.96, "round", 196, 2),
        (0.49, "round", 49, 1),
        (0.5, "round", 49, 1),
        (2.5, "round", 49, 3),
        (0.1 * 30, "ceil", 30, 3),
        (0.29 * 100, "floor", 100, 29),
        (0.2, "floor", 9, 1),
        (7.2, "ceil", 7, 7),
    ],
)
def test_pixels_are_counted_from_one_to_all(wanted, rounding, pixels, count):
    assert count_pixels(wanted, rounding, pixels) == count


def test_one_pixel_maps():
    z, presence = draw(4, 3, 1, 1), smile_presence([0, 1, 1, 0])
    assert concept_discrimination(z, presence, SMILE).item() == pytest.approx(
        slow_discrimination(z, presence, SMILE)
    )


@pytest.mark.parametrize("labels", [[0, 1, 1], [1, 1, 1]])
def test_dsm_loss_calls_every_pixel(labels):
    z, presence = draw(3, 3, 4, 5), smile_presence(labels)
    total = 0.0
    for c in (0, 1):  # the common head has no label
        for held, cost in ((True, cost_high), (False, cost_low)):
            samples = [s for s in range(3) if bool(presence[s, c]) == held]
            for s in samples:
                total += sum(cost(v) for v in z[s, c].flatten().tolist()) / len(samples) / 20
    assert dsm_loss(z, presence, SMILE).item() == pytest.approx(total, rel=1e-12)
    assert dsm_loss(z, presence, SMILE, mean_over_pixels=False).item() == pytest.approx(20 * total, rel=1e-12)
    assert dsm_loss(z, presence, SMILE, over_concepts="mean").item() == pytest.approx(total / 3, rel=1e-12)


@pytest.mark.parametrize("form", ["bernoulli", "half"])
@pytest.mark.parametrize("pixels", ["both-high", "high-low"])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.999999])
def test_concordance_is_eq_6_on_equal_grids(form, pixels, threshold):
    a, b = draw(3, 2, 5, 6), draw(3, 2, 5, 6, seed=1)
    found = concordance(a, b, threshold=threshold, form=form, pixels=pixels)
    assert found.item() == pytest.approx(slow_concordance(a, b, threshold, form, pixels), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("high", "low"), [((8, 8), (4, 4)), ((7, 9), (4, 5)), ((57, 57), (29, 29))])
def test_the_deep_map_is_spread_over_its_kernel(high, low):
    a, b = draw(2, 1, *high), draw(2, 1, *low, seed=1)
    spread = b[:, :, torch.arange(high[0]) // 2][:, :, :, torch.arange(high[1]) // 2]
    assert concordance(a, b).item() == pytest.approx(slow_concordance(a, spread, 0.1), rel=1e-9)


def test_the_shallow_map_is_pooled_as_probability():
    a, b = draw(2, 1, 6, 6), draw(2, 1, 3, 3, seed=1)
    blocks = a.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    average = blocks.sigmoid().mean(-1)
    for resize, pooled in (("max", blocks.amax(-1)), ("average", torch.logit(average))):
        assert concordance(a, b, resize=resize).item() == pytest.approx(
            slow_concordance(pooled, b, 0.1), rel=1e-9
        )


def test_concordance_of_equal_maps_and_of_silent_maps_is_zero():
    z = draw(2, 2, 4, 4)
    assert concordance(z, z).item() == pytest.approx(0, abs=1e-15)
    assert concordance(z - 100, z - 100).item() == 0


@pytest.mark.parametrize(("side", "silent"), [("shallow", 0), ("deep", 1)])
def test_a_stopped_side_gets_no_gradient(side, silent):
    maps = [draw(2, 1, 4, 4).requires_grad_(), draw(2, 1, 4, 4, seed=1).requires_grad_()]
    concordance(*maps, stop_gradient=side).backward()
    assert maps[silent].grad is None
    assert maps[1 - silent].grad.abs().sum() > 0


@pytest.mark.parametrize("rounding", ["round", "floor", "ceil"])
@pytest.mark.parametrize("weight", [2.0, 1.0])
def test_box_supervision_is_the_sum_of_appendix_a(rounding, weight):
    z, q = draw(6, 3, 5, 6), draw(6, 3, 5, 6, seed=1)
    presence = smile_presence([0, 1, 1, 0, 1, 1])
    truth = draw(6, 5, 6, seed=2) > 1
    truth[1] = False  # has the concept, but no box
    truth[2] = True  # boxes cover the whole map
    truth[4] = False
    truth[4, 2, 3] = True  # a single cell
    found = box_supervision(
        z, presence, truth, SMILE, ranking_inactive=q, positive_weight=weight, rounding=rounding
    )  # fmt: skip
    assert found.item() == pytest.approx(
        slow_boxes(z, presence, truth, SMILE, q, weight, rounding), rel=1e-12
    )


def test_a_batch_without_any_box_pushes_only_where_the_concept_is_absent():
    z, presence = draw(4, 1, 5, 5), torch.tensor([[True], [True], [False], [False]])
    nowhere = torch.zeros(4, 5, 5, dtype=torch.bool)
    absent_alone = (LESION[0].model_copy(update={"min_area": None, "max_area": None}),)
    expected = slow_discrimination(z, presence, absent_alone)
    assert box_supervision(z, presence, nowhere, LESION).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_agree_with_finite_differences():
    z, deep = (
        draw(3, 3, 4, 4, scale=1.0).requires_grad_(),
        draw(3, 3, 2, 2, seed=3, scale=1.0).requires_grad_(),
    )
    q, presence = draw(3, 3, 4, 4, seed=1), smile_presence([0, 1, 1])
    truth = draw(3, 4, 4, seed=2) > 0
    check = torch.autograd.gradcheck
    assert check(lambda x: concept_discrimination(x, presence, SMILE, ranking=q, ranking_inactive=q), (z,))
    assert check(lambda x: dsm_loss(x, presence, SMILE), (z,))
    assert check(lambda x: box_supervision(x, presence, truth, SMILE), (z,))
    for resize in ("nearest", "max", "average"):
        for form in ("bernoulli", "half"):
            assert check(lambda x, y: concordance(x, y, resize=resize, form=form), (z, deep))  # noqa: B023


def every_term(z: Tensor, deep: Tensor) -> dict[str, Tensor]:
    presence = smile_presence([0, 1, 1, 0])
    truth = torch.zeros(4, 6, 6, dtype=torch.bool)
    truth[1:3, 2:4, 2:4] = True
    terms = {
        "cd": concept_discrimination(z, presence, SMILE),
        "dsm": dsm_loss(z, presence, SMILE),
        "boxes": box_supervision(z, presence, truth, SMILE),
    }
    for resize in ("nearest", "max", "average"):
        for pixels in ("both-high", "high-low"):
            terms[f"{resize} {pixels}"] = concordance(z, deep, resize=resize, pixels=pixels)
    return terms


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_saturated_logits_stay_finite(size, autocast):
    z = torch.full((4, 3, 6, 6), size)
    z[:, :, ::2] *= -1
    deep = -z[:, :, ::2, ::2].clone()
    dtype = autocast or torch.float32
    leaves = [z.to(dtype).requires_grad_(), deep.to(dtype).requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
        terms = every_term(*leaves)
    for name, term in terms.items():
        assert term.dtype == torch.float32, name
        assert term.isfinite(), name
        gradients = torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients), name


def covered_share(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of every cell that the mask covers, by dividing each pixel into equal parts."""
    height, width = mask.shape
    fine = (
        mask.double().repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
    )  # a cell = height×width parts
    return fine.view(size[0], height, size[1], width).mean((1, 3))


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (7, 7)])
def test_truth_is_resized_by_covered_area(size):
    mask = torch.zeros(1, 16, 12, dtype=torch.bool)
    mask[0, 3:11, 2:9] = True
    assert torch.equal(resize_truth(mask, None, size)[0], covered_share(mask[0], size) >= 0.5 - 1e-9)


def test_a_small_box_keeps_the_cell_of_its_centre():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 9:12, 21:24] = mask[0, 0:2, 0:2] = True
    boxes = torch.tensor([[[21.0, 9.0, 24.0, 12.0], [0.0, 0.0, 2.0, 2.0], [torch.nan] * 4]])
    truth = resize_truth(mask, boxes, (4, 4))[0]
    assert truth.nonzero().tolist() == [[0, 0], [1, 2]]
    assert resize_truth(mask, None, (4, 4))[0].nonzero().tolist() == [[1, 2]], "the fullest cell"
    assert not resize_truth(mask, boxes, (4, 4), mode="nearest").any(), "nearest may lose it"


def test_a_box_up_to_the_edge_and_no_box():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, :, 7] = True
    boxes = torch.full((2, 1, 4), torch.nan)
    boxes[0, 0] = torch.tensor([8.0, 8.0, 8.0, 8.0])  # its centre is on the far edge
    truth = resize_truth(mask, boxes, (2, 2))
    assert truth[0].tolist() == [[False, False], [False, True]]
    assert not truth[1].any()
