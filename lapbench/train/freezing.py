"""Training a part of a network: all else keeps its weights and its statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from lapbench.errors import TrainingError, suggest
from lapbench.models import bla_layers, lap_layers, lip_layers
from lapbench.models.weighting import antehoc_layers

_LAYERS: Mapping[str, Callable[[nn.Module], Mapping[str, nn.Module]]] = {
    "lap": lap_layers,
    "lip": lip_layers,
    "bla": bla_layers,
    "antehoc": lambda model: {name: layer.weighting for name, layer in antehoc_layers(model).items()},
}


@contextmanager
def only(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let only the named modules learn while inside; no name stands for everything.

    "lap" stands for all LAPs, "lip" for all LIPs, "bla" for BLA, "antehoc" for the weighting network alone,
    without the pooling beside it, which may learn (heat maps).

    Errors: TrainingError for a name that the network has not, or for parts without parameters.
    """
    learning = {id(parameter) for name in names for parameter in _parameters(model, name)}
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        if names:
            for parameter in before:
                parameter.requires_grad_(id(parameter) in learning)
        yield
    finally:
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)


def rest(model: nn.Module, names: Sequence[str] = ()) -> None:
    """Put modules whose parameters do not learn into evaluation mode: batch norm keeps its statistics.

    names: as `only` was given them; what has statistics but no parameters learns as a part of them alone.
    """
    named = {part for name in names for module in _named(model, name) for part in module.modules()}
    for module in model.modules():
        own, statistics = list(module.parameters()), list(module.buffers(recurse=False))
        if own:
            rests = not any(parameter.requires_grad for parameter in own)
        else:  # dropout has neither, and goes on before a classifier that learns
            rests = bool(names and statistics) and module not in named
        if rests:
            module.eval()


def _parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    found = [parameter for module in _named(model, name) for parameter in module.parameters()]
    if not found:
        raise TrainingError(f"learning: {name!r} has no parameters that could learn")
    return found


def _named(model: nn.Module, name: str) -> list[nn.Module]:
    if name in _LAYERS:
        return list(_LAYERS[name](model).values())
    known = dict(model.named_modules())
    if name not in known:
        raise TrainingError(f"learning: the network has no module {name!r}{suggest(name, known)}")
    return [known[name]]
