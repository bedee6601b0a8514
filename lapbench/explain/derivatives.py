"""The rules by which gradients walk back: the chain rule, and Guided Backprop's variant of it."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from lapbench.explain.canonical import isolated
from lapbench.explain.tape import Operation, Rule
from lapbench.models.bla import BLA
from lapbench.models.lap import AdaptiveLAP2d, LAP2d
from lapbench.models.lip import LIP

_FEW = 4
"""Channels of an image, for which torch's backward of a strided convolution is slow."""


def gradient(operation: Operation) -> Rule:
    """The chain rule, for every operation that torch can differentiate."""
    return _DERIVATIVES.get(operation.kind, derivative)


def guided(operation: Operation) -> Rule:
    """The chain rule, but every ReLU lets only positive gradients back (Springenberg et al., 2015)."""
    return _GUIDED.get(operation.kind) or gradient(operation)


def derivative(operation: Operation, received: Any) -> tuple[Any, ...]:
    """Any operation: it is done once more, and torch differentiates it."""
    leaves = [_leaf(value) for value in operation.inputs]
    with torch.enable_grad():
        output = operation.again(*leaves)
    outputs, gradients = _pairs(output, received)
    wanted = [tensor for leaf in leaves for tensor in _tensors(leaf) if tensor.requires_grad]
    if not wanted or not outputs:
        return (None,) * len(leaves)
    found = dict(
        zip(map(id, wanted), torch.autograd.grad(outputs, wanted, gradients, allow_unused=True), strict=True)
    )
    return tuple(_like(leaf, found) for leaf in leaves)


def passed_on(operation: Operation, received: Any) -> tuple[Any, ...]:
    """Whatever leaves its input as it is."""
    return (received,) * len(operation.sources)


def reshaped(operation: Operation, received: Tensor) -> tuple[Tensor, ...]:
    """The same values in another shape."""
    return (received.reshape(operation.inputs[0].shape),)


def _leaf(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_leaf, value))
    differentiable = isinstance(value, Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if differentiable else value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _like(leaf: Any, found: Mapping[int, Tensor | None]) -> Any:
    if isinstance(leaf, tuple | list):
        parts = [(_like(part, found), part) for part in leaf]
        return tuple(_nothing(part) if g is None else g for g, part in parts)
    return found.get(id(leaf))


def _nothing(value: Any) -> Any:
    """What a value receives that nothing is sent back to."""
    if isinstance(value, tuple | list):
        return tuple(map(_nothing, value))
    return torch.zeros_like(value) if isinstance(value, Tensor) else None


def _pairs(output: Any, received: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Pair the tensors of an output with what they receive, as far as they depend on the inputs."""
    both = [(o, g) for o, g in zip(_tensors(output), _tensors(received), strict=True) if o.requires_grad]
    return [o for o, _ in both], [g for _, g in both]


def _max_pool(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """To the winner of each window."""
    module, x = operation.module, operation.inputs[0]
    if module.return_indices:
        return derivative(operation, received)
    settings = [
        _pair(value) for value in (module.kernel_size, module.stride, module.padding, module.dilation)
    ]
    return (
        torch.ops.aten.max_pool2d_with_indices_backward(
            received, x, *settings, module.ceil_mode, operation.winners
        ),
    )


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def _relu(operation: Operation, received: Tensor) -> tuple[Tensor]:
    return (torch.ops.aten.threshold_backward(received, operation.output, 0),)


def _guided_relu(operation: Operation, received: Tensor) -> tuple[Tensor]:
    return (torch.ops.aten.threshold_backward(received, operation.output, 0).clamp_min_(0),)


def _guided_within(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    """The derivative of a pooling whose own ReLUs, in its scoring module or its attention, are guided."""

    def guide(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda received: received.clamp_min(0))  # type: ignore[no-untyped-call]

    own = [module for module in operation.module.modules() if isinstance(module, nn.ReLU)]
    handles = [module.register_forward_hook(guide) for module in own]
    try:
        return derivative(operation, received)
    finally:
        for handle in handles:
            handle.remove()


def _convolution(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    module: nn.Conv2d = operation.module
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return derivative(operation, received)
    settings = module.stride, module.padding, module.dilation, module.groups
    shape = operation.inputs[0].shape
    few = module.in_channels <= _FEW and received.device.type == "cpu"
    if few and module.stride[0] == module.stride[1] > 1 and module.groups == 1 and module.dilation == (1, 1):
        return (strided_input(shape[2:], module.weight, received, module.stride[0], module.padding),)
    to_input: Tensor = conv2d_input(shape, module.weight, received, *settings)  # type: ignore[no-untyped-call]
    return (to_input,)


def strided_input(
    size: Sequence[int], weight: Tensor, received: Tensor, stride: int, padding: Sequence[int]
) -> Tensor:
    """What a strided convolution's input (B, C, H, W) of this size receives: `conv2d_input`, otherwise.

    A pixel stride·i + a is reached by every stride-th weight only. So the pixels of each phase a are an
    ordinary convolution of what was received, and all phases together one with stride² times the channels
    ("Real-Time Single Image and Video Super-Resolution", Shi et al., CVPR 2016). Torch's own way takes three
    times as long on a CPU where the channels are few, as in an image.
    """
    ahead = max((kernel - 1 - p) // stride for kernel, p in zip(weight.shape[2:], padding, strict=True))
    behind = max((stride - 1 + p) // stride for p in padding)
    taps = torch.arange(ahead, -behind - 1, -1, device=weight.device)
    phases = F.pad(weight, (0, 1, 0, 1))  # a column and a row of zeros, for taps beyond the kernel
    for axis, (kernel, p) in enumerate(zip(weight.shape[2:], padding, strict=True)):
        at = stride * taps + torch.arange(p, p + stride, device=weight.device)[:, None]
        at = at.where((at >= 0) & (at < kernel), kernel)
        phases = phases.index_select(2 + axis, at.flatten())
    phases = phases.reshape(*weight.shape[:2], stride, len(taps), stride, len(taps))
    phases = phases.permute(1, 2, 4, 0, 3, 5).reshape(-1, len(weight), len(taps), len(taps))

    rows, columns = (-(-length // stride) for length in size)
    missing = max(rows - received.shape[2], columns - received.shape[3])
    margin = max(0, ahead, behind + missing)
    found = F.conv2d(received, phases, padding=margin)[:, :, margin - ahead :, margin - ahead :]
    return F.pixel_shuffle(found[:, :, :rows, :columns], stride)[:, :, : size[0], : size[1]]


def _linear(operation: Operation, received: Tensor) -> tuple[Tensor]:
    return (received @ operation.module.weight,)


def _batch_norm(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    module: nn.BatchNorm2d = operation.module
    if module.running_var is None or module.weight is None:
        return derivative(operation, received)  # it normalises by the batch itself, or has no weights
    return (received * (module.weight / (module.running_var + module.eps).sqrt())[:, None, None],)


def _sum(operation: Operation, received: Tensor) -> tuple[Tensor, ...]:
    if operation.kwargs:
        return derivative(operation, received)
    return tuple(received.sum_to_size(summand.shape) for summand in operation.inputs)


def _concatenation(operation: Operation, received: Tensor) -> tuple[Any, ...]:
    if not operation.args:
        return derivative(operation, received)
    dimension = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0)
    tensors, nodes = operation.args[0], cast(list[fx.Node], operation.node.args[0])
    parts = torch.split(received, [part.shape[dimension] for part in tensors], dimension)
    if isinstance(operation.inputs[0], tuple | list):
        return (parts,)
    return tuple(part for part, node in zip(parts, nodes, strict=True) if node in operation.sources)


def _piece(operation: Operation, received: Any) -> tuple[Any, ...]:
    """One of the tensors of a tuple, or several; the others receive nothing from here."""
    pieces, index = operation.args
    if not isinstance(pieces, tuple | list):
        return derivative(operation, received)
    parts = [_nothing(piece) for piece in pieces]
    if isinstance(index, slice):
        for position, part in zip(range(len(pieces))[index], received, strict=True):
            parts[position] = part
    else:
        parts[index] = received
    return (tuple(parts),)


REARRANGING: dict[Any, Rule] = {
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d, isolated), passed_on),
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten", "view", "reshape"), reshaped),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    **dict.fromkeys((torch.permute, torch.transpose, torch.unsqueeze, torch.squeeze, F.pad), derivative),
    **dict.fromkeys(("permute", "transpose", "unsqueeze", "squeeze", "contiguous"), derivative),
    **dict.fromkeys((torch.split, torch.chunk, "split", "chunk"), derivative),
    operator.getitem: _piece,
}
"""Operations that move values without changing them: every walk sends back along the way they came."""
_DERIVATIVES: dict[Any, Rule] = {
    **REARRANGING,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys((operator.add, torch.add, "add"), _sum),
}
"""By the class of a module, by function, or by the name of a method; everything else is a `derivative`."""
_GUIDED: dict[Any, Rule] = {
    nn.ReLU: _guided_relu,
    **dict.fromkeys((LAP2d, AdaptiveLAP2d, LIP, BLA), _guided_within),
}
