"""The variants of pFedMoAP's tables 7 and 9: linear gate, averaged gate, average pooling."""

from __future__ import annotations

from typing import Any

import formulas
import pytest
import torch

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages, server, simulation
from fedvlm.federation.simulation import Simulation
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny

PROMPT = 3 * 24 * 4
GATE = 4 * (8 * 8 + 8) * 4


def task(clip: FrozenCLIP, fed: Federation, rounds: int = 3, **settings: Any) -> Simulation:
    return tiny.simulation(tiny.method("pfedmoap", **settings), clip, fed, rounds=rounds, every=100)


@pytest.mark.parametrize("kind", ["attention", "linear"])
@pytest.mark.parametrize("pooling", ["stride", "average"])
@pytest.mark.parametrize("others", [0, 2])
def test_logits_are_equation_ten_with_every_gate_and_pooling(
    kind: str, pooling: str, others: int, clip: FrozenCLIP, fed: Federation
) -> None:
    """s <pool(I), sum_j w_j pool(T_j)> + s/2 <I, T>, in float64; for attention `formulas.gate_logits` on pooled features."""
    method = tiny.method("pfedmoap", gate=kind, pooling=pooling)
    tuner = method.tuner(clip, fed.base_names, "")
    start = tuner.init(torch_stream(0, "init"))
    prompts = [torch.randn(3, 24, generator=torch_stream(n, "expert")) for n in range(others)]
    received = {"prompt": start["prompt"]} | {f"experts.{n}": prompt for n, prompt in enumerate(prompts)}
    pixels = torch.randn(4, 3, 16, 16, generator=torch_stream(0, "pixels"))
    ours = tuner.logits(
        start, tuner.classifier(start, tuner.prepare(received)), clip.visual.hidden(pixels, tuner.entry)
    )
    w, true = formulas.weights(clip), formulas.doubled(start)
    image = formulas.image_features(pixels, w, clip.config)
    image = image / image.norm(dim=-1, keepdim=True)
    text = torch.stack(
        [formulas.prompt_features(clip, w, p.double(), fed.base_names) for p in (start["prompt"], *prompts)]
    )
    expected = 20 * image @ text[0].T * (0.5 if others else 1.0)
    if others:
        short, experts = pooled(image, pooling), pooled(text, pooling)
        if kind == "linear":
            scores = short @ true["gating.linear.weight"][: others + 1].T + true["gating.linear.bias"][: others + 1]
            shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
            expected += 20 * sum(shares[:, j, None] * (short @ experts[j].T) for j in range(others + 1))
        else:
            expected += 20 * formulas.gate_logits(true, short, experts, 8, 2, 10.0)
    assert (ours - expected).abs().max() < 2e-5 * expected.abs().max()


def pooled(features: torch.Tensor, how: str) -> torch.Tensor:
    """From 16 channels to 8."""
    return features[..., ::2] if how == "stride" else (features[..., ::2] + features[..., 1::2]) / 2


def test_the_linear_gate_is_trained_and_stays(clip: FrozenCLIP, fed: Federation) -> None:
    chosen = task(clip, fed, gate="linear", heads=3)
    assert {name: tuple(t.shape) for name, t in chosen.spec.initial.items()} == {
        "prompt": (3, 24), "gating.linear.weight": (3, 8), "gating.linear.bias": (3,),
    }  # fmt: skip
    state, _ = tiny.run(chosen)
    assert not [name for name in state.server if "gating" in name]
    for own in state.personal.values():
        assert not torch.equal(own["gating.linear.weight"], chosen.spec.initial["gating.linear.weight"])


@pytest.mark.parametrize("settings", [{"select": "none"}, {"experts": 1}])
def test_the_linear_gate_of_a_client_alone_weighs_its_own_prompt_only(
    settings: dict[str, Any], clip: FrozenCLIP, fed: Federation
) -> None:
    alone = task(clip, fed, gate="linear", **settings)
    assert {name: tuple(t.shape) for name, t in alone.spec.initial.items() if "gating" in name} == {
        "gating.linear.weight": (1, 8), "gating.linear.bias": (1,),
    }  # fmt: skip


@pytest.mark.parametrize("gate", ["attention", "linear"])
def test_the_averaged_gate_is_sent_both_ways_but_joins_no_pool(gate: str, clip: FrozenCLIP, fed: Federation) -> None:
    """Table 7: everybody receives sum_i (n_i / n) gate_i; experts stay prompts; bytes are the declared ones."""
    chosen = task(clip, fed, share=["*"], gate=gate)
    names = set(chosen.spec.initial)
    size = GATE if gate == "attention" else (3 * 8 + 3) * 4
    assert tensors.nbytes(messages.uplink_template(chosen.spec.method, chosen.spec.initial)) == PROMPT + size
    least, most = chosen.spec.method.downlink_bytes(PROMPT + size, len(fed.clients))
    assert (least, most) == (PROMPT + size, PROMPT * 3 + size)
    sizes = {client.name: len(client.train) for client in fed.clients}
    seen = set()
    for state, record in simulation.run_rounds(chosen, simulation.start(chosen)):
        assert state.server.keys() == names | {f"pool.{name}" for name in sizes}
        assert all(state.server[f"pool.{name}"].shape == (3, 24) for name in sizes)
        for name in names - {"prompt"}:
            mean = sum(sizes[c] * own[name].double() for c, own in state.personal.items()) / sum(sizes.values())
            assert torch.allclose(state.server[name].double(), mean, atol=1e-6)
        for client in fed.clients:
            sent = server.downlink(chosen.spec, state, client.name)
            assert sent.keys() == names | {"experts.0000", "experts.0001"}
            assert sum(messages.tensor_bytes(sent).values()) == most
        seen |= {sum(visit.down_bytes.values()) for visit in record.visits}
    assert seen == {least, most}


def test_a_visit_starts_from_the_averaged_gate(clip: FrozenCLIP, fed: Federation) -> None:
    chosen = task(clip, fed, share=["*"], rounds=2)
    state, _ = tiny.run(chosen)
    lazy = task(clip, fed, share=["*"], lr=0.0, gate_lr=0.0)
    after, _ = next(simulation.run_rounds(lazy, state))
    for own in after.personal.values():
        assert all(torch.equal(own[name], state.server[name]) for name in chosen.spec.initial)


def test_declared_bytes_of_a_gate_shared_in_part(clip: FrozenCLIP, fed: Federation) -> None:
    chosen = task(clip, fed, share=["prompt", "gating.q.*"], rounds=2)
    part = (8 * 8 + 8) * 4
    assert chosen.spec.method.downlink_bytes(PROMPT + part, 4) == (PROMPT + part, 3 * PROMPT + part)
    _, records = tiny.run(chosen)
    assert {sum(v.down_bytes.values()) for v in records[1].visits} == {3 * PROMPT + part}


def test_without_prompts_there_are_no_experts() -> None:
    with pytest.raises(FedvlmError, match=r"method\.pfedmoap.*share must name 'prompt'"):
        tiny.method("pfedmoap", share=["gating.*"])


def test_the_gate_alone_may_share_nothing(clip: FrozenCLIP, fed: Federation) -> None:
    """A control: a local prompt and a local gate."""
    state, records = tiny.run(task(clip, fed, select="none", share=[], rounds=2))
    assert state.server == {}
    assert all(not visit.up_bytes and not visit.down_bytes for record in records for visit in record.visits)


def test_heads_do_not_matter_to_the_linear_gate() -> None:
    assert tiny.method("pfedmoap", gate="linear", heads=3).config.heads == 3
    with pytest.raises(FedvlmError, match="not a multiple of heads"):
        tiny.method("pfedmoap", heads=3)
