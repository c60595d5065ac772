"""The personal model that a site has trained, from what it stores: nothing is asked of anybody."""

from __future__ import annotations

from pathlib import Path

from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.federation.client import evaluate_client
from fedvlm.network.site.place import Experimented, Place, read_experiments
from fedvlm.network.site.service import MAX_CLIENTS
from fedvlm.network.site.settings import SiteSettings
from fedvlm.network.site.state import StateFolder, Stored
from fedvlm.personal.export import Origin, choose
from fedvlm.personal.folds import Replay
from fedvlm.training.evaluation import compute_outputs, evaluate


def origin(
    own: SiteSettings, experiment: str | None = None, method: str | None = None, seed: int | None = None
) -> Origin:
    """What the site's model of one method with one seed is made of. Raises `FedvlmError`.

    `experiment` is the beginning of a digest. It, `method` and `seed` may be left out where the site has one of each.
    """
    state = StateFolder(Path(own.state))
    stored = {
        (digest, label, str(number)): one
        for digest, one in read_experiments(Path(own.experiments)).items()
        for label in one.methods for number in one.seeds if state.file(digest, label, number).exists()
    }  # fmt: skip
    if not stored:
        raise FedvlmError(f"{own.state} holds no trained tensors of an experiment in {own.experiments}")
    digest = choose(experiment, {key[0]: key[0][:12] for key in stored}, "--experiment", begins=True)
    label = choose(method, {key[1]: key[1] for key in stored if key[0] == digest}, "--method")
    seeds = {key[2]: key[2] for key in stored if key[:2] == (digest, label)}
    number = choose(seed if seed is None else str(seed), seeds, "--seed")
    held = state.load(digest, label, int(number))
    assert held is not None
    return _origin(stored[digest, label, number], own, label, int(number), held)


def _origin(chosen: Experiment, own: SiteSettings, label: str, seed: int, held: Stored) -> Origin:
    running = Experimented.load(chosen, own)
    place = running.place(label, seed, MAX_CLIENTS)
    spec = place.contract.spec
    if held.after is None and spec.method.trains:
        raise FedvlmError(f"this site has not trained {label} yet")
    received = held.measured if spec.reported == "after_training" else held.received
    metrics = evaluate_client(spec, place.site, spec.reported, place.client, held.after, received).values
    replay = Replay(received, held.taught if spec.method.local_rounds else received, held.trained)
    rounds = min(held.round + 1, spec.last_round) if spec.method.trains else 0  # visit r is of round r + 1
    return Origin(
        chosen, running.loaded, place.site, spec, label, place.client, held.after, replay, spec.reported, rounds,
        metrics, _zero_shot(place),
    )  # fmt: skip


def _zero_shot(place: Place) -> dict[str, float]:
    if place.site.zero_shot is None:
        return {}
    outputs = compute_outputs(place.site, place.client, {}, {}, place.site.zero_shot)
    return evaluate(outputs, place.contract.spec.metrics).values
