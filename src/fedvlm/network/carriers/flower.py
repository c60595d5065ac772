"""Flower: the coordinator submits the carrier app to a SuperLink, and once more whenever the run ends too early.

Flower does not resume a run after its server has died. It need not: the state is the coordinator's, and a new run of
the app fetches the messages that wait.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.network.carriers.pump import PumpCarrier

CONNECTION = "fedvlm"
"""Name of the SuperLink in Flower's own configuration."""
PAUSE = 2.0
"""Seconds before the app is submitted again."""
OFF = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
"""Nothing is reported to anybody, and no package is fetched at run time."""


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink's address, and the certificate of its authority; without one the line is not encrypted."""

    address: str
    certificate: Path | None


def home(folder: Path, link: SuperLink) -> Path:
    """Write Flower's own configuration with this SuperLink; returns the folder for FLWR_HOME."""
    secure = (
        "insecure = true" if link.certificate is None else f"root-certificates = {json.dumps(str(link.certificate))}"
    )
    lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
    text = "\n".join([*lines, f"address = {json.dumps(link.address)}", secure, ""])
    durable.write_text(folder / "config.toml", text)
    return folder


@dataclass
class FlowerCarrier:
    """A pump whose program runs at a SuperLink."""

    pump: PumpCarrier
    app: Path
    environment: dict[str, str]
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        """Submit the app."""
        self.ended = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self.roster, self.send, self.receive = self.pump.roster, self.pump.send, self.pump.receive
        threading.Thread(target=self._submit, daemon=True).start()

    def close(self) -> None:
        """Let the app end by itself, and stop its stream."""
        self.ended.set()
        self.pump.close()
        if self.process is not None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def _submit(self) -> None:
        command = ["flwr", "run", str(self.app), CONNECTION, "--stream", "--run-config",
                   f"socket={json.dumps(str(self.pump.path))}"]  # fmt: skip
        said = ""
        while not self.ended.is_set():
            try:
                self.process = subprocess.Popen(
                    command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            except FileNotFoundError:
                self.tell("flwr is not installed: pip install 'fedvlm[federation]'")
                return
            assert self.process.stdout is not None
            last = ""
            for line in self.process.stdout:
                last = line.strip() or last
            self.process.wait()
            if self.ended.is_set():
                return
            if last != said:
                said = last
                self.tell(f"Flower's run has ended ({last[:200] or 'without a word'}): submitted again until it stays")
            time.sleep(PAUSE)


def start(folder: Path, pump: PumpCarrier, link: SuperLink, tell: Callable[[str], None]) -> FlowerCarrier:
    """A carrier over this SuperLink. Raises `FedvlmError` if the folder has no app."""
    app = folder / "flower"
    if not (app / "pyproject.toml").is_file():
        raise FedvlmError(f"{app} holds no carrier app: fedvlm federation init DIR EXPERIMENT --carrier flower")
    environment = os.environ | OFF | {"FLWR_HOME": str(home(folder / "flower-home", link))}
    return FlowerCarrier(pump, app, environment, tell)
