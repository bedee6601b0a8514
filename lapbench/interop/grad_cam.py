"""The class activation maps of pytorch-grad-cam as explainers."""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from lapbench.explain import untouched
from lapbench.explain.layers import layer_of
from lapbench.interop.library import Explainer, library, named


def from_grad_cam(
    cam: Callable[..., Any], *, layer: str = "last", aug_smooth: bool = False, eigen_smooth: bool = False
) -> Explainer:
    """Make an explainer of a class of pytorch-grad-cam, such as ``GradCAMPlusPlus``.

    cam: the class, or anything that makes such an object of ``model=`` and ``target_layers=``, as
    ``functools.partial(GradCAM, reshape_transform=...)``. layer: a module's name, or ``"last"`` for the last
    stage. aug_smooth, eigen_smooth: that library's own smoothing.

    The maps (B, H, W) have the image's size and are not raw: whatever the method, that library sets negative
    values to 0 and stretches each map to [0, 1] by its minimum and maximum, so that the scale of a map says
    nothing, and one that is flat but for rounding looks like a sharp one. Because it leaves hooks, gradients
    and eval mode behind, every call works on a copy of the network, weights included. What it prints, its
    progress bars and warnings are swallowed.
    Errors: MissingLibraryError where the library cannot be imported; for the layer as `layer_of` has them.
    """
    targets = library("pytorch_grad_cam.utils.model_targets", "pytorch-grad-cam")

    def explainer(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        twin = copy.deepcopy(model)
        with untouched(twin), _silence():
            part = twin.get_submodule(layer_of(twin, layer, images))
            method = cam(model=twin, target_layers=[part])
            maps = method(
                images.detach().clone().requires_grad_(),  # else its hooks would see no gradient
                [targets.ClassifierOutputTarget(number) for number in target.tolist()],
                aug_smooth=aug_smooth,
                eigen_smooth=eigen_smooth,
            )
        return torch.as_tensor(maps, dtype=torch.float32, device=images.device)

    return named(explainer, cam, "of pytorch-grad-cam, stretched to [0, 1] in every image")


@contextmanager
def _silence() -> Iterator[None]:
    """Swallow what is printed, drawn and warned of."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
