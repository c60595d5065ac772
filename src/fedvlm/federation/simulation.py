"""A federation in one process: the only module that holds the server's state and all clients' private tensors at once.

The module touches neither disk nor network; the mapping of clients' tensors passed to it may be on disk.

Newcomers (`Client.is_newcomer`) take part in no round: the server receives nothing from them, and no other client's
numbers depend on them. They are measured on arrival, when the last federated round is over, and after the local rounds
that all clients have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field

from fedvlm.data import Client
from fedvlm.errors import DivergenceError
from fedvlm.federation import messages, server
from fedvlm.federation.client import ClientInput, client_metrics, evaluation_tensors
from fedvlm.federation.procedure import Procedure
from fedvlm.federation.records import ClientRecord, Moment, NewcomerRecord, RoundRecord
from fedvlm.federation.server import ServerState
from fedvlm.federation.spec import RunSpec
from fedvlm.federation.visits import draws_tradeoff, due_points
from fedvlm.methods.base import EvalPoint
from fedvlm.tensors import Named
from fedvlm.training.evaluation import ClientMetrics, pool_metrics, tradeoff_curve
from fedvlm.training.local import check_precision
from fedvlm.training.metrics import Outputs
from fedvlm.training.site import Site


@dataclass(frozen=True)
class Schedule:
    """Participation, batching of clients, and rounds of evaluation."""

    participation: float = 1.0
    """Share of clients in a round."""
    every: int = 1
    """Number of rounds between evaluations."""
    clients_per_step: int = 1
    """Number of clients trained in one batched step."""


@dataclass(frozen=True)
class Simulation:
    """One method with one seed, on clients whose images are all at one site."""

    spec: RunSpec
    site: Site
    schedule: Schedule = field(default_factory=Schedule)
    validation: Site | None = None
    """The site of the same clients, with validation images in the place of test images."""
    procedure: Procedure = field(default_factory=Procedure)
    faults: tuple[str, ...] = ()
    """Faults of released code that were built in on purpose (`fedvlm.faults`)."""

    def __post_init__(self) -> None:
        check_precision(self.spec.method, self.site.activations.device)

    @property
    def sites(self) -> list[Site]:
        """The site with test images, and the site with validation images if there is one."""
        return [self.site, *([self.validation] if self.validation else [])]


@dataclass
class FederationState(ServerState):
    """State after `round` rounds: the server's tensors, and the stored tensors of every client that has trained."""

    personal: MutableMapping[str, Named] = field(default_factory=dict)
    """Stored tensors by client. Every state has its own copy of the mapping (`copy.copy`), which may be on disk."""


def start(run: Simulation, personal: MutableMapping[str, Named] | None = None) -> FederationState:
    """The state before the first round; `personal` will hold the clients' tensors, by default a dictionary."""
    begun = server.start(run.spec)
    return FederationState(begun.round, begun.server, {} if personal is None else personal)


def run_rounds(run: Simulation, state: FederationState) -> Iterator[tuple[FederationState, RoundRecord]]:
    """Run the remaining rounds; yields the state and the record after each.

    A method that does not train yields one record (of round 0). Local rounds follow the federated ones: all clients
    train, and nothing is sent.
    """
    if not run.spec.method.trains:
        if state.round == 0:
            yield FederationState(run.spec.rounds, state.server), _evaluate(run, 0, state, state, [], 0.0)
        return
    while state.round < run.spec.last_round:
        state, record = _round(run, state)
        yield state, record


def sample_clients(run: Simulation, round_: int) -> list[Client]:
    """The clients of round `round_` (from 0); in local rounds followed by the newcomers."""
    federation = run.site.federation
    by_name = {client.name: client for client in federation.trained}
    picked = server.sample_clients(run.spec, by_name, run.schedule.participation, round_)
    newcomers = sorted(federation.newcomers, key=lambda client: client.name) if round_ >= run.spec.rounds else []
    return [by_name[name] for name in picked] + newcomers


def _round(run: Simulation, before: FederationState) -> tuple[FederationState, RoundRecord]:
    begun = time.perf_counter()
    uplinks, records, personal = [], [], copy(before.personal)
    picked, sends = sample_clients(run, before.round), before.round < run.spec.rounds
    for group in _group_clients(picked, run.schedule.clients_per_step):
        inputs = [
            ClientInput(client, before.personal.get(client.name), run.procedure.downlink(run.spec, before, client.name))
            for client in group
        ]
        updates = run.procedure.train(run.spec, run.site, before.round, inputs)
        for one, update in zip(inputs, updates, strict=True):
            name, sent = one.client.name, update.uplink.tensors if sends else {}
            if sends:
                messages.check_uplink(run.spec.expected_uplink(one.received), sent, name, before.round + 1)
                uplinks.append(update.uplink)
            personal[name] = update.personal
            sizes = messages.tensor_bytes(one.received), messages.tensor_bytes(sent)
            records.append(ClientRecord(name, len(one.client.train), update.losses, update.seconds, *sizes))
    now = server.aggregate(run.spec, before, uplinks)
    after = FederationState(now.round, now.server, personal)
    return after, _evaluate(run, after.round, before, after, records, time.perf_counter() - begun)


def _group_clients(picked: list[Client], size: int) -> list[list[Client]]:
    """Groups of clients that train in batched steps. Newcomers have their own groups, so no other rounding changes."""
    parts = [[client for client in picked if client.is_newcomer is newcomers] for newcomers in (False, True)]
    return [part[first : first + size] for part in parts for first in range(0, len(part), size)]


def _evaluate(
    run: Simulation,
    round_: int,
    before: FederationState,
    after: FederationState,
    trained: list[ClientRecord],
    train_s: float,
) -> RoundRecord:
    begun = time.perf_counter()
    found: dict[EvalPoint, dict[str, ClientMetrics]] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        for site in run.sites:
            stack.enter_context(site.caching_predictions())
        for point in due_points(run.spec, run.schedule.every, round_):
            draws = draws_tradeoff(run.spec, point, round_)
            measured = [
                _measure_clients(run, site, site.federation.trained, before, after, point, tradeoff=draws)
                for site in (run.sites if draws and run.site.zero_shot else [run.site])
            ]
            found[point] = measured[0]
            if measured[0] and any(one.by_weight for one in measured[0].values()):
                curves = {
                    kind: tradeoff_curve(own, run.spec.metrics)
                    for kind, own in zip(("test", "val"), measured, strict=False)
                }
        newcomers = {moment: _measure_newcomers(run, before, after, moment) for moment in _due_moments(run, round_)}
        experts = _expert_weights(run, before, after) if found and round_ == run.spec.last_round else {}
    clients = {point: {name: one.values for name, one in own.items()} for point, own in found.items()}
    means = {point: pool_metrics(own, run.spec.metrics) for point, own in found.items()}
    took = time.perf_counter() - begun
    return RoundRecord(round_, trained, clients, means, train_s, took, curves, newcomers, experts=experts)


def _expert_weights(run: Simulation, before: FederationState, after: FederationState) -> dict[str, dict[str, float]]:
    """Mean weights of the experts in the clients' predictions on their own test images, in the reported state."""
    found: dict[str, dict[str, float]] = {}
    state = before if run.spec.reported == "after_training" else after
    can = not run.faults and hasattr(run.site.base, "weights")
    for client in run.site.federation.trained if can else ():
        others = server.experts(run.spec, state, client.name)
        if others and client.local:
            received = server.downlink(run.spec, state, client.name)
            tensors = evaluation_tensors(run.spec, run.spec.reported, after.personal.get(client.name), received)
            weights = run.site.expert_weights(tensors, received, client.local).tolist()
            found[client.name] = dict(zip([client.name, *others], weights, strict=True))
    return found


def _due_moments(run: Simulation, round_: int) -> list[Moment]:
    """The moments at which newcomers are measured after this round."""
    if not run.site.federation.newcomers:
        return []
    moments: list[Moment] = []
    if round_ == run.spec.rounds or not run.spec.method.trains:
        moments.append("on_arrival")
    if round_ == run.spec.last_round > run.spec.rounds:
        moments.append("after_tuning")
    return moments


def _measure_newcomers(
    run: Simulation, before: FederationState, after: FederationState, moment: Moment
) -> NewcomerRecord:
    """Metrics of the newcomers. On arrival they have no stored tensors: received ones lie over the common start."""
    point: EvalPoint = "after_aggregation" if moment == "on_arrival" else "after_training"
    newcomers, arrival = run.site.federation.newcomers, ServerState(run.spec.rounds, after.server)
    found = _measure_clients(run, run.site, newcomers, before, after, point, tradeoff=False)
    received = {c.name: messages.tensor_bytes(run.procedure.downlink(run.spec, arrival, c.name)) for c in newcomers}
    return NewcomerRecord(
        {name: one.values for name, one in found.items()}, pool_metrics(found, run.spec.metrics), received
    )


def _measure_clients(
    run: Simulation, site: Site, clients: Sequence[Client], before: FederationState, after: FederationState,
    point: EvalPoint, *, tradeoff: bool,
) -> dict[str, ClientMetrics]:  # fmt: skip
    """The metrics of these clients in the state `point`."""
    found: dict[str, ClientMetrics] = {}
    for client in clients:
        outputs = client_outputs(run, site, before, after, client, point)
        try:
            found[client.name] = client_metrics(run.spec, site, client, outputs, tradeoff)
        except DivergenceError as error:
            raise DivergenceError(f"round {after.round}, {error}") from None
    return found


def client_outputs(
    run: Simulation, site: Site, before: FederationState, after: FederationState, client: Client, point: EvalPoint
) -> Outputs:
    """Predictions of one client's model after a round, from the states before and after the round."""
    # The downlink of this round (with which a client of the round trained), or that of the new state.
    received = run.procedure.downlink(run.spec, before if point == "after_training" else after, client.name)
    tensors = evaluation_tensors(run.spec, point, after.personal.get(client.name), received)
    return run.procedure.outputs(site, client, tensors, received)
