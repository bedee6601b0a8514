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
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
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
SIZE = (107, 80)
COUNT = 2
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
PLAIN = "= gradient"
BIAS = " (bias)"


# --- networks


@dataclass(frozen=True)
class Case:
    """A network in float32 and in float64, the images (B, 3, H, W) that it is shown, and its answers."""

    plain: nn.Module
    model: nn.Module
    shallow: str
    images: Tensor
    target: Tensor

    def answers(self, images: Tensor) -> Tensor:
        """The targets' logits (B,)."""
        return self.model(images).gather(1, self.target[:, None])[:, 0]

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient (B, 3, H, W) of the targets' logits."""
        return self._gradient()

    @cached_property
    def guided_gradient(self) -> Tensor:
        """The same with every ReLU exchanged for a `GuidedReLU`; nn.ReLU calls the function, too."""
        with patch.object(F, "relu", lambda x, inplace=False: GuidedReLU.apply(x)):  # noqa: ARG005
            return self._gradient()

    def _gradient(self) -> Tensor:
        images = self.images.clone().requires_grad_()
        with untouched(self.model):
            return torch.autograd.grad(self.answers(images).sum(), images)[0]


def case_of(name: str, *, lap: bool = False) -> Case:
    """Draw a network, with LAP layers where that is asked for, and its images; explained is its own answer.

    Any other class may have a logit of exactly 0 for all images (SqueezeNet ends in a ReLU), of which nothing
    can be missed.
    """
    torch.manual_seed(SEED)
    model = unsettled(build(name, num_classes=CLASSES).eval())
    plain = (with_lap(model) if lap else model).eval()
    exact = copy.deepcopy(plain).double()
    images = torch.randn(COUNT, 3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        return Case(plain, exact, NETWORKS[name], images, exact(images).argmax(1))


def unsettled(model: nn.Module) -> nn.Module:
    """Give biases, norms and layer scales random values, and batch norms the statistics of random images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = None  # the statistics of this one batch
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.2, 0.2)
            elif name.endswith("layer_scale") or parameter.ndim == 1:  # the latter: weights of norms
                parameter.uniform_(0.6, 1.4)
        model(torch.randn(6, 3, *SIZE))
        for norm in norms:
            norm.running_mean.add_(norm.running_var.sqrt() * torch.empty_like(norm.bias).uniform_(-0.3, 0.3))
            norm.running_var.mul_(torch.empty_like(norm.bias).uniform_(0.7, 1.4))
    return model


def with_lap(model: nn.Module) -> nn.Module:
    """Put LAP layers for two concepts into a network, with scores that have left their start at zero."""
    names = [f"class {number}" for number in range(CLASSES)]
    concepts = (Concept(name="a", classes=names[:1]), Concept(name="b", classes=names[1:]))
    return plug(model, Plug(concepts=concepts, aggregation="sum", score_init="default"), classes=names)


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
    return Cell("equal" if equal else "**differs**", right=equal)


def guided_backprop(case: Case) -> Cell:
    """By how much of its largest value our Guided Backprop differs from a guided ReLU written by hand."""
    reference = case.guided_gradient.sum(1)
    return own(largest(ours(case, "guided_backprop").values - reference, reference))


def captums_guided_backprop(case: Case) -> Cell:
    """Whether Captum's is that, or the plain gradient, to which it has cosine 1 then."""
    (found,) = captums(captum.attr.GuidedBackprop, case)
    cosine = float(F.cosine_similarity(found.flatten(), case.gradient.flatten(), dim=0))
    if cosine > 1 - LIMIT:
        return Cell(PLAIN)
    error = largest(found - case.guided_gradient, case.guided_gradient)
    return Cell(f"right ({cosine:.2f})" if error <= LIMIT else f"off by {figure(error)} ({cosine:.2f})")


def deeplift(case: Case) -> Cell:
    """By how much of the difference of the logits our contributions miss it."""
    return own(missed(case, ours(case, "deeplift", baseline=BASELINE).values))


def captums_deeplift(case: Case) -> Cell:
    """The same for Captum."""
    flat = flat_like(case.images, BASELINE).contiguous()
    error = missed(case, captums(captum.attr.DeepLift, case, baselines=flat)[0])
    return Cell(figure(error), error)


def lrp(rule: str, **parameters: float) -> Measure:
    """By how much of the logit our relevance and what biases and ε kept of it miss it; and what they kept."""

    def measure(case: Case) -> Cell:
        found = ours(case, "lrp", rule=rule, **parameters).diagnostics
        kept = float((found["bias_share"] + found["epsilon_share"]).abs().max())
        cell = own(float(found["conservation_error"].max()))
        return Cell(f"{cell.text} + {figure(kept)}", cell.value, cell.right)

    return measure


def captums_lrp(case: Case) -> Cell:
    """By how much of the logit Captum's relevance misses it, by its own convergence delta.

    It does not tell the biases' share. Nothing else is missing where relevance is input × gradient, which LRP
    with ε = 0 is in every network that is linear piece by piece (Ancona et al., ICLR 2018).
    """
    relevance, delta = captums(captum.attr.LRP, case, return_convergence_delta=True)
    with torch.no_grad():
        error = float((delta / case.answers(case.images)).abs().max())
    wanted = case.images * case.gradient
    return Cell(f"{figure(error)}{BIAS if largest(relevance - wanted, wanted) < 0.01 else ''}", error)


def relevance_cam(layer: str) -> Measure:
    """By how much of its largest value Relevance-CAM's map changes when another class is asked for."""

    def measure(case: Case) -> Cell:
        name = case.shallow if layer == "shallow" else layer
        other = replace(case, target=(case.target + 1) % CLASSES)
        maps, others = (ours(asked, "relevance_cam", layer=name).values for asked in (case, other))
        change = largest(maps - others, maps)
        right = 0 < change < math.inf
        return Cell(figure(change) if right else f"**{figure(change)}**", right=right)

    return measure


COLUMNS: dict[str, Measure] = {
    "output": output,
    "GBP": guided_backprop,
    "GBP, Captum": captums_guided_backprop,
    "DeepLIFT": deeplift,
    "DeepLIFT, Captum": captums_deeplift,
    "LRP-ε + kept": lrp("epsilon"),
    "LRP-z⁺ + kept": lrp("z_plus", epsilon=0.0),
    "LRP, Captum": captums_lrp,
    "R-CAM, last": relevance_cam("last"),
    "R-CAM, shallow": relevance_cam("shallow"),
}


def ours(case: Case, name: str, **parameters: object) -> Maps:
    """Ask one of lapbench's explainers, in float64 to the end."""
    with untouched(case.model):
        found = explainers.get(name).function(case.model, case.images, case.target, **parameters)
    return found if isinstance(found, Maps) else Maps(found)


def captums(kind: Callable[[nn.Module], Any], case: Case, **arguments: object) -> tuple[Tensor, ...]:
    """Ask one of Captum's explainers; it sets hooks and warns of them."""
    method = kind(copy.deepcopy(case.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = method.attribute(case.images.clone(), target=case.target, **arguments)
    parts = found if isinstance(found, tuple) else (found,)
    return tuple(part.detach() for part in parts)


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
    """Measure one figure; what is raised becomes a note, and is a fault of ours but for a refusal."""
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
    lines = [in_line(["network", *COLUMNS, "verdict"]), in_line(["---"] * (len(COLUMNS) + 2))]
    for row in found:
        cells = [noted(cell, notes) for cell in row.cells.values()]
        lines.append(in_line([row.network, *cells, ", ".join(row.faults) or "right"]))
    lines.append(in_line(["**worst**", *(worst(found, column) for column in COLUMNS), ""]))
    lines += ["", *(f"{number}. `{note}`" for note, number in notes.items())]
    return TEXT.format(table="\n".join(lines), **facts(found, minutes))


def worst(found: list[Row], column: str) -> str:
    """Write the largest figure of a column that has any."""
    values = [value for value in values_of(found, column) if not math.isnan(value)]
    return figure(max(values)) if values else ""


def values_of(found: list[Row], column: str) -> list[float]:
    """Return the figures of a column, of all networks that have one."""
    values = (row.cells[column].value for row in found)
    return [value for value in values if value is not None]


def noted(cell: Cell, notes: dict[str, int]) -> str:
    """Write a cell, with the number of its note."""
    if not cell.note:
        return cell.text
    return f"{cell.text} [{notes.setdefault(shortened(cell.note), len(notes) + 1)}]"


def shortened(note: str) -> str:
    """Keep a note to one line."""
    text = " ".join(note.split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def in_line(cells: Iterable[str]) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"


TEXT = """# What adds up, network by network

    python benchmarks/correctness/networks.py

{versions}; Python {python}; {minutes:.0f} minutes, {processor:.0f} of processor time (threads: {threads}).
{count} random images of {size}; of {classes} classes the network's own answer is explained; seed {seed}.
**{right} of {networks} networks are right**: none of lapbench's own figures is beyond {limit}; one that is
would be bold, and in the verdict.

Networks are torchvision's with random weights, and with random biases, batch-norm statistics and layer
scales; the flat image that DeepLIFT compares with is {baseline}. At initialisation, with zero biases and a
zero baseline, many networks are positively homogeneous, and wrong rules look right. *LAP*: with LAP layers
for two concepts plugged in. How much any of this matters on trained networks is not measured here.

- **output**: whether the canonical form, over which explainers walk back, answers bit for bit as the network.
- **GBP**, Guided Backprop: the difference from ReLUs with a guided backward pass written by hand, in
  fractions of the largest value; refused where there is no ReLU. *Captum*: whether it agrees with the same
  reference, and its cosine with the plain gradient, or "{plain}" where it is nothing else.
- **DeepLIFT**: by what fraction of f(x) − f(baseline) the contributions miss it. *Captum*: the same.
- **LRP-ε**, **LRP-z⁺**: by what fraction of the logit relevance misses it when what was kept on the way
  is counted; behind the plus the size of that, as a fraction of the logit, too: the share of biases, of ε
  = 1e-6 in LRP-ε (z⁺ runs with ε = 0), and of units in which nothing that the rule counts adds up. Where
  rules know both signs, relevance grows on its way: on random networks LRP-ε moves many times the logit
  in both directions. *Captum*, whose default is LRP-ε: its own convergence delta, which does not tell
  what biases kept; "(bias)" where its relevance is input × gradient, as it must be in networks of ReLUs,
  so that only their share is missing.
- **R-CAM**, Relevance-CAM, at the last stage and a shallow one: by what fraction of its largest value the map
  changes when another class is asked for. Its published rules conserve nothing (a bias is counted twice,
  batch norm is skipped), so it need only be finite and depend on the class. Far behind linear layers that is
  little: rules that count positive contributions alone forget the class.

Figures are relative, in float64 and the worst of the images; output is compared in float32.

{table}

Stock Captum, on the same networks as they come:

- **Guided Backprop** misses functional ReLUs. Of {gbp} networks with ReLUs it is right on {gbp_right},
  nothing but the gradient on {gbp_plain}, and something in between on {gbp_off}. Where there is no ReLU it
  returns the gradient, too.
- **DeepLift** raises on {dl_raises} of {networks} networks and misses more than 1 % of the difference on
  {dl_wrong}. It is right on {dl_right}: {dl_names}.
- **LRP** raises on {lrp_raises} of {networks}. It is right on {lrp_right}: {lrp_names}. On the other
  {lrp_wrong} relevance is lost or comes from nowhere.

What is left: Guided Backprop has no meaning where activations are smooth or cut off above (SiLU, GELU,
ReLU6), and is refused; the ReLUs of LAP's scoring, which see the importance alone, do not count. A network
of one's own that torch.fx cannot trace, or with an operation that relevance has no rule for, is refused by
name; an operation without a rule of DeepLIFT's shows in its completeness error.
"""


def facts(found: list[Row], minutes: float) -> dict[str, object]:
    """Count what the text tells of the table."""
    cells = {column: {row.network: row.cells[column] for row in found} for column in COLUMNS}
    packages = ("lapbench", "torch", "torchvision", "captum")
    with_relu = [row.network for row in found if row.cells["GBP"].value is not None]
    guided = [cells["GBP, Captum"][network].text for network in with_relu]
    deeplifts, lrps = cells["DeepLIFT, Captum"], cells["LRP, Captum"]
    completes = [name for name, cell in deeplifts.items() if cell.value is not None and cell.value <= LIMIT]
    conserves = [name for name, cell in lrps.items() if cell.text.endswith(BIAS)]
    raising = sum(cell.value is None for cell in lrps.values())
    return {
        "versions": ", ".join(f"{name} {version(name)}" for name in packages),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "minutes": minutes,
        "processor": time.process_time() / 60,
        "count": COUNT,
        "size": "×".join(map(str, SIZE)),
        "classes": CLASSES,
        "seed": SEED,
        "limit": figure(LIMIT),
        "baseline": BASELINE,
        "plain": PLAIN,
        "right": sum(not row.faults for row in found),
        "networks": len(found),
        "gbp": len(with_relu),
        "gbp_plain": guided.count(PLAIN),
        "gbp_off": sum(text.startswith("off") for text in guided),
        "gbp_right": sum(text.startswith("right") for text in guided),
        "dl_raises": sum(cell.value is None for cell in deeplifts.values()),
        "dl_wrong": sum(value > 0.01 for value in values_of(found, "DeepLIFT, Captum")),
        "dl_right": len(completes),
        "dl_names": ", ".join(completes) or "none",
        "lrp_raises": raising,
        "lrp_right": len(conserves),
        "lrp_names": ", ".join(conserves) or "none",
        "lrp_wrong": len(found) - raising - len(conserves),
    }


def main() -> int:
    """Measure all networks, write the report, and return the exit code."""
    start, found = time.perf_counter(), []
    for row in rows():
        found.append(row)
        print(f"{row.network:24} {', '.join(row.faults) or 'right'}", flush=True)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(rendered(found, (time.perf_counter() - start) / 60), encoding="utf-8")
    print(REPORT)
    return int(any(row.faults for row in found))


if __name__ == "__main__":
    sys.exit(main())
