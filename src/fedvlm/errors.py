"""The exception for mistakes of users: its message says what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedvlmError(Exception):
    """A mistake that the user can fix. It is shown as one message, without a traceback."""


class DivergenceError(FedvlmError):
    """Training diverged. `place`: position of the client among those that trained together, if known."""

    def __init__(self, message: str, place: int | None = None) -> None:
        super().__init__(message)
        self.place = place


class StorageError(FedvlmError):
    """A durable file cannot be written, so no other part of the run could be stored either."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known word closest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def printable(text: str) -> str:
    """Text of others in one line of printable characters: it can steer neither a terminal nor a file's syntax."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def listed(items: Iterable[object], limit: int = 8) -> str:
    """Comma-separated items, cut after `limit` with the number of those left out."""
    words = [str(item) for item in items]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
