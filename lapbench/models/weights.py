"""Weights as files: safetensors with a record of how they came; nothing in a file is ever executed."""

import copy
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lapbench.errors import WeightsError
from lapbench.models.lap import ConceptScoring

State = dict[str, Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_AUXILIARY = re.compile(r"^(AuxLogits|aux1|aux2)\.")
_SHOWN = 5  # names listed of each kind of fault


def save_weights(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write weights (.safetensors) and their record, with their digest added, to the same name in .json.

    Both are written under temporary names and renamed, the weights last: where they are, they are whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    text = json.dumps({**record, "weights_digest": weights_digest(tensors)}, indent=2, sort_keys=True)
    _write_whole(record_path(path), text.encode())
    _write_whole(path, safetensors.torch.save(tensors))


def record_path(path: Path) -> Path:
    """Where the record of a weights file lies."""
    return path.with_suffix(".json")


def load_record(path: Path) -> dict[str, Any]:
    """Read the record beside a weights file. Errors: WeightsError."""
    try:
        record = json.loads(record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{record_path(path)}: the record of {path.name} cannot be read: {error}"
        ) from None
    if not isinstance(record, dict):
        raise WeightsError(f"{record_path(path)}: a record is a JSON object, found {type(record).__name__}")
    return record


def load_weights(path: Path) -> State:
    """Read weights from .safetensors, or from .pt or .pth that hold tensors only, as names → CPU tensors.

    A wrapping ``state_dict`` and the prefix ``module.`` are removed.
    Errors: WeightsError that names the file and what to do, if it is missing, truncated, foreign, holds code,
    or values that are not finite.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such weights file")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(
            f"{path}: weights end in .safetensors, .pt or .pth, found {path.suffix or 'no suffix'!r}"
        )
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"{path}: {key} holds values that are not finite: these weights cannot be used"
            )
    return state


def copy_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "the given weights",
    optional: Callable[[str], bool] = lambda _key: False,
) -> None:
    """Copy weights into a network, all or nothing; entries that are `optional` may be missing.

    Errors: WeightsError that names missing, unexpected and mis-shaped entries.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not (optional(key) or _is_counter(key))]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} (found {_shape(state[key])}, wanted {_shape(own[key])})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if any(faults.values()):
        raise WeightsError(
            f"{source} do not fit this {type(model).__name__}: "
            + "; ".join(f"{kind}: {_some(names)}" for kind, names in faults.items() if names)
        )
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)


def copy_pretrained(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "the given weights",
    optional: Callable[[str], bool] = lambda _key: False,
) -> tuple[str, ...]:
    """Copy weights trained for other classes into a network; returns the entries that were left out.

    Left out are the classifier's, where the number of classes differs, and those of auxiliary classifiers
    that the network lacks. A colour network's first convolution is summed over the colours for a grey one.
    Errors: WeightsError, for every other misfit.
    """
    own = model.state_dict()
    fitting = {key: _grey(tensor, own[key]) if key in own else tensor for key, tensor in state.items()}
    out = {key for key in fitting if key not in own and _AUXILIARY.match(key)}
    heads = {
        key: (tensor.shape[0], own[key].shape[0])
        for key, tensor in fitting.items()
        if key in own
        and tensor.shape != own[key].shape
        and tensor.shape[1:] == own[key].shape[1:]
        and tensor.dim()
    }
    if len(set(heads.values())) == 1 and not all(map(optional, heads)):  # another number of classes
        out |= set(heads)
    kept = {key: tensor for key, tensor in fitting.items() if key not in out}
    copy_weights(model, kept, source=source, optional=lambda key: key in out or optional(key))
    return tuple(key for key in state if key in out)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all entries, independent of their order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with every weight drawn anew, as if never trained; the global generator is untouched.

    Convolutions by He's rule (fan out), everything else by torch's own initialisation; batch norm forgets its
    statistics. LAP's last scoring layer is drawn, too, rather than set to zero: its maps would be constant.
    """
    device = next(model.parameters()).device
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in fresh.modules():
            _redraw(module)
    return fresh.to(device)


def _redraw(module: nn.Module) -> None:
    """Draw a module's own parameters; those of its children follow by themselves."""
    if isinstance(module, ConceptScoring):
        return
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        return
    for parameter in module.parameters(recurse=False):  # a scale without an initialisation of its own
        spread = parameter.std() if parameter.numel() > 1 else parameter.new_zeros(())
        parameter.copy_(parameter.mean() + spread * torch.randn_like(parameter))


def _read_safetensors(path: Path) -> State:
    try:
        return _tidy(safetensors.torch.load_file(path), path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}): copy or train these weights again"
        ) from None


def _read_torch(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a stranger's file may raise anything
        first = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0]  # advice follows
        raise WeightsError(
            f"{path}: not a whole file of tensors only ({first}): save it again with "
            "torch.save(model.state_dict(), ...), or as safetensors; a pickled model is never loaded"
        ) from None
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    return _tidy(content, path)


def _tidy(content: object, path: Path) -> State:
    """Check that names lead to tensors, and bring old spellings up to date."""
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{path}: wanted names and tensors, found {type(content).__name__}: save a state dict"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{path}: wanted names and tensors, found {key!r}: {type(value).__name__}: save a state dict"
            )
    state = {key.removeprefix("module."): value for key, value in content.items()}
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
        for key, value in state.items()
    }


def _write_whole(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _grey(tensor: Tensor, own: Tensor) -> Tensor:
    if tensor.dim() == 4 and tensor.shape[1] == 3 and own.shape == (tensor.shape[0], 1, *tensor.shape[2:]):
        return tensor.sum(1, keepdim=True)
    return tensor


def _is_counter(key: str) -> bool:
    return key.endswith(".num_batches_tracked")  # older files lack it; it has no influence on inference


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
