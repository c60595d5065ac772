"""The round engine: state in, state and record out.

It knows neither disk nor network; the mapping of clients' tensors that it is given may live on disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from copy import copy
from dataclasses import dataclass, field

from fedvlm.data import Client
from fedvlm.federation import wire
from fedvlm.federation.client import Guest, Task, assemble, visits
from fedvlm.methods.base import State as StateName
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training.evaluation import evaluate
from fedvlm.training.metrics import Metrics, summary


@dataclass
class State:
    """After `round` rounds: what the server holds, and what each client that has taken part holds itself."""

    round: int
    server: Named
    personal: MutableMapping[str, Named] = field(default_factory=dict)
    """By client; a mapping of its own for every state (`copy.copy`), which may keep them on disk."""


@dataclass(frozen=True)
class ClientRecord:
    """One visit: images, losses (nats, before each update), bytes by tensor name in both directions."""

    client: str
    images: int
    losses: list[float]
    seconds: float
    down_bytes: dict[str, int]
    up_bytes: dict[str, int]


@dataclass(frozen=True)
class RoundRecord:
    """One round: its visits, and accuracies by evaluated state and client where it was evaluated."""

    round: int
    visits: list[ClientRecord]
    clients: dict[StateName, dict[str, Metrics]]
    means: dict[StateName, Metrics]
    train_s: float
    evaluate_s: float


def start(task: Task, personal: MutableMapping[str, Named] | None = None) -> State:
    """The state before the first round; clients' tensors will be kept in `personal`, a dictionary by default."""
    return State(0, task.method.server(task.initial), {} if personal is None else personal)


def play(task: Task, state: State) -> Iterator[tuple[State, RoundRecord]]:
    """Play the rounds that are left, giving the state and the record after each.

    A method that does not train gives one record (of round 0) and no rounds.
    """
    if not task.method.trains:
        if state.round == 0:
            yield State(task.rounds, state.server), _evaluated(task, 0, state, state, [], 0.0)
        return
    while state.round < task.rounds:
        state, record = _round(task, state)
        yield state, record


def chosen(task: Task, round_: int) -> list[Client]:
    """This round's clients, in the order of their names: max(1, floor(share x N)) without replacement.

    Names and not positions decide, so that the order in which clients are listed changes nothing.
    """
    clients = sorted(task.bench.federation.clients, key=lambda client: client.name)
    # The small term keeps a share such as 0.29 x 100 from becoming 28 in binary floating point.
    count = max(1, int(task.participation * len(clients) + 1e-9))
    picked = stream(task.seed, "clients", round_).choice(len(clients), count, replace=False)
    return [clients[position] for position in sorted(picked.tolist())]


def downlink(task: Task, state: State, client: Client) -> Named:
    """What a client receives from this server state: copies, so that nothing it does reaches the server's own."""
    draw = stream(task.seed, "downlink", state.round, client.name)
    return clone(task.method.downlink(state.server, client.name, draw))


def _round(task: Task, before: State) -> tuple[State, RoundRecord]:
    begun = time.perf_counter()
    uplinks, records, personal = [], [], copy(before.personal)
    picked = chosen(task, before.round)
    for first in range(0, len(picked), task.together):
        group = picked[first : first + task.together]
        guests = [Guest(c, before.personal.get(c.name), downlink(task, before, c)) for c in group]
        for guest, done in zip(guests, visits(task, before.round, guests), strict=True):
            name = guest.client.name
            wire.check_uplink(task.method, task.initial, done.uplink.tensors, name, before.round + 1)
            uplinks.append(done.uplink)
            personal[name] = done.personal
            sizes = wire.sizes(guest.received), wire.sizes(done.uplink.tensors)
            records.append(ClientRecord(name, len(guest.client.train), done.losses, done.seconds, *sizes))
    after = State(before.round + 1, task.method.aggregate(before.server, uplinks), personal)
    return after, _evaluated(task, after.round, before, after, records, time.perf_counter() - begun)


def _evaluated(
    task: Task, round_: int, before: State, after: State, visits: list[ClientRecord], train_s: float
) -> RoundRecord:
    begun = time.perf_counter()
    clients: dict[StateName, dict[str, Metrics]] = {}
    for name in _due(task, round_):
        clients[name] = {
            client.name: measure(task, before, after, client, name) for client in task.bench.federation.clients
        }
    means = {name: summary(metrics) for name, metrics in clients.items()}
    return RoundRecord(round_, visits, clients, means, train_s, time.perf_counter() - begun)


def _due(task: Task, round_: int) -> list[StateName]:
    """States to evaluate now: the method's own when it is due, the other one besides after the last round.

    Where nothing is shared both states are the same and one evaluation serves.
    """
    own = task.reported
    last = round_ == task.rounds
    if not (last or round_ % task.every == 0):
        return []
    other: StateName = "after_training" if own == "after_aggregation" else "after_aggregation"
    return [own, other] if last and task.method.shared else [own]


def measure(task: Task, before: State, after: State, client: Client, name: StateName) -> Metrics:
    """Accuracies of one client in a named state.

    `after_aggregation`: the new server state laid over its tensors. `after_training`: its tensors as it last trained
    them, with what the server sends in this round (to a client of the round, what it trained with); a client that
    has not taken part yet has what it would receive.
    """
    personal = after.personal.get(client.name)
    if name == "after_training":
        received = downlink(task, before, client)
        tensors = assemble(task, None, received) if personal is None else personal
    else:
        received = downlink(task, after, client)
        tensors = assemble(task, personal, received)
    return evaluate(task.bench, client, tensors, received)
