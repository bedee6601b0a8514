"""A network cut after one of its LAPs, which then decides alone; and what networks cost.

Source: Modegh, Salimi, Rabiee, arXiv 2201.11808: where a LAP is predictive and faithful, what comes behind it
can be left out.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from lapbench.errors import DefinitionError
from lapbench.models.graph import LayerTracer
from lapbench.models.plug import lap_heads, lap_layers
from lapbench.models.predict import evaluating

ACTIVE = 0.5
"""A pixel is active where its concept is more probable than not."""


@dataclass(frozen=True)
class Cost:
    """What a network costs: its parameters, and multiply-adds for one image, of convolutions and products."""

    parameters: int
    multiply_adds: int


class EarlyExit(nn.Module):
    """The part of a network up to the concept maps of one LAP, and what these say of the classes.

    before: images → logits z (B, h, H, W). heads: the classes of every concept head; () marks a common one.
    """

    def __init__(self, before: fx.GraphModule, heads: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.before, self.heads = before, heads

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) → scores (B, n); the highest is that of the class the LAP names."""
        maps: Tensor = self.before(images).float().sigmoid()
        named = [(classes[0], head) for head, classes in enumerate(self.heads) if classes]
        if len(named) > 1:
            return maps.sum((2, 3))[:, [head for _, head in sorted(named)]]
        ((present, head),) = named
        above = maps[:, head].amax((1, 2)) - ACTIVE
        absent = torch.full_like(above, torch.finfo(above.dtype).tiny)  # not even then active
        return torch.stack([above, absent] if present == 0 else [absent, above], dim=1)


def cut(model: nn.Module, layer: int, *, n_classes: int) -> EarlyExit:
    """Return a copy of the network up to LAP number `layer`, 1 (shallow) to L, in evaluation mode.

    Errors: DefinitionError for a layer that does not exist, heads that do not stand for one class each, and a
    network that torch.fx cannot trace.
    """
    laps, heads = lap_layers(model), lap_heads(model)
    if not 1 <= layer <= len(laps):
        raise DefinitionError(f"the network has LAP layers 1 to {len(laps)}, there is no layer {layer}")
    named = [classes for classes in heads if classes]
    alone = len(named) == 1 and n_classes == 2
    if any(len(classes) > 1 for classes in named) or not (alone or len(named) == n_classes):
        raise DefinitionError(
            f"a LAP decides alone with a head for every class; heads {heads}, {n_classes} classes"
        )
    with evaluating(model):
        try:
            graph = LayerTracer().trace(model)
        except Exception as error:
            raise DefinitionError(
                f"{type(model).__name__} cannot be traced by torch.fx, and so not be cut: {error}"
            ) from error
        before = fx.GraphModule(model, graph)
    lap = [node for node in graph.nodes if node.op == "call_module" and node.target in laps][layer - 1]
    (end,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(lap):
        scored = lap.args[-1] if len(lap.args) > 1 else lap.kwargs.get("scored", lap.args[0])
        before.add_submodule("scoring", laps[lap.target].scoring)
        maps = graph.call_module("scoring", (scored,))
    end.args = (maps,)
    graph.eliminate_dead_code()
    before.delete_all_unused_submodules()
    before.recompile()
    return EarlyExit(copy.deepcopy(before), heads).eval()  # sharing modules would share their modes


def cost(model: nn.Module, image: Tensor) -> Cost:
    """Return what a network costs; image: (1, C, H, W), of which only the shape counts."""
    from torch.utils.flop_counter import FlopCounterMode  # here: its import takes a second

    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(image)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
