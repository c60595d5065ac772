"""From an experiment to a simulation: the one way, also for benchmarks and tests.

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
from fedvlm.training.device import DTYPES, Device, explain_memory_errors
from fedvlm.training.disk_cache import DiskCache, folder
from fedvlm.training.site import Site, Tuners
from fedvlm.tuners.base import Tuner

GIB = 2**30


@dataclass(frozen=True)
class SeedSetup:
    """What all methods with one seed share."""

    seed: int
    federation: Federation
    validation: Federation | None
    """The same clients, with validation images in the place of test images."""
    activations: Activations
    zero_shot: Tuners
    """Zero-shot tuners for both class lists."""


@dataclass
class Loaded:
    """An experiment with what is loaded once per process. Data are dealt, and images encoded, on first use."""

    experiment: Experiment
    clip: FrozenCLIP
    device: Device
    source: Source | None = None
    federations: dict[int, Federation] = field(default_factory=dict)
    """Federations by seed."""
    activations: Activations | None = None
    latest: SeedSetup | None = None

    def federation(self, seed: int) -> Federation:
        """The data dealt to clients with a seed; drawn scenes differ between seeds."""
        settings = self.experiment
        if seed in self.federations:
            return self.federations[seed]
        if self.source is None or settings.data.seeded:
            with explain_memory_errors("data"):
                self.source = settings.load_source(seed)
        return self.federations.setdefault(seed, federate(self.source, settings, seed))

    def seed(self, seed: int) -> SeedSetup:
        """The setup of a seed. If seeds have different images, only the latest seed's activations are kept."""
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
        """A method's tuners for the base classes, and for the novel classes if there are any."""

        def tuner(classnames: Sequence[str]) -> Tuner:
            return method.tuner(self.clip, classnames, self.experiment.evaluation.template)

        return tuner(federation.base_names), tuner(federation.novel_names) if federation.novel else None


def load(experiment: Experiment) -> Loaded:
    """The experiment's CLIP on its device. Raises `FedvlmError` if one of them is not available."""
    device, model = devices.choose_device(experiment.compute), experiment.model
    devices.configure_process(device)
    clip = clips.load(model.name, revision=model.revision, offline=model.offline, transform=experiment.data.transform)
    return Loaded(experiment, clip.to(device.device), device)


def activations(loaded: Loaded, source: Source) -> Activations:
    """The cache of a source's activations, in memory and on disk, with the bounds of `[compute]`."""
    compute = loaded.experiment.compute
    disk_cache = DiskCache(folder(), int(compute.disk_gib * GIB)) if compute.disk_gib else None
    limit = int(compute.cache_gib * GIB)
    return Activations(loaded.clip, source.records, loaded.device, limit, disk_cache, DTYPES[compute.cache_dtype])


def run_spec(experiment: Experiment, method: Method, tuner: Tuner, seed: int) -> RunSpec:
    """The `RunSpec` of a method with a seed. `tuner`: the method's, for the base classes.

    All methods draw their initial tensors from the same stream, so that methods of a family start with equal tensors.
    """
    initial = tuner.init(torch_stream(seed, "init"))
    evaluation = experiment.evaluation
    chosen = metrics.select_metrics(evaluation.metrics)
    rounds = method.rounds(experiment.rounds)
    return RunSpec(method, initial, seed, rounds, experiment.views, evaluation.state, chosen)


def site(loaded: Loaded, seed: SeedSetup, method: Method, federation: Federation) -> Site:
    """The site of a federation's clients, with a method's tuners."""
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

    `federation`: in the place of the seed's. `clients_per_step`: by default as set in `[compute]`, else by the device
    and the size of the CLIP.
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
    """All images and views that a run reads from the cache.

    The test view of evaluated images, and the views of training images unless they are drawn anew (`online`).
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
