"""What is installed, what works and what is missing, without stopping at the first fault."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from lapbench.errors import LapbenchError

NEEDED = (
    "torch", "torchvision", "pytorch-lightning", "captum", "scikit-learn", "numpy", "scipy", "numba",
    "matplotlib", "h5py", "safetensors", "pillow", "pydantic", "rich", "typer",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: ``ok``, ``absent`` (not needed by everyone) or ``fault``."""

    state: Literal["ok", "absent", "fault"]
    what: str
    detail: str


def examine(cache: Path) -> list[Finding]:
    """Look at everything a run depends on."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _packages,
        _devices,
        lambda: _folder("cache", cache),
        _data_root,
        _plugins,
        _definitions,
    )
    findings = [Finding("ok", "Python", sys.version.split()[0])]
    for check in checks:
        try:
            findings += check()
        except Exception as error:  # noqa: BLE001 - a doctor who faints helps nobody
            findings.append(Finding("fault", check.__name__.strip("_"), f"{type(error).__name__}: {error}"))
    return findings


def _packages() -> list[Finding]:
    findings = []
    for name in NEEDED:
        try:
            findings.append(Finding("ok", name, version(name)))
        except PackageNotFoundError:
            findings.append(Finding("fault", name, f"not installed: pip install {name}"))
    try:
        findings.append(Finding("ok", "pydicom", version("pydicom")))
    except PackageNotFoundError:
        findings.append(Finding("absent", "pydicom", "DICOM images need it: pip install 'lapbench[dicom]'"))
    try:
        importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError) as error:
        mend = (
            "torch and torchvision are not a pair: reinstall both together (pip install -U torch torchvision)"
        )
        findings.append(Finding("fault", "torchvision", f"{mend}; {error}"))
    return findings


def _devices() -> list[Finding]:
    import torch

    findings = [Finding("ok", "CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        return [*findings, Finding("absent", "CUDA", "no device; everything runs on the CPU")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        findings.append(
            Finding("ok", f"CUDA {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
        )
    return findings


def _folder(what: str, folder: Path) -> list[Finding]:
    """Say whether a folder, or the nearest one above it, can be written, and how much room it has."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return [
            Finding(
                "fault", what, f"{folder} cannot be written: choose another with --cache or LAPBENCH_CACHE"
            )
        ]
    free = shutil.disk_usage(existing).free / 2**30
    return [Finding("ok" if free > 1 else "fault", what, f"{folder}, {free:.0f} GiB free")]


def _data_root() -> list[Finding]:
    root = os.environ.get("LAPBENCH_DATA")
    if root is None:
        return [Finding("absent", "data", "LAPBENCH_DATA is not set; benchmarks on files need it or --data")]
    state: Literal["ok", "fault"] = "ok" if Path(root).is_dir() else "fault"
    return [Finding(state, "data", root + ("" if state == "ok" else " is not a folder"))]


def _plugins() -> list[Finding]:
    from lapbench.registry import architectures, explainers, readers

    findings = []
    for registry in (explainers, architectures, readers):
        names = registry.names()
        foreign = sum(entry.origin != "lapbench" for entry in registry)
        findings.append(Finding("ok", f"{registry.kind}s", f"{len(names)}, {foreign} of them from plug-ins"))
        findings += [Finding("fault", f"plug-in {name}", why) for name, why in registry.broken.items()]
    return findings


def _definitions() -> list[Finding]:
    from lapbench.benchmark import load_benchmark, shipped

    findings = []
    for path in shipped("benchmarks"):
        try:
            findings.append(Finding("ok", f"benchmark {path.stem}", load_benchmark(path).title))
        except LapbenchError as error:
            findings.append(Finding("fault", f"benchmark {path.stem}", str(error)))
    return findings
