"""From a federation's folder to a coordinator with its carrier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.network.carriers import flower, nvflare
from fedvlm.network.carriers.base import Carrier
from fedvlm.network.carriers.folder import FolderCarrier
from fedvlm.network.carriers.pump import AGAIN, PumpCarrier
from fedvlm.network.coordinator import settings as sections
from fedvlm.network.coordinator.run import Coordinator, greeting, name_in
from fedvlm.network.coordinator.settings import FILE, SIMULATED, FederationSettings
from fedvlm.network.site.place import read_experiment

SOCKET = "coordinator.sock"
"""Socket of the network's program, in the folder of the federation."""


def read(folder: Path) -> FederationSettings:
    """The settings of a federation's folder. Raises `FedvlmError`."""
    if not (folder / FILE).is_file():
        raise FedvlmError(f"{folder} holds no {FILE}: fedvlm federation init {folder} EXPERIMENT --sites a,b")
    return sections.read(folder / FILE)


def load(folder: Path, settings: FederationSettings) -> Coordinator:
    """The coordinator of a federation's folder. Raises `FedvlmError`."""
    return Coordinator.load(read_experiment(Path(settings.experiment)), settings, folder / "run")


def carrier(
    folder: Path, settings: FederationSettings, coordinator: Coordinator, tell: Callable[[str], None]
) -> Carrier:
    """The carrier that `federation.toml` names."""
    if settings.carrier == "folder":
        return FolderCarrier(Path(settings.exchange), settings.sites, settings.max_bytes + (1 << 22))
    sites = list(settings.sites)
    path = folder.resolve() / SOCKET
    simulated = settings.carrier == SIMULATED
    # A worker's first answer takes as long as it loads, and a thousand clients are greeted by a few workers.
    pump = PumpCarrier(
        path,
        greeting(coordinator.experiment),
        lambda answer: name_in(answer, sites, coordinator.keys),
        (lambda _: None) if simulated else tell,
        again=600.0 if simulated else AGAIN,
    )
    if simulated:
        state = folder.resolve() / "state"
        clients = flower.Simulated(
            len(sites), Path(settings.experiment), state, settings.client_cpus, settings.client_gpus
        )
        return flower.simulate(folder.resolve(), pump, clients, tell)
    if settings.carrier == "flower":
        certificate = None if settings.certificate is None else Path(settings.certificate)
        return flower.start(folder.resolve(), pump, flower.SuperLink(settings.superlink, certificate), tell)
    return nvflare.start(folder.resolve(), pump, Path(settings.kit), settings.user, settings.least, tell)
