"""Explainers on every family of CNNs: what must add up does, beside stock Captum on the same networks.

Each network is drawn at random and then unsettled, so that no bias, batch-norm statistic or layer scale keeps
a value that hides a fault; the flat image that DeepLIFT compares with is not zero either. The output of the
canonical form is compared in float32; everything else is measured in float64. Captum is run as a user would
run it, on a copy of the network as it comes from torchvision. A figure is the worst of the images. Whatever
an explainer raises becomes a note beneath the table.

    python benchmarks/correctness/networks.py        writes reports/correctness/networks.md; exit code 1 where
                                                     one of lapbench's own figures is beyond its limit
"""

import copy
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias
from unittest.mock import patch

import captum.attr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lapbench.benchmark import Concept, Plug
from lapbench.errors import NotApplicableError
from lapbench.explain import Maps, untouched
from lapbench.explain.attribution import completeness_error, flat_like
from lapbench.explain.canonical import canonical
from lapbench.models import build, plug
from lapbench.registry import explainers

REPORT = Path(__file__).parents[2] / "reports" / "correctness" / "networks.md"
SEED = 0
CLASSES = 4
SIZE = (107, 91)
TARGET = (1, 3)
BASELINE = (0.3, -0.2, 0.1)
LIMIT = 1e-6
"""Of every figure of lapbench's own, relative."""
NETWORKS = {
    "resnet18": "layer1", "resnet50": "layer1", "wide_resnet50_2": "layer1", "resnext50_32x4d": "layer1",
    "vgg11_bn": "features.4", "vgg16": "features.5", "alexnet": "features.3", "squeezenet1_1": "features.3",
    "densenet121": "features.denseblock1", "googlenet": "inception3a", "inception_v3": "Mixed_5b",
    "mobilenet_v2": "features.3", "mobilenet_v3_small": "features.1", "mnasnet0_5": "layers.8",
    "shufflenet_v2_x0_5": "stage2", "efficientnet_b0": "features.2", "efficientnet_v2_s": "features.2",
    "regnet_x_400mf": "trunk_output.block1", "regnet_y_400mf": "trunk_output.block1",
    "convnext_tiny": "features.1",
}  # fmt: skip
"""torchvision's networks, one or two a family, and a shallow layer of each."""
PLUGGED = (
    "resnet18", "resnet50", "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v2",
    "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip
"""Those that also stand in the table with LAP layers."""


# --- networks


@dataclass(frozen=True)
class Case:
    """A network in float32 and in float64, the images (B, 3, H, W) that it is shown, and their targets."""

    plain: nn.Module
    model: nn.Module
    shallow: str
    images: Tensor
    target: Tensor

    def answers(self, images: Tensor) -> Tensor:
        """The targets' logits (B,)."""
        return self.model(images).gather(1, self.target[:, None])[:, 0]


def case_of(name: str, *, lap: bool = False) -> Case:
    """Draw a network, with LAP layers where that is asked for, and its images."""
    torch.manual_seed(SEED)
    model = unsettled(build(name, num_classes=CLASSES))
    plain = (with_lap(model) if lap else model).eval()
    images = torch.randn(len(TARGET), 3, *SIZE, dtype=torch.float64)
    return Case(plain, copy.deepcopy(plain).double(), NETWORKS[name], images, torch.tensor(TARGET))


def unsettled(model: nn.Module) -> nn.Module:
    """Give biases, norms and layer scales random values, and batch norms the statistics of random images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.2, 0.2)
            elif name.endswith("layer_scale") or parameter.ndim == 1:  # the latter: weights of norms
                parameter.uniform_(0.6, 1.4)
        for norm in norms:
            norm.momentum = None  # the statistics of this one batch
        model.train()(torch.randn(6, 3, *SIZE))
        for norm in norms:
            norm.running_mean.add_(norm.running_var.sqrt() * torch.empty_like(norm.bias).uniform_(-0.3, 0.3))
            norm.running_var.mul_(torch.empty_like(norm.bias).uniform_(0.7, 1.4))
    return model


def with_lap(model: nn.Module) -> nn.Module:
    """Put LAP layers for two concepts into a network, with scores that have left their start at zero."""
    names = [f"class {number}" for number in range(CLASSES)]
    concepts = (Concept(name="a", classes=names[:1]), Concept(name="b", classes=names[1:]))
    return plug(model, Plug(concepts=concepts, aggregation="sum", score_init="default"), classes=names)


# --- figures


@dataclass(frozen=True)
class Cell:
    """One figure: as text, as a number where it is one, whether it is right, and what there is to say of it.

    right: None where it is not lapbench's to be right.
    """

    text: str
    value: float | None = None
    right: bool | None = None
    note: str = ""


Measure: TypeAlias = Callable[[Case], Cell]


def output(case: Case) -> Cell:
    """Whether the canonical form answers bit for bit as the network does."""
    images = case.images.float()
    with torch.no_grad():
        equal = torch.equal(canonical(case.plain).module(images), case.plain(images))
    return Cell("equal" if equal else "**differs**", float(not equal), equal)


def guided_backprop(case: Case) -> Cell:
    """By how much of its largest value our Guided Backprop differs from a guided ReLU written by hand."""
    with untouched(case.model):
        reference = guided_by_hand(case)
    return own(largest(ours(case, "guided_backprop").values - reference.sum(1), reference.sum(1)))


def captums_guided_backprop(case: Case) -> Cell:
    """The same for Captum, and its cosine with the plain gradient."""
    with untouched(case.model):
        reference, plain = guided_by_hand(case), gradient(case)
    found = captums(captum.attr.GuidedBackprop, case)[0]
    cosine = float(F.cosine_similarity(found.flatten(), plain.flatten(), dim=0))
    if cosine > 1 - LIMIT:
        return Cell("the gradient", cosine)
    error = largest(found - reference, reference)
    return Cell("right" if error <= LIMIT else f"off by {figure(error)}", cosine)


def deeplift(case: Case) -> Cell:
    """By how much of the difference of the logits our contributions miss it."""
    return own(missed(case, ours(case, "deeplift", baseline=BASELINE).values))


def captums_deeplift(case: Case) -> Cell:
    """The same for Captum."""
    flat = flat_like(case.images, BASELINE).contiguous()
    error = missed(case, captums(captum.attr.DeepLift, case, baselines=flat)[0])
    return Cell(figure(error), error)


def lrp(rule: str) -> Measure:
    """By how much of the logit our relevance, with what biases were given, misses it; and the biases' share."""

    def measure(case: Case) -> Cell:
        found = ours(case, "lrp", rule=rule)
        share = float(found.diagnostics["bias_share"].abs().max())
        cell = own(float(found.diagnostics["conservation_error"].max()))
        return Cell(f"{cell.text} + {figure(share)}", cell.value, cell.right)

    return measure


def captums_lrp(case: Case) -> Cell:
    """By how much of the logit Captum's relevance misses it, by its own convergence delta."""
    _, delta = captums(captum.attr.LRP, case, return_convergence_delta=True)
    with torch.no_grad():
        error = float((delta / case.answers(case.images)).abs().max())
    return Cell(figure(error), error)


def relevance_cam(layer: str) -> Measure:
    """Whether Relevance-CAM draws a map at a layer, and another one for another class."""

    def measure(case: Case) -> Cell:
        name = case.shallow if layer == "shallow" else layer
        other = Case(case.plain, case.model, name, case.images, (case.target + 1) % CLASSES)
        one, two = (ours(asked, "relevance_cam", layer=name).values for asked in (case, other))
        right = bool(one.isfinite().all() and one.abs().amax((1, 2)).all() and not torch.allclose(one, two))
        return Cell("yes" if right else "**no**", right=right)

    return measure


COLUMNS: dict[str, Measure] = {
    "output": output,
    "GBP": guided_backprop,
    "GBP, Captum": captums_guided_backprop,
    "DeepLIFT": deeplift,
    "DeepLIFT, Captum": captums_deeplift,
    "LRP-ε + bias": lrp("epsilon"),
    "LRP-z⁺ + bias": lrp("z_plus"),
    "LRP, Captum": captums_lrp,
    "R-CAM, last": relevance_cam("last"),
    "R-CAM, shallow": relevance_cam("shallow"),
}


def ours(case: Case, name: str, **parameters: object) -> Maps:
    """Ask one of lapbench's explainers, in float64 to the end."""
    with untouched(case.model):
        found = explainers.get(name).function(case.model, case.images, case.target, **parameters)
    return found if isinstance(found, Maps) else Maps(found)


def captums(kind: Callable[[nn.Module], object], case: Case, **arguments: object) -> tuple[Tensor, ...]:
    """Ask one of Captum's explainers; it sets hooks and warns of them."""
    method = kind(copy.deepcopy(case.model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="captum|torch")
        found = method.attribute(case.images.clone(), target=case.target, **arguments)
    parts = found if isinstance(found, tuple) else (found,)
    return tuple(part.detach() for part in parts)


class GuidedReLU(torch.autograd.Function):
    """A ReLU that lets only positive gradients back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        """Note what was positive."""
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, received: Tensor) -> Tensor:
        """Drop what is negative, or goes to what is not positive."""
        (x,) = ctx.saved_tensors
        return received * (x > 0) * (received > 0)


def guided_by_hand(case: Case) -> Tensor:
    """Return the gradient with every ReLU exchanged for `GuidedReLU`; nn.ReLU calls the function, too."""
    with patch.object(F, "relu", lambda x, inplace=False: GuidedReLU.apply(x)):  # noqa: ARG005
        return gradient(case)


def gradient(case: Case) -> Tensor:
    """Return the gradient (B, C, H, W) of the targets' logits."""
    images = case.images.clone().requires_grad_()
    return torch.autograd.grad(case.answers(images).sum(), images)[0]


def missed(case: Case, attributions: Tensor) -> float:
    """By how much of the difference of the logits attributions miss it, on the network as it was given."""
    flat = flat_like(case.images, BASELINE)
    return float(completeness_error(case.model, attributions, case.images, flat, case.target).max())


def largest(difference: Tensor, reference: Tensor) -> float:
    """Return the largest difference, in fractions of the largest value."""
    return float(difference.abs().max() / reference.abs().max())


def own(error: float) -> Cell:
    """Judge a figure of lapbench's own."""
    right = error <= LIMIT
    return Cell(figure(error) if right else f"**{figure(error)}**", error, right)


# --- the table


@dataclass(frozen=True)
class Row:
    """All that was found of one network."""

    network: str
    cells: dict[str, Cell]

    @property
    def faults(self) -> list[str]:
        """The columns whose figures are beyond lapbench's own limit."""
        return [column for column, cell in self.cells.items() if cell.right is False]


def row_of(name: str, *, lap: bool = False) -> Row:
    """Measure one network."""
    case = case_of(name, lap=lap)
    cells = {column: attempted(measure, case, column) for column, measure in COLUMNS.items()}
    return Row(f"LAP {name}" if lap else name, cells)


def attempted(measure: Measure, case: Case, column: str) -> Cell:
    """Measure one figure; what is raised is one, too, and no fault where lapbench says that it has no rule."""
    try:
        return measure(case)
    except NotApplicableError as error:
        return Cell("refused", note=str(error))
    except Exception as error:  # noqa: BLE001 - other libraries raise anything
        kind = type(error).__name__
        return Cell(kind, right=None if "Captum" in column else False, note=f"{kind}: {error}")


def rows() -> Iterator[Row]:
    """Measure all networks."""
    for name in NETWORKS:
        yield row_of(name)
    for name in PLUGGED:
        yield row_of(name, lap=True)


def figure(value: float) -> str:
    """Write a fraction with as few digits as tell its size."""
    return f"{value:.2f}" if 0.005 <= value < 100 else f"{value:.0e}" if value else "0"


def rendered(found: list[Row], minutes: float) -> str:
    """Write the report in Markdown."""
    notes: dict[str, int] = {}
    packages = ("lapbench", "torch", "torchvision", "captum")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    right = sum(not row.faults for row in found)
    lines = [
        TEXT_ABOVE.format(
            versions=versions,
            python=platform.python_version(),
            seed=SEED,
            size="×".join(map(str, SIZE)),
            count=len(TARGET),
            minutes=f"{minutes:.0f}",
            limit=f"{LIMIT:g}",
            right=right,
            networks=len(found),
        ),
        table_row(["network", *COLUMNS, "verdict"]),
        table_row(["---"] * (len(COLUMNS) + 2)),
    ]
    for row in found:
        cells = [marked(cell, notes) for cell in row.cells.values()]
        lines.append(table_row([row.network, *cells, ", ".join(row.faults) or "right"]))
    worst = [max((row.cells[c].value or 0 for row in found), default=0) for c in COLUMNS]
    lines.append(worst)
    lines += ["", *[f"{number}. {note}" for note, number in notes.items()], "", TEXT_BELOW]
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        t = time.time()
        r = row_of(name.removeprefix("lap:"), lap=name.startswith("lap:"))
        print(r.network, " | ".join(c.text for c in r.cells.values()), "|", r.faults, f"{time.time()-t:.1f}s", flush=True)
        for c in r.cells.values():
            if c.note: print("    ", c.note[:150])
