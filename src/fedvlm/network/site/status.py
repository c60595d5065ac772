"""What a site's record says: messages and bytes by method, and refusals. Read from its files, running or not."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedvlm.errors import FedvlmError
from fedvlm.network.site.policy import OLDER, REFUSED, SENT

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
    for entry in _lines(state / SENT):
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
    refusals = [*_lines(state / OLDER), *_lines(state / REFUSED)]
    return Summary(_running(state), list(found.values()), len(refusals), refusals[-SHOWN:])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a record; one that was cut by a crash is overlooked."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except OSError as error:
        raise FedvlmError(f"{path} cannot be read: {error.strerror or error}") from None
    for line in text.split("\n"):  # not splitlines, which knows other ends of lines, too
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _running(state: Path) -> bool:
    try:
        with (state / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
