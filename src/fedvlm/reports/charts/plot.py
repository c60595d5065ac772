"""Charts as files: SVG, PNG or PDF, drawn by matplotlib. The same chart gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from fedvlm import durable
from fedvlm.errors import FedvlmError, listed
from fedvlm.reports.charts.chart import GREY, Axis, Band, Bar, Cell, Chart, Dot, Guide, Line, Mark, Panel

# Okabe and Ito's palette: distinguishable with every common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_GREY = "#CCCCCC"
_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
FORMATS = ("svg", "png", "pdf")
# No date, so that the same results give the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None},
}


def formats(words: str) -> list[str]:
    """Formats of a list with commas. Raises `FedvlmError` for an unknown one."""
    found = [word.strip() for word in words.split(",") if word.strip()]
    if unknown := [one for one in found if one not in FORMATS]:
        raise FedvlmError(f"figures are written as {listed(FORMATS)}, not as {listed(unknown)}")
    return found


@rc_context({"text.parse_math": False, "svg.hashsalt": "fedvlm", "svg.fonttype": "none", "pdf.fonttype": 42})
def write(chart: Chart, folder: Path, kinds: Sequence[str] = FORMATS, *, private: bool = False) -> list[Path]:
    """Write a chart as `NAME.FORMAT` files; none without panels."""
    if not chart.panels:
        return []
    figure = draw(chart)
    paths = []
    for kind in kinds:
        data = BytesIO()
        figure.savefig(data, format=kind, dpi=150, metadata=_METADATA[kind])
        durable.write_bytes(folder / f"{chart.name}.{kind}", data.getvalue(), private=private)
        paths.append(folder / f"{chart.name}.{kind}")
    return paths


def draw(chart: Chart) -> Figure:
    """The panels in rows of up to four, with the legend at the right."""
    across = min(4, len(chart.panels))
    down = -(-len(chart.panels) // across)
    wide, high = chart.panels[0].size
    figure = Figure(
        figsize=(across * wide / 90 + 1.5 * bool(chart.legend), down * high / 90 + 0.4), layout="constrained"
    )
    places = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(places.flat):
        if place < len(chart.panels):
            _panel(axes, chart.panels[place])
        else:
            axes.set_axis_off()
    figure.suptitle(chart.title, fontsize=11, x=0.01, ha="left")
    if chart.legend:
        figure.legend(handles=_handles(chart), loc="outside right center", frameon=False, fontsize=9)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _handles(chart: Chart) -> list[Any]:
    if chart.kind == "lines":
        return [
            Line2D([], [], color=_colour(s.colour), linestyle=_DASHES[s.dashes], label=s.name) for s in chart.legend
        ]
    if chart.kind in ("plane", "dots"):
        return [Line2D([], [], color=_colour(s.colour), marker="o", linestyle="", label=s.name) for s in chart.legend]
    return [Patch(color=_colour(s.colour), label=s.name) for s in chart.legend]


def _colour(place: int) -> str:
    return _GREY if place == GREY else COLOURS[place % len(COLOURS)]


def _panel(axes: Axes, panel: Panel) -> None:
    _axis(axes, panel.x, "x")
    _axis(axes, panel.y, "y")
    for mark in panel.marks:
        _mark(mark, axes)
    axes.set_title(panel.title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _axis(axes: Axes, axis: Axis, name: str) -> None:
    getattr(axes, f"set_{name}label")(axis.label)
    if axis.log:
        getattr(axes, f"set_{name}scale")("log")
    low, high = (axis.low, axis.high) if name == "x" or not axis.names else (axis.high, axis.low)
    getattr(axes, f"set_{name}lim")(low, high)
    if axis.names:
        turned = name == "x" and sum(map(len, axis.names)) > 30
        every = -(-len(axis.names) // 60)
        getattr(axes, f"set_{name}ticks")(
            list(range(0, len(axis.names), every)),
            list(axis.names[::every]),
            rotation=90 if turned else 0,
            fontsize=7 if len(axis.names) > 8 else 8,
        )
    else:
        ticks = axis.ticks()
        getattr(axes, f"set_{name}ticks")(ticks, [axis.text(tick) for tick in ticks])
        axes.grid(axis=name, alpha=0.25, linewidth=0.5)  # type: ignore[arg-type]
    axes.minorticks_off()


@singledispatch
def _mark(mark: Mark, axes: Axes) -> None:
    raise TypeError(f"no way to draw {type(mark).__name__}")


@_mark.register
def _line(mark: Line, axes: Axes) -> None:
    x, y = zip(*mark.points, strict=True)
    grey = mark.colour == GREY
    axes.plot(
        x,
        y,
        color=_colour(mark.colour),
        linestyle=_DASHES[mark.dashes],
        linewidth=0.8 if grey else 1.6,
        zorder=1 if grey else 3,
    )


@_mark.register
def _band(mark: Band, axes: Axes) -> None:
    x, low, high = zip(*mark.points, strict=True)
    axes.fill_between(x, low, high, alpha=0.12, color=_colour(mark.colour), linewidth=0)


@_mark.register
def _dot(mark: Dot, axes: Axes) -> None:
    grey = mark.colour == GREY
    axes.errorbar(
        [mark.x],
        [mark.y],
        xerr=mark.half_x or None,
        yerr=mark.half_y or None,
        fmt="*" if mark.star else "o",
        markersize=10 if mark.star else 4.5,
        elinewidth=0.8,
        color=_colour(mark.colour),
        zorder=1 if grey else 4,
    )


@_mark.register
def _bar(mark: Bar, axes: Axes) -> None:
    where = (mark.low, mark.place - mark.width / 2, mark.high - mark.low, mark.width)
    x, y, width, height = where if mark.across else (where[1], where[0], where[3], where[2])
    # What stands out has a pattern too, so that it does so without colour.
    axes.add_patch(
        Rectangle(
            (x, y),
            width,
            height,
            facecolor=_colour(mark.colour),
            zorder=2,
            edgecolor="white" if mark.marked else "none",
            hatch="///" if mark.marked else None,
            linewidth=0,
        )
    )


@_mark.register
def _cell(mark: Cell, axes: Axes) -> None:
    box = Rectangle(
        (mark.column - 0.5, mark.row - 0.5),
        1,
        1,
        facecolor=_colour(mark.colour),
        edgecolor="white",
        alpha=0.12 + 0.88 * mark.strength,
        linewidth=0.5,
    )
    axes.add_patch(box)
    if mark.text:
        axes.text(
            mark.column,
            mark.row,
            mark.text,
            ha="center",
            va="center",
            fontsize=6,
            clip_on=True,
            color="white" if mark.strength > 0.5 else "black",
        )


@_mark.register
def _guide(mark: Guide, axes: Axes) -> None:
    x, y = zip(*mark.points, strict=True)
    axes.plot(x, y, color="#BBBBBB", linewidth=0.6, zorder=0)
    low, high = axes.get_xlim(), axes.get_ylim()
    inside = [one for one in mark.points if low[0] <= one[0] <= low[1] and high[0] <= one[1] <= high[1]]
    if mark.label and inside:
        axes.annotate(mark.label, inside[0], fontsize=7, color="#777777")
