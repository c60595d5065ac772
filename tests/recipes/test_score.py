"""The embedded model knows the condition of a picture."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import conditions
import pytest
import score

from fedvlm import clip


def test_the_embedded_model_names_conditions_and_objects_in_them() -> None:
    lines = score.by_condition(clip.load("embedded"), images=60).splitlines()[2:]
    cells = {
        line.split(" | ")[0].strip("| "): [float(cell.strip("| ")) for cell in line.split(" | ")[1:]] for line in lines
    }
    assert list(cells) == [*conditions.FILTERS, "mean"]
    condition, plain, named = cells["mean"]
    chance = 100 / len(conditions.FILTERS)
    assert condition > 5 * chance
    assert plain > 60
    assert named > 60
    rows = [row[0] for name, row in cells.items() if name != "mean"]
    assert condition == pytest.approx(sum(rows) / len(rows), abs=0.11)
