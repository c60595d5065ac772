"""Visits and replies as bytes: what fits passes bit for bit, everything else is refused with a word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedvlm import methods, tensors
from fedvlm.federation import exchange, messages, visits
from fedvlm.federation.exchange import WORDS, Contract, RefusalError
from fedvlm.federation.messages import Header, Limits, Message
from fedvlm.federation.visits import Reply, Visit
from fedvlm.methods.base import Method
from fedvlm.testing import tiny
from fedvlm.training.evaluation import ClientMetrics
from fedvlm.training.metrics import Calibration, Mean

CLIP, FEDERATION = tiny.clip(), tiny.federation()
NAMES = [client.name for client in FEDERATION.clients]


def contract(method: Method, **how: Any) -> tuple[Contract, Any]:
    run = tiny.simulation(method, CLIP, FEDERATION, **how)
    return Contract("ab" * 32, "cd" * 32, method.name, run.spec, run.schedule.every, len(NAMES)), run


@pytest.mark.parametrize("name", sorted(methods.known()))
def test_all_visits_and_replies_of_every_method_pass(name: str) -> None:
    """Two of four clients in a round, so that pools and mixtures grow; the server reads only what bytes say."""
    pact, run = contract(tiny.method(name), rounds=3, participation=0.5)
    spec, state, personal = run.spec, visits.start(run.spec), dict[str, Any]()
    while not visits.finished(spec, state):
        asked, replies = visits.ask(spec, 1, 0.5, NAMES, state), {}
        for client in FEDERATION.clients:
            if client.name not in asked:
                continue
            got = pact.read_visit(
                exchange.read(pact.visit_bytes(client.name, asked[client.name]), Limits()), client.name
            )
            assert list(got.received) == list(asked[client.name].received)
            assert tensors.equal(got.received, asked[client.name].received)
            reply, stored = visits.carry_out(spec, 1, run.site, None, client, personal.get(client.name), got)
            personal[client.name] = stored
            back = exchange.read(pact.reply_bytes(client.name, got.round, reply), Limits())
            read = pact.read_reply(back, client.name, asked[client.name])
            assert tensors.equal(read.uplink, reply.uplink)
            assert list(read.uplink) == list(spec.expected_uplink(got.received) if reply.uplink else {})
            assert replace(read, uplink={}) == replace(reply, uplink={})
            replies[client.name] = read
        state, _ = visits.take(spec, 1, asked, replies, state)


PACT, RUN = contract(tiny.method("pfedmoap"), rounds=3)
VISIT = visits.ask(RUN.spec, 1, 1.0, NAMES, visits.start(RUN.spec))["site-0"]
REPLY, _ = visits.carry_out(RUN.spec, 1, RUN.site, None, FEDERATION.clients[0], None, VISIT)
VISIT_BYTES, REPLY_BYTES = PACT.visit_bytes("site-0", VISIT), PACT.reply_bytes("site-0", 0, REPLY)


def edited(data: bytes, tensors_: dict[str, Any] | None = None, **header: Any) -> Message:
    message = messages.from_bytes(data)
    head = Header.model_validate(message.header.model_dump() | header)
    return Message(head, message.tensors if tensors_ is None else tensors_)


WRONG: dict[str, dict[str, Any]] = {
    "kind": {"kind": "hello"}, "package": {"package": "9"}, "experiment": {"experiment": "ff"}, "model": {"model": "ee"},
    "method": {"method": "coop"}, "seed": {"seed": 9}, "client": {"client": "site-1"}, "round": {"round": 77},
}  # fmt: skip


@pytest.mark.parametrize("word", WRONG)
def test_a_header_that_does_not_fit_is_refused_on_both_sides(word: str) -> None:
    with pytest.raises(RefusalError) as refused:
        PACT.read_visit(edited(VISIT_BYTES, **WRONG[word]), "site-0")
    assert refused.value.word == word
    with pytest.raises(RefusalError) as refused:
        PACT.read_reply(edited(REPLY_BYTES, **WRONG[word]), "site-0", VISIT)
    assert refused.value.word == word


def prompts(**more: Any) -> dict[str, Any]:
    return {"prompt": VISIT.received["prompt"]} | more


BAD_TENSORS = [
    ("tensors", {}), ("tensors", prompts(**{"gating.q.weight": torch.zeros(8, 8)})),
    ("tensors", prompts(**{"pool.site-1": VISIT.received["prompt"]})),
    ("shape", {"prompt": torch.zeros(1, 1)}), ("dtype", {"prompt": VISIT.received["prompt"].double()}),
    ("finite", {"prompt": torch.full_like(VISIT.received["prompt"], float("nan"))}),
    ("norm", {"prompt": torch.full_like(VISIT.received["prompt"], 1e30)}),
]  # fmt: skip


@pytest.mark.parametrize(("word", "named"), BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused_on_both_sides(word: str, named: dict[str, Any]) -> None:
    for read in (lambda: PACT.read_visit(edited(VISIT_BYTES, named), "site-0"),
                 lambda: PACT.read_reply(edited(REPLY_BYTES, named), "site-0", VISIT)):  # fmt: skip
        with pytest.raises(RefusalError) as refused:
            read()
        assert refused.value.word == word


def test_experts_come_in_any_number_up_to_the_methods_own() -> None:
    expert = VISIT.received["prompt"]
    own = prompts(**{"experts.0000": expert, "experts.0001": expert})
    assert PACT.read_visit(edited(VISIT_BYTES, own, round=1), "site-0").received.keys() == own.keys()
    with pytest.raises(RefusalError, match=r"experts\.0007"):
        PACT.read_visit(edited(VISIT_BYTES, prompts(**{"experts.0007": expert}), round=1), "site-0")


def test_training_after_the_last_round_is_refused() -> None:
    with pytest.raises(RefusalError, match="after the last round"):
        PACT.read_visit(edited(VISIT_BYTES, round=3, trains=True), "site-0")
    assert not PACT.read_visit(edited(VISIT_BYTES, round=3, trains=False), "site-0").trains


def metrics(**statistics: Any) -> dict[str, Any]:
    return {"after_training": {"statistics": statistics, "by_weight": {}}}


@pytest.mark.parametrize(
    ("word", "header"),
    [
        ("images", {"images": 0.0}), ("images", {"images": 1e12}), ("metrics", {"metrics": {"elsewhere": {}}}),
        ("metrics", {"metrics": metrics(local={"total": 1e308 * 10, "count": 3})}),
        ("metrics", {"metrics": metrics(local={"total": 1.0, "count": 0})}),
        ("metrics", {"metrics": metrics(local={"total": 1.0, "count": -3})}),
        ("metrics", {"metrics": metrics(secret={"total": 1.0, "count": 3})}),
        ("metrics", {"metrics": metrics(local="everything")}),
        ("metrics", {"metrics": metrics(ece={"gaps": [float("inf")], "images": 3})}),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(word: str, header: dict[str, Any]) -> None:
    with pytest.raises(RefusalError) as refused:
        PACT.read_reply(edited(REPLY_BYTES, **header), "site-0", VISIT)
    assert refused.value.word == word


def test_losses_of_a_client_that_did_not_train_are_refused() -> None:
    asked = Visit(0, False, VISIT.received)
    with pytest.raises(RefusalError, match="losses"):
        PACT.read_reply(edited(REPLY_BYTES, {}, losses=[0.1]), "site-0", asked)


def test_a_private_tensor_in_a_reply_never_passes() -> None:
    private = RUN.spec.initial.keys() - {"prompt"}
    assert private
    for name in private:
        with pytest.raises(RefusalError) as refused:
            PACT.read_reply(edited(REPLY_BYTES, REPLY.uplink | {name: RUN.spec.initial[name]}), "site-0", VISIT)
        assert refused.value.word == "tensors"


def test_a_message_above_the_limits_is_refused_as_too_large() -> None:
    with pytest.raises(RefusalError) as refused:
        exchange.read(VISIT_BYTES, Limits(total_bytes=100))
    assert refused.value.word == "size"
    with pytest.raises(RefusalError) as refused:
        exchange.read(b"no message", Limits())
    assert refused.value.word == "broken"


def test_a_refusal_is_one_word() -> None:
    head = messages.from_bytes(exchange.refusal_bytes("policy", "site-0")).header
    assert (head.kind, head.reason, head.client) == ("refused", "policy", "site-0")
    assert "policy" in WORDS


def test_metrics_come_back_exactly() -> None:
    told = ClientMetrics(
        {"local": Mean(7.0, 9), "ece": Calibration((0.1, -1 / 3, *[0.0] * 13), 7)}, {0.1: {"local": Mean(1 / 3, 9)}}
    )
    reply = Reply(REPLY.uplink, 11.0, [0.1, 1 / 3], 0.5, {"after_training": told}, None)
    names = {metric.name for metric in RUN.spec.metrics}
    told_names = {"local", "ece"}
    assert told_names <= names
    back = PACT.read_reply(exchange.read(PACT.reply_bytes("site-0", 0, reply), Limits()), "site-0", VISIT)
    assert back.metrics == {"after_training": told}
    assert back.losses == reply.losses
