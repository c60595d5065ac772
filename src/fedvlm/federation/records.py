"""What is recorded of a round. The ledger's lines are these, as JSON: names of fields are a file format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedvlm.methods.base import EvalPoint
from fedvlm.training.metrics import Metrics

Moment = Literal["on_arrival", "after_tuning"]
"""When late clients are measured: with what the server sends laid over the common start, without training; and after
their own local rounds."""


@dataclass(frozen=True)
class ClientRecord:
    """One client's training: images, losses (nats, before each step), bytes by tensor name in both directions."""

    client: str
    images: int
    losses: list[float]
    seconds: float
    down_bytes: dict[str, int]
    up_bytes: dict[str, int]


@dataclass(frozen=True)
class LateRecord:
    """Late clients at one moment: accuracies by client, their means, bytes received on arrival by client and tensor."""

    clients: dict[str, Metrics]
    means: Metrics
    down_bytes: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RoundRecord:
    """One round: its clients' training, and accuracies by evaluated state and client where it was evaluated."""

    round: int
    visits: list[ClientRecord]
    clients: dict[EvalPoint, dict[str, Metrics]]
    means: dict[EvalPoint, Metrics]
    train_s: float
    evaluate_s: float
    curves: dict[str, list[Metrics]] = field(default_factory=dict)
    """After the last round, on `test` and `val` images: means of the reported state moved towards zero-shot's logits by
    each `weight`."""
    late: dict[Moment, LateRecord] = field(default_factory=dict)
