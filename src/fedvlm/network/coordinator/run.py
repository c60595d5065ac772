"""All methods and seeds of an experiment between sites, in a run folder as `fedvlm run` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from fedvlm import methods, tensors
from fedvlm.data.sources.sites import SitesData
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation import setup
from fedvlm.federation.exchange import PACKAGE, Contract
from fedvlm.federation.messages import Header, Message, from_bytes, to_bytes
from fedvlm.federation.procedure import Procedure
from fedvlm.federation.setup import Loaded
from fedvlm.network import seal
from fedvlm.network.carriers.base import Carrier
from fedvlm.network.coordinator import rounds
from fedvlm.network.coordinator.rounds import Watcher
from fedvlm.network.coordinator.settings import SIMULATED, FederationSettings, read_keys
from fedvlm.network.simulated import check_simulated
from fedvlm.network.site.place import check_federated
from fedvlm.runs import machine
from fedvlm.runs.folder import Point, RunFolder
from fedvlm.runs.result import Digests, PointResult, summarise_ledger
from fedvlm.runs.runner import Beside


@dataclass
class Coordinator:
    """An experiment ready to play. It has the CLIP, whose words prompts begin with; between sites it has no image."""

    experiment: Experiment
    settings: FederationSettings
    folder: RunFolder
    loaded: Loaded
    keys: Mapping[str, bytes]
    """Keys of the sites whose messages have seals."""

    @classmethod
    def load(cls, experiment: Experiment, settings: FederationSettings, folder: Path) -> Coordinator:
        """Load the CLIP. Raises `FedvlmError` for an experiment that sites cannot play."""
        check_playable(experiment, settings.carrier)
        loaded = setup.load(experiment)
        threads = machine.choose_machine(experiment.compute, loaded.device, loaded.clip.text.width).threads
        torch.set_num_threads(threads)
        anew = f"move {folder} away to begin anew (sites: fedvlm site forget {experiment.digest()[:12]})"
        return cls(experiment, settings, RunFolder(folder, anew), loaded, read_keys(settings))

    def contract(self, label: str, seed: int) -> Contract:
        """What messages of a method with a seed must be."""
        settings = self.experiment
        data, method = settings.data, methods.build(label, settings.method)
        if isinstance(data, SitesData):
            base = data.classes[: data.base_count(len(data.classes))]
        else:
            base = self.loaded.federation(seed).base_names
        spec = setup.run_spec(
            settings, method, method.tuner(self.loaded.clip, base, settings.evaluation.template), seed
        )
        return Contract(
            settings.digest(), self.loaded.clip.digest, label, spec, settings.evaluation.every,
            len(self.settings.sites), self.settings.max_norm,
        )  # fmt: skip

    def run(
        self, carrier: Carrier, watcher: Watcher, *, resume: bool = False, beside: Beside = nullcontext
    ) -> dict[str, dict[int, PointResult]]:
        """Play what is left of all points; returns the results by method and seed. Raises `FedvlmError`."""
        clip, folder = self.loaded.clip, self.folder
        here = machine.choose_machine(self.experiment.compute, self.loaded.device, clip.text.width)
        found: dict[str, dict[int, PointResult]] = {}
        with folder.locked():
            folder.open(self.experiment, clip, here, resume=resume, overwrite=False)
            with beside(folder.path):
                for seed in self.experiment.seeds:
                    for label in self.experiment.methods:
                        point = folder.point(seed, label)
                        found.setdefault(label, {})[seed] = self._point(point, label, seed, carrier, watcher)
        return found

    def _point(self, point: Point, label: str, seed: int, carrier: Carrier, watcher: Watcher) -> PointResult:
        contract = self.contract(label, seed)
        with point.locked():
            point.check_settings(contract.spec.method.name, contract.spec.method.config.dump())
            done = point.result()
            if done is not None:
                return done
            state = rounds.play(
                contract, self.experiment.participation, self.settings, carrier, point, watcher, self.keys
            )
            records = point.records()
            if not any(record.means.get(contract.spec.reported) for record in records):
                raise FedvlmError(f"{label}: no site has told a metric, so there is no result ({point.folder})")
            digests = Digests(tensors.digest(state.server), {})
            return point.finish(summarise_ledger(contract.spec.reported, records, digests, Procedure()))


def check_playable(experiment: Experiment, carrier: str) -> None:
    """Raise `FedvlmError` for an experiment that this carrier cannot play."""
    if carrier == SIMULATED:
        check_simulated(experiment)
    else:
        check_federated(experiment)


def greeting(experiment: Experiment) -> bytes:
    """The message with which a coordinator asks a site for its name."""
    return to_bytes(Message(Header(kind="hello", package=PACKAGE, experiment=experiment.digest())))


def name_in(answer: bytes, sites: Sequence[str], keys: Mapping[str, bytes]) -> str:
    """The name in a site's answer to a greeting, if its seal is that site's. Raises `FedvlmError`."""
    head = _header(answer, sealed=bool(keys))
    if head.kind == "refused":
        raise FedvlmError(f"the site '{head.client}' refuses: {head.reason} (it knows why)")
    if head.kind != "welcome" or head.client not in sites:
        raise FedvlmError(f"'{head.client}' is not among the sites of federation.toml")
    if seal.open_(answer, "from", keys.get(head.client)) is None:
        raise FedvlmError(f"a node calls itself '{head.client}' and has not its key")
    return head.client


def _header(answer: bytes, *, sealed: bool) -> Header:
    """The header of an answer with a seal, or without one. Raises `FedvlmError`."""
    try:
        return from_bytes(answer[: -seal.SIZE] if sealed else answer).header
    except FedvlmError:
        if not sealed:
            raise
        return from_bytes(answer).header
