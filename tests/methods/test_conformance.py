"""Every method of ours keeps every promise; and a method that breaks one is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation import simulation
from fedvlm.methods import known
from fedvlm.testing import PROMISES, Case, Promise, tiny

ASKED = [(promise, name) for promise in PROMISES for name, kind in known().items() if promise.applies(kind)]


@pytest.mark.parametrize(("promise", "name"), ASKED, ids=[f"{promise}-{name}" for promise, name in ASKED])
def test_every_method_keeps_every_promise(promise: Promise, name: str, clip: FrozenCLIP, fed: Federation) -> None:
    promise.check(Case(known()[name], clip=clip, federation=fed))


def test_the_order_of_clients_does_not_change_who_takes_part(clip: FrozenCLIP, fed: Federation) -> None:
    turned = replace(fed, clients=tuple(reversed(fed.clients)))
    tasks = [tiny.simulation(tiny.method("coop"), clip, one, participation=0.5) for one in (fed, turned)]
    for round_ in range(6):
        one, other = ({client.name for client in simulation.sample_clients(task, round_)} for task in tasks)
        assert one == other
