"""Metrics by the place where they are shown: those of rounds (`training.metrics`) and of a comparison's curves."""

from __future__ import annotations

from collections.abc import Container

from fedvlm.training import metrics
from fedvlm.training.metrics import Metric, Place

CURVE_METRICS = (
    Metric(
        "tuned", "HM tuned", "HM at the weight of zero-shot's logits that was best on validation images",
        shown={"compare": 7, "compare terminal": 5, "tested": 2, "sweep": 5},
    ),
    Metric("weight", "weight", "that weight", unit="weight", shown={"compare": 8}),
    Metric(
        "area", "Area", "share of all pairs (Local, mean of Base and Novel) that the method reaches in both by moving "
        "its logits towards zero-shot's",
        shown={"compare": 9, "compare terminal": 6, "tested": 3},
    ),
)  # fmt: skip
"""Metrics that a comparison computes from trade-off curves (`reports.comparison`)."""


def all_metrics() -> tuple[Metric, ...]:
    """All metrics, including those of other packages that this process has selected."""
    return (*metrics.all_metrics(), *CURVE_METRICS)


def columns(place: Place, available: Container[str] | None = None) -> list[Metric]:
    """The metrics shown at a place, in order; with `available`, only those whose names are in it."""
    found = [
        metric for metric in all_metrics() if place in metric.shown and (available is None or metric.name in available)
    ]
    return sorted(found, key=lambda metric: metric.shown[place])
