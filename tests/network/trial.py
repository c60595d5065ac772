"""A federation of real processes on this machine, any of which a test may kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm import tensors
from fedvlm.network.coordinator import init
from fedvlm.network.site.state import StateFolder
from fedvlm.runs import result
from fedvlm.runs.result import PointResult

FEDVLM = (sys.executable, "-m", "fedvlm")


@dataclass
class Trial:
    """Processes by name: `site-NAME`, `carrier-NAME`, `coordinator`."""

    place: Any
    """A `Field` of conftest: folder, images, experiment."""
    sites: list[str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write the coordinator's folder, and every site's."""
        self.folder: Path = self.place.folder
        init.write(self.folder / "federation", self.place.agreed, self.sites, "folder")
        for name in self.sites:
            own = self.place.site(name)
            lines = [f"{key} = {json.dumps(getattr(own, key))}" for key in ("name", "state", "socket", "experiments")]
            lines += ["[data]", *(f"{key} = {json.dumps(value)}" for key, value in own.data.items())]
            lines += ["[compute]", "threads = 1", "disk_gib = 0.0"]
            lines += ["[policy]", f"experiments = {json.dumps(own.policy.experiments)}"]
            (self.folder / f"{name}.toml").write_text("\n".join(lines) + "\n")

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process; what it prints is added to NAME.log."""
        log = (self.folder / f"{name}.log").open("ab")
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=env)
        self.processes[name] = process
        return process

    def start_site(self, name: str) -> None:
        self.start(f"site-{name}", *FEDVLM, "site", "serve", "--site", f"{name}.toml")

    def start_carrier(self, name: str) -> None:
        socket = str(self.place.site(name).socket)
        self.start(f"carrier-{name}", *FEDVLM, "site", "carry", f"federation/exchange/{name}", "--socket", socket)

    def start_coordinator(self, *words: str) -> None:
        self.start("coordinator", *FEDVLM, "federation", "run", "federation", *words)

    def start_all(self) -> None:
        for name in self.sites:
            self.start_site(name)
            self.start_carrier(name)
        self.start_coordinator()

    def kill(self, *names: str) -> None:
        """`kill -9`."""
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
        for name in names:
            self.processes[name].wait()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, ready: Callable[[], bool], what: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
                raise AssertionError(f"waited for {what} for {seconds} s\n{logs}")
            time.sleep(0.02)

    def training(self, name: str, round_: int) -> bool:
        """Whether a site is at work on a message of this round."""
        box = self.folder / "federation" / "exchange" / name
        waits = [path for path in box.glob("to/*.msg") if not (box / "from" / path.name).exists()]
        return bool(waits) and self.log(f"site-{name}").count("bytes leave") == round_

    def finish(self) -> None:
        """Wait for the coordinator's end, and stop all others."""
        self.wait(lambda: self.processes["coordinator"].poll() is not None, "the end of the run", 240)
        assert self.processes["coordinator"].returncode == 0, self.log("coordinator")
        self.stop()

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def result(self, method: str) -> PointResult:
        (file,) = (self.folder / "federation" / "run").glob(f"seed-*/{method}/result.json")
        return result.read(file)

    def personal(self, method: str, seed: int) -> dict[str, str]:
        """Digests of the sites' private tensors."""
        found = {}
        for name in self.sites:
            stored = StateFolder(self.folder / f"state-{name}").load(self.place.digest, method, seed)
            assert stored is not None
            found[name] = tensors.digest(stored.after or {})
        return found
