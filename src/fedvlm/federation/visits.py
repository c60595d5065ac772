"""A federation between machines: in a round every client gets one message, a visit, and gives one reply.

    visit r: the downlink of the state after r rounds
      1. metrics after aggregation, of round r          (where they are due)
      2. training of round r + 1                        (if the client was sampled)
      3. metrics after training, of round r + 1         (where they are due)
    reply r: the uplink of round r + 1, and both metrics

The downlink with which a round is measured is the one with which the next round begins, so nothing is sent twice. After
the last round comes a visit without training. `carry_out` is a client's part; `ask` and `take` are the server's. With
the same seed they give the states and records of a simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from fedvlm.data import Client
from fedvlm.federation import messages, server
from fedvlm.federation.client import evaluate_client, train_client
from fedvlm.federation.records import ClientRecord, RoundRecord
from fedvlm.federation.server import ServerState
from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import EvalPoint, Uplink
from fedvlm.tensors import Named
from fedvlm.training.evaluation import ClientMetrics, pool_metrics, tradeoff_curve
from fedvlm.training.site import Site


@dataclass(frozen=True)
class Visit:
    """What a client is asked for: to train or not, with these tensors, after `round` rounds of the federation."""

    round: int
    trains: bool
    received: Named


@dataclass(frozen=True)
class Reply:
    """What a client answers."""

    uplink: Named = field(default_factory=dict)
    """Empty unless the client trained in a federated round."""
    images: float = 0.0
    """Number of training images: the uplink's weight."""
    losses: list[float] = field(default_factory=list)
    """Loss before each step, in nats."""
    seconds: float = 0.0
    metrics: dict[EvalPoint, ClientMetrics] = field(default_factory=dict)
    """After aggregation: of the round before. After training: of this round."""
    validation: ClientMetrics | None = None
    """The metrics of the reported state on validation images, after the last round."""


@dataclass
class Progress(ServerState):
    """The server's state between rounds. `open`: the record of its round, which lacks metrics after aggregation."""

    open: RoundRecord | None = None
    ended: bool = False
    """Whether no visit is left."""


def due_points(spec: RunSpec, every: int, round_: int) -> list[EvalPoint]:
    """States to evaluate after round `round_`: the reported one if due, and after the last round also the other one.

    Without shared tensors, or after local rounds, both states are the same and only one is evaluated.
    """
    own = spec.reported
    last = round_ == spec.last_round
    if not (last or round_ % every == 0):
        return []
    other: EvalPoint = "after_training" if own == "after_aggregation" else "after_aggregation"
    both = last and spec.method.shared and spec.last_round == spec.rounds
    return [own, other] if both else [own]


def draws_tradeoff(spec: RunSpec, point: EvalPoint, round_: int) -> bool:
    """Whether the trade-off with zero-shot is drawn at this state: the reported one of the last round."""
    return point == spec.reported and (round_ == spec.last_round or not spec.method.trains)


def _due(spec: RunSpec, every: int, round_: int) -> tuple[list[tuple[EvalPoint, int]], list[tuple[EvalPoint, int]]]:
    """States with their rounds that visit `round_` measures before and after training."""
    if not spec.method.trains:
        return [(point, 0) for point in due_points(spec, every, 0)], []
    before: list[tuple[EvalPoint, int]] = []
    after: list[tuple[EvalPoint, int]] = []
    if round_ and "after_aggregation" in due_points(spec, every, round_):
        before = [("after_aggregation", round_)]
    if round_ < spec.last_round and "after_training" in due_points(spec, every, round_ + 1):
        after = [("after_training", round_ + 1)]
    return before, after


def due_metrics(spec: RunSpec, every: int, round_: int) -> list[EvalPoint]:
    """The states that visit `round_` measures."""
    before, after = _due(spec, every, round_)
    return [point for point, _ in (*before, *after)]


def carry_out(
    spec: RunSpec, every: int, site: Site, validation: Site | None, client: Client, personal: Named | None, visit: Visit
) -> tuple[Reply, Named | None]:
    """A client's part: its reply, and the tensors that it stores. Raises `DivergenceError` as training does."""
    before, after = _due(spec, every, visit.round)
    reply = _measure(Reply(), spec, site, validation, client, personal, visit, before)
    if visit.trains:
        update = train_client(spec, site, visit.round, client, personal, visit.received)
        personal = update.personal
        reply = replace(
            reply,
            uplink=update.uplink.tensors if visit.round < spec.rounds else {},
            images=update.uplink.weight,
            losses=update.losses,
            seconds=update.seconds,
        )
    return _measure(reply, spec, site, validation, client, personal, visit, after), personal


def _measure(
    reply: Reply, spec: RunSpec, site: Site, validation: Site | None, client: Client, personal: Named | None,
    visit: Visit, points: Iterable[tuple[EvalPoint, int]],
) -> Reply:  # fmt: skip
    """The reply with the metrics of these states."""
    for point, round_ in points:
        draws = draws_tradeoff(spec, point, round_)
        found = evaluate_client(spec, site, point, client, personal, visit.received, tradeoff=draws)
        reply = replace(reply, metrics=reply.metrics | {point: found})
        if draws and validation is not None and site.zero_shot:
            # Clients of the validation site are the same, with other evaluation images.
            (twin,) = (one for one in validation.federation.clients if one.name == client.name)
            found = evaluate_client(spec, validation, point, twin, personal, visit.received, tradeoff=True)
            reply = replace(reply, validation=found)
    return reply


def start(spec: RunSpec) -> Progress:
    """The state before the first visit."""
    begun = server.start(spec)
    return Progress(begun.round, begun.server)


def finished(spec: RunSpec, state: Progress) -> bool:
    """Whether no visit is left."""
    return state.ended or (spec.method.trains and state.round >= spec.last_round and state.open is None)


def ask(spec: RunSpec, every: int, participation: float, names: Iterable[str], state: Progress) -> dict[str, Visit]:
    """The visits of this round, by client: of those that train, and where metrics are due, of all."""
    names = sorted(names)
    before, after = _due(spec, every, state.round)
    trains = spec.method.trains and state.round < spec.last_round
    picked = server.sample_clients(spec, names, participation, state.round) if trains else []
    return {
        name: Visit(state.round, name in picked, server.downlink(spec, state, name))
        for name in names
        if before or after or name in picked
    }


def take(
    spec: RunSpec,
    every: int,
    visits: Mapping[str, Visit],
    replies: Mapping[str, Reply],
    state: Progress,
    absent: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Progress, list[RoundRecord]]:
    """The next state, and the records that are complete now.

    Clients without a reply are left out; `absent` says why. The uplinks were checked when they arrived.
    """
    before, after = _due(spec, every, state.round)
    replies = {name: replies[name] for name in sorted(replies)}
    done = []
    if state.open is not None:
        done.append(_with_metrics(spec, state.open, replies, before))
    if not spec.method.trains:
        empty = RoundRecord(0, [], {}, {}, 0.0, 0.0, absent=dict(absent))
        return Progress(spec.rounds, state.server, None, True), [_with_metrics(spec, empty, replies, before)]
    if state.round == spec.last_round:
        return Progress(state.round, state.server, None, True), [
            replace(one, absent={**one.absent, **absent}) for one in done
        ]
    visited = [
        ClientRecord(
            name, int(reply.images), reply.losses, reply.seconds, messages.tensor_bytes(visits[name].received),
            messages.tensor_bytes(reply.uplink),
        )
        for name, reply in replies.items() if visits[name].trains
    ]  # fmt: skip
    uplinks = [
        Uplink(name, reply.images, reply.uplink)
        for name, reply in replies.items()
        if visits[name].trains and state.round < spec.rounds
    ]
    now = server.aggregate(spec, state, uplinks)
    trained_s = sum(one.seconds for one in visited)
    record = RoundRecord(now.round, visited, {}, {}, trained_s, 0.0, absent=dict(absent))
    record = _with_metrics(spec, record, replies, after)
    if "after_aggregation" in due_points(spec, every, now.round):
        return Progress(now.round, now.server, record), done
    return Progress(now.round, now.server), [*done, record]


def _with_metrics(
    spec: RunSpec, record: RoundRecord, replies: Mapping[str, Reply], points: Iterable[tuple[EvalPoint, int]]
) -> RoundRecord:
    """The record with the metrics of these states."""
    for point, round_ in points:
        found = {name: reply.metrics[point] for name, reply in replies.items() if point in reply.metrics}
        clients = record.clients | {point: {name: one.values for name, one in found.items()}}
        means = record.means | {point: pool_metrics(found, spec.metrics)}
        # The reported state comes first, as in a simulation.
        order = [each for each in due_points(spec, 1, round_) if each in means]
        curves = record.curves
        if draws_tradeoff(spec, point, round_) and any(one.by_weight for one in found.values()):
            curves = {"test": tradeoff_curve(found, spec.metrics)}
            held_out = {name: one.validation for name, one in replies.items() if one.validation is not None}
            if held_out:
                curves["val"] = tradeoff_curve(held_out, spec.metrics)
        record = replace(
            record, clients={p: clients[p] for p in order}, means={p: means[p] for p in order}, curves=curves
        )
    return record
