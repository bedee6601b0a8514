"""Maps, and the one door through which every explainer is called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lapbench.errors import DataError, ExplainerError, LapbenchError, StoreError, WeightsError
from lapbench.explain.foreign import Attributor, as_function
from lapbench.explain.passes import Passes, Prepared, sharing
from lapbench.explain.state import untouched
from lapbench.models.predict import memory_errors
from lapbench.registry import ExplainerSpec, Reach


@dataclass(frozen=True)
class Maps:
    """What an explainer says of a batch.

    values: (B, h, w), raw, higher = more important, at the explainer's own resolution.
    diagnostics: figures about the computation, one (B,) tensor each, such as ``completeness_error``.
    """

    values: Tensor
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)


def explain(
    explainer: ExplainerSpec | Attributor | Callable[..., Any],
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    parameters: Mapping[str, Any] | None = None,
    *,
    masks: Tensor | None = None,
    ids: Sequence[str] | None = None,
    passes: Passes | None = None,
) -> Maps:
    """Draw the maps of a batch, and leave model, images and random generators as they were.

    explainer: a registered one, a function, or what has ``attribute``: see `from_attribute`. images:
    (B, C, H, W), normalised as the network wants them, on its device. target: (B,) int64, the class that is
    explained in each image. masks: (B, H, W) bool, the truth, for explainers that need it (the oracle
    control); ids: the samples' ids, for seeded controls. passes: what other explainers have asked of this
    batch already. Returns float32 maps (B, h, w) without a graph.
    Errors: ExplainerError when the explainer fails or returns anything else; NotApplicableError when it has
    no meaning for this network or target; torch.OutOfMemoryError, also for a CPU's memory.
    """
    spec = explainer if isinstance(explainer, ExplainerSpec) else None
    function = explainer.function if isinstance(explainer, ExplainerSpec) else as_function(explainer)
    name = spec.name if spec else getattr(function, "__name__", repr(function))
    arguments = _arguments(spec, parameters, images, target, masks, ids)
    images, target = _own(images), _own(target)
    with untouched(model), sharing(model, images, target, passes):
        try:
            with memory_errors():
                result = function(model, images, target, **arguments)
        except (LapbenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ExplainerError(f"explainer {name!r} failed: {type(error).__name__}: {error}") from error
    maps = result if isinstance(result, Maps) else Maps(result)
    return _checked(name, maps, images)


@dataclass(frozen=True)
class Request:
    """An explainer to be asked, with its parameters."""

    explainer: ExplainerSpec | Callable[..., Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def explain_together(
    requests: Sequence[Request],
    network: Prepared,
    images: Tensor,
    target: Tensor,
    *,
    masks: Tensor | None = None,
    ids: Sequence[str] | None = None,
) -> list[Maps | LapbenchError]:
    """Draw the maps of a batch by several explainers, with every pass that they share made once.

    Arguments as for `explain`. Returns what each would return or raise there; what is not the explainer's
    fault is raised: faults of files, and running out of memory.
    """
    reaches = [r.explainer.reach if isinstance(r.explainer, ExplainerSpec) else "output" for r in requests]
    reach: Reach = max(reaches, key=("output", "layer", "image").index, default="output")
    passes = Passes(network, _own(images), _own(target), reach)
    results: list[Maps | LapbenchError] = []
    for request in requests:
        try:
            maps = explain(
                request.explainer, network.model, images, target, request.parameters,
                masks=masks, ids=ids, passes=passes,
            )  # fmt: skip
        except (DataError, StoreError, WeightsError):
            raise  # it would come again with the next one
        except LapbenchError as error:
            results.append(error)
        else:
            results.append(maps)
    return results


def _own(tensor: Tensor) -> Tensor:
    """Copy a tensor, into one that gradients may be asked of even where the caller is in inference mode."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


def _arguments(
    spec: ExplainerSpec | None,
    parameters: Mapping[str, Any] | None,
    images: Tensor,
    target: Tensor,
    masks: Tensor | None,
    ids: Sequence[str] | None,
) -> dict[str, Any]:
    """Return the keyword arguments of the explainer, after a look at what all of them are given."""
    if images.ndim != 4:
        raise ExplainerError(f"images must be (B, C, H, W), found {tuple(images.shape)}")
    if target.shape != images.shape[:1] or target.dtype != torch.int64:
        raise ExplainerError(
            f"target must be ({len(images)},) int64, one class for each image, "
            f"found {tuple(target.shape)} {str(target.dtype).removeprefix('torch.')}"
        )
    if spec is None:
        return dict(parameters or {})
    table = spec.parameters.model_validate(dict(parameters or {}))
    arguments = {name: getattr(table, name) for name in type(table).model_fields}
    for need, value in (("masks", masks), ("ids", ids)):
        if need in spec.needs:
            found = 0 if value is None else len(value)
            if found != len(images):
                raise ExplainerError(
                    f"explainer {spec.name!r} needs the {need} of all {len(images)} samples, found {found}"
                )
            arguments[need] = value
    return arguments


def _checked(name: str, maps: Maps, images: Tensor) -> Maps:
    """Return the maps detached and as float32. Errors: ExplainerError for anything that is not B maps."""
    values: Any = maps.values
    count = len(images)
    if not isinstance(values, Tensor):
        raise ExplainerError(
            f"explainer {name!r} must return a tensor or Maps, found {type(values).__name__}"
        )
    if values.ndim != 3 or len(values) != count or 0 in values.shape:
        raise ExplainerError(
            f"explainer {name!r} must return maps of shape ({count}, h, w), found {tuple(values.shape)}"
        )
    if not values.is_floating_point():
        raise ExplainerError(f"explainer {name!r} must return floating-point maps, found {values.dtype}")
    for key, figure in maps.diagnostics.items():
        if not isinstance(figure, Tensor) or figure.shape != (count,):
            found = tuple(figure.shape) if isinstance(figure, Tensor) else type(figure).__name__
            raise ExplainerError(
                f"diagnostic {key!r} of explainer {name!r} must be ({count},), found {found}"
            )
    for tensor in (values, *maps.diagnostics.values()):
        if tensor.device not in (images.device, torch.device("cpu")) or tensor.layout != torch.strided:
            raise ExplainerError(
                f"explainer {name!r} must return dense tensors on the images' device, {images.device}, or on "
                f"the CPU, found {str(tensor.layout).removeprefix('torch.')} on {tensor.device}"
            )
    diagnostics = {key: figure.detach().clone() for key, figure in maps.diagnostics.items()}
    return Maps(values.detach().float().clone(), diagnostics)
