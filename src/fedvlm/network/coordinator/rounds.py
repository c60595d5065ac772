"""The rounds of one method with one seed: a visit to each site, a reply from each, a checkpoint after each round.

A round is played again as long as its checkpoint is not written; sites answer the same visit with the same reply. So a
coordinator that is killed at any moment continues at the unfinished round, and the bytes are those of a run that was
never interrupted.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed
from fedvlm.federation import exchange, visits
from fedvlm.federation.exchange import Contract, RefusalError
from fedvlm.federation.messages import Limits, Message
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.visits import Progress, Reply, Visit
from fedvlm.network import seal
from fedvlm.network.carriers.base import Carrier
from fedvlm.network.coordinator import checkpoint
from fedvlm.network.coordinator.settings import FederationSettings
from fedvlm.runs.folder import Point

TICK = 0.5
"""Seconds after which the watcher hears that time has passed."""
AGAIN, AGAIN_LATER = 30.0, 480.0
"""Seconds after which sites that have not replied are asked again, then after twice as long, and so on up to this."""


class Watcher(Protocol):
    """Is told what happens; shows it to people."""

    def round(self, label: str, seed: int, round_: int, last: int, asked: Mapping[str, Visit]) -> None:
        """A round begins."""

    def replied(self, site: str, reply: Reply, bytes_: int) -> None:
        """A site's reply is accepted."""

    def refused(self, site: str, word: str, why: str) -> None:
        """A site has refused its visit, or its reply is not accepted."""

    def waiting(self, seconds: float, missing: list[str], roster: list[str]) -> None:
        """Time has passed."""

    def finished(self, record: RoundRecord) -> None:
        """A round's record is complete."""


@dataclass
class Round:
    """One round at the coordinator: what was asked, what has come."""

    contract: Contract
    asked: dict[str, Visit]
    limits: Limits
    watcher: Watcher
    keys: Mapping[str, bytes] = field(default_factory=dict)
    """Keys of sites whose messages have seals."""
    sent: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each site's visit, which its answer names."""
    replies: dict[str, Reply] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    """Why a site's reply is missing, in a word."""

    @property
    def needed(self) -> list[str]:
        """The sites that `least` counts: those that train, or all where none does."""
        return [name for name, visit in self.asked.items() if visit.trains] or list(self.asked)

    @property
    def count(self) -> int:
        """Number of replies among those that are needed."""
        return sum(name in self.replies for name in self.needed)

    @property
    def missing(self) -> list[str]:
        """Sites that have neither replied nor refused."""
        return [name for name in self.asked if name not in self.replies and name not in self.words]

    def bytes_for(self, site: str) -> bytes:
        """A site's visit as a message."""
        data = self.contract.visit_bytes(site, self.asked[site])
        self.sent[site] = hashlib.sha256(data).hexdigest()
        return seal.close(data, "to", self.keys.get(site))

    def take(self, site: str, data: bytes) -> None:
        """A site's answer. Whatever it is, the round goes on."""
        if site not in self.asked or site in self.replies:
            return  # nothing was asked of it, or it answers twice
        try:
            body = seal.open_(data, "from", self.keys.get(site))
            if body is None:
                raise RefusalError("key", "it has no seal of this site's key")
            message = exchange.read(body, self.limits)
            if message.header.answers != self.sent.get(site):
                return  # to another round, method or seed, which was played without it or has it already
            if message.header.kind == "refused":
                self._refused(site, message)
                return
            reply = self.contract.read_reply(message, site, self.asked[site])
        except RefusalError as refusal:
            self._refuse(site, refusal.word, f"its answer is not accepted: {refusal}")
            return
        self.words.pop(site, None)
        self.replies[site] = reply
        self.watcher.replied(site, reply, len(data))

    def _refused(self, site: str, message: Message) -> None:
        word = message.header.reason or "no_reason"
        self._refuse(site, word, f"the site refuses: {word} (it knows why)")

    def _refuse(self, site: str, word: str, why: str) -> None:
        self.words[site] = word
        self.watcher.refused(site, word, why)


def play(
    contract: Contract, participation: float, settings: FederationSettings, carrier: Carrier, point: Point,
    watcher: Watcher, keys: Mapping[str, bytes], clock: Callable[[], float] = time.monotonic,
) -> Progress:  # fmt: skip
    """Play the remaining rounds of a point; returns the last state. Raises `FedvlmError` if a round cannot go on."""
    spec = contract.spec
    state, length = checkpoint.load(point.folder) or (visits.start(spec), 0)
    durable.truncate(point.ledger, length)
    while not visits.finished(spec, state):
        asked = visits.ask(spec, contract.every, participation, settings.sites, state)
        if asked:
            watcher.round(contract.label, spec.seed, state.round, spec.last_round, asked)
            found = _exchange(contract, asked, settings, carrier, watcher, keys, clock)
            absent = {name: found.words.get(name, "absent") for name in asked if name not in found.replies}
            state, records = visits.take(spec, contract.every, asked, found.replies, state, absent)
        else:
            state, records = visits.take(spec, contract.every, {}, {}, state)
        for record in records:
            length = point.log(record)
            watcher.finished(record)
        checkpoint.save(point.folder, state, length)
    return state


def _exchange(
    contract: Contract, asked: dict[str, Visit], settings: FederationSettings, carrier: Carrier, watcher: Watcher,
    keys: Mapping[str, bytes], clock: Callable[[], float],
) -> Round:  # fmt: skip
    """Send the visits and gather replies until all are here, or the deadline is over and enough are."""
    limits = Limits(total_bytes=settings.max_bytes + (1 << 22))
    current = Round(contract, asked, limits, watcher, keys)
    least = min(settings.least, len(current.needed))
    begun = last_sent = clock()
    pause = AGAIN
    carrier.send({name: current.bytes_for(name) for name in asked})
    while current.missing or current.count < least:
        if not current.missing:
            raise FedvlmError(
                f"{contract.label}, round {next(iter(asked.values())).round + 1}: {current.count} of the "
                f"{least} replies that it needs (federation.toml: least). Refused: "
                + listed(f"{name} ({word})" for name, word in sorted(current.words.items()))
                + ". Nothing is lost: the run continues at this round with --resume"
            )
        for site, data in carrier.receive(TICK):
            current.take(site, data)
        now = clock()
        watcher.waiting(now - begun, current.missing, carrier.roster())
        if now - begun > settings.deadline and current.count >= least:
            break
        if now - last_sent > pause:
            last_sent, pause = now, min(2 * pause, AGAIN_LATER)
            carrier.send({name: current.bytes_for(name) for name in current.missing})
    return current
