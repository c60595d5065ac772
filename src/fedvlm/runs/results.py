"""What a run gives: every point's result, and the rows of its table (means and deviations over seeds)."""

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
    """What `fedvlm.run` gives back.

    A method of which a seed failed has no row, as a mean over the other seeds would be one of lucky seeds.
    """

    experiment: Experiment
    folder: Path
    points: Points
    failed: Failures
    contract: str
    """What was said before training (also `contract.txt` in the folder)."""
    labels: dict[str, str]
    """By name in the experiment what a method is called in all results: with faults, it has them in its name."""

    @property
    def complete(self) -> Points:
        """The points of the methods that have a result with every seed."""
        return {name: by_seed for name, by_seed in self.points.items() if name not in self.failed}

    @property
    def rows(self) -> list[ResultRow]:
        """The rows of the table, the state that each method is judged by first."""
        return result_rows({name: list(by_seed.values()) for name, by_seed in self.complete.items()})

    @property
    def newcomers(self) -> list[ResultRow]:
        """The rows of the clients that joined after the last round."""
        return newcomer_rows({name: list(by_seed.values()) for name, by_seed in self.complete.items()})

    @property
    def failures(self) -> dict[str, str]:
        """What stands in a table in the place of a failed method's numbers."""
        return failure.describe_all(self.failed, len(self.experiment.seeds))


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation over seeds (n - 1; None with one seed)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class ResultRow:
    """A method in one evaluated state. Bytes are means per client visit; seconds are of the whole training.

    The state of late clients is the moment at which they were measured; their bytes down are those of their arrival.
    """

    method: str
    state: EvalPoint | Moment
    reported: bool
    """Whether this is the state that heads the table."""
    seeds: int
    metrics: dict[str, Value]
    up_bytes: float
    down_bytes: float
    train_s: float


def result_rows(results: Mapping[str, Sequence[PointResult]]) -> list[ResultRow]:
    """Rows from the finished results of every method (one per seed), the reported state of each first."""
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
    """Rows of the clients that joined after the last round: every method on their arrival, then after their visits."""
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
