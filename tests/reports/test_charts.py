"""What figures show, as data; and that both ways to draw them draw all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_results import point

from fedvlm.errors import FedvlmError
from fedvlm.reports import comparison
from fedvlm.reports.charts import accuracy, clients, looks, plot, svg
from fedvlm.reports.charts.chart import GREY, Axis, Band, Bar, Cell, Chart, Dot, Guide, Line, Panel, Series, short
from fedvlm.runs.result import PointResult


def moved(local: float, general: float, far: float, train_s: float, **fields: Any) -> PointResult:
    """A method that was trained to (general, local), with a curve from `far` over there to zero-shot."""
    curve = [{"weight": weight, "local": one, "base": x, "novel": x, "hm": x} for weight, one, x in (
        (-1.0, 0.95, far), (0.0, local, general), (1.0, 0.70, 0.71))]  # fmt: skip
    means = {"local": local, "base": general, "novel": general, "hm": general}
    return point(means, tradeoff={"test": curve, "val": curve}, train_s=train_s, **fields)


def test_a_control_that_gives_one_answer_does_not_squeeze_the_others() -> None:
    results = {
        "zero_shot_prior": {0: moved(0.85, 0.69, 0.20, 0.0)},
        "pfedmma": {0: moved(0.90, 0.66, 0.66, 5.0)},
    }
    chart = accuracy.tradeoff(comparison.compare("few", results, "pfedmma"), "few")
    assert chart is not None
    (panel,) = chart.panels
    assert panel.x.label == "mean of Base and Novel, %"
    assert panel.x.low > 60, "the axis begins where methods are, not at the control's 20 %"
    assert panel.x.low < 66
    assert panel.y.high > 90
    dashes = {mark.method: mark.dashes for mark in panel.marks if isinstance(mark, Line)}
    assert dashes == {"zero_shot_prior": 1, "pfedmma": 0}, "what trains nothing is dashed"
    places = {mark.method: (mark.x, mark.y) for mark in panel.marks if isinstance(mark, Dot) and not mark.star}
    assert places == {"zero_shot_prior": pytest.approx((69, 85)), "pfedmma": pytest.approx((66, 90))}
    (star,) = (mark for mark in panel.marks if isinstance(mark, Dot) and mark.star)
    assert (star.x, star.y) == pytest.approx((71, 70))


def test_lines_of_equal_harmonic_mean() -> None:
    results = {"pfedmma": {seed: moved(0.8 + seed / 50, 0.7, 0.7, 1.0) for seed in range(3)}}
    chart = accuracy.tradeoff(comparison.compare("few", results, "pfedmma"), "few")
    assert chart is not None
    guides = [mark for mark in chart.panels[0].marks if isinstance(mark, Guide)]
    assert len(guides) > 2
    for guide in guides:
        for x, y in guide.points:
            assert 2 * x * y / (x + y) == pytest.approx(float(guide.label))
    (dot,) = (mark for mark in chart.panels[0].marks if isinstance(mark, Dot) and not mark.star)
    # Student's t with two degrees of freedom, 97.5 %: 4.3027; values 80, 82, 84.
    assert dot.half_y == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)
    assert dot.half_x == 0


def test_rounds_are_means_over_seeds_with_their_range() -> None:
    curves = {
        "zero_shot": [{"local": [(0, 0.5)]}],
        "pfedmma": [{"local": [(1, 0.4), (2, 0.6)]}, {"local": [(1, 0.6), (2, 0.7)]}],
    }
    chart = accuracy.rounds(curves, 4, "per round")
    (panel,) = chart.panels
    lines = {mark.method: mark.points for mark in panel.marks if isinstance(mark, Line)}
    assert lines["zero_shot"] == ((1, 50.0), (4, 50.0)), "level, as far as the others could go"
    assert lines["pfedmma"] == (pytest.approx((1, 50.0)), pytest.approx((2, 65.0)))
    (band,) = (mark for mark in panel.marks if isinstance(mark, Band))
    assert band.points == (pytest.approx((1, 40.0, 60.0)), pytest.approx((2, 60.0, 70.0)))
    assert {"metric": "local", "method": "pfedmma", "round": 2, "mean": "65.000", "seeds": 2} in chart.data


def test_bytes_of_silent_methods_stand_at_zero() -> None:
    results = {
        "coop": {0: moved(0.8, 0.6, 0.6, 1.0)},
        "promptfl": {0: moved(0.7, 0.7, 0.7, 1.0, up_bytes_per_visit=2000.0, down_bytes_per_visit=4000.0)},
    }
    found = comparison.compare("few", results, "coop")
    chart = accuracy.sizes(found, looks.of(found))
    assert chart is not None
    (panel,) = (panel for panel in chart.panels if panel.title == "Local")
    places = {mark.method: mark.x for mark in panel.marks if isinstance(mark, Dot)}
    assert places["promptfl"] == 6000
    assert panel.x.text(places["coop"]) == "0"
    alone = comparison.compare("few", {"coop": results["coop"]}, "coop")
    assert accuracy.sizes(alone, looks.of(alone)) is None


def test_the_worst_tenth_of_the_clients_stands_out() -> None:
    own = {f"c{n}": n / 20 for n in range(11)}
    chart = clients.accuracies({"pfedmma": own}, looks.in_order(["pfedmma"]), 2)
    assert chart is not None
    marked = {mark.client for mark in chart.panels[0].marks if isinstance(mark, Bar) and mark.marked}
    assert marked == {"c0", "c1"}, "ceil(11 / 10)"
    assert clients.accuracies({}, looks.in_order(["pfedmma"]), 2) is None


def test_many_clients_are_sorted_and_thinned_but_the_data_has_all() -> None:
    own = {f"c{n}": (n * 7919 % 1000) / 1000 for n in range(1000)}
    chart = clients.accuracies({"pfedmma": own}, looks.in_order(["pfedmma"]), 1)
    assert chart is not None
    heights = [mark.high for mark in chart.panels[0].marks if isinstance(mark, Bar)]
    assert heights == sorted(heights)
    assert len(heights) <= clients.DRAWN
    assert len(chart.data) == 1000


SAVED = {
    "base": {"3": "cat", "7": "dog"}, "novel": {"1": "owl"},
    "clients": [{"name": "ada", "classes": [0], "domain": None}, {"name": "ben", "classes": [0, 1], "domain": "neon"}],
    "counts": {"ada": {"3": 4}, "ben": {"3": 1, "7": 16}},
}  # fmt: skip


def test_a_partition_shows_who_holds_how_many() -> None:
    chart = clients.partition(SAVED, 0)
    assert chart is not None
    cells = {(mark.client, chart.panels[0].x.names[mark.column]): mark for mark in chart.panels[0].marks
             if isinstance(mark, Cell)}  # fmt: skip
    assert {place: cell.text for place, cell in cells.items()} == {
        ("ada", "cat"): "4", ("ben", "cat"): "1", ("ben", "dog"): "16",
    }  # fmt: skip
    assert cells["ben", "dog"].strength == 1
    assert cells["ada", "cat"].strength == pytest.approx(0.5), "the root of a quarter"
    assert chart.panels[0].y.names == ("ada", "ben (neon)")
    # Runs of earlier versions know the classes only: positions among the base classes in those, labels here.
    before = {**SAVED, "clients": [{**client, "classes": [3]} for client in SAVED["clients"]]}  # type: ignore[misc]
    del before["counts"]
    older = clients.partition(before, 0)
    assert older is not None
    assert "earlier version" in older.about
    assert clients.partition({**SAVED, "base": {str(n): str(n) for n in range(4000)}}, 0) is None


def test_experts_are_named_with_their_shares() -> None:
    chart = clients.helpers({"ada": {"ada": 0.25, "ben": 0.75}, "ben": {"ben": 1.0}}, "pfedmoap", 0)
    assert chart is not None
    assert {(mark.client, chart.panels[0].x.names[mark.column]): mark.text for mark in chart.panels[0].marks
            if isinstance(mark, Cell)} == {("ada", "ada"): "25", ("ada", "ben"): "75", ("ben", "ben"): "100"}  # fmt: skip
    assert clients.helpers({}, "pfedmoap", 0) is None


@pytest.mark.parametrize(("axis", "wanted"), [
    (Axis(low=0, high=100), [0, 20, 40, 60, 80, 100]), (Axis(low=71.3, high=74.9), [72, 73, 74]),
    (Axis(low=1, high=3, integer=True), [1, 2, 3]), (Axis(low=10, high=3e4, log=True), [10, 100, 1000, 10000]),
    (Axis(low=1, high=300, log=True, zero=True), [1, 10, 100]), (Axis(names=("a", "b")), [0, 1]),
])  # fmt: skip
def test_ticks(axis: Axis, wanted: list[float]) -> None:
    assert axis.ticks() == pytest.approx(wanted)


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 0.25, 17.0, 999, 34_000, 2.7e6, 3e9)] == [
        "0", "0.25", "17", "999", "34 k", "2.7 M", "3 G",
    ]  # fmt: skip


HOSTILE = '<b>&"$\\frac{1}{2}$'
EVERY = Chart(
    "every-mark", HOSTILE, "all kinds of marks",
    (
        Panel(HOSTILE, Axis("x", 0, 4), Axis("y", 0, 10), (
            Line(((0, 1), (4, 9)), 2, method=HOSTILE, tip="a line"), Band(((0, 1, 2), (4, 8, 10)), colour=1),
            Dot(1, 5, 0.5, 1, method="m", client="c", tip="a dot"), Dot(2, 5, star=True), Guide(((0, 3), (4, 7)), "75"),
            Dot(3, 3, colour=GREY),
        )),
        Panel("", Axis("", -0.5, 1.5, names=(HOSTILE, "b")), Axis("", -0.5, 1.5, names=("p", "q")), (
            Cell(0, 0, 0.2, "3", client="p"), Cell(1, 1, 1.0, "12"), Bar(0, 0, 1, across=True, marked=True), Bar(1, 0, 1),
        )),
    ), (Series(HOSTILE, 0), Series("b", 1)),
)  # fmt: skip


def test_a_page_draws_every_mark_and_no_name_becomes_markup() -> None:
    for place, panel in enumerate(EVERY.panels):
        root = ElementTree.fromstring(svg.draw(panel, f"k{place}", EVERY.title))
        assert not list(root.iter("b"))
        assert HOSTILE in (root.get("aria-label") or "")
        kinds = " ".join(one.get("class") or "" for one in root.iter())
        for kind in ("line", "band", "dot", "star", "guide", "whisker") if place == 0 else ("cell", "bar marked"):
            assert kind in kinds
    whole = ElementTree.fromstring(svg.draw(EVERY.panels[0], "k", "t"))
    assert {one.get("data-m") for one in whole.iter()} >= {HOSTILE, "m"}


def test_files_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in plot.write(EVERY, tmp_path)}
    assert sorted(first) == ["every-mark.pdf", "every-mark.png", "every-mark.svg"]
    assert {path.name: path.read_bytes() for path in plot.write(EVERY, tmp_path)} == first
    assert first["every-mark.pdf"].startswith(b"%PDF")
    assert "frac{1}{2}" in first["every-mark.svg"].decode(), "a dollar sign starts no formula"


def test_formats() -> None:
    assert plot.formats("svg, pdf") == ["svg", "pdf"]
    with pytest.raises(FedvlmError, match=r"svg, png, pdf, not as jpg"):
        plot.formats("svg,jpg")


def test_methods_beyond_the_eighth_are_dashed_lines_and_grey_dots() -> None:
    found = looks.in_order([f"m{n}" for n in range(10)])
    assert (found["m7"].dashes, found["m8"].dashes) == (0, 1)
    assert found["m8"].colour == found["m0"].colour
    assert found["m8"].dot == GREY
