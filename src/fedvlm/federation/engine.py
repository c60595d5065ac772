"""The round engine: state in, state and record out.

It knows neither disk nor network; the mapping of clients' tensors that it is given may live on disk.

Late clients (`Client.late`) are in no round: nothing of theirs reaches the server, and nothing here depends on them.
They are measured on arrival, when the last round is over, and after the visits that everybody makes for itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from fedvlm.data import Client
from fedvlm.errors import DivergenceError
from fedvlm.federation import wire
from fedvlm.federation.client import Guest, Task, assemble
from fedvlm.methods.base import State as StateName
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training import metrics
from fedvlm.training.evaluation import Bench, Outputs, Scored, accuracies, evaluate, mixed, outputs, summary
from fedvlm.training.metrics import Metrics


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


Moment = Literal["on_arrival", "after_tuning"]
"""When late clients are measured: with what the server sends laid over the common start, without training; and after
their own visits."""


@dataclass(frozen=True)
class LateRecord:
    """Late clients at one moment: accuracies by client, their means, bytes received on arrival by client and tensor."""

    clients: dict[str, Metrics]
    means: Metrics
    down_bytes: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RoundRecord:
    """One round: its visits, and accuracies by evaluated state and client where it was evaluated."""

    round: int
    visits: list[ClientRecord]
    clients: dict[StateName, dict[str, Metrics]]
    means: dict[StateName, Metrics]
    train_s: float
    evaluate_s: float
    curves: dict[str, list[Metrics]] = field(default_factory=dict)
    """After the last round, on `test` and `val` images: means of the reported state moved towards zero-shot's logits by
    each `weight`."""
    late: dict[Moment, LateRecord] = field(default_factory=dict)


def start(task: Task, personal: MutableMapping[str, Named] | None = None) -> State:
    """The state before the first round; clients' tensors will be kept in `personal`, a dictionary by default."""
    return State(0, task.method.server(task.initial), {} if personal is None else personal)


def play(task: Task, state: State) -> Iterator[tuple[State, RoundRecord]]:
    """Play the rounds that are left, giving the state and the record after each.

    A method that does not train gives one record (of round 0) and no rounds. Visits after the last round, by which
    clients tune the model for themselves, count as rounds of all clients from which nothing is sent.
    """
    if not task.method.trains:
        if state.round == 0:
            yield State(task.rounds, state.server), _evaluated(task, 0, state, state, [], 0.0)
        return
    while state.round < task.visits:
        state, record = _round(task, state)
        yield state, record


def chosen(task: Task, round_: int) -> list[Client]:
    """This round's clients, in the order of their names: max(1, floor(share x N)) without replacement.

    After the last round it is everybody, the late ones last. Names and not positions decide, so that the order in
    which clients are listed changes nothing.
    """
    clients = sorted(task.bench.federation.trained, key=lambda client: client.name)
    if round_ >= task.rounds:
        return clients + sorted(task.bench.federation.late, key=lambda client: client.name)
    count = round_size(task.participation, len(clients))
    picked = stream(task.seed, "clients", round_).choice(len(clients), count, replace=False)
    return [clients[position] for position in sorted(picked.tolist())]


def round_size(participation: float, clients: int) -> int:
    """Clients in a round: max(1, floor(share x N))."""
    # The small term keeps a share such as 0.29 x 100 from becoming 28 in binary floating point.
    return max(1, int(participation * clients + 1e-9))


def downlink(task: Task, state: State, client: Client) -> Named:
    """What a client receives from this server state: copies, so that nothing it does reaches the server's own.

    Clients that tune for themselves receive the tensors they train once; later only what is fixed, such as experts.
    """
    draw = stream(task.seed, "downlink", state.round, client.name)
    received = task.method.downlink(state.server, client.name, draw)
    if state.round > task.rounds:
        # What clients send, under the names of an uplink, is what they train.
        trained = task.initial.keys() | wire.message(task.method, task.initial).keys()
        received = {name: tensor for name, tensor in received.items() if name not in trained}
    return clone(received)


def _round(task: Task, before: State) -> tuple[State, RoundRecord]:
    begun = time.perf_counter()
    uplinks, records, personal = [], [], copy(before.personal)
    picked, sends = chosen(task, before.round), before.round < task.rounds
    for group in _groups(picked, task.together):
        guests = [Guest(c, before.personal.get(c.name), downlink(task, before, c)) for c in group]
        for guest, done in zip(guests, task.conduct.visits(task, before.round, guests), strict=True):
            name, sent = guest.client.name, done.uplink.tensors if sends else {}
            if sends:
                wire.check_uplink(task.method, task.initial, sent, name, before.round + 1)
                uplinks.append(done.uplink)
            personal[name] = done.personal
            sizes = wire.sizes(guest.received), wire.sizes(sent)
            records.append(ClientRecord(name, len(guest.client.train), done.losses, done.seconds, *sizes))
    server = task.method.aggregate(before.server, uplinks) if sends else before.server
    after = State(before.round + 1, server, personal)
    return after, _evaluated(task, after.round, before, after, records, time.perf_counter() - begun)


def _groups(picked: list[Client], together: int) -> list[list[Client]]:
    """Clients that train as one batched computation; the late ones apart, so that they change nobody's rounding."""
    parts = [[client for client in picked if client.late is late] for late in (False, True)]
    return [part[first : first + together] for part in parts for first in range(0, len(part), together)]


def _evaluated(
    task: Task, round_: int, before: State, after: State, visits: list[ClientRecord], train_s: float
) -> RoundRecord:
    begun = time.perf_counter()
    clients: dict[StateName, dict[str, Metrics]] = {}
    means: dict[StateName, Metrics] = {}
    curves: dict[str, list[Metrics]] = {}
    for name in _due(task, round_):
        draws = name == task.reported and (round_ == task.visits or not task.method.trains)
        measured = partial(_measured, task, before=before, after=after, name=name, draws=draws)
        clients[name], means[name], curve = measured(task.bench, task.bench.federation.trained)
        if curve:
            curves["test"] = curve
        if curve and task.validation is not None:
            *_, curves["val"] = measured(task.validation, task.validation.federation.trained)
    late = {moment: _late(task, before, after, moment) for moment in _moments(task, round_)}
    for bench in (task.bench, task.validation):
        if bench is not None:
            bench.said.clear()  # the room is training's now
    return RoundRecord(round_, visits, clients, means, train_s, time.perf_counter() - begun, curves, late)


def _moments(task: Task, round_: int) -> list[Moment]:
    """The moments of late clients that this round's end is."""
    if not task.bench.federation.late:
        return []
    moments: list[Moment] = []
    if round_ == task.rounds or not task.method.trains:
        moments.append("on_arrival")
    if round_ == task.visits > task.rounds:
        moments.append("after_tuning")
    return moments


def _late(task: Task, before: State, after: State, moment: Moment) -> LateRecord:
    """On arrival they hold nothing of their own: the server's state lies over the common start."""
    name: StateName = "after_aggregation" if moment == "on_arrival" else "after_training"
    late, arrival = task.bench.federation.late, State(task.rounds, after.server)
    clients, means, _ = _measured(task, task.bench, late, before=before, after=after, name=name, draws=False)
    received = {client.name: wire.sizes(downlink(task, arrival, client)) for client in late}
    return LateRecord(clients, means, received)


def _measured(
    task: Task, bench: Bench, clients: Sequence[Client], *, before: State, after: State, name: StateName, draws: bool
) -> tuple[dict[str, Metrics], Metrics, list[Metrics]]:
    """Every client's metrics in a state, their means and, if asked for, those at every weight of zero-shot."""
    found: dict[str, Metrics] = {}
    locals_: list[Scored] = []
    by_weight: dict[float, dict[str, Metrics]] = {w: {} for w in task.method.mixing if draws and bench.zero}
    for client in clients:
        own = measure(task, bench, before, after, client, name)
        if not own.finite():
            where = f"round {after.round}, client {client.name}"
            raise DivergenceError(f"{where}: {task.method.name} predicts no numbers any more: lower the learning rate")
        found[client.name] = evaluate(own)
        locals_ += [own.local] if own.local is not None else []
        zero = outputs(bench, client, {}, {}, bench.zero) if by_weight else own
        for weight, moved in by_weight.items():
            moved[client.name] = accuracies(mixed(own, zero, weight))
    curve = [{"weight": weight} | metrics.summary(moved) for weight, moved in by_weight.items()]
    return found, summary(found, locals_), curve


def _due(task: Task, round_: int) -> list[StateName]:
    """States to evaluate now: the method's own when it is due, the other one besides after the last round.

    Where nothing is shared, or clients have tuned for themselves, there is one state.
    """
    own = task.reported
    last = round_ == task.visits
    if not (last or round_ % task.every == 0):
        return []
    other: StateName = "after_training" if own == "after_aggregation" else "after_aggregation"
    both = last and task.method.shared and task.visits == task.rounds
    return [own, other] if both else [own]


def measure(task: Task, bench: Bench, before: State, after: State, client: Client, name: StateName) -> Outputs:
    """What one client's model says of its evaluation images in a named state.

    `after_aggregation`: the new server state laid over its tensors. `after_training`: its tensors as it last trained
    them, with what the server sends in this round (to a client of the round, what it trained with); a client that
    has not taken part yet has what it would receive.
    """
    personal = after.personal.get(client.name)
    if name == "after_training":
        received = downlink(task, before, client)
        tensors = assemble(task, None, received) if personal is None else assemble(task, personal, {})
    else:
        received = downlink(task, after, client)
        tensors = assemble(task, personal, received)
    return task.conduct.outputs(bench, client, tensors, received)
