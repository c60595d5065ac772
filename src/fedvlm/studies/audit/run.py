"""Run an audit: every variant in its own run folder, which is resumed; then differences by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedvlm import faults
from fedvlm.errors import FedvlmError
from fedvlm.reports.columns import columns
from fedvlm.reports.statistics import Estimate, differences, estimate
from fedvlm.runs import failure
from fedvlm.runs.result import PointResult
from fedvlm.runs.results import Results
from fedvlm.studies import study
from fedvlm.studies.audit.plan import RIGHT, Variant
from fedvlm.studies.study import Options, Plan

_GROUPS = {
    RIGHT: "none",
    faults.ALL_BUT_DATA: "all of the above but the data's",
    faults.ALL: "all of the above",
}
Points = Mapping[int, PointResult]
"""A method's results by seed."""
Outcomes = dict[tuple[str, str], Points | str]
"""Results, or the reason of a failure, by variant and method."""


@dataclass(frozen=True)
class AuditCell:
    """An accuracy (0..1) over seeds, its difference from the right run within seeds, and p by sign flips."""

    value: Estimate
    difference: Estimate | None
    p: float | None


@dataclass(frozen=True)
class AuditRow:
    """One method with one fault, several faults or none."""

    method: str
    label: str
    fault: str
    faults: tuple[str, ...]
    """Names of the built-in faults, from the results."""
    code: str
    """The published code that has the fault."""
    cells: Mapping[str, AuditCell] = field(default_factory=dict)
    """Cells by metric."""
    train_s: float | None = None
    """Training time, mean over seeds."""
    failed: str | None = None


def run_variants(variants: Sequence[Variant], out: Path, options: Options) -> Iterator[list[AuditRow]]:
    """Run all unfinished variants; yields all rows so far after each variant.

    A failure with a fault is recorded in its row. Raises `FedvlmError` if a run without faults fails.
    """
    found: Outcomes = {}
    for place, variant in enumerate(variants):
        folder = out / f"{variant.name}-{variant.experiment.basis()[:8]}"
        plan = Plan(variant.experiment, folder)
        done = study.run(plan, options) if variant.name == RIGHT else study.attempt(plan, options).results
        found |= {(variant.name, name): _outcome(done, name) for name in variant.labels}
        if variant.name == RIGHT and done.failed:
            raise FedvlmError("\n".join(failure.reason(done.failed, name) for name in done.failed))
        yield audit_rows(variants[: place + 1], found)


def _outcome(done: Results, name: str) -> Points | str:
    label = done.labels[name]
    return failure.reason(done.failed, label) if label in done.failed else done.points[label]


def audit_rows(variants: Sequence[Variant], found: Outcomes) -> list[AuditRow]:
    """Rows of the table: for every method the right run, each fault, and groups of faults."""
    result = []
    for method in variants[0].labels:
        right = found[RIGHT, method]
        assert not isinstance(right, str)
        for variant in variants:
            if method not in variant.labels:
                continue
            given = found[variant.name, method]
            points: Points = {} if isinstance(given, str) else given
            known = faults.all_faults().get(variant.name)
            row = AuditRow(
                method=method,
                label=variant.labels[method],
                fault=variant.name,
                faults=next(iter(points.values())).faults if points else (),
                code=known.code if known else _GROUPS[variant.name],
                cells=_cells(points, None if variant.name == RIGHT else right) if points else {},
                train_s=statistics.fmean(point.train_s for point in points.values()) if points else None,
                failed=given if isinstance(given, str) else None,
            )
            result.append(row)
    return result


def _cells(points: Points, right: Points | None) -> dict[str, AuditCell]:
    """Cells by metric, of accuracies in the reported states."""
    cells = {}
    for metric in (m.name for m in columns("core")):
        values, others = _values(points, metric), _values(right or {}, metric)
        if not values:
            continue
        pair = [values[seed] for seed in others], list(others.values())
        gap = differences({metric: pair})[metric] if others else None
        cells[metric] = AuditCell(
            estimate(list(values.values())), gap.estimate if gap else None, gap.p if gap else None
        )
    return cells


def _values(points: Points, metric: str) -> dict[int, float]:
    """Values of a metric by seed; empty if a seed does not have it."""
    final = {seed: point.reported for seed, point in points.items()}
    return {seed: one[metric] for seed, one in final.items()} if all(metric in one for one in final.values()) else {}
