"""What ante-hoc maps (reconstruction) cost at inference: at most 1.15 times the plain forward pass.

The plain network, the same network with a weighting network beside its global pooling, and the latter with
its map drawn from the same pass take turns in this process, on batches of 4 images. The median over rounds of
each round's ratio counts, so that what else the machine does falls on all alike. The answers must be the same
bit for bit.

    python benchmarks/speed/antehoc.py        exit code 1 where a target is missed
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc
from lapbench.models import build, put_antehoc
from lapbench.models.weighting import antehoc_layers

NETWORKS = {"resnet18": 224, "efficientnet_b0": 224, "squeezenet1_1": 224}
BATCH = 4
ROUNDS = 8
WANTED = 1.15


def with_map(model: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Answer and draw the map in one pass."""
    ((_, layer),) = antehoc_layers(model).items()
    features: list[Tensor] = []
    layer.features.register_forward_hook(lambda _module, _inputs, output: features.append(output))

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        features.clear()
        return model(images), layer.weighting(features[0])

    return both


def measure(name: str, side: int) -> tuple[float, float]:
    """Print the times of a network, and return how many times the plain one's the others' are."""
    plain = build(name, num_classes=10).eval()
    images = torch.randn(BATCH, 3, side, side)
    forms: dict[str, Callable[[Tensor], object]] = {
        "plain": plain,
        "ante-hoc": put_antehoc(plain, AnteHoc()),
        "ante-hoc and its map": with_map(put_antehoc(plain, AnteHoc())),
    }
    assert torch.equal(plain(images), put_antehoc(plain, AnteHoc())(images))
    times: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(ROUNDS + 1):
        for form, function in forms.items():
            start = time.perf_counter()
            function(images)
            times[form].append(1000 * (time.perf_counter() - start) / BATCH)
    ratios = []
    for form, found in times.items():
        by_round = [a / b for a, b in zip(found[1:], times["plain"][1:], strict=True)]  # the first warms up
        ratios.append(statistics.median(by_round))
        print(f"    {form:22} {statistics.median(found[1:]):7.2f} ms an image, {ratios[-1]:.3f} × plain")
    return ratios[1], ratios[2]


@torch.no_grad()
def main() -> int:
    """Measure, print, and return the exit code."""
    torch.manual_seed(0)
    reached = True
    for name, side in NETWORKS.items():
        print(f"{name} at {side} px, batches of {BATCH}, {torch.get_num_threads()} threads")
        reached &= max(measure(name, side)) <= WANTED
    print(f"wanted: at most {WANTED:g}, with and without the map")
    print("reached" if reached else "MISSED")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
