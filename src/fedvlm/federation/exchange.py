"""Visits and replies as message bytes, and the checks of whoever receives one.

Nothing that arrives is believed: names, shapes, element types, finiteness, norms, sizes, the digests of experiment and
model, method, seed, round and sender are compared with what is expected here. What does not fit is a `RefusalError`,
with a word for the other side and a sentence for this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, Literal, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fedvlm import tensors
from fedvlm.errors import FedvlmError, listed
from fedvlm.federation import messages, server
from fedvlm.federation.messages import Header, Limits, Message
from fedvlm.federation.spec import RunSpec
from fedvlm.federation.visits import Reply, Visit, due_metrics
from fedvlm.methods.base import Uplink
from fedvlm.tensors import Named
from fedvlm.training.evaluation import ClientMetrics
from fedvlm.training.metrics import Outputs, Scored, Statistic

Word = Literal[
    "broken", "key", "kind", "package", "experiment", "model", "method", "seed", "round", "client", "tensors", "shape",
    "dtype", "finite", "norm", "size", "images", "metrics", "policy", "rounds", "failed",
]  # fmt: skip
"""What a refusal tells the other side."""
WORDS: tuple[str, ...] = get_args(Word)
PACKAGE = metadata.version("fedvlm")
"""Version of this package: other versions may compute other bytes."""
MAX_LOSSES = 1_000_000
"""Most losses in one reply."""
MAX_IMAGES = 1e9
"""Largest weight of an uplink."""
MAX_SUM = 1e15
"""Largest number in a statistic."""
_METRICS = TypeAdapter(dict[str, ClientMetrics])
VALIDATION = "validation"
"""Key of the metrics on validation images, beside the states."""


class RefusalError(FedvlmError):
    """A message that is not accepted. `word` may be told to the other side, the message stays on this one."""

    def __init__(self, word: Word, message: str) -> None:
        super().__init__(message)
        self.word: Word = word


@dataclass(frozen=True)
class Contract:
    """What both sides of a federation expect of each other's messages, for one method with one seed."""

    experiment: str
    """Digest of the experiment."""
    model: str
    """Digest of the CLIP."""
    label: str
    """Name of the method among the experiment's."""
    spec: RunSpec
    every: int
    """Number of rounds between evaluations."""
    clients: int
    """Largest number of clients, on which sizes of downlinks depend."""
    max_norm: float = 1e6
    """Largest Euclidean norm of a message's tensors together."""

    @cached_property
    def downlinks(self) -> list[Named]:
        """Downlinks of untrained tensors: of the first round, and of a later one when all clients have sent."""
        spec, names = self.spec, [str(number).zfill(6) for number in range(max(self.clients, 2))]
        first = server.start(spec)
        if not spec.method.trains:
            return [server.downlink(spec, first, names[0])]
        later = first
        # Two rounds: the second has all that an aggregate makes of the first.
        for _ in range(min(2, spec.rounds)):
            sent = spec.expected_uplink(server.downlink(spec, later, names[0]))
            later = server.aggregate(spec, later, [Uplink(name, 1.0, sent) for name in names])
        return [server.downlink(spec, state, names[0]) for state in (first, later)]

    def header(self, kind: str, round_: int, client: str, **more: Any) -> Header:
        """A header of this contract."""
        return Header(
            kind=kind, package=PACKAGE, experiment=self.experiment, model=self.model, method=self.label,
            seed=self.spec.seed, round=round_, client=client, **more,
        )  # fmt: skip

    @cached_property
    def statistics(self) -> dict[str, Statistic]:
        """By name of a metric what a client measures, of made-up outputs: replies hold statistics of the same kind."""
        logits, labels = torch.eye(2), torch.arange(2)
        part = Scored(logits, labels)
        found = {metric.name: metric.measure(Outputs(part, part, part, (0, 1))) for metric in self.spec.metrics
                 if metric.measure is not None}  # fmt: skip
        return {name: one for name, one in found.items() if one is not None}

    def visit_bytes(self, client: str, visit: Visit) -> bytes:
        """A visit as a message to a client."""
        header = self.header("visit", visit.round, client, trains=visit.trains)
        return messages.to_bytes(Message(header, visit.received))

    def reply_bytes(self, client: str, round_: int, reply: Reply, answers: str = "") -> bytes:
        """A reply as a message to the server. `answers`: SHA-256 of the visit."""
        found: dict[str, ClientMetrics] = {point: one for point, one in reply.metrics.items()}  # noqa: C416
        if reply.validation is not None:
            found[VALIDATION] = reply.validation
        header = self.header(
            "reply", round_, client, images=reply.images, losses=reply.losses, seconds=reply.seconds,
            metrics={name: asdict(one) for name, one in found.items()}, answers=answers,
        )  # fmt: skip
        return messages.to_bytes(Message(header, reply.uplink))

    def read_visit(self, message: Message, client: str) -> Visit:
        """A visit that a client received. Raises `RefusalError`."""
        head = self._checked(message, "visit", client)
        if head.round > self.spec.last_round:
            raise RefusalError("round", f"round {head.round} is asked for, but the run has {self.spec.last_round}")
        if head.trains and (head.round == self.spec.last_round or not self.spec.method.trains):
            raise RefusalError("round", f"training is asked for after the last round ({head.round})")
        known = {name: tensor for one in self.downlinks for name, tensor in one.items()}
        always = set.intersection(*(set(one) for one in self.downlinks)) if head.round <= self.spec.rounds else set()
        if lacking := always - message.tensors.keys():
            raise RefusalError("tensors", f"the server's message lacks {listed(sorted(lacking))}")
        self._check_tensors({name: known.get(name) for name in message.tensors}, message.tensors)
        return Visit(head.round, head.trains, message.tensors)

    def read_reply(self, message: Message, client: str, visit: Visit) -> Reply:
        """The reply to a visit. Raises `RefusalError`."""
        head = self._checked(message, "reply", client)
        if head.round != visit.round:
            raise RefusalError("round", f"it answers round {head.round}, not {visit.round}")
        sends = visit.trains and visit.round < self.spec.rounds
        expected = self.spec.expected_uplink(visit.received) if sends else {}
        if lacking := expected.keys() - message.tensors.keys():
            raise RefusalError("tensors", f"it lacks {listed(sorted(lacking))}")
        self._check_tensors({name: expected.get(name) for name in message.tensors}, message.tensors)
        if visit.trains and not 0 < head.images <= MAX_IMAGES:
            raise RefusalError("images", f"it claims {head.images:g} training images")
        if len(head.losses) > (MAX_LOSSES if visit.trains else 0):
            raise RefusalError("metrics", f"it holds {len(head.losses):,} losses")
        found = self._read_metrics(head, visit)
        validation = found.pop(VALIDATION, None)
        in_order = {name: message.tensors[name] for name in expected}
        return Reply(in_order, head.images, head.losses, head.seconds, found, validation)  # type: ignore[arg-type]

    def _checked(self, message: Message, kind: str, client: str) -> Header:
        head = message.header
        expected: Mapping[Word, tuple[object, object]] = {
            "kind": (head.kind, kind), "package": (head.package, PACKAGE),
            "experiment": (head.experiment, self.experiment), "model": (head.model, self.model),
            "method": (head.method, self.label), "seed": (head.seed, self.spec.seed), "client": (head.client, client),
        }  # fmt: skip
        for word, (found, wanted) in expected.items():
            if found != wanted:
                raise RefusalError(word, f"its {word} is {str(found)[:80]!r}, not {str(wanted)!r}")
        return head

    def _check_tensors(self, expected: Mapping[str, Tensor | None], sent: Named) -> None:
        for name, tensor in sent.items():
            like = expected[name]
            if like is None:
                raise RefusalError("tensors", f"it holds '{name}', which is not declared")
            if tensor.shape != like.shape:
                raise RefusalError("shape", f"'{name}' has shape {tuple(tensor.shape)}, not {tuple(like.shape)}")
            if tensor.dtype != like.dtype:
                raise RefusalError("dtype", f"'{name}' is {tensor.dtype}, not {like.dtype}")
            if not bool(tensor.isfinite().all()):
                raise RefusalError("finite", f"'{name}' holds values that are not finite")
        if (norm := tensors.norm(sent)) > self.max_norm:
            raise RefusalError("norm", f"its tensors have norm {norm:.3g}, more than {self.max_norm:.3g}")

    def _read_metrics(self, head: Header, visit: Visit) -> dict[str, ClientMetrics]:
        due = due_metrics(self.spec, self.every, visit.round)
        told = head.metrics or {}
        if unknown := told.keys() - {*due, VALIDATION}:
            raise RefusalError("metrics", f"it holds metrics that are not due: {listed(sorted(unknown))}")
        try:
            found = _METRICS.validate_python(told)
        except ValidationError as error:
            raise RefusalError("metrics", f"its metrics are no metrics: {error.errors()[0]['msg']}") from None
        weights = set(self.spec.method.mixing)
        for one in found.values():
            if not one.by_weight.keys() <= weights:
                raise RefusalError("metrics", "it holds metrics at weights of zero-shot that are not those of the run")
            for statistics in (one.statistics, *one.by_weight.values()):
                self._check_statistics(statistics)
        return found

    def _check_statistics(self, statistics: Mapping[str, Statistic]) -> None:
        """Raise `RefusalError` unless the statistics can be pooled with those of other clients."""
        if unknown := statistics.keys() - self.statistics.keys():
            raise RefusalError("metrics", f"it holds unknown metrics: {listed(sorted(unknown))}")
        for name, one in statistics.items():
            like = self.statistics[name]
            if type(one) is not type(like) or len(_numbers(one)) != len(_numbers(like)):
                raise RefusalError("metrics", f"its '{name}' is another kind of statistic")
            if not _sound(one):
                raise RefusalError("metrics", f"its '{name}' holds a number that is none")


def _numbers(statistic: Statistic) -> list[float]:
    """All numbers of a statistic."""
    values = asdict(statistic).values()
    return [number for value in values for number in (value if isinstance(value, list | tuple) else [value])]


def _sound(statistic: Statistic) -> bool:
    """Whether all numbers of a statistic can be summed, and counts are positive."""
    held = asdict(statistic)
    counts = [held[key] for key in ("count", "images") if key in held]
    # Not finite numbers are not below the bound either.
    return all(abs(number) < MAX_SUM for number in _numbers(statistic)) and all(0 < n <= MAX_IMAGES for n in counts)


def read(data: bytes, limits: Limits) -> Message:
    """A message of bytes. Raises `RefusalError`."""
    try:
        return messages.from_bytes(data, limits)
    except FedvlmError as error:
        word: Word = "size" if len(data) > limits.total_bytes else "broken"
        raise RefusalError(word, str(error)) from None


def refusal_bytes(word: Word, client: str = "", experiment: str = "", round_: int = 0, answers: str = "") -> bytes:
    """A refusal as a message: one word. `answers`: SHA-256 of what is refused."""
    header = Header(kind="refused", client=client, experiment=experiment, round=round_, reason=word, answers=answers)
    return messages.to_bytes(Message(header))
