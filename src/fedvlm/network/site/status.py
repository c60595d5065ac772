"""What a site's record says: messages and bytes by method, and refusals. Read from its files, running or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedvlm import durable
from fedvlm.network.site.policy import OLDER, REFUSED, SENT, lines

SHOWN = 5
"""Number of refusals that are shown."""


@dataclass
class Line:
    """What has left for one method with one seed."""

    experiment: str
    method: str
    seed: int
    messages: int = 0
    again: int = 0
    """Messages that were sent once more."""
    names: list[str] = field(default_factory=list)
    last_round: int = 0
    bytes: int = 0
    last: str = ""


@dataclass(frozen=True)
class Summary:
    """The whole record in short."""

    running: bool
    lines: list[Line]
    refusals: int
    last_refusals: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def summary(state: Path) -> Summary:
    """The record of a state folder. Raises `FedvlmError` if it cannot be read."""
    found: dict[tuple[str, str, int], Line] = {}
    for entry in lines(state / SENT):
        if entry["kind"] != "reply":
            continue
        key = entry["experiment"], entry["method"], entry["seed"]
        line = found.setdefault(key, Line(*key))
        line.messages += 1
        line.again += bool(entry["again"])
        line.names = sorted({*line.names, *entry["tensors"]})
        line.last_round = max(line.last_round, entry["round"])
        line.bytes += entry["bytes"]
        line.last = entry["time"]
    refusals = [*lines(state / OLDER), *lines(state / REFUSED)]
    return Summary(durable.is_locked(state / "lock"), list(found.values()), len(refusals), refusals[-SHOWN:])
