"""From an experiment to something that runs: the one way there, for simulations, benchmarks and tests.

loaded = setup.load(experiment)                              # CLIP, device
seed = loaded.seed(0)                                        # data dealt to clients, activations
run = setup.simulation(loaded, seed, methods.build("pfedmma", experiment.method))
for state, record in simulation.run_rounds(run, simulation.start(run)): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fedvlm import clip as clips
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation, Source, federate, federate_validation
from fedvlm.experiment import Experiment
from fedvlm.federation.simulation import Schedule, Simulation
from fedvlm.federation.spec import RunSpec
from fedvlm.methods import Method
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.streams import torch_stream
from fedvlm.training import device as devices
from fedvlm.training import metrics
from fedvlm.training.activations import TEST, Activations, Key
from fedvlm.training.device import Device, explain_memory_errors
from fedvlm.training.disk_cache import DTYPES, DiskCache, folder
from fedvlm.training.site import Site, Tuners
from fedvlm.tuners.base import Tuner

GIB = 2**30


@dataclass(frozen=True)
class SeedSetup:
    """What all methods share that run with one seed."""

    seed: int
    federation: Federation
    validation: Federation | None
    """The same clients with validation images to be evaluated on."""
    activations: Activations
    zero_shot: Tuners
    """Zero-shot over both class lists."""


@dataclass
class Loaded:
    """An experiment with what is loaded once in a process. Data are dealt, and images encoded, when asked for."""

    experiment: Experiment
    clip: FrozenCLIP
    device: Device
    source: Source | None = None
    federations: dict[int, Federation] = field(default_factory=dict)
    """By seed."""
    activations: Activations | None = None
    latest: SeedSetup | None = None

    def federation(self, seed: int) -> Federation:
        """The data dealt with a seed; drawn scenes are others with each."""
        settings = self.experiment
        if seed in self.federations:
            return self.federations[seed]
        if self.source is None or settings.data.seeded:
            with explain_memory_errors("data"):
                self.source = settings.load_source(seed)
        return self.federations.setdefault(seed, federate(self.source, settings, seed))

    def seed(self, seed: int) -> SeedSetup:
        """What the methods of a seed share. Only the latest one's activations are kept, if others have other images."""
        if self.latest is not None and self.latest.seed == seed:
            return self.latest
        federation = self.federation(seed)
        if self.activations is None or self.activations.records is not federation.source.records:
            self.activations = activations(self, federation.source)
        validation = federate_validation(federation.source, self.experiment, seed)
        zero_shot = self.tuners(ZeroShot(), federation)
        self.latest = SeedSetup(seed, federation, validation, self.activations, zero_shot)
        return self.latest

    def tuners(self, method: Method, federation: Federation) -> Tuners:
        """A method's tuners for the base classes and, where there are any, for the novel ones."""

        def tuner(classnames: Sequence[str]) -> Tuner:
            return method.tuner(self.clip, classnames, self.experiment.evaluation.template)

        return tuner(federation.base_names), tuner(federation.novel_names) if federation.novel else None


def load(experiment: Experiment) -> Loaded:
    """The experiment's CLIP on its device. Raises `FedvlmError` if either cannot be had."""
    device, model = devices.choose_device(experiment.compute), experiment.model
    devices.configure_process(device)
    clip = clips.load(model.name, revision=model.revision, offline=model.offline, transform=experiment.data.transform)
    return Loaded(experiment, clip.to(device.device), device)


def activations(loaded: Loaded, source: Source) -> Activations:
    """The store of a source's activations, in memory and on disk as `[compute]` says."""
    compute = loaded.experiment.compute
    disk_cache = DiskCache(folder(), int(compute.disk_gib * GIB)) if compute.disk_gib else None
    limit = int(compute.cache_gib * GIB)
    return Activations(loaded.clip, source.records, loaded.device, limit, disk_cache, DTYPES[compute.cache_dtype])


def run_spec(experiment: Experiment, method: Method, tuner: Tuner, seed: int) -> RunSpec:
    """What server and clients agree on. `tuner`: the method's, for the base classes.

    All methods draw their first tensors from the same stream: those of a family start equal, and differences between
    them are of what they do.
    """
    initial = tuner.init(torch_stream(seed, "init"))
    evaluation = experiment.evaluation
    chosen = metrics.select_metrics(evaluation.metrics)
    return RunSpec(method, initial, seed, experiment.rounds, experiment.views, evaluation.state, chosen)


def site(loaded: Loaded, seed: SeedSetup, method: Method, federation: Federation) -> Site:
    """The place where the images of a federation's clients are, with a method's tuners."""
    base, novel = loaded.tuners(method, federation)
    zero_shot = seed.zero_shot if federation is seed.federation else loaded.tuners(ZeroShot(), federation)
    batch = devices.evaluation_batch(loaded.experiment.evaluation.batch, loaded.device)
    return Site(base, novel, federation, seed.activations, batch, zero_shot)


def simulation(
    loaded: Loaded,
    seed: SeedSetup,
    method: Method,
    *,
    federation: Federation | None = None,
    clients_per_step: int | None = None,
) -> Simulation:
    """A method with a seed, ready to run.

    `federation`: another one in the place of the seed's. `clients_per_step`: by default as `[compute]` says, or as the
    device and the size of the CLIP make it fastest.
    """
    settings = loaded.experiment
    size = (
        clients_per_step
        or settings.compute.clients_per_step
        or devices.default_clients_per_step(loaded.device, loaded.clip.text.width)
    )
    with explain_memory_errors(method.name):
        place = site(loaded, seed, method, federation or seed.federation)
        spec = run_spec(settings, method, place.base, seed.seed)
    validation = None if seed.validation is None else replace(place, federation=seed.validation)
    return Simulation(spec, place, Schedule(settings.participation, settings.evaluation.every, size), validation)


def prefetch_keys(run: Simulation) -> set[Key]:
    """All images and views that a run will ask for.

    The test view of evaluated images, and what training sees, unless that is always new.
    """
    return {key for site in run.sites for key in site_keys(site.federation, run.spec.views)}


def site_keys(federation: Federation, views: str | int) -> set[Key]:
    """`prefetch_keys` of one site."""
    tested = [*federation.tests.values(), *(client.local for client in federation.clients)]
    keys = {(index, TEST) for indices in tested for index in indices}
    if views != "online":
        seen = [TEST] if isinstance(views, str) else range(views)
        keys |= {(index, view) for client in federation.clients for index in client.train for view in seen}
    return keys
