"""One suite for every method: what house.md promises of a new file in `methods/` without a test of its own.

The CLIP is tiny and random; `small.SETTINGS` brings every method down to its size. A new method needs nothing here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation import messages, server, simulation
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.client import train_client
from fedvlm.federation.simulation import FederationState, Simulation
from fedvlm.methods import known
from fedvlm.methods.base import Method, Step, Uplink
from fedvlm.streams import stream
from fedvlm.training import local
from fedvlm.tuners.base import predict

EVERY = list(known())
TRAINED = [name for name, kind in known().items() if kind.trains]


def brief(name: str, **settings: Any) -> Method:
    """With visits of one epoch: what hardly any promise depends on, and half of the time."""
    return small.method(name, **({"epochs": 1} | settings if known()[name].trains else settings))


def spied(method: Method) -> tuple[list[tuple[str, dict[str, Tensor]]], list[Uplink]]:
    """Copies of everything the method sends down and gets up from now on."""
    down: list[tuple[str, dict[str, Tensor]]] = []
    up: list[Uplink] = []
    downlink, aggregate = method.downlink, method.aggregate

    def spy_down(server: dict[str, Tensor], client: str, draw: np.random.Generator) -> dict[str, Tensor]:
        sent = downlink(server, client, draw)
        down.append((client, tensors.clone(sent)))
        return sent

    def spy_up(server: dict[str, Tensor], uplinks: Any) -> dict[str, Tensor]:
        up.extend(replace(one, tensors=tensors.clone(one.tensors)) for one in uplinks)
        return aggregate(server, uplinks)

    method.downlink, method.aggregate = spy_down, spy_up  # type: ignore[method-assign]
    return down, up


@pytest.mark.parametrize("name", EVERY)
def test_first_tensors_own_their_memory(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Not parts of a larger one: they are saved one by one, and a change of one must not change another."""
    for tensor in small.simulation(brief(name), clip, fed).spec.initial.values():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("name", EVERY)
def test_shared_and_private_are_disjoint_and_cover_all(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    method = brief(name)
    start = small.simulation(method, clip, fed).spec.initial
    shared, private = messages.shared(method, start), messages.private(method, start)
    assert not shared.keys() & private.keys()
    assert shared.keys() | private.keys() == start.keys()
    assert bool(start) == method.trains
    assert all(tensors.select(start, [pattern]) for pattern in method.shared) or not method.trains, (
        "a pattern matches nothing"
    )
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in start.values())


@pytest.mark.parametrize("name", TRAINED)
def test_no_private_tensor_is_in_any_message(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """By name and by bytes: no private tensor of any client after any visit stands in anything that crossed."""
    method = brief(name)
    down, up = spied(method)
    task = small.simulation(method, clip, fed)
    declared = messages.template(method, task.spec.initial).keys()
    kept: list[bytes] = []
    for state, _ in simulation.run_rounds(task, simulation.start(task)):
        for own in state.personal.values():
            private = messages.private(method, own).values()
            kept += [tensor.numpy().tobytes() for tensor in private if tensor.unique().numel() > 1]
    assert {one.client for one in up} == {client.name for client in fed.clients}
    for one in up:
        assert one.tensors.keys() == declared
    crossed = b"|".join(
        tensor.numpy().tobytes()
        for message in [*(m for _, m in down), *(u.tensors for u in up)]
        for tensor in message.values()
    )
    assert not [data for data in kept if data in crossed]
    assert bool(kept) == bool(messages.private(method, task.spec.initial))


@pytest.mark.parametrize("name", TRAINED)
def test_what_comes_down_was_sent_up_or_made_by_the_server(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Every downlink tensor has the shape of a shared tensor, and nothing comes down where nothing is shared."""
    method = brief(name)
    down, _ = spied(method)
    task = small.simulation(method, clip, fed)
    small.run(task)
    shapes = {tuple(tensor.shape) for tensor in messages.shared(method, task.spec.initial).values()}
    assert down
    assert all(tuple(tensor.shape) in shapes for _, message in down for tensor in message.values())


@pytest.mark.parametrize("name", TRAINED)
def test_message_bytes_are_the_declared_ones(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    method = brief(name)
    down, up = spied(method)
    task = small.simulation(method, clip, fed, every=100)
    _, records = small.run(task)
    declared = {n: t.numel() * 4 for n, t in messages.template(method, task.spec.initial).items()}
    assert not any(one.up_bytes for record in records if record.round > 3 for one in record.visits)
    visits = [one for record in records if record.round <= 3 for one in record.visits]
    assert len(visits) == len(up) == 3 * len(fed.clients)
    for one, sent in zip(visits, up, strict=True):
        assert one.client == sent.client
        assert one.up_bytes == declared == {n: t.numel() * t.element_size() for n, t in sent.tensors.items()}
        assert one.images == sent.weight
    least, most = method.downlink_bytes(sum(declared.values()), len(fed.clients))
    assert {sum(one.down_bytes.values()) for one in visits} >= {least, most}
    for one in visits:
        assert least <= sum(one.down_bytes.values()) <= most
        told = [
            {n: len(t.numpy().tobytes()) for n, t in message.items()}
            for client, message in down
            if client == one.client
        ]
        assert one.down_bytes in told


@pytest.mark.parametrize("name", TRAINED)
def test_the_order_of_clients_does_not_change_a_byte(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    first, _ = small.run(small.simulation(brief(name), clip, fed, every=100))
    turned = replace(fed, clients=tuple(fed.clients[place] for place in (3, 1, 0, 2)))
    second, _ = small.run(small.simulation(brief(name), clip, turned, every=100))
    assert small.fingerprint(second) == small.fingerprint(first)


def test_the_order_of_clients_does_not_change_who_takes_part(clip: FrozenCLIP, fed: Federation) -> None:
    turned = replace(fed, clients=tuple(reversed(fed.clients)))
    tasks = [small.simulation(small.method("coop"), clip, one, participation=0.5) for one in (fed, turned)]
    for round_ in range(6):
        one, other = ({client.name for client in simulation.sample_clients(task, round_)} for task in tasks)
        assert one == other


def uplinks(
    method: Method, clip: FrozenCLIP, fed: Federation, values: list[float]
) -> tuple[dict[str, Tensor], list[Uplink]]:
    start = small.simulation(method, clip, fed).spec.initial
    shared = messages.template(method, start)
    sent = [
        Uplink(f"site-{n}", 3.0, {name: torch.full_like(t, value) for name, t in shared.items()})
        for n, value in enumerate(values)
    ]
    return method.server(start), sent


SHARING = [name for name in TRAINED if known()[name].shared]


@pytest.mark.parametrize("name", SHARING)
def test_the_order_of_uplinks_does_not_change_a_byte(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Replies of a network come in any order. The values make rounding visible in one step; real ones do so rarely."""
    method = small.method(name)
    server, sent = uplinks(method, clip, fed, [1e30, -1e30, 1.0])
    results = [method.aggregate(server, [sent[i] for i in order]) for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0))]
    assert len({tensors.digest(result) for result in results}) == 1


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_client_of_weight_zero_changes_nothing(name: str, value: float, clip: FrozenCLIP, fed: Federation) -> None:
    method = small.method(name)
    server, sent = uplinks(method, clip, fed, [1.0, 2.0, value])
    without = method.aggregate(server, sent[:2])
    with_it = method.aggregate(server, [*sent[:2], replace(sent[2], weight=0.0)])
    assert without.keys() == with_it.keys()
    assert tensors.digest(with_it) == tensors.digest(without)


@pytest.mark.parametrize("name", TRAINED)
def test_an_aggregate_leaves_the_old_state_and_the_replies_alone(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    method = small.method(name)
    server, sent = uplinks(method, clip, fed, [1.0, 2.0])
    before = tensors.digest(server), [tensors.digest(one.tensors) for one in sent]
    method.aggregate(server, sent)
    assert (tensors.digest(server), [tensors.digest(one.tensors) for one in sent]) == before


def part(
    name: str, clip: FrozenCLIP, fed: Federation, folder: Path, count: int | None = None, **more: Any
) -> tuple[FederationState, list[Any]]:
    """Go on from what the folder holds, for `count` rounds or to the end, in what is, but for the CLIP, a new process."""
    task = small.simulation(brief(name), clip, fed, **more)
    checkpoint, records = Checkpoint(folder, 0), []  # clients' tensors on disk only
    found = checkpoint.load()
    state = begun = simulation.start(task, checkpoint.clients()) if found is None else found[0]
    for state, record in simulation.run_rounds(task, begun):
        records.append(record)
        checkpoint.save(state, 0)
        if len(records) == count:
            break
    return state, records


def resumed(
    name: str, clip: FrozenCLIP, fed: Federation, folder: Path, stop: int, **more: Any
) -> tuple[FederationState, list[Any]]:
    """Stop after `stop` rounds and go on."""
    _, records = part(name, clip, fed, folder, stop, **more)
    state, later = part(name, clip, fed, folder, **more)
    return state, records + later


def figures(records: list[Any]) -> list[Any]:
    """What a record says, less the clock."""
    return [
        (r.round, r.clients, r.means, [(v.client, v.losses, v.up_bytes, v.down_bytes) for v in r.visits])
        for r in records
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_stopped_and_resumed_equals_uninterrupted(name: str, clip: FrozenCLIP, fed: Federation, tmp_path: Path) -> None:
    """Bit for bit: state, losses and accuracies, stopped after every round and after the last."""
    whole, records = small.run(small.simulation(brief(name), clip, fed))
    again: list[Any] = []
    for stop in range(1, len(records) + 2):
        state, more = part(name, clip, fed, tmp_path, 1)
        again += more
        assert len(again) == min(stop, len(records))
    assert figures(again) == figures(records)
    assert small.fingerprint(state) == small.fingerprint(whole)


@pytest.mark.parametrize("name", TRAINED)
def test_stopped_and_resumed_with_half_of_the_clients(
    name: str, clip: FrozenCLIP, fed: Federation, tmp_path: Path
) -> None:
    """The same without remembered activations: whatever else is durable, is complete, for clients long not seen too."""
    how: dict[str, Any] = {"rounds": 4, "participation": 0.5, "limit": 0, "every": 2}
    whole, records = small.run(small.simulation(brief(name), clip, fed, **how))
    state, again = resumed(name, clip, fed, tmp_path, 2, **how)
    assert figures(again) == figures(records)
    assert small.fingerprint(state) == small.fingerprint(whole)


@pytest.mark.parametrize("name", TRAINED)
def test_augmented_runs_resume_too(name: str, clip: FrozenCLIP, fed: Federation, tmp_path: Path) -> None:
    how: dict[str, Any] = {"rounds": 2, "views": "online", "every": 100}
    whole, _ = small.run(small.simulation(brief(name), clip, fed, **how))
    state, _ = resumed(name, clip, fed, tmp_path, 1, **how)
    assert small.fingerprint(state) == small.fingerprint(whole)
    plain, _ = small.run(small.simulation(brief(name), clip, fed, rounds=2, every=100))
    assert small.fingerprint(plain) != small.fingerprint(whole)


def centrally(task: Simulation, fed: Federation) -> dict[str, Tensor]:
    """The same images in the same order by an ordinary PyTorch loop that knows of no messages or clients.

    The optimiser starts afresh where a visit does, and what a loss holds on to is the state it starts from.
    """
    method, tuner = task.spec.method, task.site.base
    config: Any = method.config
    (client,) = fed.clients
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in task.spec.initial.items()}
    place = {label: position for position, label in enumerate(fed.base)}
    images = torch.stack(
        [task.site.activations.clip.preprocess.test(fed.source.records[i].image.open()) for i in client.train]
    )
    hidden = task.site.activations.clip.visual.hidden(
        task.site.activations.clip.preprocess.normalise(images), tuner.entry
    )
    labels = torch.tensor([place[fed.source.records[i].label] for i in client.train])
    for round_ in range(task.spec.last_round):
        fall = 0.5 * (1 + np.cos(np.pi * round_ / task.spec.rounds)) if config.schedule == "cosine" else 1.0
        groups = [{"params": [p], "lr": method.rate(name) * fall} for name, p in parameters.items()]
        optimiser = {
            "sgd": lambda groups=groups: torch.optim.SGD(
                groups, momentum=config.momentum, weight_decay=config.weight_decay
            ),
            "adam": lambda groups=groups: torch.optim.Adam(
                groups, betas=(config.momentum, config.second_momentum), weight_decay=config.weight_decay
            ),
            "adamw": lambda groups=groups: torch.optim.AdamW(
                groups, betas=(config.momentum, config.second_momentum), weight_decay=config.weight_decay
            ),
        }[config.optimiser]()
        begun = {name: p.detach().clone() for name, p in parameters.items()}
        begun |= {"anchor": begun["prompt"]} if "prompt" in begun else {}
        for epoch in range(config.epochs):
            order = stream(task.spec.seed, "order", client.name, round_, epoch).permutation(len(client.train))
            for start in range(0, len(order), config.batch):
                rows = torch.from_numpy(order[start : start + config.batch])
                classifier = tuner.classifier(parameters, tuner.prepare({}))  # type: ignore[arg-type]
                logits, beside = predict(tuner, parameters, classifier, hidden[rows])  # type: ignore[arg-type]
                loss = method.loss(Step(logits, labels[rows], parameters, begun, classifier, beside))  # type: ignore[arg-type]
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.parametrize("name", TRAINED)
def test_one_client_with_everything_shared_is_central_training(name: str, clip: FrozenCLIP) -> None:
    fed = small.federation(sizes=(26,))
    method = small.method(name)
    method.shared = ("*",)  # type: ignore[misc]
    task = small.simulation(method, clip, fed)
    state, _ = small.run(task)
    central = centrally(task, fed)
    own = state.personal["site-0"]
    assert method.assemble(own, {}).keys() == central.keys()
    for tensor, expected in central.items():
        assert (own[tensor] - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max())), tensor
    for tensor in state.server.keys() & central.keys() if task.spec.last_round == task.spec.rounds else ():
        assert torch.equal(state.server[tensor], own[tensor])
    assert any((task.spec.initial[tensor] - central[tensor]).abs().max() > 1e-3 for tensor in central)


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    task = small.simulation(small.method(name), clip, fed, rounds=5, every=100)
    _, records = small.run(task)
    means = [np.mean([loss for one in record.visits for loss in one.losses]) for record in records]
    assert means[-1] < 0.7 * means[0]
    after = records[-1].means[task.spec.reported]
    assert after["local"] > 0.4


@pytest.mark.parametrize("name", TRAINED)
def test_all_clients_start_from_the_same_tensors(
    name: str, clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], local.train

    def spy(method: Method, tuner: Any, start: dict[str, Tensor], *more: Any) -> Any:
        seen.append(tensors.digest(start))
        return real(method, tuner, start, *more)

    monkeypatch.setattr(local, "train", spy)
    task = small.simulation(brief(name, fine_tune=0), clip, fed, rounds=1, every=100)
    before = tensors.digest(task.spec.initial)
    small.run(task)
    assert set(seen) == {before}
    assert len(seen) == len(fed.clients)
    assert tensors.digest(task.spec.initial) == before


@pytest.mark.parametrize("name", TRAINED)
def test_a_visit_does_not_depend_on_who_was_visited_before(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """No optimiser, no module and no random state passes from client to client."""
    state, _ = small.run(small.simulation(brief(name), clip, fed, rounds=2, every=100))
    last = fed.clients[-1]

    def result(before: int) -> list[str]:
        task = small.simulation(brief(name), clip, fed, rounds=3)
        for client in [*fed.clients[:before], last]:
            done = train_client(
                task.spec,
                task.site,
                2,
                client,
                state.personal[client.name],
                server.downlink(task.spec, state, client.name),
            )
        return [tensors.digest(done.personal), tensors.digest(done.uplink.tensors), repr(done.losses)]

    assert result(0) == result(3) == result(1)


def storages(every: dict[str, Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in every.values() if tensor.numel()}


@pytest.mark.parametrize("name", TRAINED)
def test_states_share_no_memory(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Clients' own tensors, the server's, the common start: writing into one changes no other."""
    task = small.simulation(brief(name), clip, fed, rounds=2, every=100)
    state, _ = small.run(task)
    every = [storages(state.server), storages(task.spec.initial), *(storages(own) for own in state.personal.values())]
    assert sum(map(len, every)) == len(set().union(*every))
    done = train_client(
        task.spec, task.site, 1, fed.clients[0], None, server.downlink(task.spec, state, fed.clients[0].name)
    )
    assert not storages(done.personal) & storages(done.uplink.tensors)
    assert not storages(done.personal) & storages(state.server)


@pytest.mark.parametrize("name", SHARING)
def test_writing_into_what_was_received_changes_nothing_on_the_server(
    name: str, clip: FrozenCLIP, fed: Federation
) -> None:
    task = small.simulation(small.method(name), clip, fed)
    state = simulation.start(task)
    before = small.fingerprint(state)
    for tensor in server.downlink(task.spec, state, fed.clients[0].name).values():
        tensor.add_(1)
    assert small.fingerprint(state) == before


@pytest.mark.parametrize("name", SHARING)
def test_writing_into_a_reply_after_aggregation_changes_nothing_on_the_server(
    name: str, clip: FrozenCLIP, fed: Federation
) -> None:
    method = small.method(name)
    server, sent = uplinks(method, clip, fed, [1.0, 2.0])
    after = method.aggregate(server, sent)
    before = tensors.digest(after)
    for one in sent:
        for tensor in one.tensors.values():
            tensor.add_(1)
    assert tensors.digest(after) == before


@pytest.fixture
def fresh() -> Iterator[None]:
    """What exists already does not count (and is not walked through: other libraries' objects are many)."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def graphs() -> Iterator[Tensor]:
    for item in gc.get_objects():
        if type(item) in (Tensor, torch.nn.Parameter) and item.grad_fn is not None:
            yield item


def live_bytes() -> int:
    gc.collect()
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor}
    return sum(seen.values())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", TRAINED)
def test_visits_keep_no_graph_and_memory_does_not_grow_with_rounds(
    name: str, clip: FrozenCLIP, fed: Federation
) -> None:
    """A pool's prompts change every round, so a memory of them is bounded by its own limit: 4 clients x 4 rounds fit."""
    task = small.simulation(brief(name), clip, fed, rounds=4, every=100)
    sizes = []
    for state, _ in simulation.run_rounds(task, simulation.start(task)):
        assert not any(t.requires_grad for own in [state.server, *state.personal.values()] for t in own.values())
        sizes.append(live_bytes())
    gc.collect()
    assert not list(graphs())
    slack = 4 * 4 * 4 * 16 * 4  # experts remembered: clients x rounds x classes x features x bytes
    assert max(sizes[1:4]) - min(sizes[1:4]) <= slack


@pytest.mark.parametrize("name", EVERY)
def test_the_frozen_clip_stays_frozen(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    before = tensors.digest(dict(clip.state_dict()))
    small.run(small.simulation(brief(name), clip, fed, rounds=1))
    assert tensors.digest(dict(clip.state_dict())) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in clip.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_depends_on_its_seed_and_on_no_global_generator(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    prints = []
    for seed, disturbance in ((1, 0), (1, 99), (2, 0)):
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)
        before = torch.get_rng_state()
        state, _ = small.run(small.simulation(brief(name), clip, fed, rounds=1, seed=seed, views="online", every=100))
        assert torch.equal(torch.get_rng_state(), before)
        prints.append(small.fingerprint(state))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", EVERY)
def test_a_class_order_turned_round_turns_the_logits_round(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Class names and labels stay together: logit k belongs to the k-th name."""
    method = small.method(name)
    names = list(fed.base_names)
    one, other = (method.tuner(clip, order, "a photo of a {}.") for order in (names, names[::-1]))
    start = small.simulation(method, clip, fed).spec.initial
    hidden = clip.visual.hidden(torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), one.entry)
    first, second = (predict(t, start, t.classifier(start, t.prepare({})), hidden)[0] for t in (one, other))
    assert (first - second.flip(-1)).abs().max() < 1e-4
