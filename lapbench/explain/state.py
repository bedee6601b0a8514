"""What explaining changes for a while, and how it is put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def untouched(model: nn.Module, *, seed: int = 0) -> Iterator[None]:
    """Make a network ready to be explained, and leave it afterwards exactly as it was.

    Inside: eval mode, parameters need no gradient and hold none, gradients are enabled, and the generators
    of torch, NumPy and Python are forked and seeded. Afterwards, also after an exception: modes, hooks,
    attributes, sub-modules, buffers (values too), ``requires_grad``, ``grad`` and generators are what they
    were. Values of parameters are not copied, for the cost: `Weights` does that once for many calls, and
    `lapbench.explain.check_explainer` finds who writes to them.
    """
    modules = [(module, _remember(module)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    with seeded_generators(seed), torch.inference_mode(False), torch.enable_grad():
        try:
            model.eval()
            for parameter, _, _ in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None
            yield
        finally:
            for module, memory in modules:
                _restore(module, memory)
            with torch.no_grad():
                for buffer, value in buffers:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
            for parameter, needs_gradient, gradient in parameters:
                parameter.requires_grad_(needs_gradient)
                parameter.grad = gradient


Memory = tuple[bool, dict[str, Any], dict[str, dict[Any, Any]]]


def _remember(module: nn.Module) -> Memory:
    """Keep a module's mode, its attributes, and the entries of its tables: parameters, parts, hooks, …."""
    attributes = dict(vars(module))
    tables = {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}
    return module.training, attributes, tables


def _restore(module: nn.Module, memory: Memory) -> None:
    """Put back what `_remember` kept; tables are refilled in place, because hook handles point at them."""
    mode, attributes, tables = memory
    here = vars(module)
    for name in here.keys() - attributes.keys():
        del here[name]
    here.update(attributes)
    for name, entries in tables.items():
        if (here[name] or entries) and _identities(here[name]) != _identities(entries):
            here[name].clear()
            here[name].update(entries)
    module.training = mode


def _identities(table: dict[Any, Any]) -> list[tuple[Any, int]]:
    return [(key, id(value)) for key, value in table.items()]


class Weights:
    """A copy of a network's weights, to find out whether they were written to, and to put them back."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(name, p, p.data, p.detach().clone()) for name, p in model.named_parameters()]

    def put_back(self) -> list[str]:
        """Give all parameters the values that they had, and return the names of those that had others.

        Values are compared, not versions: a write to ``parameter.data`` raises no version.
        """
        written = []
        for name, parameter, own, value in self._kept:
            if not _same(parameter.data, value):
                own.copy_(value)
                parameter.data = own
                written.append(name)
        return written


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors hold the same values in the same kind of memory; NaN is the same as NaN."""
    if (found.dtype, found.device, found.shape) != (wanted.dtype, wanted.device, wanted.shape):
        return False
    return torch.equal(found, wanted) or torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed every global generator inside, and put all of them back afterwards."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = list(range(torch.cuda.device_count())) if started else []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - strangers use it
    with torch.random.fork_rng(devices=cuda):
        try:
            # not torch.manual_seed: it would also seed devices that are started after the fork has ended
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed_all(seed)
            np.random.seed(seed)  # noqa: NPY002 - strangers use it
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002 - strangers use it
            random.setstate(python_state)
