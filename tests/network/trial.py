"""A federation of real processes on this machine, any of which a test may kill."""

from __future__ import annotations

import json
from typing import Any

from fedvlm import tensors
from fedvlm.network.coordinator import init
from fedvlm.network.site.state import StateFolder
from fedvlm.network.trial import Trial
from fedvlm.runs import result
from fedvlm.runs.result import PointResult


class Watched(Trial):
    """A trial of a `Field` of conftest: folder, images, experiment."""

    def __init__(self, place: Any, sites: list[str], carrier: str = "folder", port: int = 9393) -> None:
        super().__init__(place.folder, sites, carrier, port)
        self.place = place
        self.base = self.base | {"OMP_NUM_THREADS": "1"}
        init.write(self.federation, place.agreed, sites, carrier)
        for name in sites:
            own = place.site(name)
            lines = [f"{key} = {json.dumps(getattr(own, key))}" for key in ("name", "state", "socket", "experiments")]
            lines += ["[data]", *(f"{key} = {json.dumps(value)}" for key, value in own.data.items())]
            lines += ["[compute]", "threads = 1", "disk_gib = 0.0"]
            lines += ["[policy]", f"experiments = {json.dumps(own.policy.experiments)}"]
            lines.insert(0, f'key = "{self.federation / "keys" / f"{name}.key"}"')
            (self.folder / name).mkdir()
            (self.folder / name / "site.toml").write_text("\n".join(lines) + "\n")

    def training(self, name: str, round_: int) -> bool:
        """Whether a site has answered so many visits and is at work on the next one."""
        log = self.log(f"site-{name}")
        return log.count("bytes leave") == round_ and log.count("asked to") == round_ + 1

    def finish(self, seconds: float = 240) -> None:
        """Wait for the coordinator's end, and stop all others."""
        self.wait(lambda: self.processes["coordinator"].poll() is not None, "the end of the run", seconds)
        assert self.processes["coordinator"].returncode == 0, self.log("coordinator")
        self.stop()

    def result(self, method: str) -> PointResult:
        (file,) = (self.federation / "run").glob(f"seed-*/{method}/result.json")
        return result.read(file)

    def personal(self, method: str, seed: int) -> dict[str, str]:
        """Digests of the sites' private tensors."""
        found = {}
        for name in self.sites:
            stored = StateFolder(self.folder / f"state-{name}").load(self.place.digest, method, seed)
            assert stored is not None
            found[name] = tensors.digest(stored.after or {})
        return found
