"""What changes in a leaderboard when Guided Backprop and DeepLIFT are computed correctly.

Stock Captum's explainers join as a third party's would, and stand beside lapbench's on two networks: the
quickstart's LAP-ResNet, and a GoogLeNet, whose ReLUs are functions. On the LAP-ResNet stock DeepLIFT raises
(its ReLUs are used more than once); the row "DeepLIFT (Captum on own ReLUs)" is what one gets who mends that
and nothing else.

    python benchmarks/correctness/leaderboard.py [BENCHMARK] [--out DIR] [--cache DIR] [--data DIR]

BENCHMARK: another definition, whose networks are explained instead, such as deeppcb.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from captum.attr import DeepLift, GuidedBackprop
from rich.console import Console
from torch import Tensor, nn

from lapbench import Job, Maps, Workspace, explainer, load_benchmark, run
from lapbench.benchmark import Explainer
from lapbench.cli.console import Bars
from lapbench.explain import passes_of
from lapbench.explain.attribution import relative_miss
from lapbench.pipeline import default_cache
from lapbench.report import render_terminal

DEFINITION = Path(__file__).with_suffix(".toml")
ROWS = (
    "gradient", "guided_backprop", "stock_guided_backprop", "deeplift", "stock_deeplift", "mended_deeplift",
    "grad_cam", "random", "center", "oracle",
)  # fmt: skip


def _drawn(method: Any, images: Tensor, target: Tensor, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        for message in ("Setting (forward, )?backward hooks", "Input Tensor .* did not"):  # as Captum must
            warnings.filterwarnings("ignore", message, UserWarning)
        attributions: Tensor = method.attribute(images, target=target, **options).detach()
    return attributions


@explainer("stock_guided_backprop", version=1, title="Guided Backprop (Captum)", signed=True)
def stock_guided_backprop(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """Captum's Guided Backprop, on the network as it is."""
    return _drawn(GuidedBackprop(model), images, target).sum(1)


@explainer("stock_deeplift", version=1, title="DeepLIFT (Captum)", signed=True)
def stock_deeplift(model: nn.Module, images: Tensor, target: Tensor) -> Maps:
    """Captum's DeepLIFT, on the network as it is."""
    return _deeplift(model, model, images, target)


@explainer("mended_deeplift", version=1, title="DeepLIFT (Captum on own ReLUs)", signed=True)
def mended_deeplift(model: nn.Module, images: Tensor, target: Tensor) -> Maps:
    """Captum's DeepLIFT on the canonical network: every ReLU its own module, Captum's rules for the rest."""
    network = passes_of(model, images, target).prepared.canonical(images).module
    return _deeplift(network, model, images, target)


def _deeplift(network: nn.Module, model: nn.Module, images: Tensor, target: Tensor) -> Maps:
    flat = torch.zeros_like(images)
    attributions = _drawn(DeepLift(network), images, target, baselines=flat)
    with torch.no_grad():
        difference = (model(images) - model(flat[:1])).gather(1, target[:, None])[:, 0]
    return Maps(attributions.sum(1), {"completeness_error": relative_miss(attributions, difference)})


def main() -> int:
    """Run, print the leaderboard, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("benchmark", nargs="?", default=str(DEFINITION), help="whose networks are explained")
    parser.add_argument("--out", type=Path, default=Path("reports/captum"))
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--data", type=Path, help="the folder that holds the data set's files")
    given = parser.parse_args()
    benchmark = load_benchmark(given.benchmark)
    rows = {"explainers": tuple(Explainer(name=name) for name in ROWS), "name": f"{benchmark.name}-captum"}
    with Bars() as bars:
        workspace = Workspace(given.out, given.cache, given.data, progress=bars.update, notify=bars.note)
        board = run(Job(benchmark.model_copy(update=rows), workspace))
    Console(width=120).print(render_terminal(board))
    return 0


if __name__ == "__main__":
    sys.exit(main())
