"""What of a machine can change the bytes of results: versions, device, threads, clients computed together.

Products of matrices round differently with another number of threads, on another processor or device and in another
version of torch; clients that train as one batch round differently from clients that train alone. All of it is
written into the run folder, and a run that is taken up again keeps its threads and its clients together.
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
    """The part that settings decide, where they say nothing by the machine, and where it is computed."""

    threads: int
    clients_per_step: int
    device: str
    processor: str

    def as_json(self) -> dict[str, str]:
        """Words by name, as the run folder keeps them."""
        return {_KEYS.get(name, name): str(value) for name, value in vars(self).items()}


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def choose_machine(
    settings: ComputeSection, device: Device, width: int, before: Mapping[str, str] | None = None, processes: int = 1
) -> Machine:
    """Threads and clients together: as set, else as the run was begun (`before`), else by the CLIP and the machine.

    What another kind of device was given is no guide for this one.
    `width`: of the text encoder. `processes` play at the same time and share the cores.
    """
    begun = before if before and before.get("device") == str(device.device) else {}
    threads = settings.threads or _number(begun, "threads") or devices.default_threads(width, processes)
    clients_per_step = (
        settings.clients_per_step or _number(begun, "together") or devices.default_clients_per_step(device, width)
    )
    return Machine(threads, clients_per_step, str(device.device), _processor(device))


def _number(begun: Mapping[str, str], name: str) -> int | None:
    """What a run folder tells, if it is a number that the setting of that name could have."""
    text = begun.get(name, "")
    return int(text) if re.fullmatch(r"[1-9]\d{0,2}", text) else None


def _processor(device: Device) -> str:
    """The GPU's name; of a CPU the instructions that torch's kernels are chosen by."""
    if device.device.type == "cuda":
        return torch.cuda.get_device_name(device.device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def crowding_warning(machine: Machine, processes: int) -> str:
    """A warning where threads fight for the cores, because they are set or the run was begun with so many."""
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
    """What was another one when the run was begun; what it does not tell is not compared."""
    return [f"{name} {before[name]} then, {value} now" for name, value in now.items()
            if name in before and before[name] != value]  # fmt: skip
