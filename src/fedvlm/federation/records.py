"""What is recorded of a round. The ledger's lines are these, as JSON: names of fields are a file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

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
class NewcomerRecord:
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
    newcomers: dict[Moment, NewcomerRecord] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values by the keys of the ledger (`KEYS`)."""
        return {KEYS.get(name, name): value for name, value in asdict(self).items()}


KEYS = {"newcomers": "late"}
"""Keys of ledgers and results, where they are not the fields' names: files keep the names that they began with."""
_RECORD = TypeAdapter(RoundRecord)


def from_json(table: Mapping[str, Any]) -> RoundRecord:
    """The record of a table with the keys of the ledger; other keys of the table are ignored."""
    names = {key: name for name, key in KEYS.items()}
    return _RECORD.validate_python({names.get(key, key): value for key, value in table.items()})
