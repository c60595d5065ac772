"""Faults of pFedMoAP's loop: which experts and which gate a visit begins with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fedvlm import faults, tensors
from fedvlm.experiment import Experiment
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.procedure import ProcedureWrapper
from fedvlm.federation.simulation import FederationState, Simulation, client_outputs, run_rounds, start
from fedvlm.methods.pfedmoap import EXPERT
from fedvlm.tensors import Named
from fedvlm.testing import tiny

from dataclasses import replace  # isort: skip

Seen = list[tuple[int, str, ClientInput, ClientUpdate]]


def watched(
    name: str, participation: float = 1.0, rounds: int = 3, sizes: Sequence[int] = tiny.SIZES, **settings: Any
) -> tuple[Simulation, Seen]:
    """A task with a fault, and everything that enters and leaves the real visits below it."""
    seen: Seen = []

    class Watch(ProcedureWrapper):
        def train_one(self, spec: Any, site: Any, round_: int, one: ClientInput, factory: Any) -> ClientUpdate:
            done = super().train_one(spec, site, round_, one, factory)
            seen.append((round_, one.client.name, one, done))
            return done

    made = tiny.simulation(tiny.method("pfedmoap", **settings), tiny.clip(), tiny.federation(sizes), rounds=rounds,
                      participation=participation)  # fmt: skip
    made = replace(made, procedure=Watch(made.procedure))
    experiment = Experiment.model_validate({"faults": [name], "participation": participation, "rounds": rounds})
    return faults.FaultSet(made.spec.method, experiment).simulation(made), seen


def experts(received: Named) -> list[str]:
    return [tensors.digest({"p": t}) for n, t in sorted(received.items()) if n.startswith(EXPERT)]


def prompt(visit: ClientUpdate) -> str:
    return tensors.digest({"p": visit.uplink.tensors["prompt"]})


def gate(own: Named) -> str:
    return tensors.digest(tensors.select(own, ["gating.*"]))


def test_experts_are_the_first_of_one_order() -> None:
    task, seen = watched("fixed_experts", rounds=3, experts=3)
    tiny.run(task)
    pool = {name: prompt(done) for round_, name, _, done in seen if round_ == 1}
    dealt = {name: [key for digest in experts(guest.received) for key, value in pool.items() if value == digest]
             for round_, name, guest, _ in seen if round_ == 2}  # fmt: skip
    order = task.spec.method.order
    assert sorted(order) == sorted(pool)
    for name, chosen in dealt.items():
        assert chosen == [other for other in order if other != name][:2]
    assert not any(experts(guest.received) for round_, _, guest, _ in seen if round_ == 0)


def test_at_the_second_visit_the_gate_is_that_of_the_client_before() -> None:
    task, seen = watched("inherited_gate", rounds=3)
    tiny.run(task)
    left = [gate(done.personal) for _, _, _, done in seen]
    begun = [None if guest.personal is None else gate(guest.personal) for _, _, guest, _ in seen]
    count = len(task.site.federation.clients)
    assert left[:count] == [gate(task.spec.initial)] * count  # nothing trains a gate in the first round
    assert begun[count : 2 * count] == left[count - 1 : 2 * count - 1]
    assert begun[2 * count :] == left[count : 2 * count]  # from the third visit on its own
    assert len(set(left[count : 2 * count])) == count


def test_late_clients_train_with_the_experts_of_the_client_before() -> None:
    task, seen = watched("leftover_experts", participation=0.5, rounds=4, sizes=(4,) * 8)
    tiny.run(task)
    visited, last, leftovers = set[str](), list[str](), list[bool]()
    for round_, name, guest, done in seen:
        mine = experts(guest.received)
        if name in visited:
            last = mine or last
        else:
            assert mine == last
            # With experts the gate is trained.
            assert (gate(done.personal) != gate(task.spec.initial)) is bool(mine)
        leftovers.append(name not in visited and bool(mine))
        visited.add(name)
        assert round_ or not mine
    # Also for two in a row: what is left over is never cleared.
    assert any(one and next_ for one, next_ in itertools.pairwise(leftovers))


def test_a_late_client_is_tested_with_what_it_trained_with() -> None:
    task, seen = watched("leftover_experts", participation=0.5, rounds=6)
    before = start(task)
    checked = 0
    for after, record in run_rounds(task, before):
        for visit in record.visits:
            guest, done = next((g, d) for r, n, g, d in seen if (r, n) == (before.round, visit.client))
            if visit.client not in before.personal and experts(guest.received):
                found = client_outputs(task, task.site, before, after, guest.client, "after_training")
                logits = task.site.logits(task.site.base, done.personal, guest.received, "base")
                torch.testing.assert_close(found.base.logits, logits)
                checked += 1
        before = FederationState(after.round, after.server, dict(after.personal))
    assert checked


def test_later_clients_get_prompts_of_the_same_round() -> None:
    task, seen = watched("open_pool", rounds=2, experts=4)
    tiny.run(task)
    written = {(round_, name): prompt(done) for round_, name, _, done in seen}
    names = sorted(client.name for client in task.site.federation.clients)
    for round_, name, guest, _ in seen:
        if round_ == 1:
            expected = {written[int(other < name), other] for other in names if other != name}
            assert set(experts(guest.received)) == expected


def test_an_open_pool_tests_clients_with_what_they_received() -> None:
    task, seen = watched("open_pool", rounds=2, experts=4)
    states = [start(task)]
    states += [state for state, _ in run_rounds(task, states[0])]
    client_outputs(task, task.site, states[1], states[2], task.site.federation.clients[0], "after_aggregation")
    for round_, _, guest, _ in seen:
        if round_ == 1:
            assert experts(task.procedure.downlink(task.spec, states[1], guest.client.name)) == experts(guest.received)


@pytest.mark.parametrize("name", ["fixed_experts", "inherited_gate", "open_pool"])
def test_without_experts_these_do_not_apply(name: str) -> None:
    alone = tiny.method("pfedmoap", select="none")
    assert name not in {fault.name for fault in faults.applicable_faults(alone, Experiment())}
    assert name in {fault.name for fault in faults.applicable_faults(tiny.method("pfedmoap"), Experiment())}
