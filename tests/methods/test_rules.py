"""What servers do in FedAMP and FedMGP, and what the rules send, against the papers' formulas written out."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages, server, simulation
from fedvlm.federation.client import train_client
from fedvlm.methods import build
from fedvlm.methods.base import Method, Uplink
from fedvlm.streams import stream, torch_stream
from fedvlm.testing import tiny


def prompts(count: int, seed: int = 0) -> dict[str, Tensor]:
    draw = torch_stream(seed, "prompts")
    return {f"site-{n}": torch.randn(2, 3, generator=draw) * (1 + n) for n in range(count)}


def amp(sent: dict[str, Tensor], **settings: Any) -> tuple[Method, dict[str, Tensor]]:
    """FedAMP's server after one round with these prompts, of 1, 2, 3 ... images."""
    method = tiny.method("fedamp", **settings)
    start = {"prompt": torch.zeros(2, 3)}
    ups = [Uplink(name, n + 1.0, {"prompt": prompt}) for n, (name, prompt) in enumerate(sent.items())]
    return method, method.aggregate(method.server(start), ups)


def received(method: Method, server: dict[str, Tensor], client: str) -> Tensor:
    return method.downlink(server, client, tiny.draws("downlink"))["anchor"]


@pytest.mark.parametrize("attraction", [0.9, 0.3, 1.0])
def test_fedamps_mixture_by_hand(attraction: float) -> None:
    """Huang et al., equations 4 to 6: a A'(|P_i - P_j|^2) to each other, the rest to oneself; A' = e^(-x/s) / s."""
    sent = prompts(4)
    method, server = amp(sent, attraction=attraction)
    far = {(i, j): ((sent[i] - sent[j]).double() ** 2).sum().item() for i in sent for j in sent if i != j}
    sigma = sum(far.values()) / len(far)
    step = attraction * sigma / 3
    for i in sent:
        weights = {j: step * np.exp(-far[i, j] / sigma) / sigma for j in sent if j != i}
        own = 1 - sum(weights.values())
        assert all(weight >= 0 for weight in [own, *weights.values()])
        assert sorted(weights, key=lambda j: -weights[j]) == sorted(weights, key=lambda j: far[i, j])
        expected = own * sent[i].double() + sum(weight * sent[j].double() for j, weight in weights.items())
        assert (received(method, server, i) - expected).abs().max() < 1e-6


def test_fedamps_mixture_does_not_depend_on_the_order_of_the_pool() -> None:
    """A pool that was read from disk is in another order. Two prompts that cancel show in which order it is summed."""
    sizes = {"a": 0.0, "b": 1e18, "c": -1e18, "d": 1.0}
    method, server = amp({name: torch.full((2, 3), size) for name, size in sizes.items()})
    turned = [dict(reversed(server.items())), {name: server[name] for name in sorted(server, key=lambda n: n[::-1])}]
    turned.append({name: server[name] for name in sorted(server, key=lambda n: "bdca".find(n[-1]))})
    assert all(torch.equal(received(method, other, "a"), received(method, server, "a")) for other in turned)


def test_fedamp_keeps_twins_together() -> None:
    """Equal prompts everywhere: nothing to mix, no division by a mean distance of zero; and full attraction of twins."""
    same = dict.fromkeys(prompts(3), torch.ones(2, 3))
    method, server = amp(same)
    assert all(torch.equal(received(method, server, name), torch.ones(2, 3)) for name in same)
    one, far = torch.zeros(2, 3), torch.full((2, 3), 100.0)
    method, server = amp({"a": one, "b": one.clone(), "c": far}, attraction=1.0)
    sigma = 2 * 6e4 / 3
    expected = 100 * np.exp(-6e4 / sigma) / 2
    assert received(method, server, "a")[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_fedamps_newcomers_get_the_mean_and_a_lonely_client_itself() -> None:
    sent = prompts(3)
    method, server = amp(sent)
    mean = sum((n + 1) * prompt.double() for n, prompt in enumerate(sent.values())) / 6
    assert (received(method, server, "site-9") - mean).abs().max() < 1e-6
    method, server = amp(prompts(1))
    assert torch.equal(received(method, server, "site-0"), prompts(1)["site-0"])


def test_fedamp_remembers_clients_that_were_not_there(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(tiny.method("fedamp"), clip, fed, rounds=5, participation=0.5, every=100)
    state, _ = tiny.run(task)
    for name, own in state.personal.items():
        assert torch.equal(state.server[f"pool.{name}"], own["prompt"])
    for client in fed.clients:
        assert server.downlink(task.spec, state, client.name).keys() == {"anchor"}


def test_fedamps_visit_starts_from_the_own_prompt(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(tiny.method("fedamp"), clip, fed, rounds=3, every=100)
    state, _ = tiny.run(task)
    client = fed.clients[0]
    still = tiny.simulation(tiny.method("fedamp", lr=0.0), clip, fed, rounds=3, every=100)
    done = train_client(
        still.spec, still.site, 2, client, state.personal[client.name], server.downlink(still.spec, state, client.name)
    )
    assert torch.equal(done.personal["prompt"], state.personal[client.name]["prompt"])


def mgp(**settings: Any) -> Method:
    return tiny.method("fedmgp", groups=4, sent=2, length=1, **settings)


def test_fedmgp_sends_its_drawn_groups_in_their_order_and_nothing_else(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(mgp(), clip, fed, rounds=3, every=100)
    state = simulation.start(task)
    for _ in range(2):
        before, (state, _) = state, next(simulation.run_rounds(task, state))
        for client in fed.clients:
            own = before.personal.get(client.name)
            done = train_client(
                task.spec, task.site, before.round, client, own, server.downlink(task.spec, before, client.name)
            )
            slots = done.personal["chosen"].tolist()
            assert len(set(slots)) == 2
            assert done.uplink.tensors.keys() == {f"global.{kind}.{i}" for kind in ("text", "vision") for i in (0, 1)}
            for i, slot in enumerate(slots):
                for kind in ("text", "vision"):
                    assert torch.equal(done.uplink.tensors[f"global.{kind}.{i}"], done.personal[f"{kind}.{slot}"])


def test_fedmgps_server_averages_first_with_first_by_images(clip: FrozenCLIP, fed: Federation) -> None:
    task = tiny.simulation(mgp(), clip, fed, rounds=1, every=100)
    state, _ = tiny.run(task)
    images = {client.name: len(client.train) for client in fed.clients}
    assert state.server.keys() == {f"global.{kind}.{i}" for kind in ("text", "vision") for i in (0, 1)}
    for kind in ("text", "vision"):
        for i in (0, 1):
            drawn = {name: own[f"{kind}.{own['chosen'][i]}"].double() for name, own in state.personal.items()}
            mean = sum(images[name] * tensor for name, tensor in drawn.items()) / sum(images.values())
            assert (state.server[f"global.{kind}.{i}"] - mean).abs().max() < 1e-6


def test_fedmgps_global_groups_return_to_the_drawn_places_and_nothing_else_changes(
    clip: FrozenCLIP, fed: Federation
) -> None:
    task = tiny.simulation(mgp(), clip, fed, rounds=2, every=100)
    state, _ = tiny.run(task)
    method, client = task.spec.method, fed.clients[2]
    own = state.personal[client.name]
    begun = method.assemble(own, server.downlink(task.spec, state, client.name))
    slots = own["chosen"].tolist()
    assert begun.keys() == task.spec.initial.keys()
    for kind in ("text", "vision"):
        for slot in range(4):
            expected = state.server[f"global.{kind}.{slots.index(slot)}"] if slot in slots else own[f"{kind}.{slot}"]
            assert torch.equal(begun[f"{kind}.{slot}"], expected)
    still = tiny.simulation(mgp(lr=0.0), clip, fed, rounds=3, every=100)
    done = train_client(still.spec, still.site, 2, client, own, server.downlink(still.spec, state, client.name))
    assert all(torch.equal(done.personal[name], tensor) for name, tensor in begun.items())
    newcomer = method.assemble(task.spec.initial, server.downlink(task.spec, state, client.name))
    assert all(torch.equal(newcomer[name], tensor) for name, tensor in task.spec.initial.items())


def kept(method: Method, own: dict[str, Tensor], common: dict[str, Tensor], draws: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(method.keep(own, common, stream(0, "draw", n))["chosen"].tolist()) for n in range(draws))


def test_fedmgp_draws_without_replacement_by_likeness() -> None:
    """First p_j ~ e^(best cosine / temperature), then the same among the others: every ordered pair as often as that."""
    method, draw = mgp(temperature=0.5), torch_stream(0, "groups")
    own = {f"{kind}.{j}": torch.randn(1, 6, generator=draw) for j in range(4) for kind in ("text", "vision")}
    common = {f"global.{kind}.{i}": torch.randn(1, 6, generator=draw) for i in range(2) for kind in ("text", "vision")}

    def flat(named: dict[str, Tensor], prefix: str, j: int) -> np.ndarray:
        return np.concatenate([named[f"{prefix}{kind}.{j}"].numpy().ravel() for kind in ("text", "vision")])

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    best = [max(cosine(flat(own, "", j), flat(common, "global.", i)) for i in range(2)) for j in range(4)]
    weight, draws = np.exp(np.array(best) / 0.5), 3000
    counts = kept(method, own, common, draws)
    for first in range(4):
        for second in set(range(4)) - {first}:
            chance = weight[first] / weight.sum() * weight[second] / (weight.sum() - weight[first])
            assert abs(counts[first, second] - draws * chance) < 5 * (draws * chance * (1 - chance)) ** 0.5
    uniform = kept(method, own, {}, draws)
    assert all(abs(uniform[pair] - draws / 12) < 5 * (draws / 12) ** 0.5 for pair in counts)
    assert len(uniform) == 12


def test_fedmgp_at_a_low_temperature_sends_the_likest_groups() -> None:
    """Where e^(cosine / temperature) of the others is no number above zero any more."""
    method = mgp(temperature=1e-4)
    own = {f"{kind}.{j}": torch.tensor([[1.0, float(j)]]) for j in range(4) for kind in ("text", "vision")}
    common = {f"global.{kind}.{i}": torch.tensor([[1.0, 0.0]]) for i in range(2) for kind in ("text", "vision")}
    assert kept(method, own, common, 20) == {(0, 1): 20}


def test_fedmgps_second_visit_of_fine_tuning_goes_on_from_the_first(clip: FrozenCLIP, fed: Federation) -> None:
    """The global groups come once, as every other method's shared tensors do."""
    task = tiny.simulation(mgp(fine_tune=2), clip, fed, rounds=1, every=100)
    states = [state for state, _ in simulation.run_rounds(task, simulation.start(task))]
    assert len(states) == 3
    assert server.downlink(task.spec, states[0], fed.clients[0].name).keys() == states[0].server.keys()
    assert server.downlink(task.spec, states[1], fed.clients[0].name) == {}
    assert tensors.digest(states[2].server) == tensors.digest(states[0].server)


@pytest.mark.parametrize("name", ["fedmgp", "fedamp"])
@pytest.mark.parametrize("share", [[], ["*"]])
def test_what_a_server_rule_needs_is_not_open_to_choice(name: str, share: list[str]) -> None:
    """Nothing may cross that the settings declare private, and no setting ends in a KeyError."""
    with pytest.raises(FedvlmError, match=rf"'method\.{name}\.share'.*makes its messages itself"):
        build(name, {name: {"share": share}})


def test_a_negative_number_of_visits_is_refused() -> None:
    with pytest.raises(FedvlmError, match="fine_tune"):
        build("promptfl_ft", {"promptfl_ft": {"fine_tune": -1}})


PRIVATE = {
    "fedper": {"prompt.private"}, "promptfolio": {"prompt.own"}, "fedotp": {"prompt.own"}, "fedpgp": {"u", "v"},
    "coop": {"prompt"}, "promptfl": set(), "kgcoop": set(), "cocoop": set(), "fedamp": set(), "promptfl_prox": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_what_stays(name: str, clip: FrozenCLIP, fed: Federation) -> None:
    """baselines.md 8 to 15."""
    task = tiny.simulation(tiny.method(name), clip, fed)
    assert messages.private_tensors(task.spec.method, task.spec.initial).keys() == PRIVATE[name]
    assert (
        messages.uplink_template(task.spec.method, task.spec.initial).keys() == task.spec.initial.keys() - PRIVATE[name]
    )


@pytest.mark.parametrize(
    ("name", "stays"), [("local_lora", "ab"), ("fedlora", ""), ("ffa_lora", ""), ("fedsa_lora", "b")]
)
def test_what_stays_of_lora(name: str, stays: str, clip: FrozenCLIP, fed: Federation) -> None:
    """FFA-LoRA has no A to send: it is the same everywhere from the start."""
    task = tiny.simulation(tiny.method(name), clip, fed)
    assert {key[-1] for key in messages.private_tensors(task.spec.method, task.spec.initial)} == set(stays)
    assert {key[-1] for key in task.spec.initial} == ({"b"} if name == "ffa_lora" else {"a", "b"})
