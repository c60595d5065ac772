"""Flower: the carrier app, submitted to a SuperLink with `flwr run`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.network.carriers.pump import PumpCarrier
from fedvlm.network.carriers.submitted import SubmittedCarrier

CONNECTION = "fedvlm"
"""Name of the SuperLink in Flower's own configuration."""
OFF = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
"""Nothing is reported to anybody, and no package is fetched at run time."""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink's address, and the certificate of its authority; without one the line is not encrypted."""

    address: str
    certificate: Path | None


def home(folder: Path, link: SuperLink) -> Path:
    """Write Flower's own configuration with this SuperLink; returns the folder for FLWR_HOME."""
    secure = "insecure = true"
    if link.certificate is not None:
        secure = f"root-certificates = {json.dumps(str(link.certificate))}"
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    text = "\n".join([*lines, f"address = {json.dumps(link.address)}", secure, ""])
    durable.write_text(folder / "config.toml", text)
    return folder


def start(folder: Path, pump: PumpCarrier, link: SuperLink, tell: Callable[[str], None]) -> SubmittedCarrier:
    """A carrier over this SuperLink. Raises `FedvlmError` if the folder has no app, or Flower is not installed."""
    app, program = folder / "flower", Path(sys.executable).parent / "flwr"
    if not (app / "pyproject.toml").is_file():
        raise FedvlmError(f"{app} holds no carrier app: fedvlm federation init DIR EXPERIMENT --carrier flower")
    if not program.exists():
        raise FedvlmError("Flower is not installed beside fedvlm: pip install 'fedvlm[federation]'")
    environment = os.environ | OFF | {"FLWR_HOME": str(home(folder / "flower-home", link))}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment.get('PATH', '')}"
    command = [str(program), "run", str(app), CONNECTION, "--stream", "--run-config",
               f"socket={json.dumps(str(pump.path))}"]  # fmt: skip
    return SubmittedCarrier(pump, "Flower", command, environment, tell)
