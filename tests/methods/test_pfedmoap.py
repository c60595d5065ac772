"""pFedMoAP's own rules: who gets whose prompt, when, and what the gate sees (pfedmoap.md 3)."""

from __future__ import annotations

from typing import Any

import formulas
import numpy as np
import pytest
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation import server, simulation
from fedvlm.federation.client import train_client
from fedvlm.federation.simulation import FederationState
from fedvlm.methods.base import Uplink
from fedvlm.methods.pfedmoap import PFedMoAP
from fedvlm.streams import stream, torch_stream
from fedvlm.testing import tiny
from fedvlm.training.device import Device
from fedvlm.training.site import Site

NAMES = [f"site-{number}" for number in (3, 11, 0, 7, 2, 20, 1)]


def pool(seed: int = 0, names: list[str] = NAMES) -> dict[str, Tensor]:
    draw = torch_stream(seed, "pool")
    return {"prompt": torch.zeros(3, 24)} | {f"pool.{name}": torch.randn(3, 24, generator=draw) for name in names}


def method(**settings: Any) -> PFedMoAP:
    made = tiny.method("pfedmoap", **settings)
    assert isinstance(made, PFedMoAP)
    return made


def experts(message: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for name, tensor in message.items() if name.startswith("experts.")]


def same(found: list[Tensor], server: dict[str, Tensor], names: list[str]) -> bool:
    """The prompts found are exactly those of these clients, in any order."""
    wanted = {server[f"pool.{name}"].numpy().tobytes() for name in names}
    return len(found) == len(wanted) and {tensor.numpy().tobytes() for tensor in found} == wanted


@pytest.mark.parametrize("count", [1, 2, 4, 7, 30])
@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_prompts_by_brute_force(count: int, seed: int) -> None:
    """K = count - 1 smallest Euclidean distances over the flattened prompts, the client itself left out."""
    server = pool(seed)
    for client in NAMES:
        own = server[f"pool.{client}"].double().flatten().tolist()
        distance = {
            other: sum(
                (a - b) ** 2 for a, b in zip(own, server[f"pool.{other}"].double().flatten().tolist(), strict=True)
            )
            ** 0.5
            for other in NAMES
            if other != client
        }
        nearest = sorted(distance, key=lambda other: distance[other])[: count - 1]
        sent = method(experts=count).downlink(server, client, stream(0, "d"))
        assert same(experts(sent), server, nearest)
        assert torch.equal(sent["prompt"], server["prompt"])


def test_ties_do_not_depend_on_the_order_of_the_pool() -> None:
    server = {"prompt": torch.zeros(3, 24)} | {f"pool.{name}": torch.zeros(3, 24) for name in NAMES}
    turned = dict(reversed(server.items()))
    for client in NAMES:
        picks = [method(experts=3).experts(state, client, stream(0, "d")) for state in (server, turned)]
        assert picks[0] == picks[1]
        assert client not in picks[0]


def test_random_experts_are_drawn_anew_evenly_and_never_the_client_itself() -> None:
    server, drawn = pool(), method(experts=4, select="random")
    counts = dict.fromkeys(NAMES, 0)
    picks = []
    for round_ in range(600):
        chosen = drawn.experts(server, "site-3", stream(1, "downlink", round_, "site-3"))
        assert len(set(chosen)) == 3
        picks.append(tuple(sorted(chosen)))
        for name in chosen:
            counts[name] += 1
    assert counts.pop("site-3") == 0
    expected, deviation = 600 * 3 / 6, (600 * 0.5 * 0.5) ** 0.5
    assert all(abs(count - expected) < 5 * deviation for count in counts.values())
    assert len(set(picks)) == 20
    assert drawn.experts(server, "site-3", stream(1, "x")) == drawn.experts(
        dict(reversed(server.items())), "site-3", stream(1, "x")
    )


def test_experts_are_dealt_in_the_order_of_their_names() -> None:
    """A linear gate knows an expert by its place, which must not change with the draw or the distance."""
    for select in ("nearest", "random"):
        dealt = [
            method(experts=5, select=select).experts(pool(seed), "site-3", stream(seed, "d")) for seed in range(20)
        ]
        assert all(names == sorted(names) for names in dealt)
        assert len({tuple(names) for names in dealt}) > 5


def test_fixed_experts_are_the_same_whoever_asks_whenever() -> None:
    fixed = method(experts=3, select="fixed")
    for seed in range(3):
        server = pool(seed)
        assert fixed.experts(server, "site-3", stream(seed, "d")) == ["site-0", "site-1"]
        assert fixed.experts(server, "site-0", stream(seed, "d")) == ["site-1", "site-11"]


@pytest.mark.parametrize("select", ["nearest", "random", "fixed", "none"])
def test_who_is_not_in_the_pool_gets_the_averaged_prompt_alone(select: str) -> None:
    server = pool()
    assert method(select=select).downlink(server, "new", stream(0, "d")).keys() == {"prompt"}
    if select == "none":
        assert method(select=select).downlink(server, "site-3", stream(0, "d")).keys() == {"prompt"}


def test_a_pool_smaller_than_k_is_dealt_whole() -> None:
    server = pool(names=NAMES[:3])
    for select in ("nearest", "random", "fixed"):
        sent = method(experts=10, select=select).downlink(server, NAMES[0], stream(0, "d"))
        assert same(experts(sent), server, NAMES[1:3])
        alone = pool(names=NAMES[:1])
        assert method(experts=10, select=select).downlink(alone, NAMES[0], stream(0, "d")).keys() == {"prompt"}


def test_names_with_dots_and_prefixes_are_told_apart() -> None:
    names = ["a", "a.b", "pool.a", "prompt", "experts.a", "b*"]
    server = pool(names=names)
    for client in names:
        sent = method(experts=20).downlink(server, client, stream(0, "d"))
        assert same(experts(sent), server, [name for name in names if name != client])


def test_a_client_does_not_learn_the_names_of_others() -> None:
    """Prompts are dealt openly (and the docstring says so); who else takes part need not be."""
    sent = method(experts=20).downlink(pool(), "site-3", stream(0, "d"))
    assert not [name for name in sent for other in NAMES if other in name]


def test_the_aggregate_is_weighted_by_images_over_those_who_took_part() -> None:
    """(1 x 2 + 3 x 6) / 4 = 5; the pool takes the two prompts and keeps the others'."""
    server = pool()
    sent = [
        Uplink("site-0", 1.0, {"prompt": torch.full((3, 24), 2.0)}),
        Uplink("new", 3.0, {"prompt": torch.full((3, 24), 6.0)}),
    ]
    after = method().aggregate(server, sent)
    assert torch.equal(after["prompt"], torch.full((3, 24), 5.0))
    assert after.keys() == server.keys() | {"pool.new"}
    assert float(after["pool.site-0"].mean()) == 2.0
    assert float(after["pool.new"].mean()) == 6.0
    for name in set(NAMES) - {"site-0"}:
        assert torch.equal(after[f"pool.{name}"], server[f"pool.{name}"])


def test_experts_of_a_round_are_those_of_the_round_before(clip: FrozenCLIP, fed: Federation) -> None:
    """A frozen snapshot: no client sees a prompt that was trained in the same round, whatever its place in the order."""
    task = tiny.simulation(method(experts=10), clip, fed, rounds=3, every=100)
    sent: list[tuple[str, dict[str, Tensor]]] = []
    real = task.spec.method.downlink
    task.spec.method.downlink = lambda server, client, draw: (
        sent.append((client, real(server, client, draw))) or sent[-1][1]
    )  # type: ignore[method-assign,func-returns-value]
    before: dict[str, Tensor] = {}
    for state, record in simulation.run_rounds(task, simulation.start(task)):
        messages = dict(sent[: len(fed.clients)])
        sent.clear()
        for client in fed.clients:
            others = [
                f"pool.{other.name}" for other in fed.clients if other != client and f"pool.{other.name}" in before
            ]
            expected = {before[name].numpy().tobytes() for name in others}
            assert {t.numpy().tobytes() for t in experts(messages[client.name])} == expected
            assert bool(expected) == (record.round > 1)
        before = state.server
        assert all(torch.equal(before[f"pool.{name}"], own["prompt"]) for name, own in state.personal.items())


def test_every_visit_starts_from_the_averaged_prompt_and_the_own_gate(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(method(), clip, fed, rounds=3, every=100)
    state, _ = tiny.run(task)
    client = fed.clients[1]
    lazy = tiny.simulation(method(lr=0.0, gate_lr=0.0), clip, fed, rounds=3, every=100)
    done = train_client(
        lazy.spec, lazy.site, 2, client, state.personal[client.name], server.downlink(lazy.spec, state, client.name)
    )
    assert torch.equal(done.personal["prompt"], state.server["prompt"])
    for name, tensor in state.personal[client.name].items():
        if name.startswith("gating."):
            assert torch.equal(done.personal[name], tensor)


def test_the_gate_is_first_trained_at_the_second_participation(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(method(), clip, fed, rounds=6, participation=0.5, every=100)
    counts = dict.fromkeys((client.name for client in fed.clients), 0)
    for state, record in simulation.run_rounds(task, simulation.start(task)):
        for one in record.visits:
            counts[one.client] += 1
        for name, own in state.personal.items():
            gate = tensors.select(own, ["gating.*"])
            untouched = all(torch.equal(tensor, task.spec.initial[key]) for key, tensor in gate.items())
            assert untouched == (counts[name] < 2)
    assert max(counts.values()) > 2


def test_without_experts_it_is_promptfl(clip: FrozenCLIP, fed: Federation) -> None:
    """The first round of everybody: the same prompts, the same average."""
    shape = {"rounds": 1, "every": 100}
    mixed, _ = tiny.run(tiny.simulation(method(), clip, fed, **shape))  # type: ignore[arg-type]
    prompt = tiny.simulation(tiny.method("promptfl"), clip, fed, **shape)  # type: ignore[arg-type]
    prompt.spec.initial["prompt"].copy_(tiny.simulation(method(), clip, fed).spec.initial["prompt"])
    plain, _ = tiny.run(prompt)
    assert torch.equal(mixed.server["prompt"], plain.server["prompt"])


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("weight", [0.5, 0.0, 2.0])
def test_logits_are_equation_ten(clip: FrozenCLIP, fed: Federation, others: int, weight: float) -> None:
    chosen = method(local_weight=weight)
    tuner = chosen.tuner(clip, fed.base_names, "")
    start = tuner.init(torch_stream(0, "init"))
    prompts = [torch.randn(3, 24, generator=torch_stream(n, "expert")) for n in range(others)]
    received = {"prompt": start["prompt"]} | {f"experts.{n}": prompt for n, prompt in enumerate(prompts)}
    pixels = torch.randn(4, 3, 16, 16, generator=torch_stream(0, "pixels"))
    ours = tuner.logits(
        start, tuner.classifier(start, tuner.prepare(received)), clip.visual.hidden(pixels, tuner.entry)
    )
    theirs = formulas.mixture_logits(
        clip, formulas.weights(clip), formulas.doubled(start), [prompt.double() for prompt in prompts], fed.base_names, pixels,
        width=8, heads=2, scaling=10.0, weight=weight,
    )  # fmt: skip
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_k_of_zero_keeps_the_gate_over_the_own_prompt(clip: FrozenCLIP, fed: Federation) -> None:
    """The ablation that the paper lacks: gate alone, trained from the first round, nobody else's prompt."""
    task = tiny.simulation(method(select="none"), clip, fed, rounds=1, every=100)
    tuner = task.site.base
    pixels = torch.randn(4, 3, 16, 16, generator=torch_stream(0, "pixels"))
    hidden = clip.visual.hidden(pixels, tuner.entry)
    ours = tuner.logits(
        task.spec.initial,
        tuner.classifier(task.spec.initial, tuner.prepare({"prompt": task.spec.initial["prompt"]})),
        hidden,
    )
    w, start = formulas.weights(clip), formulas.doubled(task.spec.initial)
    image = torch.nn.functional.normalize(formulas.image_features(pixels, w, clip.config), dim=-1)
    text = formulas.prompt_features(clip, w, start["prompt"], fed.base_names)
    theirs = 20.0 * (formulas.gate_logits(start, image, text[None], 8, 2, 10.0) + 0.5 * image @ text.T)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
    state, records = tiny.run(task)
    assert all(
        not torch.equal(own["gating.o.weight"], task.spec.initial["gating.o.weight"]) for own in state.personal.values()
    )
    assert all(one.down_bytes == {"prompt": 3 * 24 * 4} for one in records[0].visits)


def test_one_expert_is_the_gate_over_the_own_prompt_too(clip: FrozenCLIP, fed: Federation) -> None:
    one, none = (
        tiny.run(tiny.simulation(method(**how), clip, fed, rounds=2, every=100))[0]
        for how in ({"experts": 1}, {"select": "none"})
    )
    assert tiny.fingerprint(one)["client site-0"] == tiny.fingerprint(none)["client site-0"]


def test_experts_are_frozen_during_a_visit(clip: FrozenCLIP, fed: Federation) -> None:
    tuner = method().tuner(clip, fed.base_names, "")
    prompt = torch.randn(3, 24, requires_grad=True)
    constants = tuner.prepare({"prompt": torch.zeros(3, 24), "experts.a": prompt})
    assert constants["experts"].shape == (4, 1, 8)
    assert not constants["experts"].requires_grad


def test_remembered_experts_are_found_by_their_bytes(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients of a round receive the same prompts: their text features are computed once, and never for another prompt."""
    tuner = method().tuner(clip, fed.base_names, "")
    calls, real = [], tuner.prompt.features
    monkeypatch.setattr(tuner.prompt, "features", lambda prompt: calls.append(1) or real(prompt))  # type: ignore[func-returns-value]
    one, two = torch.randn(3, 24), torch.randn(3, 24)
    first = tuner.prepare({"experts.a": one, "experts.b": two})["experts"]
    again = tuner.prepare({"experts.x": two.clone(), "experts.y": one.clone()})["experts"]
    assert len(calls) == 2
    assert torch.equal(first, again.flip(1))
    one.add_(1)
    assert not torch.equal(tuner.prepare({"experts.a": one})["experts"], first[:, :1])
    for number in range(300):
        tuner.prepare({"experts.a": torch.full((3, 24), float(number))})
    assert len(tuner.encoded) <= 256


def test_remembered_experts_take_no_more_room_than_they_need(clip: FrozenCLIP, fed: Federation) -> None:
    tuner = method().tuner(clip, fed.base_names, "")
    tuner.prepare({"experts.a": torch.randn(3, 24)})
    (kept,) = tuner.encoded.values()
    assert kept.untyped_storage().nbytes() == kept.numel() * 4


def test_remembered_experts_do_not_depend_on_who_asked_first(clip: FrozenCLIP, fed: Federation) -> None:
    """Otherwise a run in bfloat16 resumes with other experts: after a restart training asks before evaluation does."""
    device = Device(torch.device("cpu"), torch.bfloat16)
    received = {"prompt": torch.zeros(3, 24), "experts.a": torch.randn(3, 24, generator=torch_stream(0, "expert"))}
    fresh = method().tuner(clip, fed.base_names, "").prepare(received)["experts"]
    tuner = method().tuner(clip, fed.base_names, "")
    task = tiny.simulation(method(), clip, fed, device=device)
    Site(tuner, None, fed, task.site.activations, 8).logits(tuner, task.spec.initial, received, fed.tests["base"])
    assert torch.equal(tuner.prepare(received)["experts"], fresh)


def test_each_round_and_client_draws_from_its_own_stream(clip: FrozenCLIP, fed: Federation) -> None:
    """Selection does not depend on the order in which clients ask, nor on how many asked before."""
    task = tiny.simulation(method(select="random", experts=2), clip, fed, rounds=3, every=100)
    state, _ = tiny.run(tiny.simulation(method(select="random", experts=2), clip, fed, rounds=2, every=100))
    forwards = {client.name: server.downlink(task.spec, state, client.name).keys() for client in fed.clients}
    backwards = {client.name: server.downlink(task.spec, state, client.name).keys() for client in reversed(fed.clients)}
    assert forwards == backwards
    seen = set()
    for round_ in range(12):
        later = FederationState(round_, state.server, state.personal)
        sent = [server.downlink(task.spec, later, client.name)["experts.0000"] for client in fed.clients]
        seen.add(tuple(tensors.digest({"expert": prompt}) for prompt in sent))
    assert len(seen) > 6


def test_its_accuracy_is_that_after_training(clip: FrozenCLIP, fed: Federation) -> None:
    """Inference with the own last prompt, the own gate and experts from the pool that it trained with (3.1)."""
    task = tiny.simulation(method(), clip, fed, rounds=2)
    (before, _), (after, record) = simulation.run_rounds(task, simulation.start(task))
    client = fed.clients[0]
    own, sent = after.personal[client.name], server.downlink(task.spec, before, client.name)
    w = formulas.weights(clip)
    images = torch.stack([clip.preprocess.test(fed.source.records[i].image.open()) for i in client.local])
    logits = formulas.mixture_logits(
        clip, w, formulas.doubled(own), [t.double() for t in experts(sent)], fed.base_names, clip.preprocess.normalise(images),
        width=8, heads=2, scaling=10.0, weight=0.5,
    )  # fmt: skip
    labels = np.array([fed.base.index(fed.source.records[i].label) for i in client.local])
    expected = float((logits.argmax(1).numpy() == labels).mean())
    assert record.clients["after_training"][client.name]["local"] == pytest.approx(expected)
    assert record.clients["after_training"][client.name]["loss"] == pytest.approx(
        float(formulas.cross_entropy(logits, torch.from_numpy(labels))), rel=1e-4
    )
