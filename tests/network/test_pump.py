"""The coordinator's socket for programs that a network runs: names of nodes, messages, programs that die."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvlm.errors import FedvlmError
from fedvlm.network import frames
from fedvlm.network.carriers import pump as pumps
from fedvlm.network.carriers.pump import PumpCarrier, pack, unpack


def named(body: bytes) -> str:
    word, _, name = body.decode().partition(" ")
    if word != "welcome":
        raise FedvlmError(f"no greeting: {body!r}")
    return name


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pump(tmp_path: Path, told: list[str]) -> Iterator[PumpCarrier]:
    made = PumpCarrier(tmp_path / "c.sock", b"hello", named, told.append)
    yield made
    made.close()


class Program:
    """A network's program: `says` nodes and answers, and gets messages by node, or None for the end."""

    def __init__(self, pump: PumpCarrier) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(str(pump.path))

    def says(self, nodes: list[str], answers: dict[str, bytes] | None = None) -> dict[str, bytes] | None:
        head: dict[str, Any] = {"nodes": nodes, "answers": [{"node": node} for node in answers or {}]}
        frames.send(self.connection, pack(head, list((answers or {}).values()), "answers"))
        response = frames.receive(self.connection)
        assert response is not None
        told, bodies = unpack(response, "messages")
        if told["end"]:
            return None
        return {entry["node"]: body for entry, body in zip(told["messages"], bodies, strict=True)}


def test_nodes_are_greeted_then_get_their_sites_messages(pump: PumpCarrier) -> None:
    program = Program(pump)
    assert program.says(["7", "8"]) == {"7": b"hello", "8": b"hello"}
    assert program.says(["7", "8"], {"7": b"welcome north"}) == {}
    assert pump.roster() == ["north"]
    pump.send({"north": b"visit", "south": b"other"})
    assert program.says(["7", "8"]) == {"7": b"visit"}
    assert program.says(["7", "8"], {"8": b"welcome south"}) == {"8": b"other"}
    program.says(["7", "8"], {"7": b"reply", "8": b"answer"})
    assert pump.receive(1) == [("north", b"reply"), ("south", b"answer")]
    program.says(["8"])
    assert pump.roster() == ["south"]


def test_what_a_program_had_fetched_when_it_died_waits_for_the_next(pump: PumpCarrier) -> None:
    program = Program(pump)
    program.says(["7", "8"])
    program.says(["7", "8"], {"7": b"welcome north", "8": b"welcome south"})
    pump.send({"north": b"visit", "south": b"other"})
    assert program.says(["7", "8"]) == {"7": b"visit", "8": b"other"}
    program.says(["7", "8"], {"8": b"answer"})
    program.connection.close()
    again = Program(pump)
    assert again.says(["7", "8"]) == {"7": b"visit"}
    pump.send({"north": b"next"})
    again.connection.close()
    assert Program(pump).says(["7", "8"]) == {"7": b"next"}


def test_a_program_that_lacks_a_site_is_ended_after_a_while(
    pump: PumpCarrier, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(pumps.time, "monotonic", lambda: now)
    pump.patience, pump.begun = 60.0, now
    program = Program(pump)
    program.says(["7"])
    program.says(["7"], {"7": b"welcome north"})
    pump.send({"north": b"visit", "south": b"other"})
    assert program.says(["7"]) == {"7": b"visit"}
    now += 61
    assert program.says(["7"]) is None
    assert told[-1].startswith("not in the network's run: south.")
    again = Program(pump)
    assert again.says(["7", "8"]) == {"7": b"visit", "8": b"hello"}
    assert again.says(["7", "8"], {"8": b"welcome south"}) == {"8": b"other"}
    now += 61
    assert again.says(["7", "8"]) == {}, "its patience is two minutes now"
    now += 61
    assert again.says(["7", "8"]) == {}, "no message waits for a site that it lacks"


def test_two_nodes_with_one_name_are_told(pump: PumpCarrier, told: list[str]) -> None:
    program = Program(pump)
    program.says(["7", "8"])
    program.says(["7", "8"], {"7": b"welcome north"})
    program.says(["7", "8"], {"8": b"welcome north"})
    assert told[-1] == "two nodes call themselves 'north': the later one is not heard"
    pump.send({"north": b"visit"})
    assert program.says(["7", "8"]) == {"7": b"visit"}
