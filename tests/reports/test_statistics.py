"""Statistics of a comparison against enumeration, worked examples, numpy and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedvlm.reports import statistics
from fedvlm.training.metrics import Metrics


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_an_estimate_is_students_interval(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    found = statistics.estimate(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.seeds == count


def test_an_estimate_by_the_printed_table() -> None:
    """Student's t of 2 degrees of freedom at 0.975 is 4.303: 2, 4, 9 have mean 5 and standard deviation sqrt 13."""
    found = statistics.estimate([2, 4, 9])
    assert found.mean == 5
    assert found.half == pytest.approx(4.302653 * math.sqrt(13 / 3), rel=1e-6)
    assert statistics.estimate([0.5]) == statistics.Estimate(0.5, None, 1)
    assert statistics.estimate([0.5, 0.5, 0.5]).half == 0


def enumerated(differences: list[float]) -> float:
    """The share of all sign patterns whose mean is at least as far from zero."""
    seen = abs(math.fsum(differences))
    sums = [abs(math.fsum(sign * x for sign, x in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(total >= seen - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_is_the_enumeration(count: int, seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.5 * seed, 1, count).tolist()
    assert statistics.sign_flip(differences) == pytest.approx(enumerated(differences))
    assert statistics.sign_flip([-x for x in differences]) == pytest.approx(enumerated(differences))


@pytest.mark.parametrize(
    "differences", [[0.1, 0.1, 0.1], [0.0, 0.2, 0.3], [0.1, -0.1], [0.01, 0.02, 0.03, -0.02], [0.3] * 9]
)
def test_sign_flip_with_ties(differences: list[float]) -> None:
    """Equal differences in floating point: sums that are equal on paper count as equal."""
    assert statistics.sign_flip(differences) == pytest.approx(enumerated(differences))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 16])
def test_the_least_p_is_reached_when_all_differences_agree(seeds: int) -> None:
    """All of one sign: only the pattern itself and its opposite are as far, 2 of 2^n."""
    p = statistics.sign_flip(np.random.default_rng(seeds).uniform(0.1, 1, seeds).tolist())
    assert p == pytest.approx(statistics.least_p(seeds)) == pytest.approx(2 / 2**seeds)


def test_where_sign_flip_has_nothing_to_say() -> None:
    assert statistics.sign_flip([0.5]) is None
    assert statistics.sign_flip([]) is None
    assert statistics.sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert statistics.least_p(1) == 1.0


def test_sign_flip_of_many_seeds_is_near_the_normal_limit() -> None:
    """Beyond 16 seeds patterns are drawn; the mean of n signed differences is nearly normal by then."""
    values = np.random.default_rng(3).normal(0.2, 1, 60)
    expected = 2 * stats.norm.sf(abs(values.sum()) / math.sqrt((values**2).sum()))
    assert statistics.sign_flip(values.tolist()) == pytest.approx(expected, rel=0.1)
    assert statistics.sign_flip(values.tolist()) == statistics.sign_flip(values.tolist())


def test_holm_by_the_textbook() -> None:
    """.005 x 4, .01 x 3, .03 x 2, .04 x 1 raised to the one before."""
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert statistics.holm(given) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(statistics.holm(given)) == ["a", "b", "c", "d"]
    assert statistics.holm({"a": 0.6, "b": None, "c": 0.7}) == {"a": 1.0, "b": None, "c": 1.0}
    assert statistics.holm({"a": 0.2}) == {"a": 0.2}
    assert statistics.holm({}) == {}


def points(seed: int, count: int) -> list[Metrics]:
    draw = np.random.default_rng(seed)
    return [{"weight": float(w), "local": float(x), "base": float(y), "novel": float(z)}
            for w, (x, y, z) in enumerate(draw.random((count, 3)))]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_area_by_counting_a_grid(seed: int) -> None:
    curve, side = points(seed, 6), 1000
    centres = (np.arange(side) + 0.5) / side
    reached = np.zeros((side, side), dtype=bool)
    for point in curve:
        reached |= (centres[:, None] <= point["local"]) & (centres <= (point["base"] + point["novel"]) / 2)
    assert statistics.area(curve) == pytest.approx(reached.mean(), abs=5e-3)
    assert statistics.area(curve[::-1]) == pytest.approx(statistics.area(curve), rel=1e-12)


def test_the_area_by_hand() -> None:
    """Corners (general, local) = (0.8, 0.5) and (0.4, 0.9): 0.8 x 0.5 + 0.4 x 0.4; a point below adds nothing."""
    corners: list[Metrics] = [
        {"local": 0.5, "base": 0.8},
        {"local": 0.9, "base": 0.3, "novel": 0.5},
        {"local": 0.5, "base": 0.4},
    ]
    assert statistics.area(corners) == pytest.approx(0.56)
    assert statistics.area(corners[:1]) == pytest.approx(0.4)
    assert statistics.area([{"base": 0.7}]) == 0.0


def test_scores_by_hand() -> None:
    point: Metrics = {"weight": 0.0, "local": 0.5, "base": 1.0, "novel": 0.25}
    assert statistics.hm_score(point) == pytest.approx(3 / (2 + 1 + 4))
    assert statistics.general_accuracy(point) == pytest.approx(0.625)
    assert statistics.hm_score({"local": 0.5, "base": 1.0}) == pytest.approx(2 / 3)
    assert statistics.general_accuracy({"base": 0.75}) == 0.75


def test_the_chosen_weight_is_the_best_and_among_equals_the_nearest_to_the_method() -> None:
    good: Metrics = {"local": 0.8, "base": 0.8, "novel": 0.8}
    poor: Metrics = {"local": 0.9, "base": 0.9, "novel": 0.1}
    curve: list[Metrics] = [
        poor | {"weight": 0.0},
        good | {"weight": -0.5},
        good | {"weight": 0.25},
        good | {"weight": 1.0},
    ]
    assert statistics.best_weight(curve) == 0.25
    assert statistics.best_weight(curve[:2]) == -0.5
    assert statistics.point_at(curve, 0.25) is curve[2]


def test_reach_counts_the_bytes_up_to_the_first_round_that_is_good_enough() -> None:
    curve = [(0, 0.1), (2, 0.4), (4, 0.6), (6, 0.5)]
    sizes = {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0, 5: 50.0, 6: 60.0}
    assert statistics.first_reach(curve, sizes, 0.5) == statistics.Reach(4, 100.0)
    assert statistics.first_reach(curve, sizes, 0.6) == statistics.Reach(4, 100.0)
    assert statistics.first_reach(curve, sizes, 0.1) == statistics.Reach(0, 0.0)
    assert statistics.first_reach(curve, sizes, 0.61) is None
