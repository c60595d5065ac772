"""One colour for a method in all figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedvlm.reports.charts.chart import COLOURS, GREY, Series
from fedvlm.reports.comparison import Comparison


@dataclass(frozen=True)
class Look:
    """How a method is drawn. Beyond the first eight, lines are dashed and dots are grey."""

    colour: int
    dashes: int = 0

    @property
    def dot(self) -> int:
        """The colour of its dots."""
        return GREY if self.dashes else self.colour


Looks = Mapping[str, Look]
"""By method."""


def in_order(methods: Sequence[str]) -> Looks:
    """Looks by place."""
    return {method: Look(place % COLOURS, min(3, place // COLOURS)) for place, method in enumerate(methods)}


def of(comparison: Comparison) -> Looks:
    """Looks of compared methods: the reference first, then those of largest area, or harmonic mean without one."""

    def worth(method: str) -> tuple[bool, float]:
        values = next(row.values for row in comparison.rows if row.method == method)
        return method != comparison.against, -float(np.mean(values.get("area", values.get("hm", [0.0]))))

    return in_order(sorted((row.method for row in comparison.rows), key=worth))


def legend(looks: Looks, methods: Sequence[str]) -> tuple[Series, ...]:
    """The entries of these methods, in the order of their looks."""
    return tuple(Series(method, look.colour, look.dashes) for method, look in looks.items() if method in methods)
