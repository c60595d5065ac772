"""An experiment with a site's own data: what the simulation has for one of its clients, at the client's own place.

A site is a domain. In a simulation with all sites' photographs side by side (`partition.kind = "domain"`), each client
is dealt the images of one domain, drawn from streams that are named by class and domain; here the same draws are made
from the site's images alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fedvlm import experiment, methods
from fedvlm.config import problems
from fedvlm.data import Client, DataSource, Source, federate
from fedvlm.data import settings as sources
from fedvlm.data.settings import FileData, PhotographData
from fedvlm.data.sources.sites import SitesData
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.federation import setup
from fedvlm.federation.exchange import Contract
from fedvlm.federation.setup import Loaded
from fedvlm.network.site.settings import SiteSettings
from fedvlm.runs import machine
from fedvlm.training.site import Site


def check_federated(settings: Experiment) -> SitesData:
    """The data section of an experiment that sites can play. Raises `FedvlmError` with what to set."""
    wrong = []
    if not isinstance(settings.data, SitesData):
        wrong.append('data.source = "sites", with data.classes')
    if settings.partition.kind != "domain" or settings.partition.clients_per_domain != 1:
        wrong.append('partition.kind = "domain": every site is a domain')
    if settings.evaluation.general != "own_domain":
        wrong.append('evaluation.general = "own_domain": a site has its own images only')
    if settings.partition.newcomers:
        wrong.append("partition.newcomers = 0: a site that joins late is one more site")
    if settings.faults:
        wrong.append("faults = []")
    if wrong:
        raise FedvlmError("an experiment between sites needs " + "; ".join(wrong))
    assert isinstance(settings.data, SitesData)
    return settings.data


def at_site(settings: Experiment, site: SiteSettings) -> Experiment:
    """The experiment with the site's data, device and directory of the model. Raises `FedvlmError`."""
    common = check_federated(settings)
    decided = sorted(site.data.keys() & (PhotographData.model_fields.keys() - {"source"}))
    if decided:
        raise FedvlmError(f"[data] of the site sets {listed(decided)}, which the experiment decides: take it away")
    kind = sources.find_source(str(site.data.get("source")))
    if not issubclass(kind, FileData):
        raise FedvlmError(f"[data] of the site: source = '{site.data.get('source')}' holds no photographs")
    data = _validated(kind, common.dump() | site.data)
    compute = site.compute.model_copy(
        update={"dtype": settings.compute.dtype, "cache_dtype": settings.compute.cache_dtype, "clients_per_step": 1}
    )
    model = settings.model if site.model is None else settings.model.model_copy(update={"name": site.model})
    return settings.model_copy(update={"data": data, "compute": compute, "model": model})


def _validated(kind: type[DataSource], table: dict[str, Any]) -> DataSource:
    try:
        return kind.model_validate(table)
    except ValueError as error:
        raise FedvlmError("\n".join(problems(error, kind, "data."))) from None  # type: ignore[arg-type]


def read_experiment(path: Path) -> Experiment:
    """The experiment of a TOML file, or of a JSON file as a coordinator hands it out. Raises `FedvlmError`."""
    if path.suffix != ".json":
        return experiment.load(str(path))
    try:
        return experiment.parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FedvlmError(f"not a readable JSON file: {error}") from None


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """The experiments of a folder's TOML and JSON files by digest. Raises `FedvlmError` naming a file."""
    found = {}
    for path in sorted([*folder.glob("*.toml"), *folder.glob("*.json")]):
        try:
            one = read_experiment(path)
        except FedvlmError as error:
            raise FedvlmError(f"{path}: {error}") from None
        found[one.digest()] = one
    return found


@dataclass
class Place:
    """One method with one seed at the site: contract, images, the client."""

    contract: Contract
    every: int
    site: Site
    validation: Site | None
    client: Client


@dataclass
class Experimented:
    """An experiment for one of its clients, loaded once: CLIP, photographs, activations. The latest place is kept."""

    settings: Experiment
    """As it is agreed: at a site, with `data.source = "sites"`."""
    name: str
    """The client's name."""
    loaded: Loaded
    places: dict[tuple[str, int], Place] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: Experiment, site: SiteSettings) -> Experimented:
        """Load the model and a site's photographs. Raises `FedvlmError`."""
        local = at_site(settings, site)
        loaded = setup.load(local)
        torch.set_num_threads(machine.choose_machine(local.compute, loaded.device, loaded.clip.text.width).threads)
        loaded.source = mine(local.load_source(settings.seeds[0]), site.name)
        for seed in settings.seeds:
            if len(federate(loaded.source, local, seed).clients) != 1:
                raise FedvlmError("the site's images are not those of one client")
        return cls(settings, site.name, loaded)

    def place(self, label: str, seed: int, clients: int) -> Place:
        """The place of a method with a seed, its client's images encoded."""
        place = self._place(label, seed, clients)
        if place.client.name != self.name:
            (client,) = (one for one in place.site.federation.clients if one.name == self.name)
            place = replace(place, client=client)
        for site in (place.site, place.validation):
            if site is not None:
                mine = site.federation.subset({self.name})
                site.activations.prepare(setup.site_keys(mine, self.loaded.experiment.views), site.base.entry)
        return place

    def contract(self, label: str, seed: int, clients: int) -> Contract:
        """What messages of a method with a seed must be; no image is encoded for it."""
        return self._place(label, seed, clients).contract

    def _place(self, label: str, seed: int, clients: int) -> Place:
        key = label, seed
        if key not in self.places:
            self.places.clear()  # activations of one method are enough to hold
            self.places[key] = self._made(label, seed, clients)
        return self.places[key]

    def _made(self, label: str, seed: int, clients: int) -> Place:
        settings = self.loaded.experiment
        method = methods.build(label, settings.method)
        dealt = self.loaded.seed(seed)
        site = setup.site(self.loaded, dealt, method, dealt.federation)
        validation = None if dealt.validation is None else replace(site, federation=dealt.validation)
        spec = setup.run_spec(settings, method, site.base, seed)
        contract = Contract(
            self.settings.digest(), self.loaded.clip.digest, label, spec, settings.evaluation.every, clients
        )
        return Place(contract, settings.evaluation.every, site, validation, site.federation.clients[0])


def mine(source: Source, name: str) -> Source:
    """The source with all records in the site's domain."""
    return replace(source, records=tuple(replace(one, domain=name, client=None) for one in source.records))
