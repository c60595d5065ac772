"""How rates are chosen: two goals, and grids that grow where the best candidate lies at an end."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import tune


def rows(**scores: tuple[float, float]) -> list[tune.Row]:
    """Candidates with rates 0.1 to 1 (by the keys a, b, c) and their hm and local, in steps of ten points."""
    rates = dict(zip("abc", (0.1, 0.3, 1.0), strict=True))
    return [{"rates": {"lr": rates[key]}, "hm": 10 * hm, "local": 10 * local} for key, (hm, local) in scores.items()]


def test_every_goal_has_its_own_winner_and_a_diverged_candidate_never_wins() -> None:
    found = [*rows(a=(7, 8), b=(6, 9)), {"rates": {"lr": 1.0}}]
    assert tune.best(found, "hm")["rates"] == {"lr": 0.1}
    assert tune.best(found, "local")["rates"] == {"lr": 0.3}


def test_among_equals_in_local_the_harmonic_mean_decides() -> None:
    found = rows(a=(7.0, 9.8), b=(6.0, 9.9), c=(1.0, 9.91))
    assert tune.best(found, "local")["rates"] == {"lr": 0.3}
    assert tune.best(rows(a=(7.0, 9.81), b=(6.0, 9.9)), "local")["rates"] == {"lr": 0.1}


def test_a_grid_grows_at_the_ends_where_a_goal_has_its_winner() -> None:
    assert tune.wider(rows(a=(1, 1), b=(2, 2), c=(1, 1)), ["hm", "local"]) == []
    assert tune.wider(rows(a=(3, 1), b=(2, 2), c=(1, 1)), ["hm", "local"]) == [{"lr": 0.03}]
    assert tune.wider(rows(a=(3, 1), b=(2, 2), c=(1, 9)), ["hm", "local"]) == [{"lr": 0.03}, {"lr": 3.0}]
    assert tune.wider(rows(a=(3, 9), b=(2, 2), c=(1, 1)), ["hm", "local"]) == [{"lr": 0.03}]


def test_of_two_settings_only_that_at_its_end_moves() -> None:
    grid = [{"lr": lr, "weight": weight} for lr in (0.1, 0.3, 1.0) for weight in (1.0, 2.0, 4.0)]
    found = [{"rates": rates, "hm": 10 * (rates["weight"] - abs(rates["lr"] - 0.3))} for rates in grid]
    assert tune.wider(found, ["hm"]) == [{"lr": 0.3, "weight": 8.0}]


def test_a_setting_with_one_value_is_no_grid() -> None:
    assert tune.wider([{"rates": {"lr": 0.1, "mu": 0.1}, "hm": 1}], ["hm"]) == []
    assert all(len(grid) >= 3 for grid in tune.RATES.values())


def test_a_grid_near_the_values_that_are_there() -> None:
    rates = tune.grid(lr=(0.1, 0.3), mu=(0.1,))
    have = {"lr": 0.3, "mu": 0.2, "rank": 4}
    assert tune.near(have, have, rates) == [{"lr": lr, "mu": 0.2} for lr in (0.3, 0.1, 0.9)]
    both = tune.near({"lr": 0.3, "weight": 2.0}, {"lr": 0.9, "weight": 2.0}, tune.grid(lr=(1, 2), weight=(1, 2)))
    assert both == [
        {"lr": 0.3, "weight": 2.0}, {"lr": 0.1, "weight": 2.0}, {"lr": 0.9, "weight": 2.0}, {"lr": 0.3, "weight": 0.7},
        {"lr": 0.3, "weight": 6.0}, {"lr": 3.0, "weight": 2.0}, {"lr": 0.9, "weight": 0.7}, {"lr": 0.9, "weight": 6.0},
    ]  # fmt: skip


PRESET = """# about
[data]
shots = 16

# chosen so
[method.coop]
lr = 0.5      # old
tokens = 4

[method.coop_for_local]
method = "coop"
lr = 9.0

# of adapters
[method.pfedmma]
lr = 0.2

[method.other]
lr = 1.0
"""


def test_chosen_values_are_written_into_a_preset_and_nothing_else_changes() -> None:
    found = {"coop": rows(a=(3, 1), b=(1, 3)), "pfedmma": rows(a=(1, 1), b=(2, 2))}
    text = tune.written(PRESET, found)
    settings = tomllib.loads(text)["method"]
    assert settings["coop"] == {"lr": 0.1, "tokens": 4}
    assert settings["coop_for_local"] == {"method": "coop", "lr": 0.3}
    assert settings["pfedmma"] == {"lr": 0.3}
    assert "pfedmma_for_local" not in settings
    assert settings["other"] == {"lr": 1.0}
    assert text.startswith("# about\n[data]\nshots = 16\n\n# chosen so\n[method.coop]\nlr = 0.1      # old\n")
    assert "lr = 0.3\n\n# of adapters\n[method.pfedmma]" in text
    assert tune.written(text, found) == text


def test_a_local_winner_that_is_no_other_any_more_leaves_the_preset() -> None:
    text = tune.written(PRESET, {"coop": rows(a=(3, 3), b=(1, 1))})
    assert "coop_for_local" not in text


def test_values_for_a_method_that_the_preset_lacks_are_refused() -> None:
    with pytest.raises(SystemExit, match="maple"):
        tune.written(PRESET, {"maple": rows(a=(1, 1), b=(2, 2))})


def test_a_table_for_local_that_would_be_inherited_is_written_out() -> None:
    text = 'like = "quickstart"\n[method.coop]\nlr = 0.5\n\n[method.promptfl_prox]\nlr = 0.5\n'
    written = tune.written(text, {"coop": rows(a=(3, 3), b=(1, 1)), "promptfl_prox": rows(a=(3, 3), b=(1, 1))})
    settings = tomllib.loads(written)["method"]
    assert settings["coop_for_local"] == {"method": "coop", "lr": 0.1}
    assert "promptfl_prox_for_local" not in settings


def test_a_candidate_has_the_same_name_in_every_grid() -> None:
    assert tune.label("pfedmoap", {"lr": 0.3, "gate_lr": 0.0007}) == "pfedmoap__lr_0.3__gate_lr_0.0007"
    names = {tune.label(method, rates) for method, grid in tune.RATES.items() for rates in grid}
    assert len(names) == sum(map(len, tune.RATES.values()))
