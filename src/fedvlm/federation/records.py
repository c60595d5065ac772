"""Records of rounds. The ledger holds them as lines of JSON, so names of fields are a file format (see `KEYS`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from fedvlm.methods.base import EvalPoint
from fedvlm.training.metrics import Metrics

Moment = Literal["on_arrival", "after_tuning"]
"""When newcomers are measured: with the received tensors laid over the common start, before they train; and
after their local rounds."""


@dataclass(frozen=True)
class ClientRecord:
    """Training of one client: images, losses (nats, before each step), bytes by tensor name in both directions."""

    client: str
    images: int
    losses: list[float]
    seconds: float
    down_bytes: dict[str, int]
    up_bytes: dict[str, int]


@dataclass(frozen=True)
class NewcomerRecord:
    """Newcomers at one moment: metrics by client, their means, bytes received on arrival by client and tensor."""

    clients: dict[str, Metrics]
    means: Metrics
    down_bytes: dict[str, dict[str, int]]


@dataclass(frozen=True)
class RoundRecord:
    """One round: training of its clients, and if it was evaluated, metrics by state and client."""

    round: int
    visits: list[ClientRecord]
    clients: dict[EvalPoint, dict[str, Metrics]]
    means: dict[EvalPoint, Metrics]
    train_s: float
    evaluate_s: float
    curves: dict[str, list[Metrics]] = field(default_factory=dict)
    """After the last round, on `test` and `val` images: means of the reported state with logits mixed with zero-shot's,
    at each `weight`."""
    newcomers: dict[Moment, NewcomerRecord] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Clients whose reply is missing, with the reason in a word; between machines only."""
    experts: dict[str, dict[str, float]] = field(default_factory=dict)
    """After the last round, in a simulation: for each client the mean weights of the experts behind its gate, by the
    name of the client whose they are, its own among them."""

    def as_json(self) -> dict[str, Any]:
        """Plain values by the keys of the ledger (`KEYS`); `absent` and `experts` where there are any."""
        table = {KEYS.get(name, name): value for name, value in asdict(self).items()}
        return {key: value for key, value in table.items() if value or key not in ("absent", "experts")}


KEYS = {"newcomers": "late"}
"""Keys of ledgers and results, where they are not the fields' names: files keep the names that they began with."""
_RECORD = TypeAdapter(RoundRecord)


def from_json(table: Mapping[str, Any]) -> RoundRecord:
    """The record of a table with the keys of the ledger; other keys of the table are ignored."""
    names = {key: name for name, key in KEYS.items()}
    return _RECORD.validate_python({names.get(key, key): value for key, value in table.items()})
