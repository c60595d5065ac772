"""From specifications to what every style draws from: where the object is, what it covers, its two colours.

Only +, -, *, /, square roots and floors are used on pixels: these are exact by the IEEE standard, so that an image
is the same to the last bit on every machine and in every batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes.draws import Floats, Seeds, draws
from fedvlm.data.scenes.shapes import REACH, TABLE, distance_tables
from fedvlm.data.scenes.spec import COLOURS, FILLS, SHAPES, SIZE, SceneSpec

Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


@dataclass(frozen=True)
class Geometry:
    """B scenes before they are painted; S is SIZE, distances are in pixels."""

    seeds: Seeds
    """`[B]`"""
    distance: Floats
    """`[B, S, S]` signed distance to the outline of the shape, negative inside"""
    cover: Floats
    """`[B, S, S]` share of the pixel the object covers; only a band for the fill `outlined`"""
    tone: Floats
    """`[B, S, S]` 1 where the pattern shows the main colour, 0 where the second"""
    colour: Floats
    """`[B, 3, 1, 1]` main colour"""
    second: Floats
    """`[B, 3, 1, 1]` second colour"""

    def rows(self, rows: Rows) -> Geometry:
        """The scenes at these positions."""
        return Geometry(*(getattr(self, field.name)[rows] for field in fields(self)))


def geometry(specs: Sequence[SceneSpec]) -> Geometry:
    """Everything about these scenes that does not depend on their style."""
    seeds = np.array([spec.seed for spec in specs], dtype=np.uint64)
    shapes = np.array([SHAPES.index(spec.shape) for spec in specs])
    fills = np.array([FILLS.index(spec.fill) for spec in specs])
    x, y, scale = _pose(seeds)
    distance = _lookup(shapes, x, y) * scale
    cover, tone = np.clip(0.5 - distance, 0, 1), np.ones_like(distance)
    for index, fill in enumerate(FILLS):
        rows = np.flatnonzero(fills == index)
        if len(rows) and fill != "solid":
            pattern = _PATTERNS[fill](seeds[rows], x[rows] * scale[rows], y[rows] * scale[rows], distance[rows])
            if fill == "outlined":
                cover[rows] = np.minimum(cover[rows], pattern)
            else:
                tone[rows] = pattern
    colour, second = _colours(specs, seeds)
    return Geometry(seeds, distance, cover, tone, colour, second)


def column(values: Floats | Flags) -> Floats:
    """`[B]` as `[B, 1, 1]`, to be multiplied with planes; truth values become 0 and 1."""
    return values.astype(np.float32, copy=False)[:, None, None]


@functools.cache
def grid() -> tuple[Floats, Floats]:
    """Pixel centres, x to the right and y upwards, `[S, S]` each, in pixels from the middle of the frame."""
    axis = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    x, y = np.meshgrid(axis, -axis)
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def turned(turn: Floats) -> tuple[Floats, Floats]:
    """Cosine and sine of 2 atan(turn), as rational functions."""
    square = turn * turn
    return (1 - square) / (1 + square), 2 * turn / (1 + square)


def relative_size(seeds: Seeds) -> Floats:
    """How large the object of each scene is, `[B]`: uniform between 0, the smallest, and 1, the largest."""
    return draws(seeds, "pose", 5)[:, 0]


def _pose(seeds: Seeds) -> tuple[Floats, Floats, Floats]:
    """Pixel centres in the object's own coordinates `[B, S, S]`, and pixels per unit `[B, 1, 1]`."""
    u = draws(seeds, "pose", 5)
    scale = (0.55 + 0.27 * u[:, 0]) * (SIZE / 2)
    room = SIZE / 2 - 0.95 * scale
    cos, sin = (column(part) for part in turned((u[:, 1] - 0.5) * 0.4))
    aspect = column(0.9 + 0.22 * u[:, 2])
    x, y = grid()
    x0, y0 = column((2 * u[:, 3] - 1) * room), column((2 * u[:, 4] - 1) * room)
    dx, dy = x - x0, y - y0
    scale = column(scale)
    return (cos * dx + sin * dy) / (scale * aspect), (cos * dy - sin * dx) * aspect / scale, scale


def _lookup(shapes: Rows, x: Floats, y: Floats) -> Floats:
    """Bilinear samples of the shapes' distance tables at object coordinates, `[B, S, S]`."""
    step = np.float32((TABLE - 1) / (2 * REACH))
    column_, row = np.clip((x + REACH) * step, 0, TABLE - 1.001), np.clip((y + REACH) * step, 0, TABLE - 1.001)
    i, j = row.astype(np.int32), column_.astype(np.int32)
    down, right = row - i, column_ - j
    table = distance_tables().reshape(-1)
    at = (shapes * TABLE * TABLE).astype(np.int32)[:, None, None] + i * TABLE + j
    first = table[at] * (1 - right) + table[at + 1] * right
    at += TABLE
    return first * (1 - down) + (table[at] * (1 - right) + table[at + 1] * right) * down


def _colours(specs: Sequence[SceneSpec], seeds: Seeds) -> tuple[Floats, Floats]:
    """Jittered main colours and second colours (near white or near black), `[B, 3, 1, 1]` each."""
    u = draws(seeds, "colour", 7)
    table, names = np.array(list(COLOURS.values()), dtype=np.float32), list(COLOURS)
    drawn = (u[:, 0] * len(names)).astype(np.intp)
    given = [
        index if spec.colour is None else names.index(spec.colour) for spec, index in zip(specs, drawn, strict=True)
    ]
    gray = np.array(given) == names.index("gray")
    jitter = np.where(gray[:, None], u[:, 1:2], u[:, 1:4]) - 0.5
    colour = np.clip(table[given] + 0.14 * jitter, 0, 1).astype(np.float32)
    light = brightness(colour) < 0.35 + 0.3 * u[:, 4]
    target = np.where(light, 0.92 + 0.08 * u[:, 5], 0.12 * u[:, 5])[:, None]
    second = colour + (target - colour) * (0.75 + 0.25 * u[:, 6:7])
    return colour[:, :, None, None], second.astype(np.float32)[:, :, None, None]


def brightness(colour: Floats) -> Floats:
    """`[B, 3, ...]` to `[B, ...]`, summed in a fixed order."""
    return colour[:, 0] * np.float32(LUMA[0]) + colour[:, 1] * np.float32(LUMA[1]) + colour[:, 2] * np.float32(LUMA[2])


def wave(x: Floats, period: Floats | np.float32) -> Floats:
    """A square wave along x (pixels) with edges one pixel wide, 0..1."""
    phase = x / period
    triangle = np.abs(phase - np.floor(phase) - 0.5) * 2
    return np.clip((triangle - 0.5) * period * 0.5 + 0.5, 0, 1)


def _slanted(seeds: Seeds, x: Floats, y: Floats, spread: float) -> tuple[Floats, Floats, Floats]:
    """Pattern coordinates turned and shifted by chance, and a random number for the period."""
    u = draws(seeds, "pattern", 4)
    cos, sin = (column(part) for part in turned((2 * u[:, 0] - 1) * spread))
    a, b = cos * x + sin * y + column(u[:, 1] * 8), cos * y - sin * x + column(u[:, 2] * 8)
    return a, b, column(u[:, 3])


def _striped(seeds: Seeds, x: Floats, y: Floats, distance: Floats) -> Floats:
    a, _, u = _slanted(seeds, x, y, 1.0)
    return wave(a, 5.0 + 2.0 * u)


def _dotted(seeds: Seeds, x: Floats, y: Floats, distance: Floats) -> Floats:
    a, b, u = _slanted(seeds, x, y, 0.4)
    cell = 5.6 + 1.6 * u
    da, db = a / cell, b / cell
    da, db = (da - np.floor(da) - 0.5) * cell, (db - np.floor(db) - 0.5) * cell
    return np.clip(np.sqrt(da * da + db * db) - cell * 0.31 + 0.5, 0, 1)


def _checked(seeds: Seeds, x: Floats, y: Floats, distance: Floats) -> Floats:
    a, b, u = _slanted(seeds, x, y, 0.2)
    period = 8.0 + 2.5 * u
    first, second = wave(a, period), wave(b, period)
    return first * second + (1 - first) * (1 - second)


def _gradient(seeds: Seeds, x: Floats, y: Floats, distance: Floats) -> Floats:
    a, _, u = _slanted(seeds, x, y, 1.0)
    offset = column(draws(seeds, "pattern", 4)[:, 1] * 8)
    return np.clip(0.5 + (a - offset) / (22 + 6 * u), 0, 1)


def _outlined(seeds: Seeds, x: Floats, y: Floats, distance: Floats) -> Floats:
    width = column(2.2 + 1.2 * draws(seeds, "pattern", 4)[:, 3])
    return np.clip(distance + width + 0.5, 0, 1)


_PATTERNS: dict[str, Callable[[Seeds, Floats, Floats, Floats], Floats]] = {
    "striped": _striped, "dotted": _dotted, "outlined": _outlined, "checked": _checked, "gradient": _gradient,
}  # fmt: skip
