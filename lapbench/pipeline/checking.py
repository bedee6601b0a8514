"""The explainers' contract on a network and images that are built in: for whoever writes an explainer."""

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lapbench.benchmark import AnteHoc, Bla, Concept, Plug
from lapbench.data.digits import read_digits
from lapbench.data.record import Drawn
from lapbench.errors import DefinitionError, ExplainerError, UnknownNameError
from lapbench.explain import Check, run_checks
from lapbench.explain.state import seeded_generators
from lapbench.models.plug import plug, put_antehoc, put_bla
from lapbench.models.zoo import build
from lapbench.registry import ExplainerSpec, Layer, architectures, check_parameters, explainers

CLASSES = ("zero", "one", "two", "three")
NARROW = 8
"""Channels of the first stage, where an architecture lets one choose them."""


def check_named(
    name: str,
    *,
    architecture: str = "resnet18",
    layer: Layer | None = None,
    size: int = 64,
    batch: int = 3,
    parameters: Sequence[str] = (),
) -> list[Check]:
    """Run every check of the contract on an explainer, ``NAME`` or ``module:function``; see `run_checks`.

    The network has random weights, and the layer that is asked for, or whatever the explainer needs; the
    images (batch, 3, size, size) are the embedded digits. parameters: texts ``key=value``, as in TOML.
    Errors: UnknownNameError; ExplainerError for what cannot be imported; NotApplicableError; DefinitionError
    for parameters that are not the explainer's, or an image size that the network cannot take.
    """
    with _current_folder():
        found = find_explainer(name)
        spec = found if isinstance(found, ExplainerSpec) else None
        given = dict(map(_parameter, parameters))
        if spec:
            try:
                check_parameters("explainer", spec.name, spec.parameters, given)
            except ValueError as error:
                raise DefinitionError(str(error)) from None
        images, target = _digits(size, batch), 3 * torch.arange(batch) % len(CLASSES)
        needed = spec.layers if spec else frozenset[str]()
        network = _network(architecture, needed or ({layer} if layer else needed))
        try:
            _settle(network, images)
        except RuntimeError as error:
            raise DefinitionError(
                f"{architecture} cannot take images of {size}×{size} pixels, choose another --size: {error}"
            ) from None
        return run_checks(found, network, images, target, given)


def find_explainer(name: str) -> ExplainerSpec | Callable[..., Any]:
    """Return the registered explainer of that name, or what ``module:function`` leads to.

    Errors: UnknownNameError; ExplainerError where the module cannot be imported, with the reason.
    """
    module_name, colon, path = name.partition(":")
    if not colon:
        return explainers.get(name)
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's module may raise anything
        raise ExplainerError(
            f"{name}: {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if not known.startswith("_")]
            raise UnknownNameError(f"name in {module_name}", part, public)
        found = getattr(found, part)
    return next((spec for spec in explainers if spec.function is found), found)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, as ``python -m`` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise DefinitionError(f"parameter {text!r}: wanted key=value")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value  # a word without quotes, as shells leave them


def _network(architecture: str, layers: Set[str]) -> nn.Module:
    """Build a network of four classes with random weights, the same ones in every process."""
    fields = architectures.get(architecture).parameters.model_fields
    with seeded_generators(0):
        parameters = {"width": NARROW} if "width" in fields else {}
        network = build(architecture, num_classes=len(CLASSES), parameters=parameters)
        if "lap" in layers:
            concepts = (Concept(name="zero", classes=CLASSES[:1]), Concept(name="rest", classes=CLASSES[1:]))
            how = Plug(concepts=concepts, aggregation="sum", score_init="default")
            network = plug(network, how, classes=CLASSES)
        elif "lip" in layers:
            network = plug(network, Plug(layer="lip", score_init="default"), classes=CLASSES)
        elif "bla" in layers:
            network = put_bla(network, Bla())
        elif "antehoc" in layers:
            network = put_antehoc(network, AnteHoc())
    return network


def _settle(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of these images: without, deep networks answer all images alike."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None  # the mean of all batches, of which this is the only one
    with seeded_generators(0), torch.no_grad():
        network.train()(images)
        network.eval()(images)


def _digits(size: int, count: int) -> Tensor:
    """Draw images (count, 3, size, size) of the embedded data set, normalised."""
    records = read_digits(
        None, train=0, val=0, test=count, canvas=size, height=(size // 4, size // 3), objects=(1, 2)
    )
    drawn = [record.source.draw() for record in records if isinstance(record.source, Drawn)]
    grey = torch.from_numpy(np.stack(drawn)).float().div(255).sub(0.5).div(0.25)
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()
