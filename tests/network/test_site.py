"""A site's answers: the simulation's numbers from its own images alone, and nothing that the policy does not name."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from conftest import SEED, STYLES

from fedvlm import methods, tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import exchange, messages, setup, visits
from fedvlm.federation.exchange import PACKAGE, Contract
from fedvlm.federation.messages import Header, Limits, Message
from fedvlm.network import seal
from fedvlm.network.coordinator.run import name_in
from fedvlm.network.site.service import Service, most_visits
from fedvlm.network.site.settings import PolicySection
from fedvlm.testing import tiny


def contract(field: Any, method: str) -> Contract:
    """The server's side: it has no image."""
    loaded = setup.load(field.agreed)
    built = methods.build(method, field.agreed.method)
    tuner = built.tuner(loaded.clip, field.agreed.data.classes[:4], "a photo of a {}.")
    spec = setup.run_spec(field.agreed, built, tuner, SEED)
    return Contract(field.digest, loaded.clip.digest, method, spec, field.agreed.evaluation.every, len(STYLES))


def play(field: Any, method: str, services: dict[str, Service]) -> tuple[Any, list[Any]]:
    pact = contract(field, method)
    state, records = visits.start(pact.spec), []
    while not visits.finished(pact.spec, state):
        asked = visits.ask(pact.spec, pact.every, 1.0, services, state)
        replies = {}
        for name, visit in asked.items():
            answer = exchange.read(services[name].answer(pact.visit_bytes(name, visit)), Limits())
            assert answer.header.kind == "reply", answer.header.reason
            replies[name] = pact.read_reply(answer, name, visit)
        state, done = visits.take(pact.spec, pact.every, asked, replies, state)
        records += done
    return state, records


@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap", "zero_shot", "tip_adapter", "promptfl_ft"])
def test_sites_give_the_numbers_of_one_process(method: str, field_of: Any) -> None:
    field = field_of(method, method={"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}})
    expected, told = tiny.run(field.simulation(method))
    services = {name: field.service(name) for name in STYLES}
    state, records = play(field, method, services)
    assert tensors.digest(state.server) == tensors.digest(expected.server)
    assert [one.means for one in records] == [one.means for one in told]
    assert [one.clients for one in records] == [one.clients for one in told]
    assert records[-1].curves == told[-1].curves
    for name in STYLES:
        stored = services[name].state.load(field.digest, method, SEED)
        assert stored is not None
        own = expected.personal.get(name)
        assert (stored.after is None) == (own is None)
        assert own is None or tensors.digest(stored.after or {}) == tensors.digest(own)


def greeting(field: Any, **more: Any) -> bytes:
    return messages.to_bytes(Message(Header(kind="hello", package=PACKAGE, experiment=field.digest, **more)))


def test_a_greeting_is_answered_with_the_pseudonym(field_of: Any) -> None:
    field = field_of("coop")
    head = messages.from_bytes(field.service("neon").answer(greeting(field))).header
    assert (head.kind, head.client, head.experiment) == ("welcome", "neon", field.digest)
    assert head.images == 0


REFUSED = {
    "experiment": {"experiment": "ab" * 32}, "method": {"method": "promptfl"}, "seed": {"seed": 8},
    "kind": {"kind": "give"}, "client": {"client": "sketch"}, "package": {"package": "0.0.0"},
    "model": {"model": "cd" * 32}, "round": {"round": 9},
}  # fmt: skip


@pytest.mark.parametrize("word", REFUSED)
def test_what_is_not_agreed_is_refused_in_a_word_and_told_in_full(word: str, field_of: Any) -> None:
    field, told = field_of("coop"), list[str]()
    service = field.service("neon", told)
    pact = contract(field, "coop")
    visit = visits.ask(pact.spec, 2, 1.0, ["neon"], visits.start(pact.spec))["neon"]
    message = messages.from_bytes(pact.visit_bytes("neon", visit))
    head = Header.model_validate(message.header.model_dump() | REFUSED[word])
    answer = messages.from_bytes(service.answer(messages.to_bytes(Message(head, message.tensors))))
    assert (answer.header.kind, answer.header.reason, answer.tensors) == ("refused", word, {})
    assert told[-1].startswith(f"refused ({word})")
    (line,) = [json.loads(line) for line in (service.state.path / "refused.jsonl").read_text().splitlines()]
    assert line["word"] == word
    assert not list(service.state.path.glob("*/*.safetensors"))
    # and the site goes on
    assert messages.from_bytes(service.answer(pact.visit_bytes("neon", visit))).header.kind == "reply"


def first_visit(field: Any, service: Service, method: str) -> tuple[Contract, Any, bytes]:
    pact = contract(field, method)
    visit = visits.ask(pact.spec, 2, 1.0, ["neon"], visits.start(pact.spec))["neon"]
    return pact, visit, service.answer(pact.visit_bytes("neon", visit))


@pytest.mark.parametrize(
    "policy",
    [{"may_leave": ["shared.*"]}, {"max_bytes": 100}, {"max_norm": 1e-6}],
    ids=["names", "bytes", "norm"],
)  # fmt: skip
def test_what_the_policy_forbids_does_not_leave(policy: dict[str, Any], field_of: Any) -> None:
    field, told = field_of("promptfl"), list[str]()
    service = field.service("neon", told, **policy)
    _, _, data = first_visit(field, service, "promptfl")
    answer = messages.from_bytes(data)
    assert (answer.header.kind, answer.header.reason, answer.tensors) == ("refused", "policy", {})
    assert "policy." in told[-1]
    assert service.state.load(field.digest, "promptfl", SEED) is None


def test_metrics_losses_and_counts_leave_as_the_policy_says(field_of: Any) -> None:
    field = field_of("promptfl", evaluation={"every": 1, "general": "own_domain", "state": "after_training"})
    service = field.service("neon", metrics=["local"], decimals=1, losses=False, count_images=False)
    pact, visit, data = first_visit(field, service, "promptfl")
    reply = pact.read_reply(messages.from_bytes(data), "neon", visit)
    assert reply.images == 1
    assert reply.losses == []
    found = reply.metrics["after_training"].statistics
    assert list(found) == ["local"]
    assert found["local"].value == pytest.approx(round(found["local"].value, 1))


def test_no_more_visits_than_the_policy_allows(field_of: Any) -> None:
    field, told = field_of("promptfl"), list[str]()
    service = field.service("neon", told, visits=1)
    pact, visit, data = first_visit(field, service, "promptfl")
    assert messages.from_bytes(data).header.kind == "reply"
    other = visits.Visit(1, True, {name: tensor + 1 for name, tensor in visit.received.items()})
    answer = messages.from_bytes(service.answer(pact.visit_bytes("neon", other)))
    assert answer.header.reason == "rounds"
    assert service.answer(pact.visit_bytes("neon", visit)) == data, "the same reply again is no visit"


def test_visits_whose_reply_may_not_leave_and_measurements_count(field_of: Any) -> None:
    field, told = field_of("promptfl"), list[str]()
    service = field.service("neon", told, visits=3, max_norm=1e-6)
    pact, visit, data = first_visit(field, service, "promptfl")
    words = [messages.from_bytes(data).header.reason]
    for number in (1, 2, 3):
        other = visits.Visit(0, number != 2, {name: tensor + number for name, tensor in visit.received.items()})
        words.append(messages.from_bytes(service.answer(pact.visit_bytes("neon", other))).header.reason)
        service = field.service("neon", told, visits=3, max_norm=1e-6)  # the count outlives the process
    assert words[:2] == ["policy", "policy"]
    assert words[3] == "rounds"


def test_by_default_two_visits_for_each_round(field_of: Any) -> None:
    spec = contract(field_of("promptfl"), "promptfl").spec
    assert most_visits(PolicySection(), spec) == 2 * (3 + 1)


KEY = "ab" * 32


def sealed(field: Any, told: list[str]) -> tuple[Service, bytes]:
    (field.folder / "key").write_text(KEY)
    service = Service(field.site("neon").model_copy(update={"key": str(field.folder / "key")}), told.append)
    service.read_experiments()
    return service, bytes.fromhex(KEY)


def test_a_site_with_a_key_hears_its_coordinator_only(field_of: Any) -> None:
    field, told = field_of("promptfl"), list[str]()
    service, key = sealed(field, told)
    pact = contract(field, "promptfl")
    visit = visits.ask(pact.spec, 2, 1.0, ["neon"], visits.start(pact.spec))["neon"]
    data = pact.visit_bytes("neon", visit)
    for wrong in (data, seal.close(data, "to", bytes(32)), seal.close(data, "from", key), data + bytes(32)):
        body = seal.open_(service.answer(wrong), "from", key)
        assert body is not None, "its answers have its seal"
        assert messages.from_bytes(body).header.reason == "key"
    assert service.state.load(field.digest, "promptfl", SEED) is None
    body = seal.open_(service.answer(seal.close(data, "to", key)), "from", key)
    assert body is not None
    reply = messages.from_bytes(body).header
    assert (reply.kind, reply.answers) == ("reply", hashlib.sha256(data).hexdigest())
    welcome = service.answer(greeting(field))  # who greets does not know yet whose key to take
    assert name_in(welcome, ["neon"], {"neon": key}) == "neon"
    with pytest.raises(FedvlmError, match="has not its key"):
        name_in(welcome[:-1] + b"x", ["neon"], {"neon": key})


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "ab" * 31])
def test_a_file_that_holds_no_key_is_named(text: str, field_of: Any) -> None:
    field = field_of("coop")
    (field.folder / "key").write_text(text)
    with pytest.raises(FedvlmError, match="holds no key"):
        Service(field.site("neon").model_copy(update={"key": str(field.folder / "key")}))


def test_a_log_that_cannot_be_written_does_not_stop_the_site(field_of: Any) -> None:
    field = field_of("promptfl")

    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    service = Service(field.site("neon"), full)
    service.read_experiments()
    assert messages.from_bytes(service.answer(b"nonsense")).header.reason == "broken"
    assert messages.from_bytes(first_visit(field, service, "promptfl")[2]).header.kind == "reply"


def test_forgotten_state_is_put_aside_and_the_experiment_begins_anew(field_of: Any) -> None:
    field = field_of("promptfl")
    service = field.service("neon")
    _, _, data = first_visit(field, service, "promptfl")
    with pytest.raises(FedvlmError, match="holds no state"):
        service.state.forget("ffff")
    (aside,) = service.state.forget(field.digest[:8])
    assert list(aside.glob("*.safetensors"))
    assert service.state.load(field.digest, "promptfl", SEED) is None
    again = field.service("neon")
    assert messages.from_bytes(first_visit(field, again, "promptfl")[2]).tensors.keys() == {"prompt"}
    assert messages.from_bytes(data).tensors.keys() == {"prompt"}


def test_asked_again_it_gives_the_same_reply_without_another_training(field_of: Any) -> None:
    field = field_of("pfedmoap")
    service = field.service("neon")
    pact, visit, data = first_visit(field, service, "pfedmoap")
    again = field.service("neon")  # as after kill -9
    assert again.answer(pact.visit_bytes("neon", visit)) == data
    stored = again.state.load(field.digest, "pfedmoap", SEED)
    assert stored is not None
    assert stored.trained == [0]
    lines = [json.loads(line) for line in (service.state.path / "sent.jsonl").read_text().splitlines()]
    assert [line["again"] for line in lines] == [False, True]
    # Killed between its state and its record it has sent nothing, and what leaves now leaves for the first time.
    (service.state.path / "sent.jsonl").unlink()
    for _ in range(2):
        field.service("neon").answer(pact.visit_bytes("neon", visit))
    lines = [json.loads(line) for line in (service.state.path / "sent.jsonl").read_text().splitlines()]
    assert [line["again"] for line in lines] == [False, True]


def test_the_same_round_with_other_tensors_begins_at_the_tensors_before_it(field_of: Any) -> None:
    field = field_of("pfedmma", method={"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}})
    service = field.service("neon")
    pact, visit, _ = first_visit(field, service, "pfedmma")
    moved = visits.Visit(0, True, {name: tensor + 0.1 for name, tensor in visit.received.items()})
    second = service.answer(pact.visit_bytes("neon", moved))
    fresh = field.service("neon")
    fresh.state = type(fresh.state)(field.folder / "state-fresh")
    fresh.state.open()
    assert pact.read_reply(messages.from_bytes(second), "neon", moved).uplink.keys()
    reference = pact.read_reply(messages.from_bytes(fresh.answer(pact.visit_bytes("neon", moved))), "neon", moved)
    assert tensors.equal(pact.read_reply(messages.from_bytes(second), "neon", moved).uplink, reference.uplink)
    old = messages.from_bytes(service.answer(pact.visit_bytes("neon", visits.Visit(0, True, visit.received))))
    assert old.header.kind == "reply"


def test_an_earlier_round_is_refused(field_of: Any) -> None:
    field = field_of("promptfl")
    service = field.service("neon")
    pact, visit, _ = first_visit(field, service, "promptfl")
    later = visits.Visit(2, True, visit.received)
    assert messages.from_bytes(service.answer(pact.visit_bytes("neon", later))).header.kind == "reply"
    answer = messages.from_bytes(service.answer(pact.visit_bytes("neon", visits.Visit(1, True, visit.received))))
    assert answer.header.reason == "round"


def test_private_state_is_for_its_owner_only(field_of: Any) -> None:
    field = field_of("pfedmoap")
    service = field.service("neon")
    first_visit(field, service, "pfedmoap")
    for path in service.state.path.rglob("*"):
        if path.is_file() and path.name != "lock":
            assert path.stat().st_mode & 0o077 == 0, path
    assert service.state.path.stat().st_mode & 0o077 == 0


def test_no_private_byte_is_in_anything_that_left(field_of: Any) -> None:
    field = field_of("pfedmoap")
    services = {name: field.service(name) for name in STYLES}
    left = []
    for service in services.values():
        answer = service.answer
        service.answer = lambda data, answer=answer: left.append(answer(data)) or left[-1]  # type: ignore[misc]
    play(field, "pfedmoap", services)
    everything = b"|".join(left)
    for name, service in services.items():
        stored = service.state.load(field.digest, "pfedmoap", SEED)
        assert stored is not None
        private = {key: one for key, one in (stored.after or {}).items() if key != "prompt"}
        assert private
        for tensor in private.values():
            if tensor.unique().numel() > 1:
                assert tensor.numpy().tobytes() not in everything
        for image in field.images[name].rglob("*.png"):
            assert image.read_bytes()[60:120] not in everything
        lines = [json.loads(line) for line in (service.state.path / "sent.jsonl").read_text().splitlines()]
        assert {key for line in lines for key in line["tensors"]} == {"prompt"}
        assert sum(line["bytes"] for line in lines) <= len(everything)
