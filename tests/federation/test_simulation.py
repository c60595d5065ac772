"""A simulation's rounds, watched with a method small enough to be worked out by hand."""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedvlm.clip import FEATURE, FrozenCLIP
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.federation import client as clients
from fedvlm.federation import simulation
from fedvlm.federation.procedure import Procedure, ProcedureWrapper
from fedvlm.methods import base
from fedvlm.methods.base import Method
from fedvlm.testing import tiny
from fedvlm.training import metrics
from fedvlm.training.site import Site


class Count(Method):
    """Every step adds one to `s` (shared) and to `p` (private): the loss is -(s + p), the rate 1."""

    name = "count"
    title = "count"
    shared = ("s",)

    def tuner(self, clip: FrozenCLIP, classnames: Any, template: str) -> Any:
        return Adder(clip, len(classnames))

    def loss(self, step: base.Step) -> Tensor:
        return -(step.trained["s"] + step.trained["p"]).sum()


class Adder:
    """Logits that say class 0 wherever `s + p` is positive, else class 1."""

    def __init__(self, clip: FrozenCLIP, classes: int) -> None:
        self.entry = FEATURE
        self.classes = classes

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"s": torch.zeros(1), "p": torch.zeros(1)}

    def prepare(self, received: dict[str, Tensor], own: Any = None) -> dict[str, Tensor]:
        return {}

    def classifier(self, tensors: dict[str, Tensor], constants: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def logits(self, tensors: dict[str, Tensor], classifier: dict[str, Tensor], hidden: Tensor) -> Tensor:
        row = torch.zeros(self.classes)
        row[0] = 1.0
        return (tensors["s"] + tensors["p"]) * row.expand(len(hidden), -1)


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    """Sizes 8, 4, 3, 1: with batches of 2 that is 4, 2, 2 and 1 steps an epoch."""
    return tiny.federation(sizes=(8, 4, 3, 1))


def task(clip: FrozenCLIP, fed: Federation, **more: Any) -> clients.Simulation:
    settings = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "batch": 2} | more.pop("settings", {})
    return tiny.simulation(Count(settings), clip, fed, **more)


def test_two_rounds_by_hand(clip: FrozenCLIP, fed: Federation) -> None:
    """Round 1: s_i = p_i = 4, 2, 2, 1 steps; s = (8*4 + 4*2 + 3*2 + 1*1)/16 = 47/16. Round 2: s_i = 47/16 + steps."""
    steps = [4, 2, 2, 1]
    states = [state for state, _ in simulation.run_rounds(task(clip, fed, rounds=2), simulation.start(task(clip, fed)))]
    mean = 47 / 16
    assert states[0].server["s"].item() == mean
    assert states[1].server["s"].item() == 2 * mean
    for number, client in enumerate(fed.clients):
        first, second = (state.personal[client.name] for state in states)
        assert (first["s"].item(), first["p"].item()) == (steps[number], steps[number])
        assert (second["s"].item(), second["p"].item()) == (mean + steps[number], 2 * steps[number])


def test_momentum_starts_from_zero_at_every_visit(clip: FrozenCLIP, fed: Federation) -> None:
    """Velocities 1, 1.5, 1.75, 1.875 for momentum 1/2: four steps add 6.125 at every visit."""
    state, _ = tiny.run(task(clip, fed, rounds=3, settings={"momentum": 0.5}))
    assert state.personal["site-0"]["p"].item() == 3 * 6.125


def test_epochs_and_the_schedule(clip: FrozenCLIP, fed: Federation) -> None:
    """Two epochs double the steps; over two rounds half a cosine gives the factors 1 and 1/2."""
    state, _ = tiny.run(task(clip, fed, rounds=2, settings={"epochs": 2, "schedule": "cosine"}))
    assert state.personal["site-0"]["p"].item() == pytest.approx(8 + 4)


def test_a_client_not_chosen_keeps_its_own_and_weighs_nothing(clip: FrozenCLIP, fed: Federation) -> None:
    """pfedmma.md 3: the mean runs over those who took part; the others' private tensors stay."""
    chosen = task(clip, fed, rounds=6, participation=0.5)
    steps, sizes = (
        dict(zip(("site-0", "site-1", "site-2", "site-3"), (4, 2, 2, 1), strict=True)),
        {c.name: len(c.train) for c in fed.clients},
    )
    server, taken = 0.0, Counter()
    for state, record in simulation.run_rounds(chosen, simulation.start(chosen)):
        names = [one.client for one in record.visits]
        assert names == [client.name for client in simulation.sample_clients(chosen, record.round - 1)]
        assert len(names) == 2
        server = sum(sizes[n] * (server + steps[n]) for n in names) / sum(sizes[n] for n in names)
        assert state.server["s"].item() == pytest.approx(server, rel=1e-6)
        taken.update(names)
        assert {n: own["p"].item() for n, own in state.personal.items()} == {n: taken[n] * steps[n] for n in taken}


@pytest.mark.parametrize(("share", "count", "expected"), [
    (1.0, 4, 4), (0.5, 4, 2), (0.74, 4, 2), (0.01, 4, 1), (0.25, 30, 7), (0.29, 100, 29), (0.07, 100, 7), (0.1, 100, 10), (0.3, 10, 3),
    (1 / 3, 3, 1), (0.6, 5, 3),
])  # fmt: skip
def test_how_many_take_part(clip: FrozenCLIP, fed: Federation, share: float, count: int, expected: int) -> None:
    """max(1, floor(share x N)) in exact arithmetic: 25 % of 30 are 7, 29 % of 100 are 29."""
    many = replace(fed, clients=tuple(replace(fed.clients[0], name=f"c{n}") for n in range(count)))
    names = [client.name for client in simulation.sample_clients(task(clip, many, participation=share), 0)]
    assert len(names) == len(set(names)) == expected


def test_everybody_is_as_likely_to_take_part(clip: FrozenCLIP, fed: Federation) -> None:
    half = task(clip, fed, participation=0.5, rounds=600)
    rounds = [tuple(client.name for client in simulation.sample_clients(half, n)) for n in range(600)]
    counts = Counter(name for names in rounds for name in names)
    assert all(abs(count - 300) < 5 * (600 / 4) ** 0.5 for count in counts.values())
    assert len(set(rounds)) == 6
    again = task(clip, fed, participation=0.5, rounds=600)
    assert rounds == [tuple(client.name for client in simulation.sample_clients(again, n)) for n in range(600)]


def test_a_record_says_what_happened(clip: FrozenCLIP, fed: Federation) -> None:
    _, records = tiny.run(task(clip, fed, rounds=2))
    assert [record.round for record in records] == [1, 2]
    for record in records:
        assert [(one.client, one.images) for one in record.visits] == [
            ("site-0", 8),
            ("site-1", 4),
            ("site-2", 3),
            ("site-3", 1),
        ]
        assert all(one.up_bytes == one.down_bytes == {"s": 4} for one in record.visits)
        assert all(one.seconds >= 0 for one in record.visits)
    # Losses before each update: -(s + p), both one larger with every step.
    assert records[0].visits[0].losses == [0.0, -2.0, -4.0, -6.0]
    assert records[1].visits[3].losses == [-(47 / 16 + 1)]


def test_seconds_are_the_clocks_and_are_shared_out_evenly(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that go on by one second whenever somebody looks."""
    for module in (simulation, clients):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=count(100.0).__next__))
    _, records = tiny.run(tiny.simulation(tiny.method("promptfl", epochs=1), clip, fed, rounds=1, clients_per_step=3))
    assert (records[0].train_s, records[0].evaluate_s) == (1.0, 1.0)
    assert [one.seconds for one in records[0].visits] == [1 / 3, 1 / 3, 1 / 3, 1.0]


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [1, 2, 3]), (2, 3, [2, 3]), (2, 4, [2, 4]), (10, 3, [3]), (3, 7, [3, 6, 7])],
)
def test_when_it_is_evaluated(clip: FrozenCLIP, fed: Federation, every: int, rounds: int, expected: list[int]) -> None:
    """After every so many rounds, and always after the last, where the other state is measured too."""
    _, records = tiny.run(task(clip, fed, rounds=rounds, every=every))
    assert [record.round for record in records if record.means] == expected
    assert [len(record.means) for record in records if record.means] == [1] * (len(expected) - 1) + [2]
    assert all(record.means.keys() == record.clients.keys() for record in records)


def test_evaluating_more_often_changes_nothing_else(clip: FrozenCLIP, fed: Federation) -> None:
    prints = []
    for every in (1, 3):
        state, _ = tiny.run(tiny.simulation(tiny.method("pfedmoap"), clip, fed, every=every))
        prints.append(tiny.fingerprint(state))
    assert prints[0] == prints[1]


def test_the_two_states_that_are_measured(clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """After aggregation the new server tensors lie over the own ones; after training a client is as it last trained."""
    seen: dict[str, list[tuple[str, float, float, float]]] = {"after_aggregation": [], "after_training": []}
    now = [""]
    real = simulation.client_outputs

    def measured(run: Any, site: Any, before: Any, after: Any, client: Any, name: Any) -> Any:
        now[0] = name
        return real(run, site, before, after, client, name)

    class Watch(ProcedureWrapper):
        def outputs(self, site: Any, client: Any, own: dict[str, Tensor], received: dict[str, Tensor]) -> Any:
            seen[now[0]].append((client.name, own["s"].item(), own["p"].item(), received["s"].item()))
            return super().outputs(site, client, own, received)

    monkeypatch.setattr(simulation, "client_outputs", measured)
    chosen = task(clip, fed, rounds=2, every=5, participation=0.5, seed=2)
    chosen = replace(chosen, procedure=Watch(chosen.procedure))
    names = [{client.name for client in simulation.sample_clients(chosen, n)} for n in range(2)]
    assert names[0] != names[1]
    states = [
        simulation.start(chosen),
        *(state for state, _ in simulation.run_rounds(chosen, simulation.start(chosen))),
    ]
    for name, s, p, received in seen["after_aggregation"]:
        own = states[2].personal.get(name, {"p": torch.zeros(1)})
        assert (s, p, received) == (states[2].server["s"].item(), own["p"].item(), states[2].server["s"].item())
    for name, s, p, received in seen["after_training"]:
        own = states[2].personal.get(name, {"s": states[1].server["s"], "p": torch.zeros(1)})
        assert (s, p, received) == (own["s"].item(), own["p"].item(), states[1].server["s"].item())
    assert [len(rows) for rows in seen.values()] == [4, 4]


def test_the_state_reported_can_be_chosen(clip: FrozenCLIP, fed: Federation) -> None:
    for state in ("after_training", "after_aggregation"):
        _, records = tiny.run(task(clip, fed, rounds=2, report=state))
        assert list(records[0].means) == [state]
        assert next(iter(records[1].means)) == state
        assert len(records[1].means) == 2


def test_a_method_that_does_not_train_is_measured_once(clip: FrozenCLIP, fed: Federation) -> None:
    zero_shot = tiny.simulation(tiny.method("zero_shot"), clip, fed, rounds=5)
    state, records = tiny.run(zero_shot)
    assert [(record.round, record.visits) for record in records] == [(0, [])]
    assert state.round == 5
    assert list(simulation.run_rounds(zero_shot, state)) == []


def test_nothing_is_left_to_play_after_the_last_round(clip: FrozenCLIP, fed: Federation) -> None:
    counted = task(clip, fed, rounds=2)
    state, _ = tiny.run(counted)
    assert list(simulation.run_rounds(counted, state)) == []


def test_a_round_gives_a_new_state_and_leaves_the_old(clip: FrozenCLIP, fed: Federation) -> None:
    counted = task(clip, fed, rounds=3)
    states = [simulation.start(counted)]
    prints = [tiny.fingerprint(states[0])]
    for state, _ in simulation.run_rounds(counted, states[0]):
        states.append(state)
        prints.append(tiny.fingerprint(state))
    assert [tiny.fingerprint(state) for state in states] == prints
    assert len({tuple(one.items()) for one in prints}) == 4


def test_a_round_touches_neither_disk_nor_network(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """house.md rule 4."""
    counted = tiny.simulation(tiny.method("pfedmoap"), clip, fed, rounds=2)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a round touched the disk or the network")

    for owner, name in (
        (os, "open"),
        (Path, "open"),
        (Path, "write_bytes"),
        (Path, "write_text"),
        (socket, "socket"),
        (os, "replace"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr("builtins.open", forbidden)
    tiny.run(counted)


def test_an_error_names_round_and_client(clip: FrozenCLIP, fed: Federation) -> None:
    with pytest.raises(FedvlmError, match=r"round 1, client site-0: .*no longer finite"):
        tiny.run(tiny.simulation(tiny.method("promptfl", lr=1e30), clip, fed))
    diverging = task(clip, fed, rounds=3, settings={"lr": 2e38})
    with pytest.raises(FedvlmError, match=r"round 1, client site-0"):
        tiny.run(diverging)


def test_an_undeclared_uplink_stops_the_round(clip: FrozenCLIP, fed: Federation) -> None:
    counted = task(clip, fed)

    class Leaky(ProcedureWrapper):
        def train_one(self, *given: Any) -> Any:
            done = super().train_one(*given)
            sent = done.uplink.tensors | {"p": done.personal["p"]}
            return replace(done, uplink=replace(done.uplink, tensors=sent))

    leaky = replace(counted, procedure=Leaky(counted.procedure))
    with pytest.raises(FedvlmError, match=r"round 1, client site-0.*p"):
        tiny.run(leaky)


def test_putting_a_client_together(clip: FrozenCLIP, fed: Federation) -> None:
    """Received tensors lie over the own ones; what is no trainable tensor (an expert) is no part of them."""
    counted = task(clip, fed)
    received = {"s": torch.full((1,), 5.0), "experts.a": torch.ones(2)}
    first = counted.spec.assemble(None, received)
    assert {name: tensor.item() for name, tensor in first.items()} == {"s": 5.0, "p": 0.0}
    later = counted.spec.assemble({"s": torch.ones(1), "p": torch.full((1,), 3.0)}, received)
    assert {name: tensor.item() for name, tensor in later.items()} == {"s": 5.0, "p": 3.0}


def test_the_default_parts_of_a_method() -> None:
    """Mean weighted by images, everything shared, cross-entropy."""
    plain = Method.__new__(Method)
    state = {"a": torch.zeros(2)}
    assert plain.server(state) == state
    sent = [
        base.Uplink("x", 1.0, {"a": torch.tensor([0.0, 4.0])}),
        base.Uplink("y", 3.0, {"a": torch.tensor([4.0, 0.0])}),
    ]
    assert plain.aggregate(state, sent)["a"].tolist() == [3.0, 1.0]
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    step = base.Step(logits, labels, {}, {}, {})
    assert plain.loss(step).item() == pytest.approx(0.6931472)
    assert plain.downlink_bytes(100, 7) == (100, 100)


def zero_shot(bench: Site, clip: FrozenCLIP, fed: Federation) -> Site:
    """With zero-shot beside it, so that trade-offs are drawn."""
    control, template = tiny.method("zero_shot"), "a photo of a {}."
    return replace(
        bench, zero_shot=tuple(control.tuner(clip, names, template) for names in (fed.base_names, fed.novel_names))
    )


def test_the_trade_off_of_the_last_round(clip: FrozenCLIP, fed: Federation) -> None:
    """From the reported state (weight 0) to zero-shot (weight 1), on test images and, where there are any, on others."""
    turned = replace(fed, tests=fed.tests | {"base": fed.tests["base"][:3]})
    plain = tiny.simulation(tiny.method("promptfl"), clip, fed, rounds=2)
    tested = replace(plain, site=zero_shot(plain.site, clip, fed))
    other = zero_shot(tiny.site(plain.spec.method, clip, turned), clip, turned)
    for chosen, kinds in ((plain, set()), (tested, {"test"}), (replace(tested, validation=other), {"test", "val"})):
        _, records = tiny.run(chosen)
        assert not records[0].curves
        assert records[1].curves.keys() == kinds
        for kind, curve in records[1].curves.items():
            images = fed if kind == "test" else turned
            bare = tiny.simulation(tiny.method("zero_shot"), clip, images)
            ends = tiny.run(bare)[1][0].means["after_aggregation"]
            assert [point["weight"] for point in curve] == list(plain.spec.method.mixing)
            assert all(curve[-1][key] == pytest.approx(ends[key]) for key in ("local", "base", "novel", "hm"))
        if kinds:
            means = records[1].means["after_aggregation"]
            first = records[1].curves["test"][0]
            assert all(first[key] == pytest.approx(means[key]) for key in ("local", "base", "novel", "hm"))


def test_the_means_hold_the_calibration_error_of_all_own_images(clip: FrozenCLIP, fed: Federation) -> None:
    chosen = task(clip, fed, rounds=1)
    state, records = tiny.run(chosen)
    begun = simulation.start(chosen)
    own = [simulation.client_outputs(chosen, chosen.site, begun, state, client, "after_aggregation").local
           for client in fed.clients]  # fmt: skip
    logits, labels = (
        torch.cat([getattr(one, part) for one in own if one is not None]) for part in ("logits", "labels")
    )
    assert records[0].means["after_aggregation"]["ece"] == pytest.approx(metrics.calibration(logits, labels).value)
    without = tuple(replace(client, local=()) for client in fed.clients)
    _, records = tiny.run(task(clip, replace(fed, clients=without), rounds=1))
    assert "ece" not in records[0].means["after_aggregation"]


def test_the_last_evaluation_is_the_result() -> None:
    """house.md rule 7, whatever the numbers."""
    assert [
        Procedure().result([{"local": value} for value in values]) for values in ((0.1,), (0.9, 0.1), (0.1, 0.9, 0.5))
    ] == [0, 1, 2]


def test_after_the_last_round_nothing_is_sent(clip: FrozenCLIP, fed: Federation) -> None:
    """Two rounds, then two visits of everybody: each trains on, and the server's state stays."""
    chosen = task(clip, fed, rounds=2, participation=0.5, settings={"fine_tune": 2})
    states = [simulation.start(chosen)]
    for state, record in simulation.run_rounds(chosen, states[0]):
        states.append(state)
        tuned = record.round > 2
        assert len(record.visits) == (4 if tuned else 2)
        assert all(visit.up_bytes == ({} if tuned else {"s": 4}) for visit in record.visits)
    assert [state.round for state in states] == [0, 1, 2, 3, 4]
    assert states[4].server["s"].item() == states[3].server["s"].item() == states[2].server["s"].item()
    own = [states[n].personal["site-0"]["s"].item() for n in (3, 4)]
    assert own == [states[2].server["s"].item() + 4, states[2].server["s"].item() + 8]


def test_logits_that_are_no_numbers_end_a_run(clip: FrozenCLIP, fed: Federation) -> None:
    """Finite tensors may still predict infinities: no accuracy is made of them."""
    chosen = task(clip, fed, rounds=2)

    class Broken(ProcedureWrapper):
        def outputs(self, site: Site, client: Any, own: dict[str, Tensor], received: dict[str, Tensor]) -> Any:
            found = super().outputs(site, client, own, received)
            if client.name == "site-2":
                found.base.logits[0, 0] = torch.inf
            return found

    chosen = replace(chosen, procedure=Broken(chosen.procedure))
    with pytest.raises(FedvlmError, match="round 1, client site-2: count predicts values that are not finite"):
        tiny.run(chosen)
