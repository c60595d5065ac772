"""Results of a run: those of all points, and the rows of its table (means and deviations over seeds)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvlm.experiment import Experiment
from fedvlm.federation.records import Moment, NewcomerRecord
from fedvlm.methods.base import EvalPoint
from fedvlm.runs import failure
from fedvlm.runs.failure import Failures
from fedvlm.runs.result import PointResult

Points = dict[str, dict[int, PointResult]]
"""Finished points by method and seed."""


@dataclass(frozen=True)
class Results:
    """The results that `fedvlm.run` returns.

    A method with a failed seed has no row, because a mean over the other seeds would be biased.
    """

    experiment: Experiment
    folder: Path
    points: Points
    failed: Failures
    contract: str
    """The contract that was printed before training (also in `contract.txt`)."""
    labels: dict[str, str]
    """Label of each method in all results, by its name in the experiment; labels name built-in faults."""

    @property
    def complete(self) -> Points:
        """Points of the methods that have a result with every seed."""
        return {name: by_seed for name, by_seed in self.points.items() if name not in self.failed}

    @property
    def rows(self) -> list[ResultRow]:
        """The rows of the table, reported states first."""
        return result_rows({name: list(by_seed.values()) for name, by_seed in self.complete.items()})

    @property
    def newcomers(self) -> list[ResultRow]:
        """The rows of the newcomers."""
        return newcomer_rows({name: list(by_seed.values()) for name, by_seed in self.complete.items()})

    @property
    def failures(self) -> dict[str, str]:
        """Text in the place of numbers, by failed method."""
        return failure.describe_all(self.failed, len(self.experiment.seeds))


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation over seeds (n - 1; None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class ResultRow:
    """A method in one evaluated state. Bytes are means per client and round; seconds are of the whole training.

    For newcomers the state is the moment of the measurement, and `down_bytes` are those on arrival.
    """

    method: str
    state: EvalPoint | Moment
    reported: bool
    """Whether this is the reported state of the method."""
    seeds: int
    metrics: dict[str, Value]
    up_bytes: float
    down_bytes: float
    train_s: float


def result_rows(results: Mapping[str, Sequence[PointResult]]) -> list[ResultRow]:
    """Rows from the results of every method (one per seed), reported states first."""
    found = []
    for method, points in results.items():
        states = dict.fromkeys(state for point in points for state in point.final)
        own = points[0].state
        for state in sorted(states, key=lambda name: name != own):
            found.append(_row(method, state, state == own, [p for p in points if state in p.final]))
    return sorted(found, key=lambda row: not row.reported)


def _row(method: str, state: EvalPoint, reported: bool, points: Sequence[PointResult]) -> ResultRow:
    means = _values([point.final[state] for point in points])
    up, down = (statistics.fmean(sizes) for sizes in zip(
        *((point.up_bytes_per_visit, point.down_bytes_per_visit) for point in points), strict=True))  # fmt: skip
    return ResultRow(method, state, reported, len(points), means, up, down, statistics.fmean(p.train_s for p in points))


def newcomer_rows(results: Mapping[str, Sequence[PointResult]]) -> list[ResultRow]:
    """Rows of the newcomers: all methods on arrival, then all methods after local rounds."""
    moments = dict.fromkeys(moment for points in results.values() for point in points for moment in point.newcomers)
    each = [(method, moment, [point.newcomers[moment] for point in points if moment in point.newcomers])
            for moment in moments for method, points in results.items()]  # fmt: skip
    return [_newcomer_row(method, moment, records) for method, moment, records in each if records]


def _newcomer_row(method: str, moment: Moment, records: Sequence[NewcomerRecord]) -> ResultRow:
    down = [sum(sizes.values()) for record in records for sizes in record.down_bytes.values()]
    means = _values([record.means for record in records])
    return ResultRow(method, moment, False, len(records), means, 0.0, statistics.fmean(down), 0.0)


def _values(each: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    names = dict.fromkeys(name for means in each for name in means)
    return {name: mean_and_std([means[name] for means in each if name in means]) for name in names}


def mean_and_std(numbers: Sequence[float]) -> Value:
    """Mean and sample standard deviation."""
    return Value(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None)
