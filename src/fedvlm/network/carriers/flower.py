"""Flower: the carrier app, submitted to a SuperLink with `flwr run`; or a simulation with a SuperLink of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.network.carriers.pump import PumpCarrier
from fedvlm.network.carriers.submitted import SubmittedCarrier, kept

CONNECTION = "fedvlm"
"""Name of the SuperLink in Flower's own configuration."""
PROGRAMS = Path(sys.executable).parent
"""Where Flower's programs are, if it is installed."""
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


@dataclass(frozen=True)
class Simulated:
    """Clients of a simulation: their number, what a worker takes of a machine, and files that all workers see."""

    clients: int
    experiment: Path
    state: Path
    """Folder of the clients' tensors."""
    cpus: int = 1
    gpus: float = 0.0


def start(folder: Path, pump: PumpCarrier, link: SuperLink, tell: Callable[[str], None]) -> SubmittedCarrier:
    """A carrier over this SuperLink. Raises `FedvlmError` if the folder has no app, or Flower is not installed."""
    return SubmittedCarrier(pump, "Flower", *_run(folder, "flower", pump, link), tell)


def simulate(folder: Path, pump: PumpCarrier, clients: Simulated, tell: Callable[[str], None]) -> SubmittedCarrier:
    """A carrier to workers on this machine, or on the cluster that RAY_ADDRESS names. Raises `FedvlmError`.

    The SuperLink is this carrier's own and ends with it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = _run(folder, "flower_simulation", pump, SuperLink(f"127.0.0.1:{port}", None))
    command[-1] += f" experiment={json.dumps(str(clients.experiment))} state={json.dumps(str(clients.state))}"
    command += ["--federation-config", f"num-supernodes={clients.clients} client-resources-num-cpus={clients.cpus} "
                f"client-resources-num-gpus={clients.gpus}"]  # fmt: skip
    program = [str(PROGRAMS / "flower-superlink"), "--simulation", "--insecure", "--host", "127.0.0.1", "--port",
               str(port), "--disable-runtime-dependency-installation"]  # fmt: skip
    durable.make_folder(folder / "flower-home")
    link = kept(program, environment, folder / "flower-home" / "superlink.log")
    return SubmittedCarrier(pump, "Flower", command, environment, tell, link)


def _run(folder: Path, app: str, pump: PumpCarrier, link: SuperLink) -> tuple[list[str], dict[str, str]]:
    """The command that submits an app and lasts as long as it runs, and its environment."""
    if not (folder / app / "pyproject.toml").is_file():
        raise FedvlmError(f"{folder / app} holds no carrier app: fedvlm federation init DIR EXPERIMENT --carrier {app}")
    if not (PROGRAMS / "flwr").exists():
        extra = "federation" if app == "flower" else "federation-simulation"
        raise FedvlmError(f"Flower is not installed beside fedvlm: pip install 'fedvlm[{extra}]'")
    environment = os.environ | OFF | {"FLWR_HOME": str(home(folder / "flower-home", link))}
    environment["PATH"] = f"{PROGRAMS}{os.pathsep}{environment.get('PATH', '')}"
    command = [str(PROGRAMS / "flwr"), "run", str(folder / app), CONNECTION, "--stream", "--run-config",
               f"socket={json.dumps(str(pump.path))}"]  # fmt: skip
    return command, environment
