"""Pictures of runs: accuracy per round, trade-off curves, and sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvlm import durable
from fedvlm.reports.columns import columns
from fedvlm.reports.comparison import Comparison
from fedvlm.reports.statistics import general_accuracy
from fedvlm.runs.result import Curve

# Okabe and Ito's palette: distinguishable with every common colour vision.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000"]
_DASHES = ["-", "--", ":", "-."]

# A dollar sign in a name must not start a formula.
# The salt fixes the identifiers in an SVG, so that the same results give the same bytes.
_STYLE = rc_context({"text.parse_math": False, "svg.hashsalt": "fedvlm"})

Curves = Mapping[str, Sequence[Mapping[str, Curve]]]
"""Metrics over rounds, by method and seed."""


@_STYLE
def draw_rounds(results: Curves, last: int, title: str, folder: Path) -> list[Path]:
    """Write `rounds.png` and `rounds.svg`: a panel for each metric, a line for each method.

    With up to four methods the range over seeds is shaded. A method without rounds is a level line up to round `last`.
    """
    curves = [curve for each in results.values() for curve in each]
    panels = columns("rounds", {name for curve in curves for name in curve})
    # Local rounds follow the last federated round; level lines reach as far as the other lines.
    last = max([last, *(step for curve in curves for line in curve.values() for step, _ in line)])
    figure = Figure(figsize=(4 * len(panels) + 1.5, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, metric in zip(axes, panels, strict=True):
        for position, (method, each) in enumerate(results.items()):
            lines = [dict(curve[metric.name]) for curve in each if metric.name in curve]
            _draw_line(panel, method, lines, last, position, bands=len(results) <= 4)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label_panel(panel, metric.heading, "round")
    _add_title(figure, axes, title)
    return _write(figure, folder, "rounds")


def _draw_line(
    panel: Axes, method: str, curves: Sequence[Mapping[int, float]], last: int, position: int, *, bands: bool
) -> None:
    """Draw the mean of one method over seeds; with `bands` also the range over seeds."""
    if not curves:
        return
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    table = 100 * np.array([[curve[step] for step in steps] for curve in curves])
    if steps == [0]:
        steps, table = [1, last], np.repeat(table, 2, axis=1)
    style = {
        "color": _COLOURS[position % len(_COLOURS)],
        "linestyle": _DASHES[position // len(_COLOURS) % len(_DASHES)],
    }
    marker = "o" if len(steps) < 3 else None
    panel.plot(steps, table.mean(0), label=method, linewidth=1.6, marker=marker, markersize=3, **style)  # type: ignore[arg-type]
    if len(curves) > 1 and bands:
        panel.fill_between(steps, table.min(0), table.max(0), alpha=0.12, color=style["color"], linewidth=0)


@_STYLE
def draw_tradeoff(comparison: Comparison, folder: Path, most: int = 8) -> list[Path]:
    """Write `tradeoff.png` and `.svg`: Local against general accuracy along every method's curve, means over seeds.

    The reference and the methods of largest area, `most` in all, are coloured; the others are grey and may lie outside
    of the picture. A dot is the method as trained. Methods that train nothing are dashed; they may lead out of the
    picture on the left.
    """
    drawn = [
        row
        for row in comparison.rows
        if len({_coordinates(point) for point in row.curve}) > 1 and "local" in row.curve[0]
    ]
    best = sorted(drawn, key=lambda row: (row.method != comparison.against, -np.mean(row.values["area"])))[:most]
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    panel = figure.subplots()
    curves = {
        row.method: {point["weight"]: _coordinates(point) for point in sorted(row.curve, key=lambda one: one["weight"])}
        for row in drawn
    }
    for row in drawn:
        curve = curves[row.method]
        x, y = zip(*curve.values(), strict=True)
        style: dict[str, Any] = {"color": "#CCCCCC", "linewidth": 0.8, "zorder": 1}
        if row in best:
            style = {"color": _COLOURS[best.index(row) % len(_COLOURS)], "linewidth": 1.6, "label": row.method}
            style |= {} if any(row.values["train_s"]) else {"linestyle": "--"}
        panel.plot(x, y, **style)
        panel.plot(*curve[0], "o", markersize=4, color=style["color"])
    ends = [curve[1] for curve in curves.values() if 1 in curve]
    if ends:
        panel.plot(*ends[0], "k*", markersize=10, label="zero-shot")
    if best:
        # The limits fit the methods as trained and zero-shot: a control that knows the client's classes, moved so far
        # that it always gives one answer, would squeeze the others into a corner.
        coloured = [curves[row.method] for row in best]
        trained = [*(curve[0] for curve in coloured), *ends]
        left = min(trained)[0]
        seen = np.array([*trained, *(place for curve in coloured for place in curve.values() if place[0] >= left)])
        low, high = seen.min(0), seen.max(0)
        room = 0.06 * (high - low) + 0.5
        panel.set_xlim(low[0] - room[0], high[0] + room[0])
        panel.set_ylim(low[1] - room[1], high[1] + room[1])
    _label_panel(panel, "", "mean of Base and Novel, %")
    _add_title(figure, [panel], f"{comparison.name}: moved towards zero-shot", "Local, %")
    return _write(figure, folder, "tradeoff")


@_STYLE
def draw_sweep(key: str, comparisons: Mapping[str, Comparison], title: str, folder: Path, most: int = 8) -> list[Path]:
    """Write `sweep.png` and `.svg`: accuracy at every value, means over seeds with 95 % intervals.

    Values have equal distances on the axis. The reference and the methods of largest mean HM, `most` in all, are
    coloured, the others grey.
    """
    by_value = [{row.method: row for row in one.rows} for one in comparisons.values()]
    against = next(iter(comparisons.values())).against
    drawn = list(dict.fromkeys(method for rows in by_value for method in rows))

    def height(method: str) -> float:
        return float(np.mean([rows[method].values["hm"] for rows in by_value if method in rows]))

    best = sorted(drawn, key=lambda m: (m != against, -height(m)))[:most]
    panels = columns("core", {name for rows in by_value for row in rows.values() for name in row.values})
    figure = Figure(figsize=(3.4 * len(panels) + 1.8, 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, metric in zip(axes, panels, strict=True):
        for method in drawn:
            values = [(place, one) for place, rows in enumerate(by_value)
                      if method in rows and (one := rows[method].estimate(metric.name))]  # fmt: skip
            style: dict[str, Any] = {"color": "#CCCCCC", "linewidth": 0.8, "zorder": 1}
            offset = 0.0
            if method in best:
                offset = 0.05 * (
                    best.index(method) - (len(best) - 1) / 2
                )  # methods stand side by side, so that no interval hides another
                style = {"color": _COLOURS[best.index(method)], "linewidth": 1.4, "label": method}
                style["yerr"] = [100 * (one.half or 0.0) for _, one in values]
            panel.errorbar([place + offset for place, _ in values], [100 * one.mean for _, one in values],
                           marker="o", markersize=3.5, elinewidth=0.8, **style)  # fmt: skip
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, -2), min(high, 102))  # with few seeds intervals exceed 0 to 100
        panel.set_xticks(range(len(comparisons)), list(comparisons))
        _label_panel(panel, metric.heading, key)
    _add_title(figure, axes, title)
    return _write(figure, folder, "sweep")


def _label_panel(panel: Axes, title: str, x: str) -> None:
    panel.set_title(title)
    panel.set_xlabel(x)
    panel.grid(alpha=0.25, linewidth=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def _add_title(figure: Figure, panels: Sequence[Axes], title: str, y: str = "accuracy, %") -> None:
    """Add the title, the label of the vertical axis, and one legend for all panels."""
    panels[0].set_ylabel(y)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def _coordinates(point: Mapping[str, float]) -> tuple[float, float]:
    return 100 * general_accuracy(dict(point)), 100 * point.get("local", 0.0)


def _write(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg` with the same layout."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    # No date, so that the same results give the same bytes.
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        data = BytesIO()
        figure.savefig(data, format=path.suffix[1:], dpi=150, metadata=metadata)
        durable.write_bytes(path, data.getvalue())
    return paths
