"""One message a round: visits and replies give the states and records of a simulation, for every method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedvlm import methods
from fedvlm.federation import simulation, visits
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.methods.base import Method
from fedvlm.tensors import Named
from fedvlm.testing import tiny

CLIP, FEDERATION = tiny.clip(), tiny.federation()


def played(run: Simulation) -> tuple[FederationState, list[RoundRecord]]:
    """The last state and all records, with every client at a site of its own."""
    spec, schedule = run.spec, run.schedule
    names = [client.name for client in run.site.federation.trained]
    sites = {name: replace(run.site, federation=run.site.federation.subset([name])) for name in names}
    held = run.validation
    validation = {name: held and replace(held, federation=held.federation.subset([name])) for name in names}
    personal: dict[str, Named] = {}
    state, records = visits.start(spec), list[RoundRecord]()
    while not visits.finished(spec, state):
        asked = visits.ask(spec, schedule.every, schedule.participation, names, state)
        replies = {}
        for name in reversed(list(asked)):
            (client,) = sites[name].federation.clients
            own, visit = personal.get(name), asked[name]
            replies[name], stored = visits.carry_out(
                spec, schedule.every, sites[name], validation[name], client, own, visit
            )
            personal |= {} if stored is None else {name: stored}
        state, done = visits.take(spec, schedule.every, asked, replies, state)
        records += done
    return FederationState(state.round, state.server, personal), records


def timeless(record: RoundRecord) -> RoundRecord:
    """Without seconds, and without what a simulation alone looks at."""
    visits = [replace(one, seconds=0) for one in record.visits]
    return replace(record, visits=visits, train_s=0, evaluate_s=0, experts={})


def check(method: Method, **how: Any) -> list[RoundRecord]:
    run = tiny.simulation(method, CLIP, FEDERATION, **how)
    expected, told = tiny.run(run)
    found, records = played(run)
    assert tiny.fingerprint(found) == tiny.fingerprint(expected)
    assert [timeless(one) for one in records] == [timeless(one) for one in told]
    assert [list(one.means) for one in records] == [list(one.means) for one in told]
    return records


@pytest.mark.parametrize("name", sorted(methods.known()))
def test_every_method(name: str) -> None:
    check(tiny.method(name))


@pytest.mark.parametrize("name", ["pfedmma", "pfedmoap", "fedamp", "promptfl_ft"])
@pytest.mark.parametrize("report", ["after_aggregation", "after_training"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_some_clients_in_a_round_and_rare_evaluations(name: str, report: Any, every: int) -> None:
    records = check(tiny.method(name), report=report, every=every, participation=0.5, rounds=4)
    assert len(records[0].visits) == 2


def test_the_trade_off_is_drawn_on_test_and_validation_images() -> None:
    method = tiny.method("coop")
    run = tiny.simulation(method, CLIP, FEDERATION, rounds=2)
    zero = tiny.site(methods.build("zero_shot", {}), CLIP, FEDERATION)
    place = replace(run.site, zero_shot=(zero.base, zero.novel))
    own = [replace(client, local=client.train[:3]) for client in FEDERATION.clients]
    held_out = replace(place, federation=replace(FEDERATION, clients=tuple(own)))
    run = replace(run, site=place, validation=held_out)
    _, told = tiny.run(run)
    _, records = played(run)
    assert [timeless(one) for one in records] == [timeless(one) for one in told]
    assert records[-1].curves.keys() == {"test", "val"}
    assert records[-1].curves["test"] != records[-1].curves["val"]


def test_a_client_without_a_reply_is_in_no_record() -> None:
    run = tiny.simulation(tiny.method("promptfl"), CLIP, FEDERATION, rounds=1)
    names = [client.name for client in FEDERATION.clients]
    state = visits.start(run.spec)
    asked = visits.ask(run.spec, 1, 1.0, names, state)
    replies = {}
    for client in FEDERATION.clients[:2]:
        replies[client.name], _ = visits.carry_out(run.spec, 1, run.site, None, client, None, asked[client.name])
    state, _ = visits.take(run.spec, 1, asked, replies, state)
    assert state.open is not None
    assert [one.client for one in state.open.visits] == names[:2]
    assert not visits.finished(run.spec, state)
    _, records = visits.take(run.spec, 1, visits.ask(run.spec, 1, 1.0, names, state), {}, state)
    assert records[0].clients["after_aggregation"] == {}
    assert simulation.start(run).round == 0
