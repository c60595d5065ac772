"""Results of points that no run made."""

from __future__ import annotations

from typing import Any

from fedvlm.runs.result import Digests, PointResult
from fedvlm.training.metrics import Metrics


def point(means: Metrics, **fields: Any) -> PointResult:
    """A result of these metrics in its reported state; `fields` are those of `PointResult`."""
    usual: dict[str, Any] = {
        "state": "after_aggregation", "mean_of_last_five_evaluations": {}, "best_round_on_test": None, "curve": {},
        "clients": {}, "tensors": Digests("", {}), "up_bytes_per_visit": 0.0, "down_bytes_per_visit": 0.0,
    }  # fmt: skip
    state = fields.get("state", usual["state"])
    return PointResult(**{**usual, "final": {state: means}, **fields})
