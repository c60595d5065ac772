"""What a figure shows, as data. `svg` draws it for the page, `plot` as a file; neither knows what a run is.

Marks carry the method and the client that they tell of, so that a page can highlight one of them in all figures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedvlm.reports.grid import Record

GREY = -1
"""The colour of a series that stays in the background."""
COLOURS = 8
"""Number of colours; series beyond them are grey."""


@dataclass(frozen=True)
class Axis:
    """One axis. `names`: places 0, 1, ... have names in the place of numbers."""

    label: str = ""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()
    integer: bool = False
    zero: bool = False
    """Whether the low end of a logarithmic axis stands for zero."""

    def place(self, value: float) -> float:
        """A value's place between the ends, 0 to 1; outside of them below 0 or above 1."""
        if self.log:
            value, low, high = math.log10(max(value, 1e-300)), math.log10(self.low), math.log10(self.high)
            return (value - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 6) -> list[float]:
        """Values that are labelled: powers of ten, or steps of 1, 2 or 5."""
        if self.names:
            return [float(place) for place in range(len(self.names))]
        if self.log:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = max(1, math.ceil(len(powers) / most))
            shown = [10.0**power for power in powers if not (self.zero and 10.0**power <= self.low)]
            return [self.low] * self.zero + shown[::every]
        step = _step((self.high - self.low) / most, integer=self.integer)
        first = math.ceil(self.low / step - 1e-9)
        return [step * place for place in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """The label of a tick."""
        if self.names:
            return self.names[round(value)]
        if self.zero and value == self.low:
            return "0"
        return short(value) if self.log or self.high - self.low > 5 else f"{value:.6g}"


def _step(least: float, *, integer: bool) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    found = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return max(1.0, found) if integer else found


def short(value: float) -> str:
    """A number with an SI prefix above a thousand: `34 k`."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def file_name(word: str) -> str:
    """A method's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", word)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What all marks have."""

    method: str = ""
    client: str = ""
    colour: int = 0
    """Position among the colours; `GREY` for the background."""
    tip: str = ""
    """What the mark says to a pointer. Screen readers read the caption and the table of the figure's data."""


@dataclass(frozen=True)
class Line(Mark):
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    dashes: int = 0
    """0: drawn through; 1, 2, 3: patterns."""


@dataclass(frozen=True)
class Band(Mark):
    """The area between two lines: points `(x, low, high)`."""

    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Dot(Mark):
    """A point, with half intervals."""

    x: float
    y: float
    half_x: float = 0.0
    half_y: float = 0.0
    star: bool = False


@dataclass(frozen=True)
class Bar(Mark):
    """A bar from `low` to `high` at a place of an axis of names; `across`: it lies."""

    place: float
    low: float
    high: float
    across: bool = False
    width: float = 0.8
    marked: bool = False
    """Whether it stands out."""


@dataclass(frozen=True)
class Cell(Mark):
    """A cell of a grid; `strength` 0 to 1 says how dark it is."""

    column: int
    row: int
    strength: float
    text: str = ""


@dataclass(frozen=True)
class Guide(Mark):
    """A thin line behind all marks, with a label at its end."""

    points: tuple[tuple[float, float], ...]
    label: str = ""


AnyMark = Line | Band | Dot | Bar | Cell | Guide


@dataclass(frozen=True)
class Panel:
    """One coordinate system."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[AnyMark, ...]
    size: tuple[int, int] = (340, 250)
    """Width and height in the page's units, of about a pixel."""


@dataclass(frozen=True)
class Series:
    """An entry of the legend."""

    name: str
    colour: int
    dashes: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure: panels, a legend, words on how to read it, and its data."""

    name: str
    """Of its files and its place in the page: letters and hyphens."""
    title: str
    about: str
    panels: tuple[Panel, ...]
    legend: tuple[Series, ...] = ()
    data: Sequence[Record] = field(default_factory=list)
    kind: Literal["lines", "plane", "dots", "bars", "cells"] = "lines"
