"""Statistics of a comparison: intervals over seeds, paired tests, trade-offs. Values are accuracies in 0..1.

A seed draws its own partition, shots, initialisation and order. Seeds are therefore independent, but values within a
seed are not: the unit of every interval and test is the seed. All methods of a seed share its clients and images, so
differences are computed within seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import special

from fedvlm.streams import stream
from fedvlm.training.metrics import Metrics, harmonic_mean

K = TypeVar("K")
SCORED = ("local", "base", "novel")
"""The metrics of the harmonic mean: local classes, all base classes, novel classes."""
EXACT = 2**16
"""Number of sign patterns up to which all are evaluated; of more patterns, as many are drawn."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the half width of its 95 % interval (None with one seed)."""

    mean: float
    half: float | None
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval from Student's t with n - 1 degrees of freedom."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Estimate(mean, None, 1)
    spread = statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, float(special.stdtrit(count - 1, 0.975)) * spread, count)


def sign_flip(differences: Sequence[float]) -> float | None:
    """Two-sided p of "the difference is as likely negative as positive" for paired differences, one per seed.

    A permutation test: under the hypothesis each seed's two methods could have changed places, which flips the sign of
    its difference. p is the share of sign patterns whose mean is at least as far from zero; with n seeds it cannot be
    below 2 / 2^n. None with one seed.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    if not values.any():
        return 1.0
    # Imported here because the import takes a second, and a run of one method does not need it.
    from scipy import stats

    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=EXACT, vectorized=True,
        alternative="two-sided", rng=stream(0, "sign flips"),
    )  # fmt: skip
    return min(1.0, float(found.pvalue))


def least_p(seeds: int) -> float:
    """The smallest p that `sign_flip` can give with this number of seeds."""
    return min(1.0, max(2.0 / 2**seeds, 2.0 / (EXACT + 1)))


def holm(values: Mapping[K, float | None]) -> dict[K, float | None]:
    """p-values corrected for their number by Holm's step-down procedure; None stays None."""
    known = sorted(((p, name) for name, p in values.items() if p is not None), key=lambda one: one[0])
    corrected: dict[K, float | None] = dict.fromkeys(values)
    highest = 0.0
    for place, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - place)))
        corrected[name] = highest
    return corrected


@dataclass(frozen=True)
class Difference:
    """One method's values less another's, paired within seeds."""

    estimate: Estimate
    p: float | None
    """Two-sided p by flipping signs of whole seeds; None with one seed."""
    corrected: float | None
    """p corrected by Holm for all differences that were tested together."""


def differences(pairs: Mapping[K, tuple[Sequence[float], Sequence[float]]]) -> dict[K, Difference]:
    """The first less the second of each pair of values by seed, corrected for all pairs together."""
    gaps = {name: [a - b for a, b in zip(*both, strict=True)] for name, both in pairs.items()}
    raw = {name: sign_flip(each) for name, each in gaps.items()}
    corrected = holm(raw)
    return {name: Difference(estimate(each), raw[name], corrected[name]) for name, each in gaps.items()}


def hm_score(point: Metrics) -> float:
    """Harmonic mean of Local, Base and Novel, of those that exist."""
    return harmonic_mean([point[name] for name in SCORED if name in point])


def general_accuracy(point: Metrics) -> float:
    """Mean of Base and Novel, of those that exist: accuracy beyond the client's local classes."""
    values = [point[name] for name in ("base", "novel") if name in point]
    return math.fsum(values) / len(values)


def best_weight(curve: Sequence[Metrics]) -> float:
    """The weight of zero-shot with the best `hm_score` on a validation curve; of equal ones the smallest."""
    return max(curve, key=lambda point: (hm_score(point), -abs(point["weight"])))["weight"]


def point_at(curve: Sequence[Metrics], weight: float) -> Metrics:
    """The point of a curve at a weight."""
    return next(point for point in curve if point["weight"] == weight)


def area(curve: Sequence[Metrics]) -> float:
    """The area that a trade-off curve dominates in the square of Local against general accuracy (hypervolume).

    The share of all pairs (local, general) that some point of the curve reaches in both. It is independent of the
    parametrisation of the curve.
    """
    corners = sorted(((general_accuracy(point), point.get("local", 0.0)) for point in curve), reverse=True)
    total = highest = 0.0
    for wide, high in corners:
        if high > highest:
            total += wide * (high - highest)
            highest = high
    return total


@dataclass(frozen=True)
class Reach:
    """The first evaluated round at which an accuracy was reached, and the bytes of all clients until then."""

    rounds: int
    total_bytes: float


def first_reach(curve: Sequence[tuple[int, float]], bytes_by_round: Mapping[int, float], target: float) -> Reach | None:
    """The first evaluated round with an accuracy of at least `target`; None if there is none."""
    for round_, value in curve:
        if value >= target:
            return Reach(round_, math.fsum(size for r, size in bytes_by_round.items() if r <= round_))
    return None
