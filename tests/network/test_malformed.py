"""Ten thousand malformed messages for each receiver: none accepted, none fatal."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from conftest import SEED, STYLES
from test_site import contract, first_visit

from fedvlm import tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import messages, visits
from fedvlm.federation.messages import Limits, Message
from fedvlm.network.carriers import pump
from fedvlm.network.coordinator.rounds import Round

COUNT = 10_000


def malformed(real: list[bytes], draw: random.Random) -> bytes:
    """A real message with a few changes, cut, joined, repeated, with edited JSON; or noise."""
    data = bytearray(draw.choice(real))
    kind = draw.randrange(8)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= draw.randint(1, 255)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    elif kind == 2:
        place = draw.randrange(len(data))
        del data[place : place + draw.randint(1, 64)]
    elif kind == 3:
        data[draw.randrange(len(data)) :] = draw.randbytes(draw.randint(1, 256))
    elif kind == 4:
        data += draw.choice(real)[: draw.randint(1, 2000)]
    elif kind == 5:
        data[:8] = draw.randrange(1 << draw.choice([8, 16, 32, 63])).to_bytes(8, "little")
    elif kind == 6 and data[8:9] == b"{":
        data = bytearray(edited(bytes(data), draw))
    else:
        data = bytearray(draw.randbytes(draw.randint(0, 400)))
    return bytes(data)


VALUES: list[Any] = [None, -1, 0, 2**70, 1e308, "x" * 300, "NaN", [], {}, True, "../../etc/passwd", "\u202e", [[[]]]]


def edited(data: bytes, draw: random.Random) -> bytes:
    """The message with another value somewhere in its table or header; the checksum is not made anew."""
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    if draw.random() < 0.5:
        head = json.loads(table["__metadata__"]["fedvlm"])
        part = draw.choice([head, head["header"]])
        part[draw.choice(list(part))] = draw.choice(VALUES)
        table["__metadata__"]["fedvlm"] = json.dumps(head)
    else:
        part = table[draw.choice(list(table))]
        part[draw.choice(list(part))] = draw.choice(VALUES)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def same(data: bytes, real: list[bytes]) -> bool:
    """Whether bytes say the same as a real message (a space of the table became another one)."""
    try:
        found = messages.from_bytes(data)
    except FedvlmError:
        return False
    whole = [messages.from_bytes(one) for one in real]
    return any(found.header == one.header and tensors.equal(found.tensors, one.tensors) for one in whole)


@pytest.fixture
def played(field_of: Any) -> tuple[Any, Any, Any, Any, list[bytes]]:
    field = field_of("pfedmma", method={"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}})
    service = field.service("neon")
    pact, visit, reply = first_visit(field, service, "pfedmma")
    return field, service, pact, visit, [pact.visit_bytes("neon", visit), reply]


def test_a_site(played: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    field, service, _, _, real = played
    before = service.state.load(field.digest, "pfedmma", SEED)
    monkeypatch.setattr(visits, "carry_out", lambda *_: pytest.fail("a malformed message was carried out"))
    service._tell = lambda line: None
    draw, words = random.Random(1), set()
    for _ in range(COUNT):
        data = malformed(real, draw)
        if same(data, real[:1]):
            continue
        head = messages.from_bytes(service.answer(data)).header
        assert head.kind == "refused"
        words.add(head.reason)
    assert "failed" not in words, "something else than a check has refused a message"
    assert {"broken", "kind"} <= words
    after = service.state.load(field.digest, "pfedmma", SEED)
    assert tensors.digest(after.after) == tensors.digest(before.after)
    assert (after.round, after.trained) == (before.round, before.trained)
    assert len((service.state.path / "sent.jsonl").read_text().splitlines()) == 1
    assert service.answer(real[0]) == real[1]


def signed(data: bytes, draw: random.Random) -> bytes:
    """The message with another value somewhere in its header, metrics included, and a checksum that fits."""
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    head = json.loads(table["__metadata__"]["fedvlm"])
    part: Any = head["header"]
    while True:
        key = draw.choice(list(part) if isinstance(part, dict) else range(len(part)))
        if draw.random() < 0.7 and isinstance(part[key], dict | list) and part[key]:
            part = part[key]
            continue
        part[key] = draw.choice([*VALUES, 3, 0.5, "reply", {"value": 1}, [0.1] * 14])
        break
    named = messages.from_bytes(data).tensors
    head["sha256"] = messages._checksum(head["header"], head["order"], named)
    table["__metadata__"]["fedvlm"] = json.dumps(head)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def test_a_lying_site_is_refused_or_told_something_that_can_be_used(played: Any) -> None:
    """Whoever forges a whole reply meets the checks behind the checksum; what passes them must not stop the rounds."""
    _, _, pact, visit, real = played
    draw, words, used = random.Random(4), set[str](), 0
    for _ in range(COUNT // 2):
        current = Round(pact, {"neon": visit}, Limits(), Quiet())
        current.bytes_for("neon")
        current.take("neon", signed(real[1], draw))
        words |= set(current.words.values())
        if current.replies:
            used += 1
            state, _ = visits.take(pact.spec, 1, {"neon": visit}, current.replies, visits.start(pact.spec))
            visits.take(pact.spec, 1, {"neon": visit}, current.replies, state)
    assert {"broken", "metrics", "model", "method"} <= words
    assert used > 0


def test_a_lying_server_is_refused_or_asks_something_that_is_agreed(
    played: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, service, _, _, real = played
    asked: list[Any] = []

    def carry_out(*given: Any) -> Any:
        asked.append(given[-1])
        raise FedvlmError("carried out")

    monkeypatch.setattr(visits, "carry_out", carry_out)
    monkeypatch.setattr(service, "_count", lambda *_: None)
    service._tell = lambda line: None
    draw, words = random.Random(5), set[str]()
    for _ in range(COUNT // 2):
        before = len(asked)
        head = messages.from_bytes(service.answer(signed(real[0], draw))).header
        words.add(head.reason)
        assert (head.reason == "failed") is (len(asked) > before) or head.kind != "refused"
    assert {"broken", "kind", "experiment", "method", "client"} <= words
    assert all(visit.round <= 3 for visit in asked)
    assert service.state.load(field.digest, "pfedmma", SEED).round == 0


class Quiet:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_a_coordinator(played: Any) -> None:
    _, _, pact, visit, real = played
    draw = random.Random(2)
    current = Round(pact, {"neon": visit}, Limits(), Quiet())
    assert current.bytes_for("neon") == real[0]
    for _ in range(COUNT):
        data = malformed([real[1], real[1], real[0]], draw)
        if same(data, real[1:]):
            continue
        current.words.clear()
        current.take("neon", data)
        assert current.replies == {}
    current.take("fog", real[1])
    assert current.replies == {}
    current.take("neon", real[1])
    assert current.replies.keys() == {"neon"}


def test_the_coordinators_socket(played: Any, tmp_path: Any) -> None:
    _, _, _, _, real = played
    draw, told = random.Random(3), list[str]()
    carrier = pump.PumpCarrier(tmp_path / "s", b"hello", lambda body: pytest.fail("a name was read"), told.append)
    good = pump.pack({"nodes": ["1"], "answers": []}, [], "answers")
    for _ in range(COUNT):
        data = malformed([good, real[0]], draw) if draw.random() < 0.5 else bytes(draw.choices(good, k=len(good)))
        if data == good:
            continue
        try:
            carrier._answer(data)
        except (ValueError, KeyError, TypeError):
            continue
    assert carrier.arrived.empty()
    assert carrier.names == {}
    carrier.close()


def test_what_is_checked_first_is_the_checksum() -> None:
    """A forged header with its own checksum meets the other checks; without, it is refused as broken."""
    data = messages.to_bytes(Message(messages.Header(kind="visit", round=3)))
    size = int.from_bytes(data[:8], "little")
    forged = data[:8] + data[8 : 8 + size].replace(b'\\"round\\": 3', b'\\"round\\": 4') + data[8 + size :]
    assert forged != data
    with pytest.raises(FedvlmError, match="checksum"):
        messages.from_bytes(forged)


def test_contracts_of_both_sides_agree(field_of: Any) -> None:
    """What the server's contract says of an untrained uplink is what the site's says."""
    field = field_of("pfedmma")
    there = contract(field, "pfedmma")
    service = field.service("neon")
    first_visit(field, service, "pfedmma")
    here = service.latest.place("pfedmma", SEED, len(STYLES)).contract
    assert tensors.digest(there.spec.initial) == tensors.digest(here.spec.initial)
    assert there.model == here.model
