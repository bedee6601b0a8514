"""A trunk that does not learn: its features are computed once, and the epochs run on them.

Transfer learning leaves most of a network as it is. What comes before the first module that learns gives the
same features for an image in every epoch, unless the image is changed at random; so they are kept in a file.
"""

import inspect
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from lapbench.benchmark import Augment, Recipe
from lapbench.models import evaluating
from lapbench.models.graph import LayerTracer
from lapbench.models.weighting import antehoc_layers
from lapbench.train.freezing import rest
from lapbench.train.hardware import Hardware
from lapbench.train.images import Batch, Table
from lapbench.train.lightning import Material, Progress
from lapbench.types import IntArray

SHARE_OF_DISK = 0.5
"""The largest part of the free room on the disk that features may take."""
GROWTH = 4
"""How many times the size of its image the features of a sample may have: reading more costs too much."""
_CHUNK = 32
_CHANGING = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU)
"""Modules without weights that, in training mode, answer differently each time or keep statistics."""
_RANDOM = ("rand", "bernoulli", "dropout", "normal", "multinomial")


@dataclass(frozen=True)
class Halves:
    """A network in two: images → features → what the network returns. Both halves hold its own modules."""

    trunk: fx.GraphModule
    tail: fx.GraphModule


@dataclass(frozen=True)
class FeatureTable:
    """A split by the features of its images: an array on disk (n, …), and the labels (n,)."""

    features: npt.NDArray[np.float32]
    labels: IntArray

    def take(self, indices: IntArray) -> Batch:
        """Return the features at these indices in the place of images."""
        found = torch.from_numpy(np.asarray(self.features[indices]))
        return Batch(found, torch.from_numpy(self.labels[indices]), None, None)


@contextmanager
def on_features(
    model: nn.Module,
    material: Material,
    recipe: Recipe,
    hardware: Hardware,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> Iterator[tuple[nn.Module, Material]]:
    """Give the part of the network that learns, and what it learns from, with features in place of images.

    Where the features would change from epoch to epoch, or do not fit, or several processes train, that is
    the network itself and the images. The files lie in the folder, and are gone when the block is left. The
    parameters that learn are those that require a gradient.
    """
    possible = recipe.supervision == "none" and recipe.augment == Augment() and hardware.count == 1
    possible &= material.task == "classification"  # a table of features holds labels alone
    again = bool(antehoc_layers(model))  # the head answers a second time, which no graph of one pass shows
    halves, device = halved(model, recipe.learning) if possible and not again else None, hardware.first
    with ExitStack() as files:
        if halves is None or not _worth_it(model, halves, material, folder):
            yield model, material
            return

        def table(images: Table, labels: IntArray, name: str) -> FeatureTable:
            path = folder / f"{name}.features.npy"
            files.callback(path.unlink, missing_ok=True)
            return FeatureTable(
                _computed(halves.trunk, images, material, len(labels), path, device, tell), labels
            )

        done, total = 0, len(material.train_labels) + len(material.select_labels)

        def tell(samples: int) -> None:
            nonlocal done
            done += samples
            if progress is not None:
                progress(done, total, "features")

        try:
            model.to(device)
            ready = replace(
                material,
                train=table(material.train, material.train_labels, "train"),
                select=table(material.select, material.select_labels, "select"),
                normalised=True,
            )
        finally:
            model.cpu()
        yield halves.tail, ready


def halved(model: nn.Module, learning: Sequence[str] = ()) -> Halves | None:
    """Cut a network before the first thing that learns or changes in training; learning: see `rest`.

    None where nothing rests, no single value holds all that the rest of the network needs, torch.fx cannot
    trace the network, or training takes another way through it than evaluation (auxiliary classifiers).
    """
    modes = {module: module.training for module in model.modules()}
    try:
        evaluated = _traced(model.eval())
        model.train()
        rest(model, learning)
        graph = _traced(model)
        if graph is None or evaluated is None or str(graph) != str(evaluated):
            return None
        cut = _cut(graph, model)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return None if cut is None else _in_two(model, graph, cut)


def _traced(model: nn.Module) -> fx.Graph | None:
    optional = list(inspect.signature(model.forward).parameters.values())[1:]  # behind the images
    try:
        return LayerTracer().trace(model, {p.name: p.default for p in optional if p.default is not p.empty})
    except Exception:  # noqa: BLE001 - whatever a network does that has no graph; it is trained as it is
        return None


def _cut(graph: fx.Graph, model: nn.Module) -> fx.Node | None:
    """The last node that rests, with all that it is made from, and that everything behind it depends on."""
    resting: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if all(source in resting for source in node.all_input_nodes) and _rests(node, model):
            resting[node] = None
    for node in reversed(resting):
        if node.op in ("call_module", "call_function", "call_method") and _behind(graph, node) is not None:
            return node
    return None


def _behind(graph: fx.Graph, cut: fx.Node) -> set[fx.Node] | None:
    """The nodes that make the network's output of a node's value; None where they need the images, too."""
    found = _makes(next(node for node in graph.nodes if node.op == "output"), given=cut)
    return None if any(node.op == "placeholder" for node in found) else found


def _makes(result: fx.Node, *, given: fx.Node | None = None) -> set[fx.Node]:
    """A node and all nodes that it is made from, where the value of one is given."""
    found: set[fx.Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        found.add(node)
        waiting += [source for source in node.all_input_nodes if source is not given and source not in found]
    return found


def _rests(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node makes the same of the same inputs in every epoch."""
    if node.op == "get_attr":
        value: Any = model
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return not getattr(value, "requires_grad", False)
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        learns = any(parameter.requires_grad for parameter in module.parameters())
        return not learns and not (module.training and isinstance(module, _CHANGING))
    if node.op == "call_function":
        given = _arguments(node)
        if "training" in given:
            return not given["training"]
    name = str(getattr(node.target, "__name__", node.target))
    return node.op == "placeholder" or (node.op != "output" and not name.startswith(_RANDOM))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function by name, defaults included; none where it does not tell their names."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return bound.arguments


def _in_two(model: nn.Module, graph: fx.Graph, cut: fx.Node) -> Halves:
    before, behind = fx.Graph(), fx.Graph()
    upper, lower = _makes(cut), _behind(graph, cut) or set()
    made: dict[fx.Node, fx.Node] = {}
    left = {cut: behind.placeholder("features")}
    for node in graph.nodes:
        if node in upper or node.op == "placeholder":
            made[node] = before.node_copy(node, made.__getitem__)
        if node in lower:
            left[node] = behind.node_copy(node, left.__getitem__)
    before.output(made[cut])
    return Halves(fx.GraphModule(model, before), fx.GraphModule(model, behind))


def _worth_it(model: nn.Module, halves: Halves, material: Material, folder: Path) -> bool:
    """Whether both halves do what the network does, and the features are small enough to be kept."""
    samples = material.train.take(np.arange(min(2, len(material.train_labels)))).images
    images = material.prepared(samples)
    with evaluating(model), torch.no_grad():
        features: Any = halves.trunk(images.clone())
        if not isinstance(features, Tensor) or len(features) != len(images):
            return False
        wanted, found = model(images.clone()), halves.tail(features)
    bytes_each = features[0].numel() * 4
    total = bytes_each * (len(material.train_labels) + len(material.select_labels))
    same = isinstance(wanted, Tensor) and torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    fits = total <= SHARE_OF_DISK * shutil.disk_usage(folder).free
    return same and fits and bytes_each <= GROWTH * images[0].numel() * 4


def _computed(
    trunk: nn.Module,
    images: Table,
    material: Material,
    count: int,
    path: Path,
    device: torch.device,
    tell: Callable[[int], None],
) -> npt.NDArray[np.float32]:
    """Write the features of all images of a split to a file, and return them as an array on disk."""
    kept: npt.NDArray[np.float32] | None = None
    with evaluating(trunk), torch.no_grad():
        for start in range(0, count, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, count))
            features = trunk(material.prepared(images.take(rows).images).to(device)).float().cpu().numpy()
            if kept is None:
                shape = (count, *features.shape[1:])
                kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            kept[rows] = features
            tell(len(rows))
    assert kept is not None  # a split has samples
    kept.flush()  # type: ignore[attr-defined]
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
