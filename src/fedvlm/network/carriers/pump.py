"""A local socket at the coordinator for programs that a network runs there, such as Flower's server app.

The program asks in a loop: here are the network's nodes and the answers that have come; what is to be sent? Request and
response are frames: one line of JSON, then the bytes of the messages one after another.

    request   {"nodes": ["17", "42"], "answers": [{"node": "17", "size": 812}]}
    response  {"messages": [{"node": "42", "size": 5120}], "end": false}

A node says its site's name in its answer to a greeting. A name belongs to the node that said it first, for as long as
the network lists that node. Where a program keeps the nodes with which it began (NVFlare), it is ended after a while of
waiting for sites that it does not have, and the one that is started next has those that have come.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError
from fedvlm.network import frames
from fedvlm.network.site.serve import listening

AGAIN = 30.0
"""Seconds after which a node that has not said its name is greeted again, by default."""

MOST_AT_ONCE = 1 << 26
"""Bytes of messages after which a response holds no more."""
MOST_PATIENCE = 1800.0
"""The most that `patience` grows to."""


@dataclass
class PumpCarrier:
    """Sites behind nodes of a network. `name_in` reads the name in an answer to the greeting."""

    path: Path
    greeting: bytes
    name_in: Callable[[bytes], str]
    tell: Callable[[str], None] = print
    names: dict[str, str] = field(default_factory=dict)
    """Site by node."""
    nodes: list[str] = field(default_factory=list)
    """Nodes that the network lists now."""
    waiting: dict[str, bytes] = field(default_factory=dict)
    """Message by site, not yet fetched."""
    fetched: dict[str, bytes] = field(default_factory=dict)
    """Message by site, under way; waits again when the network's program is started again."""
    greeted: dict[str, float] = field(default_factory=dict)
    again: float = AGAIN
    patience: float | None = None
    """Seconds after which a program ends for the sake of sites that it lacks. None: nodes come to it at any time."""
    ended: bool = False
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Listen."""
        self.arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.lock = threading.Lock()
        self.begun = time.monotonic()
        self.listener = listening(self.path, 0o600)
        threading.Thread(target=self._listen, daemon=True).start()

    def roster(self) -> list[str]:
        """Sites whose nodes the network lists."""
        with self.lock:
            return sorted(self.names[node] for node in self.nodes if node in self.names)

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Keep the messages until the network's program fetches them."""
        with self.lock:
            self.waiting, self.fetched = dict(messages), {}

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """Answers of sites that have said their names."""
        found = []
        try:
            found.append(self.arrived.get(timeout=seconds))
            while True:
                found.append(self.arrived.get_nowait())
        except queue.Empty:
            return found

    def close(self) -> None:
        """Tell the network's program to end, and stop listening."""
        with self.lock:
            self.ended = True
        time.sleep(0.5)  # the program asks many times a second
        self.listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self.lock:  # a new program: what the one before had fetched is lost
            self.waiting = self.fetched | self.waiting
            self.fetched, self.greeted, self.begun = {}, {}, time.monotonic()
        with connection:
            try:
                while (request := frames.receive(connection)) is not None:
                    frames.send(connection, self._answer(request))
            except (OSError, ValueError, KeyError, TypeError, frames.BrokenFrameError) as error:
                self.tell(f"the network's program: {type(error).__name__}: {error}")

    def _answer(self, request: bytes) -> bytes:
        head, bodies = unpack(request)
        with self.lock:
            self.nodes = [str(node) for node in head["nodes"]]
            for entry, body in zip(head["answers"], bodies, strict=True):
                self._arrived(str(entry["node"]), body)
            ends = self.ended or self._lacks_sites()
            outgoing = {} if ends else self._outgoing()
            return pack(
                {"messages": [{"node": node} for node in outgoing], "end": ends},
                list(outgoing.values()),
                "messages",
            )

    def _lacks_sites(self) -> bool:
        """Whether messages have waited long enough for sites that this program does not have."""
        if self.patience is None or time.monotonic() - self.begun < self.patience:
            return False
        here = {self.names[node] for node in self.nodes if node in self.names}
        lacking = sorted(self.waiting.keys() - here)
        if lacking:
            self.patience = min(2 * self.patience, MOST_PATIENCE)
            self.tell(f"not in the network's run: {', '.join(lacking)}. It is started again with all that are here now")
        return bool(lacking)

    def _arrived(self, node: str, body: bytes) -> None:
        try:
            name = self.name_in(body)
        except FedvlmError as error:
            if node in self.names:
                self.fetched.pop(self.names[node], None)
                self.arrived.put((self.names[node], body))
            elif str(error) not in self.refused:
                self.refused.add(str(error))
                self.tell(str(error))
            return
        if node in self.names:
            return  # greeted twice, because its first answer took its time; a node keeps its name
        holder = next((other for other, known in self.names.items() if known == name), None)
        if holder is not None and holder in self.nodes:
            self.tell(f"two nodes call themselves '{name}': the later one is not heard")
            return
        if holder is not None:
            del self.names[holder]
        self.names[node] = name
        self.tell(f"{name} is here")

    def _outgoing(self) -> dict[str, bytes]:
        """Messages for nodes: those of their sites, and greetings for nodes without a name."""
        now, found = time.monotonic(), dict[str, bytes]()
        for node in self.nodes:
            name = self.names.get(node)
            if sum(map(len, found.values())) > MOST_AT_ONCE:
                break  # the others come with the next question
            if name is not None and name in self.waiting:
                found[node] = self.fetched[name] = self.waiting.pop(name)
            elif name is None and now - self.greeted.get(node, -self.again) >= self.again:
                self.greeted[node] = now
                found[node] = self.greeting
        return found


def pack(head: dict[str, Any], bodies: list[bytes], key: str) -> bytes:
    """A line of JSON and the bodies; sizes are added to the entries of `head[key]`."""
    for entry, body in zip(head[key], bodies, strict=True):
        entry["size"] = len(body)
    return json.dumps(head).encode() + b"\n" + b"".join(bodies)


def unpack(data: bytes, key: str = "answers") -> tuple[dict[str, Any], list[bytes]]:
    """The reverse of `pack`. Raises `ValueError` or `KeyError`."""
    line, _, rest = data.partition(b"\n")
    head, bodies, place = json.loads(line), [], 0
    for entry in head[key]:
        size = int(entry["size"])
        if size < 0 or place + size > len(rest):
            raise ValueError("sizes do not fit")
        bodies.append(rest[place : place + size])
        place += size
    return head, bodies
