"""Playing an audit: every variant in a run folder of its own that is taken up again, then differences by seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvlm import faults
from fedvlm.audit.plan import RIGHT, Variant
from fedvlm.errors import FedvlmError
from fedvlm.results import failure, runner
from fedvlm.results.progress import Reporter
from fedvlm.results.statistics import Estimate, estimate, sign_flip

METRICS = {"local": "Local", "base": "Base", "novel": "Novel", "hm": "HM"}
"""What is compared, by its heading."""
_GROUPS = {
    RIGHT: "none",
    faults.ALL_BUT_DATA: "all of the above but the data's",
    faults.ALL: "all of the above",
}


@dataclass(frozen=True)
class Cell:
    """An accuracy (0..1) over seeds, its difference from the right run's within seeds, and the sign-flip p of that."""

    value: Estimate
    difference: Estimate | None
    p: float | None


@dataclass(frozen=True)
class Line:
    """One method with one fault, with several, or with none."""

    method: str
    label: str
    fault: str
    faults: tuple[str, ...]
    """What was built in, as the results say."""
    code: str
    """The published code it is in."""
    cells: Mapping[str, Cell] = field(default_factory=dict)
    """By metric."""
    train_s: float | None = None
    """Mean over seeds."""
    failed: str | None = None


Points = Mapping[int, Mapping[str, Any]]
"""A method's results by seed."""


Found = dict[tuple[str, str], Points | str]
"""What a variant gave for a method: results, or why there are none."""


def play(variants: Sequence[Variant], out: Path, *, quiet: bool, processes: int = 1) -> Iterator[list[Line]]:
    """Run what is not there yet; after each variant all lines so far, by method.

    What fails with a fault is told in its line and the others go on; the right runs must not fail.
    """
    found: Found = {}
    for place, variant in enumerate(variants):
        folder = out / f"{variant.name}-{variant.experiment.basis()[:8]}"
        found |= _run(variant, folder, quiet=quiet, processes=processes)
        yield lines(variants[: place + 1], found)


def _run(variant: Variant, folder: Path, *, quiet: bool, processes: int) -> Found:
    """All methods together; if that fails each by itself, so that one does not take the others along."""
    try:
        done = runner.run(variant.experiment, folder, resume=True, reporter=Reporter(quiet=quiet), processes=processes)
    except FedvlmError as error:
        if variant.name == RIGHT:
            raise
        if len(variant.labels) == 1:
            return {(variant.name, name): str(error) for name in variant.labels}
        each = [_run(variant.only(name), folder, quiet=quiet, processes=processes) for name in variant.labels]
        return {key: value for one in each for key, value in one.items()}
    failed = {name: failure.reasons(done.failed, label)
              for name, label in variant.labels.items() if label in done.failed}  # fmt: skip
    if failed and variant.name == RIGHT:
        raise FedvlmError("\n".join(failed.values()))
    return {(variant.name, name): failed.get(name) or done.points[label] for name, label in variant.labels.items()}


def lines(variants: Sequence[Variant], found: Found) -> list[Line]:
    """The table: for every method the right run, each fault, all together."""
    result = []
    for method in variants[0].labels:
        right = found[RIGHT, method]
        assert not isinstance(right, str)
        for variant in variants:
            if method not in variant.labels:
                continue
            given = found[variant.name, method]
            points: Points = {} if isinstance(given, str) else given
            known = faults.known().get(variant.name)
            line = Line(
                method=method,
                label=variant.labels[method],
                fault=variant.name,
                faults=tuple(next(iter(points.values())).get("faults", ())) if points else (),
                code=known.code if known else _GROUPS[variant.name],
                cells=_cells(points, None if variant.name == RIGHT else right) if points else {},
                train_s=statistics.fmean(point["train_s"] for point in points.values()) if points else None,
                failed=given if isinstance(given, str) else None,
            )
            result.append(line)
    return result


def _cells(points: Points, right: Points | None) -> dict[str, Cell]:
    """Accuracies in the state that each point reports."""
    cells = {}
    for metric in METRICS:
        values = _values(points, metric)
        if not values:
            continue
        gaps = None if right is None else [values[seed] - other for seed, other in _values(right, metric).items()]
        cells[metric] = Cell(
            estimate(list(values.values())), estimate(gaps) if gaps else None, sign_flip(gaps) if gaps else None
        )
    return cells


def _values(points: Points, metric: str) -> dict[int, float]:
    """By seed; nothing if a seed has no such accuracy."""
    final = {seed: point["final"][point["state"]] for seed, point in points.items()}
    return {seed: one[metric] for seed, one in final.items()} if all(metric in one for one in final.values()) else {}
