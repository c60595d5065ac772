"""From a finished run, or from what a site stores, to a personal model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedvlm import durable, experiment, methods, overrides, plugins, tensors
from fedvlm.data import Client
from fedvlm.errors import FedvlmError, listed, nearest
from fedvlm.experiment import Experiment
from fedvlm.federation import server, setup
from fedvlm.federation.client import evaluation_tensors
from fedvlm.federation.exchange import PACKAGE
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.server import ServerState
from fedvlm.federation.setup import Loaded
from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import EvalPoint
from fedvlm.personal import folds
from fedvlm.personal.model import Base, Calibrated, Facts, PersonalModel
from fedvlm.runs.folder import RunFolder
from fedvlm.runs.result import PointResult
from fedvlm.tensors import Named
from fedvlm.training import metrics
from fedvlm.training.site import Site

FOLDS = 5


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
    received: Named
    """What the client received, in the evaluated state."""
    trainings: int
    metrics: dict[str, float]
    zero_shot: dict[str, float]


def make(origin: Origin, folds_: int = FOLDS) -> PersonalModel:
    """The personal model of a client, with the evaluated state of its method; calibrated unless `folds_` is 0."""
    spec, site, client, loaded = origin.spec, origin.site, origin.client, origin.loaded
    point = spec.reported
    tensors_ = evaluation_tensors(spec, point, origin.personal, origin.received)
    # Received tensors lie in the client's already; only what is no tensor of its own is kept beside them.
    support = _support(site, client, tensors_, origin.received)
    calibrated = (
        folds.calibrate(spec, site, client, point, origin.received, origin.trainings, folds_)
        if folds_ else Calibrated()
    )  # fmt: skip
    shared = tensors.select(tensors_, spec.method.shared)
    facts = Facts(
        package=PACKAGE, method=_method_name(spec), label=origin.label, title=spec.method.title,
        settings=spec.method.config.dump(), template=loaded.experiment.evaluation.template,
        classes=site.federation.base_names, own=_own(site, client), novel=site.federation.novel_names,
        base=_base(loaded), dtype=loaded.experiment.compute.dtype, experiment=origin.experiment.digest(),
        experiment_name=origin.experiment.name, changed=_changed(origin.experiment), client=client.name, seed=spec.seed,
        rounds=spec.last_round if spec.method.trains else 0, trainings=origin.trainings, state=point,
        metrics=origin.metrics, zero_shot=origin.zero_shot,
        shared={name: list(tensor.shape) for name, tensor in shared.items()},
        private={name: list(tensor.shape) for name, tensor in tensors_.items() if name not in shared},
        calibrated=calibrated,
    )  # fmt: skip
    return PersonalModel(facts, loaded.clip, loaded.device, tensors_, origin.received, support)


def from_run(folder: Path, client: str, method: str | None, seed: int | None, folds_: int = FOLDS) -> PersonalModel:
    """The personal model of a client of a finished run. The run's data must be where they were. Raises `FedvlmError`.

    `method` and `seed` may be left out where the run has one that trains, or one.
    """
    saved = durable.read_json(folder / "experiment.json") if (folder / "experiment.json").is_file() else None
    if not isinstance(saved, dict) or "experiment" not in saved:
        raise FedvlmError(f"{folder} is no run folder: it holds no experiment.json of fedvlm")
    chosen = experiment.parse(saved["experiment"])
    if chosen.data.source == "sites":
        raise FedvlmError(f"{folder} is the coordinator's: the personal models are at the sites (fedvlm site export)")
    trained = [name for name in chosen.methods if methods.build(name, chosen.method).trains] or chosen.methods
    usual = chosen.methods if method is not None else trained
    label = choose(method, {name: name for name in usual}, "--method")
    number = int(choose(seed if seed is None else str(seed), {str(one): str(one) for one in chosen.seeds}, "--seed"))
    if chosen.faults:
        raise FedvlmError(f"{folder} has faults of released code built in: nobody should take such a model home")
    return make(_of_run(RunFolder(folder), chosen, saved, client, label, number), folds_)


def _of_run(run: RunFolder, chosen: Experiment, saved: dict[str, Any], client: str, label: str, seed: int) -> Origin:
    point = run.point(seed, label)
    done = point.result()
    stored = point.checkpoint(setup.GIB).load()
    if done is None or stored is None:
        raise FedvlmError(f"{point.folder} is not finished: fedvlm run ... --out {run.path} --resume")
    loaded = setup.load(chosen)
    if loaded.clip.digest != saved.get("model"):
        raise FedvlmError(f"{run.path} was made with another CLIP than '{chosen.model.name}' is now")
    dealt, made = loaded.seed(seed), methods.build(label, chosen.method)
    simulation = setup.simulation(loaded, dealt, made)
    spec, state = simulation.spec, stored[0]
    found = {each.name: each for each in dealt.federation.clients}
    if client not in found:
        raise FedvlmError(f"no client '{client}'{nearest(client, found)}; clients: {listed(found, 30)}")
    before: ServerState = state
    if spec.method.trains and spec.reported == "after_training":
        before = point.checkpoint(0).before() or server.start(spec)
        if before.round != state.round - 1:
            raise FedvlmError(
                f"{point.folder} lacks the state before its last round: run it again"
            )  # an earlier version
    return Origin(
        chosen, loaded, simulation.site, spec, label, found[client], state.personal.get(client),
        server.downlink(spec, before, client), _trainings(point.records(), client),
        _metrics(done, client, spec.reported), _zero_shot(run, chosen, seed, client),
    )  # fmt: skip


def choose(given: str | None, known: Mapping[str, str], option: str) -> str:
    """The key of `known` that begins as given, or the only one; the values are shown. Raises `FedvlmError`."""
    if given is not None:
        found = [given] if given in known else [key for key in known if given and key.startswith(given)]
        if len(found) != 1:
            raise FedvlmError(f"{option} {given} is none of: {listed(known.values(), 40)}")
        return found[0]
    if len(known) > 1:
        raise FedvlmError(f"say which, with {option}: {listed(known.values(), 40)}")
    return next(iter(known))


def _support(site: Site, client: Client, tensors_: Named, received: Named) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The client's training images at the tuner's entry, if the method looks at them for predictions."""
    asked = []

    def request() -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(site.support_set(client, site.base.entry)())
        return asked[0]

    device = site.activations.device
    with torch.no_grad(), device.autocast():
        site.base.prepare({name: device.send(tensor) for name, tensor in received.items()}, request)
    return (asked[0][0].cpu(), asked[0][1].cpu()) if asked else None


def _method_name(spec: RunSpec) -> str:
    kind = type(spec.method)
    return kind.name if methods.known().get(kind.name) is kind else plugins.dotted_path(kind)


def _base(loaded: Loaded) -> Base:
    model = loaded.experiment.model
    return Base(
        name=model.name, revision=model.revision, weights=loaded.clip.weights, digest=loaded.clip.digest,
        transform=loaded.experiment.data.transform,
    )  # fmt: skip


def _own(site: Site, client: Client) -> dict[str, int]:
    labels = site.federation.labels(client.train)
    return {site.federation.base_names[place]: labels.count(place) for place in sorted(set(labels))}


def _changed(chosen: Experiment) -> dict[str, Any]:
    """Settings that are not the defaults, without those of methods and without paths."""
    now, usual = overrides.flatten(chosen.resolved()), overrides.flatten(Experiment().resolved())
    kept = {key: value for key, value in now.items() if usual.get(key) != value and not key.startswith("method")}
    return {key: value for key, value in kept.items() if not key.endswith(("path", "manifest"))}


def _trainings(records: list[RoundRecord], client: str) -> int:
    return sum(visit.client == client for record in records for visit in record.visits)


def _metrics(result: PointResult, client: str, point: EvalPoint) -> dict[str, float]:
    found = result.clients.get(point, {}).get(client, {})
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
