"""How rates are chosen: two goals, and grids that grow where the best candidate lies at an end."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import tune


def rows(**scores: tuple[float, float]) -> list[tune.Row]:
    """Candidates with rates 0.1 to 1 (by the keys a, b, c) and their hm and local."""
    rates = dict(zip("abc", (0.1, 0.3, 1.0), strict=True))
    return [{"rates": {"lr": rates[key]}, "hm": hm, "local": local} for key, (hm, local) in scores.items()]


def test_every_goal_has_its_own_winner_and_a_diverged_candidate_never_wins() -> None:
    found = [*rows(a=(70, 80), b=(60, 90)), {"rates": {"lr": 1.0}}]
    assert tune.best(found, "hm")["rates"] == {"lr": 0.1}
    assert tune.best(found, "local")["rates"] == {"lr": 0.3}


def test_a_grid_grows_at_the_ends_where_a_goal_has_its_winner() -> None:
    assert tune.wider(rows(a=(1, 1), b=(2, 2), c=(1, 1)), ["hm", "local"]) == []
    assert tune.wider(rows(a=(3, 1), b=(2, 2), c=(1, 1)), ["hm", "local"]) == [{"lr": 0.03}]
    assert tune.wider(rows(a=(3, 1), b=(2, 2), c=(1, 9)), ["hm", "local"]) == [{"lr": 0.03}, {"lr": 3.0}]
    assert tune.wider(rows(a=(3, 9), b=(2, 2), c=(1, 1)), ["hm", "local"]) == [{"lr": 0.03}]


def test_of_two_settings_only_that_at_its_end_moves() -> None:
    grid = [{"lr": lr, "weight": weight} for lr in (0.1, 0.3, 1.0) for weight in (1.0, 2.0, 4.0)]
    found = [{"rates": rates, "hm": rates["weight"] - abs(rates["lr"] - 0.3)} for rates in grid]
    assert tune.wider(found, ["hm"]) == [{"lr": 0.3, "weight": 8.0}]


def test_a_setting_with_one_value_is_no_grid() -> None:
    assert tune.wider([{"rates": {"lr": 0.1, "mu": 0.1}, "hm": 1}], ["hm"]) == []
    assert all(len(grid) >= 3 for grid in tune.RATES.values())
