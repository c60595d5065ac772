"""A whole federation on this machine, each part a process of its own: to try it, and for tests that kill its parts.

    trial = Trial(folder, ["north", "south"], "flower")
    trial.begin()                     # processes of sites and network; their output is in FOLDER/NAME.log
    trial.start("coordinator")
    trial.kill("site-north")          # kill -9
    trial.start("site-north")
    trial.stop()

The folder holds `federation/`, as `fedvlm federation init` writes it, and `SITE/site.toml` for each site. Parts:
`coordinator`, `server` (of a network), and for each site `site-SITE` and `carrier-SITE`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedvlm import durable
from fedvlm.errors import FedvlmError
from fedvlm.network.carriers import flower
from fedvlm.network.coordinator.settings import FILE

FEDVLM = (sys.executable, "-m", "fedvlm")
ADMINISTRATOR = "admin@nvidia.com"
PATIENCE = 90.0
"""Seconds in which a part must be ready."""


@dataclass
class Trial:
    """Processes by name. `port`: the first of those that a network's programs listen on."""

    folder: Path
    sites: Sequence[str]
    carrier: str = "folder"
    port: int = 9393
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self.federation = self.folder / "federation"
        self.base = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}

    def begin(self) -> None:
        """Start all parts but the coordinator. Raises `FedvlmError` if one is not ready in time."""
        for name in self.sites:
            self.start(f"site-{name}")
        if self.carrier == "flower":
            self._set("superlink", f"127.0.0.1:{self.port}")
            self.start("server")
            for name in self.sites:
                self._register(name)
        if self.carrier == "nvflare":
            self.run("nvflare", "poc", "prepare", "-c", *self.sites)
            (kit,) = self.workspace.glob(f"*/prod_00/{ADMINISTRATOR}")
            self._set("kit", str(kit))
            self.start("server")
        else:
            for name in self.sites:
                self.start(f"carrier-{name}")

    def start(self, part: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a part, with more words at the end of its command."""
        command, environment = self._command(part)
        with (self.folder / f"{part}.log").open("ab") as log:
            self.processes[part] = subprocess.Popen(
                [*command, *words], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        return self.processes[part]

    def kill(self, *parts: str) -> None:
        """`kill -9` of parts, and of all that they have started."""
        for part in parts:
            with suppress(ProcessLookupError):
                os.killpg(self.processes[part].pid, signal.SIGKILL)
        for part in parts:
            self.processes[part].wait()

    def stop(self) -> None:
        """End all parts."""
        if self.carrier == "nvflare" and "server" in self.processes:
            subprocess.run(["nvflare", "poc", "stop"], env=self.environment, capture_output=True)
        for process in reversed(self.processes.values()):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for part, process in self.processes.items():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill(part)

    def log(self, part: str) -> str:
        """What a part has printed."""
        path = self.folder / f"{part}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Wait for something. Raises `FedvlmError` with the parts' last words."""
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                words = "\n".join(f"--- {part}\n{self.log(part)[-2000:]}" for part in self.processes)
                raise FedvlmError(f"waited for {what} for {seconds:.0f} s\n{words}")
            time.sleep(0.02)

    def run(self, *command: str) -> str:
        """Run a command to its end; returns what it prints. Raises `FedvlmError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise FedvlmError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    @property
    def workspace(self) -> Path:
        """NVFlare's folder."""
        return self.folder / "nvflare-workspace"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of all programs of the network here."""
        if self.carrier == "flower":
            home = {"FLWR_HOME": str(self.federation / "flower-home"), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
            return self.base | flower.OFF | home
        if self.carrier == "nvflare":
            socket = self.folder / "{site}" / "carrier" / "site.sock"
            return self.base | {"NVFLARE_POC_WORKSPACE": str(self.workspace), "FEDVLM_SITE_SOCKET": str(socket)}
        return self.base

    def _command(self, part: str) -> tuple[Sequence[str], Mapping[str, str]]:
        kind, _, site = part.partition("-")
        if kind == "coordinator":
            return (*FEDVLM, "federation", "run", "federation"), self.base
        if kind == "site":
            return (*FEDVLM, "site", "serve", "--site", f"{site}/site.toml"), self.base
        if self.carrier == "folder":
            mailbox, socket = f"federation/exchange/{site}", f"{site}/carrier/site.sock"
            return (*FEDVLM, "site", "carry", mailbox, "--socket", socket), self.base
        if self.carrier == "nvflare":
            return ("nvflare", "poc", "start", "-ex", ADMINISTRATOR), self.environment
        return self._flower(site)

    def _flower(self, site: str) -> tuple[Sequence[str], Mapping[str, str]]:
        """Flower's SuperLink, or a site's SuperNode. Both have TLS."""
        certificates = self.federation / "certificates"
        tls = ["--ssl-ca-certfile", str(certificates / "ca.crt"), "--ssl-certfile", str(certificates / "server.pem"),
               "--ssl-keyfile", str(certificates / "server.key")]  # fmt: skip
        own = self.environment | {"FLWR_HOME": str(self.folder / f"flower-home-{site or 'server'}")}
        if not site:
            command = [
                "flower-superlink",
                *tls,
                "--enable-supernode-auth",
                "--database",
                str(self.folder / "link.db"),
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
                "--disable-runtime-dependency-installation",
            ]
            return command, own  # fmt: skip
        socket = self.folder / site / "carrier" / "site.sock"
        command = ["flower-supernode", "--root-certificates", str(certificates / "ca.crt"), "--superlink",
                   f"127.0.0.1:{self.port}", "--port", str(self.port + 1 + list(self.sites).index(site)),
                   "--auth-supernode-private-key", str(certificates / f"{site}.key"), "--node-config",
                   f'socket="{socket}"', *tls]  # fmt: skip
        # As a service that is restarted: a SuperNode that comes back at once is refused until its old self is given up.
        return ["sh", "-c", f"while :; do {shlex.join(command)}; sleep 2; done"], own

    def _register(self, site: str) -> None:
        """Register a node's public key, as soon as the SuperLink answers. Raises `FedvlmError`."""
        link = flower.SuperLink(f"127.0.0.1:{self.port}", self.federation / "certificates" / "ca.crt")
        flower.home(self.federation / "flower-home", link)
        command = ["flwr", "supernode", "register", str(self.federation / "certificates" / f"{site}.pub")]

        def registered() -> bool:
            done = subprocess.run([*command, flower.CONNECTION], env=self.environment, capture_output=True)
            return done.returncode == 0

        self.wait(registered, "Flower's SuperLink")

    def _set(self, key: str, value: str) -> None:
        """Change a line of `federation.toml`."""
        path = self.federation / FILE
        durable.write_text(path, re.sub(rf'(?m)^{key} = "[^"]*"', f'{key} = "{value}"', path.read_text()))
