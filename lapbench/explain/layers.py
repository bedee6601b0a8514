"""The layer that a class activation map is drawn at."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lapbench.errors import ExplainerError, NotApplicableError, suggest
from lapbench.models.pooling import Pooling

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, Pooling)


def layer_of(model: nn.Module, layer: str, images: Tensor) -> str:
    """Return the name of the module that ``layer`` means: itself, or the last stage for ``"last"``.

    The last stage is the last of the network's direct parts (in order of execution) that is no pool and puts
    out a feature map (B, C, h, w) of more than one cell: ``layer4`` of ResNet, ``Mixed_7c`` of Inception V3,
    ``features`` of VGG and DenseNet; in a network with LAP layers it is what the final adaptive LAP pools.
    Where no direct part does (a network within a wrapper), their parts are asked. One image is sent through
    the network to find it. Errors: ExplainerError with the nearest right name; NotApplicableError without any
    feature map.
    """
    if layer != "last":
        names = [name for name, _ in model.named_modules() if name]
        if layer not in names:
            raise ExplainerError(f"the network has no layer {layer!r}{suggest(layer, [*names, 'last'])}")
        return layer
    maps = _feature_maps(model, images[:1])
    if not maps:
        raise NotApplicableError(
            f"no part of {type(model).__name__} puts out a feature map of more than one cell "
            f"for images of {images.shape[-2]}×{images.shape[-1]}: name a layer"
        )
    outermost = min(name.count(".") for name in maps)
    return [name for name in maps if name.count(".") == outermost][-1]


def _feature_maps(model: nn.Module, image: Tensor) -> list[str]:
    """Return the names of modules whose output is a feature map of more than one cell, as executed."""
    names: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name in names:  # of a module that runs often the last call is read
                names.remove(name)
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2:].numel() > 1:
                names.append(name)

        return hook

    parts = [(name, part) for name, part in model.named_modules() if name and not isinstance(part, _POOLS)]
    handles = [part.register_forward_hook(note(name)) for name, part in parts]
    try:
        with torch.no_grad():
            model(image.clone())  # it may work in place
    finally:
        for handle in handles:
            handle.remove()
    return names
