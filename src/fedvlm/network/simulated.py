"""The clients of a simulation, each answering messages as a site does: for clusters, where workers come and go.

A network's simulation (Flower with Ray) gives a worker now this client and now that one. All workers read the same
images, and the clients' tensors lie in a folder that all workers see: a client continues wherever it comes to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation import setup
from fedvlm.network.site.place import Experimented, read_experiment
from fedvlm.network.site.service import Service
from fedvlm.network.site.settings import PolicySection, SiteSettings


def check_simulated(settings: Experiment) -> None:
    """Raise `FedvlmError` for an experiment that messages cannot play."""
    wrong = []
    if settings.partition.newcomers:
        wrong.append("partition.newcomers = 0")
    if settings.faults:
        wrong.append("faults = []")
    if wrong:
        raise FedvlmError("a simulation by messages needs " + "; ".join(wrong) + " (fedvlm run has them all)")


@dataclass
class Worker:
    """All clients of an experiment in one process: CLIP, images and activations are loaded once."""

    shared: Experimented
    folder: Path
    """Folder of the clients' tensors, which all workers see."""
    names: list[str]
    """Names of all clients."""

    @classmethod
    def load(cls, settings: Experiment, folder: Path) -> Worker:
        """Load CLIP and images. Raises `FedvlmError`."""
        check_simulated(settings)
        loaded = setup.load(settings)
        torch.set_num_threads(settings.compute.threads or 1)  # several workers share a machine
        names = [client.name for client in loaded.federation(settings.seeds[0]).clients]
        return cls(Experimented(settings, "", loaded), folder, names)

    def answer(self, name: str, data: bytes) -> bytes:
        """A client's answer to a message: what its site would reply."""
        settings = self.shared.settings
        digest = settings.digest()
        policy = PolicySection(experiments=[digest])
        own = SiteSettings(name=name, state=str(self.folder / name), data={}, policy=policy)
        service = Service(own, lambda line: print(f"{name}: {line}", flush=True))
        service.experiments = {digest: settings}
        service.latest = replace(self.shared, name=name)  # shares what is loaded
        return service.answer(data)


@lru_cache(maxsize=1)
def worker(experiment: str, folder: str) -> Worker:
    """The worker of this process, by the file of its experiment and the folder of tensors. Raises `FedvlmError`."""
    return Worker.load(read_experiment(Path(experiment)), Path(folder))
