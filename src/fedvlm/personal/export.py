"""From a finished run, or from what a site stores, to a personal model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedvlm import methods, overrides, plugins, tensors
from fedvlm.data import Client
from fedvlm.data.decode import GREY_BITS
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment
from fedvlm.federation import server, setup
from fedvlm.federation.client import evaluation_tensors
from fedvlm.federation.exchange import PACKAGE
from fedvlm.federation.server import ServerState
from fedvlm.federation.setup import Loaded
from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import EvalPoint
from fedvlm.personal import folds
from fedvlm.personal.folds import Replay
from fedvlm.personal.model import Base, Facts, PersonalModel
from fedvlm.runs.folder import RunFolder
from fedvlm.runs.result import PointResult
from fedvlm.tensors import Named
from fedvlm.training import metrics
from fedvlm.training.activations import TEST
from fedvlm.training.site import Site
from fedvlm.tuners.base import SupportSet

FOLDS = 5
TOLD = ("rounds", "participation", "views", "data.shots", "data.novel", "data.test_fraction", "data.val_fraction",
        "data.test_per_class", "data.val_per_class", "data.base_classes", "data.novel_classes", "data.styles",
        "data.preprocess", "partition.kind", "partition.clients", "partition.alpha", "partition.clients_per_domain",
        "partition.one_domain_each", "evaluation.every", "evaluation.state", "evaluation.general")  # fmt: skip
"""Settings of the experiment that a model tells where they are not the defaults. No others: these may hold paths, and
names of people."""


@dataclass(frozen=True)
class Origin:
    """What a personal model is made of: one client of one method with one seed, where its images are."""

    experiment: Experiment
    """As it was agreed."""
    loaded: Loaded
    site: Site
    spec: RunSpec
    label: str
    client: Client
    personal: Named | None
    """The tensors that the client stores; None if it has never trained."""
    replay: Replay
    point: EvalPoint
    """The evaluated state."""
    rounds: int
    """Number of rounds that are over."""
    metrics: dict[str, float]
    zero_shot: dict[str, float]


def make(origin: Origin) -> PersonalModel:
    """The personal model of a client in the evaluated state, without calibration."""
    spec, site, client, loaded = origin.spec, origin.site, origin.client, origin.loaded
    own = evaluation_tensors(spec, origin.point, origin.personal, origin.replay.received)
    received, support = _needed(site, client, origin.replay.received)
    shared = tensors.select(own, spec.method.shared)
    first = site.federation.source.records[client.train[0] if client.train else 0].image
    facts = Facts(
        package=PACKAGE, method=_method_name(spec), label=origin.label, title=spec.method.title,
        settings=spec.method.config.dump(), template=loaded.experiment.evaluation.template,
        classes=site.federation.base_names, own=_own(site, client), novel=site.federation.novel_names,
        base=_base(loaded), dtype=loaded.experiment.compute.dtype, experiment=origin.experiment.digest(),
        experiment_name=origin.experiment.name, changed=_changed(origin.experiment), client=client.name, seed=spec.seed,
        rounds=origin.rounds, all_rounds=spec.last_round if spec.method.trains else 0,
        trainings=len(origin.replay.rounds), local_rounds=spec.method.local_rounds, state=origin.point,
        metrics=origin.metrics, zero_shot=origin.zero_shot, shared=_shapes(shared),
        private=_shapes({name: tensor for name, tensor in own.items() if name not in shared}),
        received=_shapes(received), support=0 if support is None else len(support[1]),
        grey_bits=getattr(first, "bits", GREY_BITS), max_megapixels=getattr(first, "max_megapixels", 40.0),
    )  # fmt: skip
    return PersonalModel(facts, loaded.clip, loaded.device, own, received, support)


def calibrate(model: PersonalModel, origin: Origin, count: int = FOLDS) -> PersonalModel:
    """The model with temperature and threshold from `count` folds of the client's images (0: without)."""
    if count:
        # Encoded once for all folds, rounds and epochs.
        own = replace(origin.site.federation, tests={}, clients=(replace(origin.client, local=()),))
        keys = setup.site_keys(own, origin.spec.views) | {(index, TEST) for index in origin.client.train}
        origin.site.activations.prepare(keys, origin.site.base.entry)
    found = folds.calibrate(origin.spec, origin.site, origin.client, origin.point, origin.replay, count)
    return replace(model, facts=model.facts.model_copy(update={"calibrated": found}))


def of_run(
    folder: Path, client: str, method: str | None = None, seed: int | None = None, device: str | None = None
) -> Origin:
    """A client of a finished run, whose data must be where they were. Raises `FedvlmError`.

    `method` and `seed` may be left out where the run has one that trains, or one. `device`: instead of the run's.
    """
    chosen, saved = RunFolder(folder).begun()
    if chosen.data.source == "sites":
        raise FedvlmError(f"{folder} is the coordinator's: the personal models are at the sites (fedvlm site export)")
    if chosen.faults:
        raise FedvlmError(f"{folder} has faults of released code built in: nobody should take such a model home")
    trained = [name for name in chosen.methods if methods.build(name, chosen.method).trains] or chosen.methods
    usual = chosen.methods if method is not None else trained
    label = choose(method, {name: name for name in usual}, "--method")
    number = int(choose(seed if seed is None else str(seed), {str(one): str(one) for one in chosen.seeds}, "--seed"))
    here = chosen if device is None else chosen.model_copy(
        update={"compute": chosen.compute.model_copy(update={"device": device})}
    )  # fmt: skip
    return _of_run(RunFolder(folder), here, str(saved.get("model")), client, label, number)


def _of_run(run: RunFolder, chosen: Experiment, digest: str, client: str, label: str, seed: int) -> Origin:
    point = run.point(seed, label)
    done, stored = point.result(), point.checkpoint(setup.GIB).load()
    if done is None or stored is None:
        raise FedvlmError(f"{point.folder} is not finished: fedvlm run ... --out {run.path} --resume")
    loaded = setup.load(chosen)
    if loaded.clip.digest != digest:
        raise FedvlmError(f"{run.path} was made with another CLIP than '{chosen.model.name}' is now")
    run.check_partition(seed, loaded.federation(seed))
    dealt = loaded.seed(seed)
    simulation = setup.simulation(loaded, dealt, methods.build(label, chosen.method))
    spec, state = simulation.spec, stored[0]
    found = {each.name: each for each in dealt.federation.clients}
    if client not in found:
        raise FedvlmError(f"no client '{client}'{nearest(client, found)}; clients: {listed(found, 30)}")
    # A newcomer without local rounds is measured on arrival, with the server's last state.
    arrives = found[client].is_newcomer and not spec.method.local_rounds
    state_of = "after_aggregation" if arrives else spec.reported
    before: ServerState = state
    if spec.method.trains and state_of == "after_training":
        before = point.checkpoint(0).before() or server.start(spec)
        if before.round != state.round - 1:
            raise FedvlmError(f"{point.folder} lacks the state before its last round: run it again")
    received = server.downlink(spec, before, client)
    federated = ServerState(spec.rounds, state.server) if spec.method.local_rounds else before
    rounds = [one.round - 1 for one in point.records() if any(visit.client == client for visit in one.visits)]
    replay = Replay(received, server.downlink(spec, federated, client), rounds)
    return Origin(
        chosen, loaded, simulation.site, spec, label, found[client], state.personal.get(client), replay, state_of,
        state.round, _metrics(done, client, spec.reported), _zero_shot(run, chosen, seed, client),
    )  # fmt: skip


def choose(given: str | None, known: Mapping[str, str], option: str, *, begins: bool = False) -> str:
    """The given key of `known`, or the only one; the values are shown. Raises `FedvlmError`.

    `begins`: the beginning of a key is enough.
    """
    if given is None:
        if len(known) > 1:
            raise FedvlmError(f"say which, with {option}: {listed(known.values(), 40)}")
        return next(iter(known))
    found = [key for key in known if key == given or (begins and given and key.startswith(given))]
    if len(found) > 1:
        raise FedvlmError(f"{option} {given} begins several: {listed((known[key] for key in found), 40)}")
    if not found:
        raise FedvlmError(f"{option} {given} is none of: {listed(known.values(), 40)}")
    return found[0]


def _needed(site: Site, client: Client, received: Named) -> tuple[Named, tuple[Tensor, Tensor] | None]:
    """What predictions need besides the client's tensors: of what it received, and of its training images.

    The support set is there if the tuner asks for it, with features without width if it reads the labels only.
    """
    asked: list[tuple[Tensor, Tensor]] = []

    def request() -> tuple[Tensor, Tensor]:
        if not asked:
            asked.append(site.support_set(client, site.base.entry)())
        return asked[0]

    whole = _prepared(site, received, request)
    kept = {name: tensor for name, tensor in received.items()
            if not _same(whole, site, {key: one for key, one in received.items() if key != name}, request)}  # fmt: skip
    if not _same(whole, site, kept, request):
        kept = received
    if not asked:
        return kept, None
    hidden, labels = asked[0]
    bare = hidden.new_zeros(len(hidden), 0)
    needs = not _same(whole, site, kept, lambda: (bare, labels))
    return kept, ((hidden if needs else bare).cpu(), labels.cpu())


def _prepared(site: Site, received: Named, support: SupportSet) -> Named:
    device = site.activations.device
    with torch.no_grad(), device.autocast():
        return site.base.prepare({name: device.send(tensor) for name, tensor in received.items()}, support)


def _same(whole: Named, site: Site, received: Named, support: SupportSet) -> bool:
    """Whether a tuner makes the same constants of these; not if they are too few for it."""
    try:
        return tensors.equal(whole, _prepared(site, received, support))
    except (KeyError, IndexError, ValueError, RuntimeError):
        return False


def _shapes(named: Named) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in named.items()}


def _method_name(spec: RunSpec) -> str:
    kind = type(spec.method)
    return kind.name if methods.known().get(kind.name) is kind else plugins.dotted_path(kind)


def _base(loaded: Loaded) -> Base:
    model = loaded.experiment.model
    folder = Path(model.name).expanduser()
    is_folder = model.name != "embedded" and folder.is_dir()
    return Base(
        name=str(folder.resolve()) if is_folder else model.name, revision=model.revision, weights=loaded.clip.weights,
        digest=loaded.clip.digest, transform=loaded.experiment.data.transform,  # type: ignore[arg-type]
    )  # fmt: skip


def _own(site: Site, client: Client) -> dict[str, int]:
    labels = site.federation.labels(client.train)
    return {site.federation.base_names[place]: labels.count(place) for place in sorted(set(labels))}


def _changed(chosen: Experiment) -> dict[str, Any]:
    now, usual = overrides.flatten(chosen.resolved()), overrides.flatten(Experiment().resolved())
    return {key: now[key] for key in TOLD if key in now and usual.get(key) != now[key]}


def _metrics(result: PointResult, client: str, point: EvalPoint) -> dict[str, float]:
    found = result.clients.get(point, {}).get(client)
    if found is None:  # a newcomer's, at the last moment at which it was measured
        found = next((one.clients[client] for one in reversed(result.newcomers.values()) if client in one.clients), {})
    known = [metric.name for metric in metrics.all_metrics()]
    return {name: found[name] for name in known if name in found}


def _zero_shot(run: RunFolder, chosen: Experiment, seed: int, client: str) -> dict[str, float]:
    """The client's metrics of the run's zero-shot point, if it has one."""
    for label in chosen.methods:
        if methods.build(label, chosen.method).name == "zero_shot":
            done = run.point(seed, label).result()
            if done is not None:
                return _metrics(done, client, done.state)
    return {}
