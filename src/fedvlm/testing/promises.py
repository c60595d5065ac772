"""The promises: what every method keeps without a line of its own."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.federation import messages, server, simulation
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.client import train_client
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.simulation import FederationState
from fedvlm.methods.base import Method, Uplink
from fedvlm.tensors import Named
from fedvlm.testing import central, tiny
from fedvlm.testing.case import Case, Promise, Which
from fedvlm.training import local
from fedvlm.tuners.base import predict

PROMISES: list[Promise] = []
"""All promises."""


def _promise(of: Which) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def add(function: Callable[[Case], None]) -> Callable[[Case], None]:
        PROMISES.append(Promise(function.__name__, of, function))
        return function

    return add


def _spied(method: Method) -> tuple[list[tuple[str, Named]], list[Uplink]]:
    """Copies of everything the method sends down and gets up from now on."""
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


@_promise("all")
def first_tensors_own_their_memory(case: Case) -> None:
    """They are no parts of a larger one: they are saved one by one, and a change of one must not change another."""
    for name, tensor in case.simulation().spec.initial.items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name


@_promise("all")
def shared_and_private_are_disjoint_and_cover_all(case: Case) -> None:
    """Every trainable tensor is either shared or private, float32 and at first without a gradient."""
    method = case.brief()
    start = case.simulation(method).spec.initial
    shared, private = messages.shared(method, start), messages.private(method, start)
    assert not shared.keys() & private.keys()
    assert shared.keys() | private.keys() == start.keys()
    assert bool(start) == method.trains, "trains is true exactly where there are tensors to train"
    idle = [pattern for pattern in method.shared if not tensors.select(start, [pattern])]
    assert not (method.trains and idle), f"patterns of shared that match no tensor: {idle}"
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in start.values())


@_promise("trained")
def no_private_tensor_is_in_any_message(case: Case) -> None:
    """By name and by bytes: no private tensor of any client after any visit stands in anything that crossed."""
    method = case.brief()
    down, up = _spied(method)
    run = case.simulation(method)
    declared = messages.template(method, run.spec.initial).keys()
    kept: list[bytes] = []
    for state, _ in simulation.run_rounds(run, simulation.start(run)):
        for own in state.personal.values():
            private = messages.private(method, own).values()
            kept += [tensor.numpy().tobytes() for tensor in private if tensor.unique().numel() > 1]
    assert {one.client for one in up} == {client.name for client in case.federation.clients}
    for one in up:
        assert one.tensors.keys() == declared
    crossed = b"|".join(tensor.numpy().tobytes() for message in [*(m for _, m in down), *(u.tensors for u in up)]
                        for tensor in message.values())  # fmt: skip
    assert not [data for data in kept if data in crossed], "a private tensor crossed"
    assert bool(kept) == bool(messages.private(method, run.spec.initial))


@_promise("trained")
def what_comes_down_was_sent_up_or_made_by_the_server(case: Case) -> None:
    """Every downlink tensor has the shape of a shared tensor, and nothing comes down where nothing is shared."""
    method = case.brief()
    down, _ = _spied(method)
    run = case.simulation(method)
    tiny.run(run)
    shapes = {tuple(tensor.shape) for tensor in messages.shared(method, run.spec.initial).values()}
    assert down
    assert all(tuple(tensor.shape) in shapes for _, message in down for tensor in message.values())


@_promise("trained")
def message_bytes_are_the_declared_ones(case: Case) -> None:
    """Bytes in the ledger are those of the tensors that crossed, and those that the method declares."""
    method = case.brief()
    down, up = _spied(method)
    run = case.simulation(method, every=100)
    _, records = tiny.run(run)
    declared = {n: t.numel() * 4 for n, t in messages.template(method, run.spec.initial).items()}
    assert not any(one.up_bytes for record in records if record.round > 3 for one in record.visits)
    visits = [one for record in records if record.round <= 3 for one in record.visits]
    clients = len(case.federation.clients)
    assert len(visits) == len(up) == 3 * clients
    for one, sent in zip(visits, up, strict=True):
        assert one.client == sent.client
        assert one.up_bytes == declared == {n: t.numel() * t.element_size() for n, t in sent.tensors.items()}
        assert one.images == sent.weight
    least, most = method.downlink_bytes(sum(declared.values()), clients)
    assert {sum(one.down_bytes.values()) for one in visits} >= {least, most}
    for one in visits:
        assert least <= sum(one.down_bytes.values()) <= most
        told = [{n: len(t.numpy().tobytes()) for n, t in message.items()}
                for client, message in down if client == one.client]  # fmt: skip
        assert one.down_bytes in told


@_promise("trained")
def the_order_of_clients_does_not_change_a_byte(case: Case) -> None:
    """Clients are told apart by their names, not by their places."""
    first, _ = tiny.run(case.simulation(every=100))
    turned = replace(case.federation, clients=tuple(case.federation.clients[place] for place in (3, 1, 0, 2)))
    second, _ = tiny.run(case.simulation(federation=turned, every=100))
    assert tiny.fingerprint(second) == tiny.fingerprint(first)


def _uplinks(case: Case, method: Method, values: Sequence[float]) -> tuple[Named, list[Uplink]]:
    """The first server state, and a reply for each value that holds nothing else."""
    start = case.simulation(method).spec.initial
    shared = messages.template(method, start)
    sent = [Uplink(f"site-{n}", 3.0, {name: torch.full_like(t, value) for name, t in shared.items()})
            for n, value in enumerate(values)]  # fmt: skip
    return method.server(start), sent


@_promise("shared")
def the_order_of_uplinks_does_not_change_a_byte(case: Case) -> None:
    """Replies of a network come in any order. The values make rounding visible in one step; real ones do so rarely."""
    method = case.method()
    state, sent = _uplinks(case, method, [1e30, -1e30, 1.0])
    results = [method.aggregate(state, [sent[i] for i in order]) for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0))]
    assert len({tensors.digest(result) for result in results}) == 1


@_promise("trained")
def a_client_of_weight_zero_changes_nothing(case: Case) -> None:
    """Whatever it sends, numbers or not."""
    for value in (7.0, float("nan")):
        method = case.method()
        state, sent = _uplinks(case, method, [1.0, 2.0, value])
        without = method.aggregate(state, sent[:2])
        with_it = method.aggregate(state, [*sent[:2], replace(sent[2], weight=0.0)])
        assert without.keys() == with_it.keys()
        assert tensors.digest(with_it) == tensors.digest(without), value


@_promise("trained")
def an_aggregate_leaves_the_old_state_and_the_replies_alone(case: Case) -> None:
    """It gives new tensors and writes into none."""
    method = case.method()
    state, sent = _uplinks(case, method, [1.0, 2.0])
    before = tensors.digest(state), [tensors.digest(one.tensors) for one in sent]
    method.aggregate(state, sent)
    assert (tensors.digest(state), [tensors.digest(one.tensors) for one in sent]) == before


def _part(case: Case, folder: Path, count: int | None = None, **how: Any) -> tuple[FederationState, list[RoundRecord]]:
    """Go on from what the folder holds, for `count` rounds or to the end, as a new process would."""
    run = case.simulation(**how)
    checkpoint, records = Checkpoint(folder, 0), list[RoundRecord]()  # clients' tensors on disk only
    found = checkpoint.load()
    state = begun = simulation.start(run, checkpoint.clients()) if found is None else found[0]
    for state, record in simulation.run_rounds(run, begun):
        records.append(record)
        checkpoint.save(state, 0)
        if len(records) == count:
            break
    return state, records


def _resumed(case: Case, stop: int, **how: Any) -> tuple[FederationState, list[RoundRecord]]:
    """Stop after `stop` rounds and go on."""
    with tempfile.TemporaryDirectory() as place:
        _, records = _part(case, Path(place), stop, **how)
        state, later = _part(case, Path(place), **how)
        return replace(state, personal=dict(state.personal)), records + later


def _figures(records: Sequence[RoundRecord]) -> list[Any]:
    """What records say, less the clock."""
    return [(r.round, r.clients, r.means, [(v.client, v.losses, v.up_bytes, v.down_bytes) for v in r.visits])
            for r in records]  # fmt: skip


@_promise("trained")
def stopped_and_resumed_equals_uninterrupted(case: Case) -> None:
    """Bit for bit: state, losses and accuracies, stopped after every round and after the last."""
    whole, records = tiny.run(case.simulation())
    again: list[RoundRecord] = []
    with tempfile.TemporaryDirectory() as place:
        for stop in range(1, len(records) + 2):
            state, more = _part(case, Path(place), 1)
            again += more
            assert len(again) == min(stop, len(records))
        assert _figures(again) == _figures(records)
        assert tiny.fingerprint(state) == tiny.fingerprint(whole)


@_promise("trained")
def stopped_and_resumed_with_half_of_the_clients(case: Case) -> None:
    """The same without remembered activations: whatever else is durable, is complete, for clients long not seen too."""
    how: dict[str, Any] = {"rounds": 4, "participation": 0.5, "limit": 0, "every": 2}
    whole, records = tiny.run(case.simulation(**how))
    state, again = _resumed(case, 2, **how)
    assert _figures(again) == _figures(records)
    assert tiny.fingerprint(state) == tiny.fingerprint(whole)


@_promise("trained")
def augmented_runs_resume_too(case: Case) -> None:
    """New crops and flips are those of the uninterrupted run, and others than none."""
    how: dict[str, Any] = {"rounds": 2, "views": "online", "every": 100}
    whole, _ = tiny.run(case.simulation(**how))
    state, _ = _resumed(case, 1, **how)
    assert tiny.fingerprint(state) == tiny.fingerprint(whole)
    plain, _ = tiny.run(case.simulation(rounds=2, every=100))
    assert tiny.fingerprint(plain) != tiny.fingerprint(whole)


@_promise("trained")
def one_client_with_everything_shared_is_central_training(case: Case) -> None:
    """Equal to an ordinary PyTorch loop that knows of no messages and no clients."""
    method, fed = case.method(), tiny.federation(sizes=(26,))
    method.shared = ("*",)
    run = case.simulation(method, fed)
    state, _ = tiny.run(run)
    expected = central.trained(run)
    own = state.personal["site-0"]
    assert method.assemble(own, {}).keys() == expected.keys()
    for name, tensor in expected.items():
        assert (own[name] - tensor).abs().max() < 1e-5 * max(1.0, float(tensor.abs().max())), name
    for name in state.server.keys() & expected.keys() if run.spec.last_round == run.spec.rounds else ():
        assert torch.equal(state.server[name], own[name]), name
    moved = [(run.spec.initial[name] - tensor).abs().max() > 1e-3 for name, tensor in expected.items()]
    assert any(moved), "nothing was trained"


@_promise("trained")
def the_loss_falls(case: Case) -> None:
    """In five rounds to less than 0.7 of the first, and Local above chance."""
    run = case.simulation(case.method(), rounds=5, every=100)
    _, records = tiny.run(run)
    means = [np.mean([loss for one in record.visits for loss in one.losses]) for record in records]
    assert means[-1] < 0.7 * means[0], means
    assert records[-1].means[run.spec.reported]["local"] > 0.4


@_promise("trained")
def all_clients_start_from_the_same_tensors(case: Case) -> None:
    """In the first round; and training does not write into the common start."""
    seen, real = [], local.train

    def spy(method: Method, tuner: Any, start: Named, *more: Any) -> Any:
        seen.append(tensors.digest(start))
        return real(method, tuner, start, *more)

    run = case.simulation(case.brief(fine_tune=0), rounds=1, every=100)
    before = tensors.digest(run.spec.initial)
    with patch.object(local, "train", spy):
        tiny.run(run)
    assert set(seen) == {before}
    assert len(seen) == len(case.federation.clients)
    assert tensors.digest(run.spec.initial) == before


@_promise("trained")
def a_visit_does_not_depend_on_who_was_visited_before(case: Case) -> None:
    """No optimizer, no module and no random state passes from client to client."""
    state, _ = tiny.run(case.simulation(rounds=2, every=100))
    clients = case.federation.clients

    def result(before: int) -> list[str]:
        run = case.simulation(rounds=3)
        for client in [*clients[:before], clients[-1]]:
            received = server.downlink(run.spec, state, client.name)
            done = train_client(run.spec, run.site, 2, client, state.personal[client.name], received)
        return [tensors.digest(done.personal), tensors.digest(done.uplink.tensors), repr(done.losses)]

    assert result(0) == result(3) == result(1)


def _storages(every: Named) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in every.values() if tensor.numel()}


@_promise("trained")
def states_share_no_memory(case: Case) -> None:
    """Clients' own tensors, the server's, the common start: writing into one changes no other."""
    run = case.simulation(rounds=2, every=100)
    state, _ = tiny.run(run)
    every = [state.server, run.spec.initial, *state.personal.values()]
    assert sum(len(_storages(one)) for one in every) == len(set().union(*map(_storages, every)))
    first = case.federation.clients[0]
    done = train_client(run.spec, run.site, 1, first, None, server.downlink(run.spec, state, first.name))
    assert not _storages(done.personal) & _storages(done.uplink.tensors)
    assert not _storages(done.personal) & _storages(state.server)


@_promise("shared")
def writing_into_what_was_received_changes_nothing_on_the_server(case: Case) -> None:
    """A downlink gives copies."""
    run = case.simulation(case.method())
    state = simulation.start(run)
    before = tiny.fingerprint(state)
    for tensor in server.downlink(run.spec, state, case.federation.clients[0].name).values():
        tensor.add_(1)
    assert tiny.fingerprint(state) == before


@_promise("shared")
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


@contextmanager
def _fresh() -> Iterator[None]:
    """What exists already does not count (and is not walked through: other libraries' objects are many)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _live_bytes() -> int:
    gc.collect()
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor}
    return sum(seen.values())


@_promise("trained")
def visits_keep_no_graph_and_memory_does_not_grow_with_rounds(case: Case) -> None:
    """A pool's prompts change every round: a memory of them has a bound of its own; 4 clients x 4 rounds fit."""
    with _fresh():
        run, sizes = case.simulation(rounds=4, every=100), []
        for state, _ in simulation.run_rounds(run, simulation.start(run)):
            assert not any(t.requires_grad for own in [state.server, *state.personal.values()] for t in own.values())
            sizes.append(_live_bytes())
        gc.collect()
        kinds = (Tensor, torch.nn.Parameter)
        assert not [item for item in gc.get_objects() if type(item) in kinds and item.grad_fn is not None]
    slack = 4 * 4 * 4 * 16 * 4  # experts remembered: clients x rounds x classes x features x bytes
    assert max(sizes[1:4]) - min(sizes[1:4]) <= slack, sizes


@_promise("all")
def the_frozen_encoder_stays_frozen(case: Case) -> None:
    """Neither weights nor gradients of it change."""
    before = tensors.digest(dict(case.clip.state_dict()))
    tiny.run(case.simulation(rounds=1))
    assert tensors.digest(dict(case.clip.state_dict())) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in case.clip.parameters())


@_promise("trained")
def a_run_depends_on_its_seed_and_on_no_global_generator(case: Case) -> None:
    """Global generators change nothing and are not drawn from."""
    prints, kept = [], (torch.get_rng_state(), np.random.get_state())
    try:
        for seed, disturbance in ((1, 0), (1, 99), (2, 0)):
            torch.manual_seed(disturbance)
            np.random.seed(disturbance)
            before = torch.get_rng_state()
            state, _ = tiny.run(case.simulation(rounds=1, seed=seed, views="online", every=100))
            assert torch.equal(torch.get_rng_state(), before)
            prints.append(tiny.fingerprint(state))
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
    assert prints[0] == prints[1] != prints[2]


@_promise("all")
def a_class_order_turned_round_turns_the_logits_round(case: Case) -> None:
    """Class names and labels stay together: logit k belongs to the k-th name."""
    method, names = case.method(), list(case.federation.base_names)
    one, other = (method.tuner(case.clip, order, "a photo of a {}.") for order in (names, names[::-1]))
    start = case.simulation(method).spec.initial
    side = case.clip.config.vision.image
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    hidden = case.clip.visual.hidden(images, one.entry)
    first, second = (predict(t, start, t.classifier(start, t.prepare({})), hidden)[0] for t in (one, other))
    assert (first - second.flip(-1)).abs().max() < 1e-4
