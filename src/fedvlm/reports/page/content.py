"""What a report says, as data: chapters of tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedvlm.reports.charts.chart import Chart
from fedvlm.reports.charts.looks import Looks


@dataclass(frozen=True)
class Table:
    """A table; the first column names the rows."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: Sequence[str] = ()
    name: str = ""
    methods: bool = True
    """Whether rows are methods."""
    words: bool = False
    """Whether cells are words, which may be long, and not numbers."""


@dataclass(frozen=True)
class Example:
    """A picture with what a personal model says of it."""

    image: str
    """A `data:` address."""
    label: str
    guess: str
    probability: float


@dataclass(frozen=True)
class Examples:
    """Pictures of one client that its model gets right and wrong."""

    client: str
    method: str
    right: Sequence[Example]
    wrong: Sequence[Example]
    counts: tuple[int, int]
    """Numbers of right and of wrong answers, of which these are the surest."""


@dataclass(frozen=True)
class Chapter:
    """What is told of one folder."""

    title: str
    folder: str
    """Where it is; empty if the page is to name nobody."""
    lead: Sequence[str]
    """Sentences on what was found."""
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    looks: Looks = field(default_factory=dict)
    later: Sequence[Table] = ()
    """Tables after the charts."""
    settings: str = ""
    """TOML."""
    again: str = "fedvlm run settings.toml makes it again, or fedvlm compare settings.toml"
    """What these settings are good for."""
    examples: Examples | None = None
