"""The shapes as signed distances: polygons and discs, joined and cut, tabulated once per shape.

Coordinates: x to the right, y upwards, the shape about inside [-1, 1]^2. Distances are negative inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes.draws import Floats
from fedvlm.data.scenes.spec import SHAPES

Doubles = npt.NDArray[np.float64]
Corners = Sequence[tuple[float, float]]

TABLE = 64
"""Side of a distance table in samples."""
REACH = 1.4
"""A table covers [-REACH, REACH]^2."""


@functools.cache
def distance_tables() -> Floats:
    """Signed distances `[shapes, TABLE, TABLE]` (row: y from bottom to top) in shape units, in the order of SHAPES."""
    axis = np.linspace(-REACH, REACH, TABLE)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.stack([_SHAPES[name](points).reshape(TABLE, TABLE) for name in SHAPES]).astype(np.float32)


def _disc(points: Doubles, x: float, y: float, radius: float) -> Doubles:
    return np.hypot(points[:, 0] - x, points[:, 1] - y) - radius


def _polygon(points: Doubles, corners: Corners) -> Doubles:
    """Distance to the nearest edge, its sign from the number of edges crossed by a ray (even-odd rule)."""
    nearest = np.full(len(points), np.inf)
    inside = np.zeros(len(points), dtype=bool)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        a, edge = np.array(start), np.array(end) - np.array(start)
        offset = points - a
        along = np.clip(offset @ edge / (edge @ edge), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(*(offset - along[:, None] * edge).T))
        if start[1] != end[1]:
            spans = (points[:, 1] >= min(start[1], end[1])) & (points[:, 1] < max(start[1], end[1]))
            inside ^= spans & (offset[:, 0] < edge[0] * offset[:, 1] / edge[1])
    return np.where(inside, -nearest, nearest)


def _round(count: int, radii: Callable[[float], tuple[float, float]]) -> Corners:
    return [radii(2 * math.pi * index / count) for index in range(count)]


def _star(p: Doubles) -> Doubles:
    turns = [math.pi / 2 + math.pi * index / 5 for index in range(10)]
    radii = [1.05 if index % 2 == 0 else 0.44 for index in range(10)]
    return _polygon(p, [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)])


def _heart(p: Doubles) -> Doubles:
    def edge(t: float) -> tuple[float, float]:
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        return math.sin(t) ** 3, (y + 2.5) / 16

    return _polygon(p, _round(48, edge))


def _moon(p: Doubles) -> Doubles:
    return np.maximum(_disc(p, -0.1, 0, 0.98), -_disc(p, 0.42, 0.12, 0.80))


def _cross(p: Doubles) -> Doubles:
    a, b = 0.32, 0.95
    return _polygon(p, [(a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a),
                        (b, -a), (b, a)])  # fmt: skip


def _arrow(p: Doubles) -> Doubles:
    return _polygon(p, [(1.05, 0), (0.2, 0.85), (0.2, 0.32), (-1, 0.32), (-1, -0.32), (0.2, -0.32), (0.2, -0.85)])


def _house(p: Doubles) -> Doubles:
    wall = _polygon(p, [(-0.7, -0.9), (0.7, -0.9), (0.7, 0.1), (-0.7, 0.1)])
    roof = _polygon(p, [(-1.02, 0.08), (1.02, 0.08), (0, 1.0)])
    door = _polygon(p, [(-0.2, -1.0), (0.22, -1.0), (0.22, -0.3), (-0.2, -0.3)])
    return np.maximum(np.minimum(wall, roof), -door)


def _tree(p: Doubles) -> Doubles:
    top = _polygon(p, [(-0.55, 0.25), (0.55, 0.25), (0, 1.05)])
    low = _polygon(p, [(-0.85, -0.55), (0.85, -0.55), (0, 0.6)])
    trunk = _polygon(p, [(-0.18, -1.05), (0.18, -1.05), (0.18, -0.5), (-0.18, -0.5)])
    return np.minimum(np.minimum(top, low), trunk)


def _fish(p: Doubles) -> Doubles:
    body = _polygon(p, _round(40, lambda t: (0.72 * math.cos(t) - 0.28, 0.55 * math.sin(t))))
    tail = _polygon(p, [(0.25, 0), (1.02, 0.62), (0.82, 0), (1.02, -0.62)])
    return np.maximum(np.minimum(body, tail), -_disc(p, -0.62, 0.12, 0.11))


def _cloud(p: Doubles) -> Doubles:
    puffs = [_disc(p, -0.58, -0.18, 0.42), _disc(p, -0.12, 0.2, 0.52), _disc(p, 0.42, 0.02, 0.44),
             _disc(p, 0.74, -0.28, 0.32)]  # fmt: skip
    base = _polygon(p, [(-0.6, -0.6), (0.75, -0.6), (0.75, 0), (-0.6, 0)])
    return np.minimum.reduce([*puffs, base])


def _drop(p: Doubles) -> Doubles:
    return np.minimum(_disc(p, 0, -0.35, 0.65), _polygon(p, [(0, 1.1), (-0.58, -0.07), (0.58, -0.07)]))


def _flower(p: Doubles) -> Doubles:
    turns = [math.pi / 2 + 2 * math.pi * index / 5 for index in range(5)]
    petals = [_disc(p, 0.6 * math.cos(t), 0.6 * math.sin(t), 0.41) for t in turns]
    return np.maximum(np.minimum.reduce([*petals, _disc(p, 0, 0, 0.45)]), -_disc(p, 0, 0, 0.2))


def _bolt(p: Doubles) -> Doubles:
    return _polygon(p, [(0.25, 1.05), (-0.65, -0.12), (-0.08, -0.12), (-0.3, -1.05), (0.65, 0.2), (0.08, 0.2)])


def _mushroom(p: Doubles) -> Doubles:
    cap = np.maximum(_polygon(p, _round(40, lambda t: (0.98 * math.cos(t), 0.95 * math.sin(t)))), -p[:, 1])
    return np.minimum(cap, _polygon(p, [(-0.28, -0.95), (0.28, -0.95), (0.24, 0.05), (-0.24, 0.05)]))


def _crown(p: Doubles) -> Doubles:
    return _polygon(p, [(-0.9, -0.75), (0.9, -0.75), (1.0, 0.7), (0.45, 0.0), (0, 0.85), (-0.45, 0.0), (-1.0, 0.7)])


def _cup(p: Doubles) -> Doubles:
    body = _polygon(p, [(-0.85, 0.7), (0.4, 0.7), (0.28, -0.8), (-0.73, -0.8)])
    handle = np.maximum(_disc(p, 0.45, 0.05, 0.5), -_disc(p, 0.45, 0.05, 0.26))
    return np.minimum(body, handle)


_SHAPES: dict[str, Callable[[Doubles], Doubles]] = {
    "circle": lambda p: _disc(p, 0, 0, 0.92),
    "square": lambda p: _polygon(p, [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": lambda p: _polygon(p, [(-0.98, -0.75), (0.98, -0.75), (0, 0.95)]),
    "star": _star, "heart": _heart, "moon": _moon, "cross": _cross, "arrow": _arrow, "house": _house, "tree": _tree,
    "fish": _fish, "cloud": _cloud, "drop": _drop, "flower": _flower, "bolt": _bolt, "mushroom": _mushroom,
    "ring": lambda p: np.maximum(_disc(p, 0, 0, 0.98), -_disc(p, 0, 0, 0.46)),
    "diamond": lambda p: _polygon(p, [(0, 1.08), (-0.66, 0), (0, -1.08), (0.66, 0)]),
    "crown": _crown, "cup": _cup,
}  # fmt: skip
