"""What a writer is. A new one is a file with `HINT` and `open_tracker`, and a line in `NEEDS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Setting = str | int | float | bool
Scalars = Mapping[str, float]
"""Numbers by name, `GROUP/NAME`; accuracies in 0..1, units in names (`_s`, `_bytes`, `_nats`)."""


@dataclass(frozen=True)
class Series:
    """One method with one seed of one run: the line that a tracker draws."""

    run: str
    """The experiment's name."""
    digest: str
    """The experiment's digest."""
    method: str
    seed: int
    settings: dict[str, Setting] = field(default_factory=dict)
    """Hyper-parameters by dotted name."""

    @property
    def path(self) -> str:
        """Its folder below the run folder, which names it among all of the run."""
        return f"seed-{self.seed}/{self.method}"


class Log(Protocol):
    """An open series."""

    def round(self, step: int, time_s: float, values: Scalars) -> None:
        """The numbers of a round. `time_s`: when the series began, plus the seconds of computing (Unix time)."""

    def end(self, final: Scalars | None) -> None:
        """Close the series, with its results; None: it is not finished, and a later process will begin it anew."""


class Tracker(Protocol):
    """Writes series, several at the same time. May raise any exception; the run goes on then, without it."""

    def begin(self, series: Series, time_s: float) -> Log:
        """Open a series. What an earlier process has written of it is replaced, so that each round is there once."""
