"""The seam between a coordinator and a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Carrier(Protocol):
    """Carries message bytes between a coordinator and sites, which it knows by name."""

    def roster(self) -> list[str]:
        """Names of the sites that can be reached now, as far as is known."""
        ...

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Hand over one message for each of these sites. Messages that still wait are dropped."""
        ...

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """Answers that have come, with their senders: at once if there are any, else after so many seconds."""
        ...

    def close(self) -> None:
        """End the carrier. Messages that wait are dropped."""
        ...
