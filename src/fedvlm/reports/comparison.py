"""A comparison of methods over seeds: estimates, trade-offs, paired differences. It needs finished results only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from fedvlm.reports import statistics as stats
from fedvlm.reports.columns import columns
from fedvlm.reports.statistics import Difference, Estimate
from fedvlm.runs.result import Curve, PointResult
from fedvlm.training.metrics import Metrics, harmonic_mean

Points = Mapping[str, Mapping[int, PointResult]]
"""Finished points by method and seed."""


@dataclass(frozen=True)
class Target:
    """An accuracy to be reached: metric and value in 0..1."""

    metric: str
    value: float


@dataclass(frozen=True)
class ComparisonRow:
    """One method of a comparison. Values are per seed in the order of `Comparison.seeds`; accuracies in 0..1."""

    method: str
    state: str
    values: dict[str, list[float]]
    """Metrics of the points, and: `tuned`, the harmonic mean at the weight of zero-shot that was best on validation
    images, with `tuned_local`, `tuned_base`, `tuned_novel` and `weight`; `area` under the trade-off curve; `train_s`;
    `up_bytes` and `down_bytes` per client and round."""
    curve: list[dict[str, float]]
    """Trade-off curve on test images, means over seeds."""
    rounds: list[int | None]
    """Rounds until the target was reached, by seed; None if it was not reached."""
    total_bytes: list[float | None]
    """Bytes of all clients in both directions until the target was reached, by seed."""
    differences: dict[str, Difference]

    def estimate(self, name: str) -> Estimate | None:
        """Mean and interval of a value over seeds; None if the method does not have it."""
        return stats.estimate(self.values[name]) if name in self.values else None


@dataclass(frozen=True)
class Comparison:
    """All methods on the same seeds."""

    name: str
    seeds: list[int]
    against: str
    target: Target
    tuned: bool
    """Whether validation images were available to choose the weight of zero-shot."""
    rows: list[ComparisonRow]
    notes: tuple[str, ...] = ()
    """Notes on the data."""
    failed: dict[str, str] = field(default_factory=dict)
    """Text in the place of numbers by failed method, such as `diverged (2 of 11 seeds)`. There is no mean over the
    other seeds, because it would be biased."""

    @property
    def compared(self) -> bool:
        """Whether there are differences from the reference method."""
        return len(self.rows) > 1 and any(row.method == self.against for row in self.rows)

    def as_json(self) -> dict[str, object]:
        """All values per seed, as JSON."""
        return asdict(self) | {"least_p": stats.least_p(len(self.seeds))}


def compare(name: str, results: Points, against: str, target: Target | None = None) -> Comparison:
    """Compare finished results; without differences if `against` is not one of the methods."""
    seeds = sorted(next(iter(results.values())))
    points = {method: [by_seed[seed] for seed in seeds] for method, by_seed in results.items()}
    values = {method: _values(each) for method, each in points.items()}
    target = target or _halfway_target(values)
    differences = _differences(values, against) if against in values else {}
    rows = [_row(m, each, values[m], target, differences.get(m, {})) for m, each in points.items()]
    return Comparison(name, seeds, against, target, any("tuned" in own for own in values.values()), rows)


def _row(
    method: str,
    points: Sequence[PointResult],
    values: dict[str, list[float]],
    target: Target,
    differences: dict[str, Difference],
) -> ComparisonRow:
    reached = [_reach(point, target) for point in points]
    curve = [_mean([point.tradeoff["test"][place] for point in points])
             for place in range(len(points[0].tradeoff.get("test", [])))]  # fmt: skip
    return ComparisonRow(
        method, points[0].state, values, curve, [r.rounds if r else None for r in reached],
        [r.total_bytes if r else None for r in reached], differences,
    )  # fmt: skip


def _values(points: Sequence[PointResult]) -> dict[str, list[float]]:
    """Values by name and seed, of all names that every seed has."""
    each = [_point_values(point) for point in points]
    names = [name for name in each[0] if all(name in one for one in each)]
    return {name: [one[name] for one in each] for name in names}


def _point_values(point: PointResult) -> Metrics:
    own, curves = point.reported, point.tradeoff
    found = {metric.name: own[metric.name] for metric in columns("compare", own)}
    if any(name in own for name in stats.SCORED):  # sites may tell other metrics only
        found.setdefault("hm", stats.hm_score(own))
    found |= {"train_s": point.train_s, "up_bytes": point.up_bytes_per_visit, "down_bytes": point.down_bytes_per_visit}
    if "test" in curves:
        found["area"] = stats.area(curves["test"])
    if "val" in curves and _same_scores(curves["val"], curves["test"]):
        weight = stats.best_weight(curves["val"])
        best = stats.point_at(curves["test"], weight)
        found |= {"tuned": stats.hm_score(best), "weight": weight}
        found |= {f"tuned_{name}": best[name] for name in stats.SCORED if name in best}
    return found


def _same_scores(one: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> bool:
    """Whether both curves measure the same metrics, so that a weight chosen on one applies to the other."""
    return one[0].keys() & set(stats.SCORED) == other[0].keys() & set(stats.SCORED)


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: math.fsum(part[name] for part in parts) / len(parts) for name in names}


def _halfway_target(values: Mapping[str, Mapping[str, Sequence[float]]]) -> Target:
    """Local accuracy halfway between the lowest and the highest mean of all methods."""
    means = [math.fsum(own["local"]) / len(own["local"]) for own in values.values() if "local" in own]
    return Target("local", (min(means) + max(means)) / 2 if means else 0.0)


def _reach(point: PointResult, target: Target) -> stats.Reach | None:
    return stats.first_reach(_over_rounds(point.curve, target.metric), dict(point.bytes_by_round), target.value)


def _over_rounds(curves: Mapping[str, Curve], metric: str) -> Curve:
    """A metric by round; `hm` is computed from the available parts if it was not measured."""
    if metric != "hm" or "hm" in curves:
        return curves.get(metric, [])
    parts = [dict(curves[name]) for name in stats.SCORED if name in curves]
    return [(round_, harmonic_mean([part[round_] for part in parts])) for round_ in parts[0]] if parts else []


def _differences(values: Mapping[str, Mapping[str, list[float]]], against: str) -> dict[str, dict[str, Difference]]:
    """Differences of every other method from `against`, by metric that both have; corrected for each metric.

    The area is not compared with zero-shot's: every curve ends at zero-shot, so no area is smaller.
    """
    found: dict[str, dict[str, Difference]] = {method: {} for method in values if method != against}
    for metric in (m.name for m in columns("tested") if (m.name, against) != ("area", "zero_shot")):
        pairs = {method: (values[method][metric], values[against][metric])
                 for method in found if metric in values[method] and metric in values[against]}  # fmt: skip
        for method, difference in stats.differences(pairs).items():
            found[method][metric] = difference
    return found
