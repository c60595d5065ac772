"""Newcomers: in no round, in no message, in no average; measured on arrival and after their local rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation import server, simulation
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.methods import known
from fedvlm.methods.base import Uplink
from fedvlm.testing import tiny
from fedvlm.training.evaluation import compute_outputs, evaluate, pool_metrics

EVERY = list(known())
TRAINED = [name for name, kind in known().items() if kind.trains]
LATE = "site-1"


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def without() -> Federation:
    """Three clients, without the one that is to be late."""
    fed = tiny.federation()
    return replace(fed, clients=tuple(client for client in fed.clients if client.name != LATE))


@pytest.fixture(scope="module")
def fed() -> Federation:
    """The same with a fourth one that comes late, listed between the others."""
    return late(tiny.federation(), [LATE])


def late(fed: Federation, names: Sequence[str]) -> Federation:
    return replace(fed, clients=tuple(replace(client, is_newcomer=client.name in names) for client in fed.clients))


def task(name: str, clip: FrozenCLIP, fed: Federation, visits: int = 1, **more: Any) -> Simulation:
    tuned = {"fine_tune": visits} if known()[name].trains else {}
    return tiny.simulation(tiny.method(name, **tuned), clip, fed, **{"rounds": 2} | more)


def said(record: RoundRecord) -> Any:
    """What a record says of trained clients, less the clock."""
    visits = [(v.client, v.losses, v.up_bytes, v.down_bytes) for v in record.visits if v.client != LATE]
    return record.round, record.clients, record.means, record.curves, visits


@pytest.mark.parametrize("together", [1, 2])  # of three: the third trains alone
@pytest.mark.parametrize("name", EVERY)
def test_nothing_depends_on_late_clients(
    name: str, together: int, clip: FrozenCLIP, fed: Federation, without: Federation
) -> None:
    """Bit for bit: the server's state, everybody's own tensors, losses, accuracies, bytes."""
    how: dict[str, Any] = {"clients_per_step": together, "participation": 0.7}
    here, alone = task(name, clip, fed, **how), task(name, clip, without, **how)
    mine, theirs = (
        list(simulation.run_rounds(here, simulation.start(here))),
        list(simulation.run_rounds(alone, simulation.start(alone))),
    )
    assert [said(record) for _, record in mine] == [said(record) for _, record in theirs]
    for (state, _), (other, record) in zip(mine, theirs, strict=True):
        prints = tiny.fingerprint(state)
        tuned = prints.pop(f"client {LATE}", None)
        assert prints == tiny.fingerprint(other)
        assert bool(tuned) == (record.round > here.spec.rounds)


@pytest.mark.parametrize("name", TRAINED)
def test_late_clients_send_nothing_and_are_in_no_average(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    chosen = task(name, clip, fed)
    sent: list[Uplink] = []
    real = chosen.spec.method.aggregate
    chosen.spec.method.aggregate = lambda server, ups: sent.extend(ups) or real(server, ups)  # type: ignore[method-assign,func-returns-value]
    for state, record in simulation.run_rounds(chosen, simulation.start(chosen)):
        names = [visit.client for visit in record.visits]
        assert (LATE in names) == (record.round > 2)
        assert all(LATE not in clients for clients in record.clients.values())
        assert not [key for key in state.server if LATE in key]
        assert all(not visit.up_bytes for visit in record.visits if visit.client == LATE)
    assert {up.client for up in sent} == {"site-0", "site-2", "site-3"}


@pytest.mark.parametrize("name", EVERY)
def test_on_arrival_it_has_what_the_server_sends_over_the_common_start(
    name: str, clip: FrozenCLIP, fed: Federation
) -> None:
    """In no round before, whatever the rounds in which others are evaluated; means are over late clients only."""
    both = late(fed, [LATE, "site-3"])
    chosen = task(name, clip, both, every=5)
    last, records = tiny.run(chosen)
    found = [record.newcomers for record in records]
    if not chosen.spec.method.trains:
        assert [list(moments) for moments in found] == [["on_arrival"]]
    else:
        assert [list(moments) for moments in found] == [[], ["on_arrival"], ["after_tuning"]]
    arrival = next(moments["on_arrival"] for moments in found if "on_arrival" in moments)
    expected = {}
    for client in both.newcomers:
        state = replace(last, round=2)
        received = server.downlink(chosen.spec, state, client.name)
        own = chosen.spec.method.assemble(chosen.spec.initial, received)
        expected[client.name] = evaluate(compute_outputs(chosen.site, client, own, received))
        sizes = {key: tensor.numel() * tensor.element_size() for key, tensor in received.items()}
        assert arrival.down_bytes[client.name] == sizes
    assert arrival.clients == {name: one.values for name, one in expected.items()}
    assert arrival.means.items() >= pool_metrics(expected).items()


EVERYDAY = ("pfedmma", "pfedmoap", "promptfl_ft", "fedmgp")
"""Methods with which a stop is tried in every run of the tests; the others take long."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERYDAY else pytest.mark.long) for name in TRAINED]
)
def test_stopped_and_resumed_equals_uninterrupted(name: str, clip: FrozenCLIP, fed: Federation, tmp_path: Path) -> None:
    whole, records = tiny.run(task(name, clip, fed, visits=2))
    assert [list(record.newcomers) for record in records] == [[], ["on_arrival"], [], ["after_tuning"]]
    for stop in (2, 3):
        first, checkpoint = task(name, clip, fed, visits=2), Checkpoint(tmp_path / str(stop), 0)
        for state, _ in simulation.run_rounds(first, simulation.start(first, checkpoint.empty_clients())):
            checkpoint.save(state, 0)
            if state.round == stop:
                break
        loaded = Checkpoint(tmp_path / str(stop), 0).load()
        assert loaded is not None
        state, later = tiny.run(task(name, clip, fed, visits=2), loaded[0])
        assert tiny.fingerprint(state) == tiny.fingerprint(whole)
        assert [record.newcomers for record in later] == [record.newcomers for record in records[stop:]]


def test_without_visits_of_its_own_it_is_measured_on_arrival_alone(clip: FrozenCLIP, fed: Federation) -> None:
    _, records = tiny.run(task("pfedmma", clip, fed, visits=0))
    assert [list(record.newcomers) for record in records] == [[], ["on_arrival"]]


def test_without_late_clients_there_is_nothing_to_say(clip: FrozenCLIP, without: Federation) -> None:
    _, records = tiny.run(task("promptfl", clip, without))
    assert not any(record.newcomers for record in records)


def test_share_of_a_round_is_of_those_who_train(clip: FrozenCLIP) -> None:
    """Half of four, not of six."""
    six = late(tiny.federation(sizes=(4, 4, 4, 4, 4, 4)), ["site-0", "site-5"])
    chosen = task("coop", clip, six, participation=0.5)
    for round_ in range(2):
        names = {client.name for client in simulation.sample_clients(chosen, round_)}
        assert len(names) == 2
        assert not names & {"site-0", "site-5"}
    assert [client.name for client in simulation.sample_clients(chosen, 2)] == [f"site-{n}" for n in (1, 2, 3, 4, 0, 5)]


def test_its_own_visits_start_from_what_it_received(clip: FrozenCLIP, fed: Federation) -> None:
    """With a rate of 0 nothing is learned: the late client keeps the shared tensors and the common start."""
    chosen = tiny.simulation(tiny.method("pfedmma", fine_tune=2, lr=0.0), clip, fed, rounds=2)
    moved = {name: tensor + 1 for name, tensor in chosen.spec.method.server(chosen.spec.initial).items()}
    start = FederationState(2, moved)
    last, records = tiny.run(chosen, start)
    own = last.personal[LATE]
    for name, tensor in chosen.spec.initial.items():
        assert torch.equal(own[name], moved.get(name, tensor))
    assert last.server is moved
    # What it trains comes down once.
    down = [next(v.down_bytes for v in record.visits if v.client == LATE) for record in records]
    assert sum(down[0].values()) == tensors.nbytes(moved)
    assert down[1] == {}


@pytest.mark.parametrize("settings", [{}, {"share": ["*"]}, {"select": "random"}, {"gate": "linear"}], ids=str)
def test_pfedmoap_has_no_experts_for_who_was_never_in_the_pool(
    settings: dict[str, Any], clip: FrozenCLIP, fed: Federation
) -> None:
    """The server picks experts by a client's own prompt, and a late client sends none: not even after its own visits."""
    chosen = tiny.simulation(tiny.method("pfedmoap", fine_tune=2, **settings), clip, fed, rounds=3, every=100)
    seen: list[dict[str, Tensor]] = []
    real = chosen.spec.method.downlink

    def spy(server: dict[str, Tensor], client: str, draw: Any) -> dict[str, Tensor]:
        found = real(server, client, draw)
        seen.extend([found] if client == LATE else [])
        return found

    chosen.spec.method.downlink = spy  # type: ignore[method-assign]
    last, _ = tiny.run(chosen)
    assert seen
    assert not [name for message in seen for name in message if "experts" in name]
    gates = tensors.select(last.personal[LATE], ["gating.*"])
    given = last.server if settings.get("share") else chosen.spec.initial
    assert all(torch.equal(tensor, given[name]) for name, tensor in gates.items())


def test_visits_are_listed_in_the_order_of_who_trains(clip: FrozenCLIP, fed: Federation) -> None:
    """Trained clients by name, then the late ones, however many train together."""
    for together in (1, 3):
        _, records = tiny.run(task("promptfl", clip, fed, clients_per_step=together, every=100))
        assert [visit.client for visit in records[0].visits] == ["site-0", "site-2", "site-3"]
        assert [visit.client for visit in records[2].visits] == ["site-0", "site-2", "site-3", LATE]
