"""A site's answers to messages: it trains, measures, asks its policy, writes down what leaves, and only then replies.

Whatever arrives, the answer is a reply or a refusal of one word, and the process goes on. The whole reason of a refusal
is told at the site.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import Experiment
from fedvlm.federation import exchange, messages, visits
from fedvlm.federation.exchange import PACKAGE, RefusalError, Word
from fedvlm.federation.messages import Header, Limits, Message
from fedvlm.federation.spec import RunSpec
from fedvlm.federation.visits import Visit
from fedvlm.network import seal
from fedvlm.network.site import policy
from fedvlm.network.site.place import Experimented, Place, read_experiments
from fedvlm.network.site.settings import PolicySection, SiteSettings
from fedvlm.network.site.state import StateFolder, Stored

MAX_CLIENTS = 128
"""Number of clients that downlinks are worked out for. Their shapes do not change with more, but for more experts."""
MOST_GREETING = 1 << 14
"""Bytes of a message without a seal."""


class Service:
    """Answers of one site. `tell` prints a line at the site."""

    def __init__(self, settings: SiteSettings, tell: Callable[[str], None] = print) -> None:
        self.settings = settings
        self._tell = tell
        self.state = StateFolder(Path(settings.state))
        self.state.open()
        try:
            self.key = seal.read_key(settings.key)
        except (OSError, ValueError) as error:
            raise FedvlmError(f"{settings.key} holds no key of a site: {error}") from None
        self.record = policy.Record(self.state.path)
        self.limits = Limits(total_bytes=2 * settings.policy.max_bytes + (1 << 22))
        self.working = threading.Lock()
        self.experiments: dict[str, Experiment] = {}
        self.latest: Experimented | None = None
        self.welcomed: set[str] = set()

    def read_experiments(self) -> None:
        """Read the files of approved experiments. Raises `FedvlmError`."""
        found = read_experiments(Path(self.settings.experiments))
        self.experiments = {digest: found[digest] for digest in self.settings.policy.experiments if digest in found}

    def tell(self, line: str) -> None:
        """Tell the owner. A log that cannot be written is no reason to stop."""
        with suppress(OSError, ValueError):
            self._tell(policy.readable(line))

    def answer(self, data: bytes) -> bytes:
        """The answer to one message, as bytes. Messages are answered one after another."""
        with self.working:
            return seal.close(self._answer(data), "from", self.key)

    def _answer(self, data: bytes) -> bytes:
        head: Header | None = None
        body = seal.open_(data, "to", self.key)
        request = hashlib.sha256(data if body is None else body).hexdigest()
        try:
            if body is None:
                # Who asks before it knows the name has no key to ask with, and learns the name only.
                if not _greets(data, self.limits):
                    raise RefusalError("key", "the message has no seal of this site's key")
                body = data
            message = exchange.read(body, self.limits)
            head = message.header
            if head.kind == "hello":
                return self._welcome(head, request)
            return self._visit(message, request)
        except RefusalError as refusal:
            return self._refuse(refusal.word, str(refusal), head, request)
        except FedvlmError as error:
            return self._refuse("failed", str(error), head, request)
        except Exception as error:  # the site outlives whatever one message does
            return self._refuse("failed", f"{type(error).__name__}: {error}", head, request)

    def refuse_size(self, size: int) -> bytes:
        """The answer to a message that is too large to be read."""
        limit = self.limits.total_bytes
        with self.working:
            return seal.close(self._refuse("size", f"{size:,} bytes, more than {limit:,}", None, ""), "from", self.key)

    def _refuse(self, word: Word, why: str, head: Header | None, request: str) -> bytes:
        asked = "" if head is None else f"{head.kind} of round {head.round}, {head.method or 'no method'}: "
        self.tell(f"refused ({word}): {asked}{why}")
        answer = exchange.refusal_bytes(word, self.settings.name, "" if head is None else head.experiment,
                                        0 if head is None else head.round, request)  # fmt: skip
        try:
            self.record.refused(word, why, head)
        except FedvlmError as error:
            self.tell(f"the record cannot be written: {error}")
        return answer

    def _welcome(self, head: Header, request: str) -> bytes:
        """The answer to a greeting: the site's name, if it takes part in the experiment."""
        if head.package != PACKAGE:
            raise RefusalError("package", f"the server has fedvlm {head.package or '?'}, this site {PACKAGE}")
        running = self._experiment(head.experiment)
        header = Header(
            kind="welcome", package=PACKAGE, experiment=head.experiment, model=running.loaded.clip.digest,
            client=self.settings.name, answers=request,
        )  # fmt: skip
        answer = messages.to_bytes(Message(header))
        if head.experiment not in self.welcomed:  # the same few words again and again are one line
            self.record.sent(header, {}, answer)
            self.welcomed.add(head.experiment)
        return answer

    def _experiment(self, digest: str) -> Experimented:
        """The experiment, loaded. Only the latest one is held in memory."""
        if digest not in self.settings.policy.experiments:
            raise RefusalError("experiment", f"policy.experiments does not approve {digest or 'no digest'}")
        if digest not in self.experiments:
            raise RefusalError("experiment", f"{self.settings.experiments} holds no file of the experiment {digest}")
        if self.latest is None or self.latest.settings.digest() != digest:
            self.latest = None
            self.latest = Experimented.load(self.experiments[digest], self.settings)
        return self.latest

    def _place(self, head: Header) -> Place:
        running = self._experiment(head.experiment)
        if head.method not in running.settings.methods:
            raise RefusalError("method", f"'{head.method}' is not among {listed(running.settings.methods)}")
        if head.seed not in running.settings.seeds:
            raise RefusalError("seed", f"{head.seed} is not among {listed(running.settings.seeds)}")
        return running.place(head.method, head.seed, MAX_CLIENTS)

    def _visit(self, message: Message, request: str) -> bytes:
        head, name = message.header, self.settings.name
        if head.kind != "visit":
            raise RefusalError("kind", f"'{head.kind}' is nothing that a site answers")
        if head.package != PACKAGE:
            raise RefusalError("package", f"the server has fedvlm {head.package or '?'}, this site {PACKAGE}")
        place = self._place(head)
        visit = place.contract.read_visit(message, name)
        where = head.experiment, head.method, head.seed
        stored = self.state.load(*where)
        if stored is not None and stored.request == request:
            answer = messages.from_bytes(stored.reply)
            self.record.sent(answer.header, answer.tensors, stored.reply, again=True)
            self.tell(f"{head.method} seed {head.seed} round {visit.round}: the same reply again")
            return stored.reply
        return self._carry_out(place, head, visit, stored, request)

    def _carry_out(self, place: Place, head: Header, visit: Visit, stored: Stored | None, request: str) -> bytes:
        """Train and measure, then store, write down and reply."""
        where = f"{head.method} seed {head.seed} round {visit.round}"
        if stored is not None and visit.round < stored.round:
            raise RefusalError(
                "round", f"round {visit.round} is asked for, but this site has answered {stored.round}: if the "
                f"coordinator begins anew on purpose, fedvlm site forget {head.experiment[:12]}"
            )  # fmt: skip
        expected = 0 if stored is None else stored.round + 1
        if visit.round > expected:
            self.tell(f"{where}: the rounds from {expected} on were played without this site")
        self._count(head, place)
        self.tell(f"{where}: asked to {'train' if visit.trains else 'measure'}")
        trained = [] if stored is None else [one for one in stored.trained if one != visit.round]
        personal = None if stored is None else stored.before if visit.round == stored.round else stored.after
        found, after = visits.carry_out(
            place.contract.spec, place.every, place.site, place.validation, place.client, personal, visit
        )
        reply = policy.apply(self.settings.policy, found)
        answer = place.contract.reply_bytes(self.settings.name, visit.round, reply, request)
        spec, got = place.contract.spec, visit.received
        measured = got if stored is None or visit.round < spec.last_round else stored.measured
        taught = got if stored is None or (visit.trains and visit.round <= spec.rounds) else stored.taught
        trained += [visit.round] if visit.trains else []
        new = Stored(visit.round, trained, request, personal, after, got, measured, taught, answer)
        self.state.save(head.experiment, head.method, head.seed, new)
        self.record.sent(messages.from_bytes(answer).header, reply.uplink, answer)
        what = f"trained, {len(reply.uplink)} tensors" if visit.trains else "measured, no tensor"
        self.tell(f"{where}: {what}, {len(answer):,} bytes leave")
        return answer

    def _count(self, head: Header, place: Place) -> None:
        """Count the visit before it is carried out, so that one whose reply may not leave counts. Raises
        `RefusalError`."""
        most = most_visits(self.settings.policy, place.contract.spec)
        done = self.state.visits(head.experiment, head.method, head.seed)
        if done >= most:
            raise RefusalError("rounds", f"{done} visits were carried out, as many as policy.visits = {most} allows")
        self.state.count_visit(head.experiment, head.method, head.seed, done + 1)


def _greets(data: bytes, limits: Limits) -> bool:
    """Whether bytes are a greeting without a seal."""
    try:
        return len(data) <= MOST_GREETING and exchange.read(data, limits).header.kind == "hello"
    except RefusalError:
        return False


def most_visits(policy: PolicySection, spec: RunSpec) -> int:
    """Most visits of one method with one seed."""
    return policy.visits if policy.visits is not None else 2 * (spec.last_round + 1)
