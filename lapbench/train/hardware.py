"""Where training runs: the device or devices, and the precision that fits them."""

from dataclasses import dataclass
from typing import Literal

import torch

from lapbench.errors import TrainingError

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Hardware:
    """devices: as Lightning wants them, how many of the first ones or their numbers. name: for the record."""

    accelerator: Literal["cpu", "gpu"]
    devices: int | list[int]
    precision: Precision
    name: str

    @property
    def count(self) -> int:
        """How many processes train together."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def first(self) -> torch.device:
        """The device of the first process."""
        if self.accelerator == "cpu":
            return torch.device("cpu")
        return torch.device("cuda", 0 if isinstance(self.devices, int) else self.devices[0])


def choose_hardware(device: str, precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"]) -> Hardware:
    """Return the hardware that a device name stands for: auto (every GPU, else the CPU), cpu, cuda, cuda:N.

    On a CPU training is always in full precision; auto takes bfloat16 where the GPU computes it, else
    float16.
    Errors: TrainingError for a device that is not there.
    """
    if device == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        chosen: int | list[int] = gpus
    else:
        where = resolve_device(device)
        chosen = 0 if where.type == "cpu" else [where.index or 0]
    if chosen == 0:
        return Hardware("cpu", 1, "32-true", "cpu")
    if precision == "auto":
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    first = 0 if isinstance(chosen, int) else chosen[0]
    number = chosen if isinstance(chosen, int) else 1
    return Hardware("gpu", chosen, precision, f"{number} × {torch.cuda.get_device_name(first)}")


def resolve_device(device: str) -> torch.device:
    """Return the device of a name: auto (a GPU where there is one), cpu, cuda, cuda:N.

    Errors: TrainingError for a device that is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise TrainingError(f"there is no device {device!r}; known: auto, cpu, cuda, cuda:0, …") from None
    if found.type not in ("cpu", "cuda"):
        raise TrainingError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= (
        torch.cuda.device_count() if torch.cuda.is_available() else 0
    ):
        raise TrainingError(
            f"device {device!r} is not there: torch finds {torch.cuda.device_count()} GPUs; use auto or cpu"
        )
    return found
