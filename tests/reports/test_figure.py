"""What pictures show: limits that fit the methods as trained, and dashes for methods that train nothing."""

from __future__ import annotations

import re
from pathlib import Path

from fake_results import point

from fedvlm.reports import comparison, figure
from fedvlm.runs.result import PointResult


def moved(local: float, general: float, far: float, train_s: float) -> PointResult:
    """A method that was trained to (general, local), with a curve from `far` over there to zero-shot."""
    curve = [{"weight": weight, "local": one, "base": x, "novel": x, "hm": x} for weight, one, x in (
        (-1.0, 0.95, far), (0.0, local, general), (1.0, 0.70, 0.71))]  # fmt: skip
    means = {"local": local, "base": general, "novel": general, "hm": general}
    return point(means, tradeoff={"test": curve, "val": curve}, train_s=train_s)


def test_a_control_that_gives_one_answer_does_not_squeeze_the_others(tmp_path: Path) -> None:
    results = {
        "zero_shot_prior": {0: moved(0.85, 0.69, 0.20, 0.0)},
        "pfedmma": {0: moved(0.90, 0.66, 0.66, 5.0)},
    }
    figure.draw_tradeoff(comparison.compare("few", results, "pfedmma"), tmp_path)
    text = (tmp_path / "tradeoff.svg").read_text()
    ticks = [int(word) for word in re.findall(r"<!-- (\d+) -->", text)]
    assert ticks, "labels are comments beside their glyphs"
    assert min(ticks) > 60, "the axes begin where methods are, not at the control's 20 %"
    lines = re.findall(r'style="fill: none; ([^"]*)"', text)
    coloured = [line for line in lines if "stroke-width: 1.6" in line]
    dashed = {re.search(r"stroke: (#\w+)", line).group(1) for line in coloured if "stroke-dasharray" in line}  # type: ignore[union-attr]
    whole = {re.search(r"stroke: (#\w+)", line).group(1) for line in coloured if "stroke-dasharray" not in line}  # type: ignore[union-attr]
    assert len(dashed) == len(whole) == 1
    assert dashed != whole
