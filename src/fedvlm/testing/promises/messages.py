"""Promises on messages: no private tensor, declared bytes, and aggregation that is independent of order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fedvlm import tensors
from fedvlm.federation import messages, simulation
from fedvlm.methods.base import Method, Uplink
from fedvlm.tensors import Named
from fedvlm.testing import tiny
from fedvlm.testing.case import Case, promise


def _spied(method: Method) -> tuple[list[tuple[str, Named]], list[Uplink]]:
    """Lists that will hold copies of all downlinks and uplinks of the method."""
    down: list[tuple[str, Named]] = []
    up: list[Uplink] = []
    downlink, aggregate = method.downlink, method.aggregate

    def spy_down(server: Named, client: str, draw: np.random.Generator) -> Named:
        sent = downlink(server, client, draw)
        down.append((client, tensors.clone(sent)))
        return sent

    def spy_up(server: Named, uplinks: Sequence[Uplink]) -> Named:
        up.extend(replace(one, tensors=tensors.clone(one.tensors)) for one in uplinks)
        return aggregate(server, uplinks)

    method.downlink, method.aggregate = spy_down, spy_up  # type: ignore[method-assign]
    return down, up


@promise("all")
def first_tensors_own_their_memory(case: Case) -> None:
    """Initial tensors are no views of larger ones: each is saved alone, and its changes must not affect others."""
    for name, tensor in case.simulation().spec.initial.items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


@promise("all")
def shared_and_private_are_disjoint_and_cover_all(case: Case) -> None:
    """Every trainable tensor is either shared or private, float32 and at first without a gradient."""
    method = case.brief()
    start = case.simulation(method).spec.initial
    shared, private = messages.shared_tensors(method, start), messages.private_tensors(method, start)
    assert not shared.keys() & private.keys()
    assert shared.keys() | private.keys() == start.keys()
    assert bool(start) == method.trains, "trains is true exactly where there are tensors to train"
    idle = [pattern for pattern in method.shared if not tensors.select(start, [pattern])]
    assert not (method.trains and idle), f"patterns of shared that match no tensor: {idle}"
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in start.values())


@promise("trained")
def no_private_tensor_is_in_any_message(case: Case) -> None:
    """No message holds a private tensor of any client after any round, neither by name nor by bytes."""
    method = case.brief()
    down, up = _spied(method)
    run = case.simulation(method)
    declared = run.spec.may_cross.keys()
    kept: list[bytes] = []
    for state, _ in simulation.run_rounds(run, simulation.start(run)):
        for own in state.personal.values():
            private = messages.private_tensors(method, own).values()
            kept += [tensor.numpy().tobytes() for tensor in private if tensor.unique().numel() > 1]
    assert {one.client for one in up} == {client.name for client in case.federation.clients}
    for one in up:
        assert one.tensors.keys() <= declared
    crossed = b"|".join(tensor.numpy().tobytes() for message in [*(m for _, m in down), *(u.tensors for u in up)]
                        for tensor in message.values())  # fmt: skip
    assert not [data for data in kept if data in crossed], "a private tensor crossed"
    assert bool(kept) == bool(messages.private_tensors(method, run.spec.initial))


@promise("trained")
def what_comes_down_was_sent_up_or_made_by_the_server(case: Case) -> None:
    """Every downlink tensor is a declared constant or has the shape of a shared tensor; nothing else comes down."""
    method = case.brief()
    down, _ = _spied(method)
    run = case.simulation(method)
    tiny.run(run)
    shapes = {tuple(tensor.shape) for tensor in messages.shared_tensors(method, run.spec.initial).values()}
    assert down
    assert not tensors.select(run.spec.initial, method.constants), "constants are not trained"
    for _, message in down:
        made = tensors.select(message, method.constants)
        assert all(tuple(tensor.shape) in shapes for name, tensor in message.items() if name not in made)


@promise("trained")
def message_bytes_are_the_declared_ones(case: Case) -> None:
    """Bytes in the ledger equal those of the sent tensors, and those that the method declares."""
    method = case.brief()
    down, up = _spied(method)
    run = case.simulation(method, every=100)
    _, records = tiny.run(run)
    rounds = run.spec.rounds
    assert not any(one.up_bytes for record in records if record.round > rounds for one in record.visits)
    visits = [one for record in records if record.round <= rounds for one in record.visits]
    clients = len(case.federation.clients)
    assert len(visits) == len(up) == rounds * clients
    for one, sent in zip(visits, up, strict=True):
        assert one.client == sent.client
        assert one.up_bytes == {n: t.numel() * t.element_size() for n, t in sent.tensors.items()}
        templates = [
            messages.uplink_template(method, run.spec.initial, m) for client, m in down if client == one.client
        ]
        assert one.up_bytes in [{n: t.numel() * 4 for n, t in template.items()} for template in templates]
        assert one.images == sent.weight
    least, most = method.downlink_bytes(tensors.nbytes(run.spec.may_cross), clients)
    assert {sum(one.down_bytes.values()) for one in visits} >= {least, most}
    for one in visits:
        assert least <= sum(one.down_bytes.values()) <= most
        told = [{n: len(t.numpy().tobytes()) for n, t in message.items()}
                for client, message in down if client == one.client]  # fmt: skip
        assert one.down_bytes in told


def _uplinks(case: Case, method: Method, values: Sequence[float]) -> tuple[Named, list[Uplink]]:
    """The initial server state, and for each value an uplink whose tensors hold this value only."""
    start = case.simulation(method).spec.initial
    shared = messages.uplink_template(method, start)
    sent = [Uplink(f"site-{n}", 3.0, {name: torch.full_like(t, value) for name, t in shared.items()})
            for n, value in enumerate(values)]  # fmt: skip
    return method.server(start), sent


@promise("shared")
def the_order_of_uplinks_does_not_change_a_byte(case: Case) -> None:
    """Aggregation is independent of the order of uplinks; the values make rounding visible in one step."""
    method = case.method()
    state, sent = _uplinks(case, method, [1e30, -1e30, 1.0])
    results = [method.aggregate(state, [sent[i] for i in order]) for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0))]
    assert len({tensors.digest(result) for result in results}) == 1


@promise("trained")
def a_client_of_weight_zero_changes_nothing(case: Case) -> None:
    """An uplink of weight zero has no effect, even if it is not finite."""
    for value in (7.0, float("nan")):
        method = case.method()
        state, sent = _uplinks(case, method, [1.0, 2.0, value])
        without = method.aggregate(state, sent[:2])
        with_it = method.aggregate(state, [*sent[:2], replace(sent[2], weight=0.0)])
        assert without.keys() == with_it.keys()
        assert tensors.digest(with_it) == tensors.digest(without), value


@promise("trained")
def an_aggregate_leaves_the_old_state_and_the_replies_alone(case: Case) -> None:
    """Aggregation returns new tensors and changes neither state nor uplinks."""
    method = case.method()
    state, sent = _uplinks(case, method, [1.0, 2.0])
    before = tensors.digest(state), [tensors.digest(one.tensors) for one in sent]
    method.aggregate(state, sent)
    assert (tensors.digest(state), [tensors.digest(one.tensors) for one in sent]) == before


@promise("shared")
def writing_into_a_reply_after_aggregation_changes_nothing_on_the_server(case: Case) -> None:
    """The server's state holds no client's tensor."""
    method = case.method()
    state, sent = _uplinks(case, method, [1.0, 2.0])
    after = method.aggregate(state, sent)
    before = tensors.digest(after)
    for one in sent:
        for tensor in one.tensors.values():
            tensor.add_(1)
    assert tensors.digest(after) == before
