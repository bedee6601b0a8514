"""The explainers' contract, run over lapbench's explainers and over those of four other libraries.

lapbench's explainers are called through `lapbench.explain.explain`, the one door to all of them. The others
are called twice: bare, as their own library has them called, with nothing around them that would tidy up; and
through that door, which shows what it mends. The checks of `run_checks` tell what each returns and what it
leaves behind. Each gets a fresh copy of one network, torchvision's ResNet-18 with a quarter of its channels
(with LAP layers plugged in for explainers that need them), random weights, batch norms settled on random
images, in eval mode. The words around a foreign explainer are only those that turn what it returns into maps:
channels are summed, arrays become tensors. Counts of samples are small, so that all of it takes minutes; no
check depends on them.

    python benchmarks/correctness/contract.py        writes reports/correctness/contract.md; exit code 1 where
                                                     one of lapbench's own explainers breaks the contract
"""

import functools
import io
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are small; one of the checks takes two
os.environ.setdefault("TQDM_DISABLE", "1")

import captum.attr
import pytorch_grad_cam
import quantus
import torch
import zennit.attribution
import zennit.composites
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from zennit.torchvision import ResNetCanonizer

from lapbench import Concept, Plug, interop, plug
from lapbench.errors import NotApplicableError
from lapbench.explain import run_checks
from lapbench.explain.checks import CHECKS
from lapbench.models import build
from lapbench.registry import ExplainerSpec, explainer, explainers

REPORT = Path(__file__).parents[2] / "reports" / "correctness" / "contract.md"
SEED = 0
CLASSES = 4
SIDE = 96
TARGET = (0, 1, 2)
FEW = {
    "integrated_gradients": {"steps": 5}, "smoothgrad": {"samples": 4}, "occlusion": {"stride": 0.125},
    "rise": {"count": 40}, "lime": {"samples": 60}, "score_cam": {"layer": "layer1"},
}  # fmt: skip
"""Parameters of lapbench's dearer explainers that differ from their defaults."""


OWN = "lapbench"
Faults: TypeAlias = dict[str, str]
"""Check that is broken → what was found."""


@dataclass(frozen=True)
class Subject:
    """One explainer of one library; a plain function, or a spec where something is declared of it."""

    library: str
    name: str
    explainer: ExplainerSpec | Callable[..., Any]


@dataclass(frozen=True)
class Examined:
    """What was found of one explainer, called bare and through lapbench's door."""

    subject: Subject
    bare: Faults
    door: Faults


def own() -> Iterator[Subject]:
    """Every registered explainer of lapbench."""
    for spec in explainers:
        if spec.origin == OWN:
            yield Subject(OWN, spec.name, spec)


def of_captum() -> Iterator[Subject]:
    """Captum's explainers for images, with its defaults."""
    attr = captum.attr
    window = {"sliding_window_shapes": (3, 24, 24), "strides": (3, 12, 12)}
    for make, options in [
        (attr.Saliency, {}),
        (attr.InputXGradient, {}),
        (attr.IntegratedGradients, {"n_steps": 5}),
        (attr.GuidedBackprop, {}),
        (attr.Deconvolution, {}),
        (attr.DeepLift, {}),
        (attr.LRP, {}),
        (at_layer4(attr.LayerGradCam), {}),
        (at_layer4(attr.GuidedGradCam), {}),
        (attr.Occlusion, window),
        (attr.FeatureAblation, {"feature_mask": squares()}),
        (attr.Lime, {"feature_mask": squares(), "n_samples": 20}),
        (attr.KernelShap, {"feature_mask": squares(), "n_samples": 20}),
        (attr.GradientShap, {"baselines": torch.zeros(2, 3, SIDE, SIDE), "n_samples": 4}),
        (lambda model: attr.NoiseTunnel(attr.Saliency(model)), {"nt_samples": 4}),
    ]:
        name = getattr(make, "__name__", "").replace("<lambda>", "NoiseTunnel(Saliency)")
        yield Subject("Captum", name, functools.partial(_attributed, make, options))


def _attributed(make: Any, options: dict[str, Any], model: nn.Module, images: Tensor, target: Tensor) -> Any:
    return make(model).attribute(images, target=target, **options).sum(1)


def at_layer4(kind: Any) -> Callable[[nn.Module], Any]:
    """Make Captum's method at the last stage."""

    def make(model: nn.Module) -> Any:
        return kind(model, model.layer4)

    make.__name__ = kind.__name__
    return make


def squares() -> Tensor:
    """Return 16 squares of the image as one mask of features."""
    return torch.arange(16).view(1, 1, 4, 4).repeat_interleave(SIDE // 4, 2).repeat_interleave(SIDE // 4, 3)


def of_grad_cam() -> Iterator[Subject]:
    """pytorch-grad-cam's methods: those with channel weights, and its Guided Backprop."""
    library = "pytorch-grad-cam"

    def cam(kind: Any, layer: str, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        method = kind(model=model, target_layers=[model.get_submodule(layer)])
        targets = [ClassifierOutputTarget(number) for number in target.tolist()]
        return torch.from_numpy(method(input_tensor=images, targets=targets))

    def guided_backprop(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        """It takes one image at a time."""
        method = pytorch_grad_cam.GuidedBackpropReLUModel(model)
        maps = [method(image[None], number) for image, number in zip(images, target.tolist(), strict=True)]
        return torch.stack([torch.from_numpy(one).sum(2) for one in maps])

    for kind, layer in CAMS:
        yield Subject(library, kind.__name__, functools.partial(cam, kind, layer))
    agnostic = functools.partial(cam, pytorch_grad_cam.EigenCAM, "layer4")
    yield Subject(library, "EigenCAM", _class_agnostic("eigen_cam_of_pytorch_grad_cam", agnostic))
    yield Subject(library, "GuidedBackpropReLUModel", guided_backprop)


CAMS = [
    (pytorch_grad_cam.GradCAM, "layer4"),
    (pytorch_grad_cam.GradCAMPlusPlus, "layer4"),
    (pytorch_grad_cam.XGradCAM, "layer4"),
    (pytorch_grad_cam.HiResCAM, "layer4"),
    (pytorch_grad_cam.LayerCAM, "layer4"),
    (pytorch_grad_cam.EigenGradCAM, "layer4"),
    (pytorch_grad_cam.FullGrad, "layer4"),
    (pytorch_grad_cam.ScoreCAM, "layer1"),
    (pytorch_grad_cam.AblationCAM, "layer1"),
]
"""Methods of pytorch-grad-cam, and the layers they are called at."""


def _class_agnostic(name: str, function: Callable[..., Any]) -> ExplainerSpec:
    """Declare that a function has no target."""

    def declared(model: nn.Module, images: Tensor, target: Tensor) -> Any:
        return function(model, images, target)

    explainer(name, version=1, title=name, class_agnostic=True)(declared)
    return explainers.get(name)


def of_quantus() -> Iterator[Subject]:
    """What ``quantus.explain`` draws, by Captum and by zennit."""

    def maps(options: dict[str, Any], model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        found = quantus.explain(model, images.numpy(), target.numpy(), **options)
        return torch.from_numpy(found)[:, 0]

    for name in ("Saliency", "InputXGradient", "IntegratedGradients", "DeepLift", "GradientShap", "LRP"):
        yield Subject("Quantus", name, functools.partial(maps, {"method": name}))
    rules = {
        "xai_lib": "zennit", "composite": zennit.composites.EpsilonPlus, "canonizer": ResNetCanonizer,
        "attributor": zennit.attribution.Gradient,
    }  # fmt: skip
    yield Subject("Quantus", "EpsilonPlus (zennit's)", functools.partial(maps, rules))


def of_zennit() -> Iterator[Subject]:
    """Composites of zennit with its canonizer for ResNets, and its attributors."""

    def maps(kind: Any, rules: Any, model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        composite = rules(canonizers=[ResNetCanonizer()]) if rules else None
        with kind(model=model, composite=composite) as attributor:
            return attributor(images, torch.eye(CLASSES)[target])[1].sum(1)

    composites, attribution = zennit.composites, zennit.attribution
    for rules in (
        composites.EpsilonPlus,
        composites.EpsilonPlusFlat,
        composites.EpsilonAlpha2Beta1,
        composites.ExcitationBackprop,
        composites.GuidedBackprop,
    ):
        yield Subject("zennit", rules.__name__, functools.partial(maps, attribution.Gradient, rules))
    for kind in (attribution.Gradient, attribution.IntegratedGradients, attribution.SmoothGrad):
        few = functools.partial(kind, n_iter=4) if kind is not attribution.Gradient else kind
        yield Subject("zennit", kind.__name__, functools.partial(maps, few, None))


def over_bridges() -> Iterator[Subject]:
    """The same methods as `lapbench.interop` makes explainers of them."""
    library = "through lapbench.interop"
    for kind, layer in CAMS:
        yield Subject(library, kind.__name__, interop.from_grad_cam(kind, layer=layer))
    for rules in (zennit.composites.EpsilonPlus, zennit.composites.EpsilonPlusFlat):
        yield Subject(library, rules.__name__, interop.from_zennit(rules, canonizers=[ResNetCanonizer()]))


SUBJECTS = (own, of_captum, of_grad_cam, of_quantus, of_zennit, over_bridges)


def network() -> nn.Module:
    """Return the network: random weights, and batch norms that know what they see."""
    torch.manual_seed(SEED)
    model = build("resnet18", num_classes=CLASSES, parameters={"width": 16})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the statistics of this one batch
    with torch.no_grad():
        for norm in norms:
            norm.bias.uniform_(-0.3, 0.3)
        model.train()(torch.randn(8, 3, SIDE, SIDE))
    return model.eval()


def with_lap(model: nn.Module) -> nn.Module:
    """Return the network with LAP layers."""
    names = [f"class {number}" for number in range(CLASSES)]
    concepts = (Concept(name="a", classes=names[:1]), Concept(name="b", classes=names[1:]))
    torch.manual_seed(SEED)
    return plug(model, Plug(concepts=concepts, aggregation="sum", score_init="default"), classes=names).eval()


def faults_of(subject: Subject, *, bare: bool) -> Faults:
    """Run all checks on a fresh network, and return those that the explainer breaks."""
    model = network()
    if isinstance(subject.explainer, ExplainerSpec) and "lap" in subject.explainer.needs:
        model = with_lap(model)
    images = torch.randn(len(TARGET), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
    few = FEW.get(subject.name) if subject.library == OWN else None
    if isinstance(subject.explainer, functools.partial):
        subject.explainer.__name__ = subject.name  # for messages
    try:
        outcomes = run_checks(subject.explainer, model, images, torch.tensor(TARGET), few, bare=bare)
    except NotApplicableError as error:
        return {"applies": str(error)}
    return {outcome.name: outcome.fault for outcome in outcomes if not outcome.passed}


def examined(subject: Subject) -> Examined:
    """Check an explainer both ways, without a word from its library."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        door = faults_of(subject, bare=False)
        return Examined(subject, door if subject.library == OWN else faults_of(subject, bare=True), door)


def main() -> int:
    """Run all checks, write the report, and return the exit code."""
    start = time.perf_counter()
    found = []
    for subject in (subject for subjects in SUBJECTS for subject in subjects()):
        one = examined(subject)
        found.append(one)
        print(f"{subject.library:26} {subject.name:28} {len(one.bare)} {len(one.door)}", flush=True)
    minutes = (time.perf_counter() - start) / 60
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(rendered(found, minutes), encoding="utf-8")
    print(f"\n{REPORT}: {minutes:.1f} minutes")
    return int(any(one.door for one in found if one.subject.library == OWN))


def rendered(found: list[Examined], minutes: float) -> str:
    """Write the report in Markdown."""
    libraries = list(dict.fromkeys(one.subject.library for one in found))
    groups = {name: [one for one in found if one.subject.library == name] for name in libraries}
    lines = [
        "# Who keeps the contract of explainers",
        "",
        f"{len(CHECKS)} checks, {len(found)} explainers; `lapbench.check_explainer` runs them on yours. The "
        "first number tells how many explainers of a library break a check as that library has them called, "
        "the second how many still do when `lapbench.explain` calls them, which is how lapbench's own are "
        "called. A dot: none. Without maps (shape), the checks after it are not run. That a network in train "
        "mode keeps its statistics, other libraries leave to their caller. `lapbench.explain` hands over "
        "weights and images that need no gradient: methods that hook what needs one find none, and come "
        "through `lapbench.interop` instead.",
        "",
        _row(["check", *(f"{name} ({len(group)})" for name, group in groups.items())]),
        _row(["---", *(["---:"] * len(libraries))]),
    ]
    lines += [_row([check, *(_broken(group, check) for group in groups.values())]) for check in CHECKS]
    lines += [_row(["**keep all**", *(f"**{_keeping(group)}**" for group in groups.values())]), ""]
    lines += ["What was found; a check that is not named passed.", ""]
    lines += [_row(["library", "explainers", "as the library has it called", "through `lapbench.explain`"])]
    lines += [_row(["---"] * 4), *_findings(groups)]
    return "\n".join([*lines, "", *_circumstances(minutes)]) + "\n"


def _broken(group: list[Examined], check: str) -> str:
    """Tell how many explainers break a check, bare and through the door."""
    return _both(group, [sum(check in one.bare for one in group), sum(check in one.door for one in group)])


def _keeping(group: list[Examined]) -> str:
    """Tell how many explainers keep the whole contract, bare and through the door."""
    return _both(group, [sum(not one.bare for one in group), sum(not one.door for one in group)])


def _both(group: list[Examined], numbers: list[int]) -> str:
    bare, door = (str(number) if number else "·" for number in numbers)
    return door if group[0].subject.library == OWN or bare == door == "·" else f"{bare} → {door}"


def _findings(groups: dict[str, list[Examined]]) -> Iterator[str]:
    """Give a line for all explainers of a library of which the same was found."""
    for library, group in groups.items():
        alike: dict[tuple[str, str], list[str]] = {}
        for one in group:
            alike.setdefault((_words(one.bare), _words(one.door)), []).append(one.subject.name)
        for words, names in alike.items():
            yield _row([library, ", ".join(names), *words])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(faults: Faults) -> str:
    """Tell all faults in one cell."""
    return "<br>".join(f"**{check}**: {_short(fault)}" for check, fault in faults.items()) or "ok"


def _short(fault: str) -> str:
    """Keep a fault to one line of a cell."""
    text = " ".join(fault.split()).replace("|", "\\|")
    return text if len(text) <= 160 else f"{text[:159]}…"


def _circumstances(minutes: float) -> list[str]:
    packages = ("lapbench", "torch", "torchvision", "captum", "grad-cam", "quantus", "zennit")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    few = "; ".join(
        f"{name} {', '.join(f'{k}={v}' for k, v in given.items())}" for name, given in FEW.items()
    )
    return [
        "## How it was made",
        "",
        "    python benchmarks/correctness/contract.py",
        "",
        f"Network: torchvision's ResNet-18, a quarter of its channels, {CLASSES} classes, random weights; "
        f"{len(TARGET)} random images of {SIDE}×{SIDE}, targets {', '.join(map(str, TARGET))}; seed {SEED}. "
        "Explainers that need LAP: the same network with LAP layers plugged in. Declared class-agnostic: "
        "lapbench's controls, EigenCAM. Parameters of lapbench's explainers that differ from their defaults, "
        f"to save time: {few}.",
        "",
        f"{versions}; Python {platform.python_version()}, {torch.get_num_threads()} thread(s); "
        f"{minutes:.1f} minutes.",
    ]


if __name__ == "__main__":
    sys.exit(main())
