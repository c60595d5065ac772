"""Charts as SVG inside a page: colours are classes of the page's style sheet, so they follow light, dark and print.

Every panel is an image of its own, so that panels stand below each other on a narrow screen with letters of one size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch
from html import escape

from fedvlm.reports.charts.chart import GREY, Axis, Band, Bar, Cell, Dot, Guide, Line, Mark, Panel

_LETTER = 6.3
"""Width of a letter at the size of the labels, on average."""
DASHES = ("", "6 3", "2 3", "7 3 2 3")
"""Patterns of dashes, by their number."""


class Frame:
    """Places of a panel in the units of its image."""

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.width, self.height = panel.size
        wide = max((len(panel.y.text(tick)) for tick in panel.y.ticks()), default=0)
        self.turned = self._turned(panel.x)
        self.left = min(150.0, 10 + _LETTER * min(wide, 20)) + (16 if panel.y.label else 0)
        self.right = self.width - 12.0
        longest = max((len(name) for name in panel.x.names), default=0)
        self.top, below = 10.0, 10 + _LETTER * min(longest, 20) if self.turned else 18.0
        self.bottom = self.height - below - (16 if panel.x.label else 0)

    def _turned(self, axis: Axis) -> bool:
        """Whether names need to be turned to find room."""
        return bool(axis.names) and max(map(len, axis.names)) * _LETTER > 0.8 * self.width / len(axis.names)

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + self.panel.x.place(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical place of a value; names go down, numbers go up."""
        place = self.panel.y.place(value)
        return self.top + (place if self.panel.y.names else 1 - place) * (self.bottom - self.top)


def draw(panel: Panel, name: str, title: str) -> str:
    """The SVG of a panel; `name` is unique in the page, `title` that of the chart."""
    frame = Frame(panel)
    order = sorted(panel.marks, key=lambda mark: (not isinstance(mark, Guide | Band), mark.colour != GREY))
    inside = "".join(_mark(mark, frame) for mark in order if not isinstance(mark, Guide))
    behind = "".join(_mark(mark, frame) for mark in order if isinstance(mark, Guide))
    clip = (
        f'<clipPath id="{name}-clip"><rect x="{frame.left - 4:.1f}" y="{frame.top - 4:.1f}" '
        f'width="{frame.right - frame.left + 8:.1f}" height="{frame.bottom - frame.top + 8:.1f}"/></clipPath>'
    )
    told = f"{title}: {panel.title}" if panel.title else title
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(told)}">'
        f'{clip}{"".join(_axes(frame))}<g clip-path="url(#{name}-clip)">{behind}{inside}</g></svg>'
    )


def _axes(frame: Frame) -> Iterator[str]:
    panel = frame.panel
    grid, labels = [], []
    for tick in _thinned(panel.x, (frame.right - frame.left) / (14 if frame.turned else 46)):
        place = frame.x(tick)
        if not panel.x.names:
            grid.append(f"M{place:.1f} {frame.top:.1f}V{frame.bottom:.1f}")
        text = escape(_cut(panel.x.text(tick)))
        if frame.turned:
            turn = f"translate({place + 4:.1f} {frame.bottom + 8:.1f}) rotate(-90)"
            labels.append(f'<text class="end" transform="{turn}">{text}</text>')
        else:
            labels.append(f'<text class="mid" x="{place:.1f}" y="{frame.bottom + 15:.1f}">{text}</text>')
    for tick in _thinned(panel.y, (frame.bottom - frame.top) / (11 if panel.y.names else 24)):
        place = frame.y(tick)
        if not panel.y.names:
            grid.append(f"M{frame.left:.1f} {place:.1f}H{frame.right:.1f}")
        text = escape(_cut(panel.y.text(tick)))
        labels.append(f'<text class="end" x="{frame.left - 6:.1f}" y="{place + 4:.1f}">{text}</text>')
    yield f'<path class="grid" d="{"".join(grid)}"/>'
    yield f'<g class="ticks">{"".join(labels)}</g>'
    if panel.x.label:
        middle = (frame.left + frame.right) / 2
        yield f'<text class="axis mid" x="{middle:.1f}" y="{frame.height - 4}">{escape(panel.x.label)}</text>'
    if panel.y.label:
        middle = (frame.top + frame.bottom) / 2
        yield f'<text class="axis mid" transform="translate(11 {middle:.1f}) rotate(-90)">{escape(panel.y.label)}</text>'  # noqa: E501


def _thinned(axis: Axis, most: float) -> list[float]:
    """Ticks for which there is room."""
    ticks = axis.ticks(max(2, min(6, int(most))))
    return ticks[:: max(1, -(-len(ticks) // max(1, int(most))))]


def _cut(text: str) -> str:
    return text if len(text) <= 20 else text[:19] + "…"


def _open(tag: str, mark: Mark, kind: str) -> str:
    """The beginning of an element with what all marks say."""
    colour = "grey" if mark.colour == GREY else f"c{mark.colour}"
    told = "".join(
        f' data-{name}="{escape(value)}"' for name, value in (("m", mark.method), ("c", mark.client)) if value
    )
    return f'<{tag} class="{kind} {colour}"{told}'


def _close(tag: str, mark: Mark) -> str:
    return f"><title>{escape(mark.tip)}</title></{tag}>" if mark.tip else "/>"


@singledispatch
def _mark(mark: Mark, frame: Frame) -> str:
    raise TypeError(f"no way to draw {type(mark).__name__}")


def _path(points: tuple[tuple[float, float], ...], frame: Frame) -> str:
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


@_mark.register
def _line(mark: Line, frame: Frame) -> str:
    dashes = f' stroke-dasharray="{DASHES[mark.dashes]}"' if mark.dashes else ""
    return f'{_open("path", mark, "line")} d="{_path(mark.points, frame)}"{dashes}{_close("path", mark)}'


@_mark.register
def _band(mark: Band, frame: Frame) -> str:
    there = tuple((x, low) for x, low, _ in mark.points)
    back = tuple((x, high) for x, _, high in reversed(mark.points))
    return f'{_open("path", mark, "band")} d="{_path(there + back, frame)}Z"{_close("path", mark)}'


@_mark.register
def _dot(mark: Dot, frame: Frame) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    cross = ""
    if mark.half_x:
        cross += f"M{frame.x(mark.x - mark.half_x):.1f} {y:.1f}H{frame.x(mark.x + mark.half_x):.1f}"
    if mark.half_y:
        cross += f"M{x:.1f} {frame.y(mark.y - mark.half_y):.1f}V{frame.y(mark.y + mark.half_y):.1f}"
    whiskers = f'{_open("path", mark, "whisker")} d="{cross}"/>' if cross else ""
    if mark.star:
        points = "M0-7L1.7-2.2L6.7-2.2L2.7 .9L4.1 5.7L0 2.8L-4.1 5.7L-2.7 .9L-6.7-2.2L-1.7-2.2Z"
        return f'{whiskers}{_open("path", mark, "star")} transform="translate({x:.1f} {y:.1f})" d="{points}"{_close("path", mark)}'  # noqa: E501
    return f'{whiskers}{_open("circle", mark, "dot")} cx="{x:.1f}" cy="{y:.1f}" r="3.6"{_close("circle", mark)}'


@_mark.register
def _bar(mark: Bar, frame: Frame) -> str:
    half = mark.width / 2
    if mark.across:
        x, right = frame.x(mark.low), frame.x(mark.high)
        y, low = frame.y(mark.place - half), frame.y(mark.place + half)
    else:
        x, right = frame.x(mark.place - half), frame.x(mark.place + half)
        y, low = frame.y(mark.high), frame.y(mark.low)
    kind = "bar marked" if mark.marked else "bar"
    shape = (
        f' x="{x:.1f}" y="{min(y, low):.1f}" width="{max(right - x, 0.5):.1f}" height="{max(abs(low - y), 0.5):.1f}"'
    )
    return f"{_open('rect', mark, kind)}{shape}{_close('rect', mark)}"


@_mark.register
def _cell(mark: Cell, frame: Frame) -> str:
    x, right = frame.x(mark.column - 0.5), frame.x(mark.column + 0.5)
    y, low = frame.y(mark.row - 0.5), frame.y(mark.row + 0.5)
    gap = 0.6 if right - x > 4 else 0.0
    box = f' x="{x + gap:.1f}" y="{y + gap:.1f}" width="{right - x - 2 * gap:.1f}" height="{low - y - 2 * gap:.1f}"'
    strong = f' fill-opacity="{0.12 + 0.88 * mark.strength:.2f}"'
    drawn = f"{_open('rect', mark, 'cell')}{box}{strong}{_close('rect', mark)}"
    if mark.text and right - x > _LETTER * len(mark.text) + 2:
        side = "on" if mark.strength > 0.5 else "off"
        drawn += f'<text class="mid number {side}" x="{(x + right) / 2:.1f}" y="{(y + low) / 2 + 4:.1f}">{escape(mark.text)}</text>'  # noqa: E501
    return drawn


@_mark.register
def _guide(mark: Guide, frame: Frame) -> str:
    drawn = f'<path class="guide" d="{_path(mark.points, frame)}"/>'
    inside = [(frame.x(x), frame.y(y)) for x, y in mark.points]
    inside = [
        (x, y) for x, y in inside if frame.left + 16 <= x <= frame.right - 16 and frame.top + 8 <= y <= frame.bottom
    ]
    if mark.label and inside:
        x, y = inside[0]
        drawn += f'<text class="guide-label mid" x="{x:.1f}" y="{y:.1f}">{escape(mark.label)}</text>'
    return drawn
