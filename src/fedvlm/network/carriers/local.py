"""Sites in this process: for tests, and to compare with other carriers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class LocalCarrier:
    """Calls sites one after another when the coordinator asks for their answers."""

    def __init__(self, sites: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self.sites = sites
        self.waiting: dict[str, bytes] = {}

    def roster(self) -> list[str]:
        """All sites."""
        return sorted(self.sites)

    def send(self, messages: Mapping[str, bytes]) -> None:
        """Keep the messages until answers are asked for."""
        self.waiting = {name: data for name, data in messages.items() if name in self.sites}

    def receive(self, seconds: float) -> list[tuple[str, bytes]]:
        """The answer of the next site."""
        if not self.waiting:
            time.sleep(min(seconds, 0.01))
            return []
        name = min(self.waiting)
        return [(name, self.sites[name](self.waiting.pop(name)))]

    def close(self) -> None:
        """Drop what waits."""
        self.waiting.clear()
