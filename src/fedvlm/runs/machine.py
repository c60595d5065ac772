"""Properties of a machine that can change the bytes of results: versions, device, threads, clients per step.

Matrix products round differently with another number of threads, on another processor or device, and in another version
of torch; clients in a batched step round differently from single clients. The run folder records these properties, and
a resumed run keeps its threads and its clients per step.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from fedvlm.training import device as devices
from fedvlm.training.device import ComputeSection, Device

_KEYS = {"clients_per_step": "together"}
"""Keys of run folders, where they are not the fields' names."""
_PACKAGES = ("fedvlm", "torch", "numpy", "pillow", "safetensors", "tokenizers")


@dataclass(frozen=True)
class Machine:
    """Threads and clients per step, from settings or defaults of the machine; device and processor."""

    threads: int
    clients_per_step: int
    device: str
    processor: str

    def as_json(self) -> dict[str, str]:
        """Values as strings, by the keys of the run folder."""
        return {_KEYS.get(name, name): str(value) for name, value in vars(self).items()}


def versions() -> dict[str, str]:
    """Versions of packages on which results may depend."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def choose_machine(
    settings: ComputeSection, device: Device, width: int, before: Mapping[str, str] | None = None, processes: int = 1
) -> Machine:
    """Threads and clients per step: as set, else as the run was begun (`before`), else by the CLIP and the machine.

    Values from another kind of device are ignored. `width`: of the text encoder. `processes`: run at the same time and
    share the cores.
    """
    begun = before if before and before.get("device") == str(device.device) else {}
    threads = settings.threads or _number(begun, "threads") or devices.default_threads(width, processes)
    clients_per_step = (
        settings.clients_per_step or _number(begun, "together") or devices.default_clients_per_step(device, width)
    )
    return Machine(threads, clients_per_step, str(device.device), _processor(device))


def _number(begun: Mapping[str, str], name: str) -> int | None:
    """A value of a run folder, if it is a valid number for the setting of that name."""
    text = begun.get(name, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,2}", text) else None


def _processor(device: Device) -> str:
    """The GPU's name, or the CPU's instruction set, by which torch chooses its kernels."""
    if device.device.type == "cuda":
        return torch.cuda.get_device_name(device.device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def crowding_warning(machine: Machine, processes: int) -> str:
    """A warning if settings or the run's begin give more threads than there are cores; else an empty string."""
    cores = os.cpu_count() or 1
    if machine.threads == 1 or machine.threads * processes <= cores:
        return ""
    who = (
        f"{processes} processes with {machine.threads} threads each" if processes > 1 else f"{machine.threads} threads"
    )
    return (
        f"{who} on {cores} cores: these were set, or the run was begun with them, and its bytes depend on them "
        f"(compute.threads={max(1, cores // processes)} is faster and rounds differently)"
    )


def differences(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Values that have changed since the run was begun; values that it does not record are not compared."""
    return [f"{name} {before[name]} then, {value} now" for name, value in now.items()
            if name in before and before[name] != value]  # fmt: skip
