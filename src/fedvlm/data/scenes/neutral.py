"""The two neutral styles, photo and drawing: the only ones the embedded model sees in pre-training."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes.draws import Floats, Seeds, draws
from fedvlm.data.scenes.geometry import Geometry, brightness, column, grid, turned
from fedvlm.data.scenes.spec import SIZE


def photo(scene: Geometry) -> Floats:
    """A shaded object before a cluttered background, `[B, 3, S, S]` in 0..1."""
    u = draws(scene.seeds, "photo", 7)
    x, y = grid()
    ground = _background(scene, u)
    light = 1 + ((2 * column(u[:, 0]) - 1) * x + (2 * column(u[:, 1]) - 1) * y) * np.float32(0.35 / SIZE)
    image = paint(ground, _object(scene) * light[:, None], scene.cover)
    image = _lens(image, u[:, 2], u[:, 3], u[:, 4])
    gray = column(u[:, 5] < np.where(_is_gray(scene), 0.6, 0.15))[:, None]
    image = image + gray * (brightness(image)[:, None] - image)
    return np.clip(image + grain(scene.seeds, "grain")[:, None] * (0.10 * column(u[:, 6]))[:, None], 0, 1)


def drawing(scene: Geometry, image: Floats) -> Floats:
    """Flat colours with a dark outline on pale paper, `[B, 3, S, S]`."""
    u = draws(scene.seeds, "drawing", 8)
    paper = (0.84 + 0.14 * u[:, :3])[:, :, None, None] - 0.05 * smooth(scene.seeds, "paper", 5)[:, None]
    ink = np.clip(0.9 + 0.5 * column(u[:, 3]) - np.abs(scene.distance), 0, 1) * (0.6 + 0.4 * column(u[:, 4]))
    inside = np.clip(0.5 - scene.distance, 0, 1) * scene.cover
    result = paint(np.broadcast_to(paper, image.shape), _object(scene), inside) * (1 - ink[:, None] * 0.9)
    return np.clip(_lens(result, u[:, 5], u[:, 6], u[:, 7]), 0, 1)


def paint(ground: Floats, colour: Floats, cover: Floats) -> Floats:
    """The colour `[B, 3, ...]` over the ground where it covers it (`[B, S, S]`)."""
    return ground + (colour - ground) * cover[:, None]


def grain(seeds: Seeds, purpose: str) -> Floats:
    """White noise in -0.5..0.5, `[B, S, S]`."""
    return draws(seeds, purpose, SIZE * SIZE).reshape(-1, SIZE, SIZE) - np.float32(0.5)


def smooth(seeds: Seeds, purpose: str, knots: int) -> Floats:
    """Low-frequency noise in 0..1, `[B, S, S]`: random knots, interpolated linearly."""
    values = draws(seeds, purpose, knots * knots).reshape(-1, knots, knots)
    low, part = _between(knots)
    rows = values[:, low] * (1 - part)[:, None] + values[:, low + 1] * part[:, None]
    return np.ascontiguousarray(rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part)


@functools.cache
def _between(knots: int) -> tuple[npt.NDArray[np.intp], Floats]:
    place = np.arange(SIZE, dtype=np.float32) * np.float32((knots - 1) / SIZE)
    low = place.astype(np.intp)
    return low, place - low


def blur(image: Floats) -> Floats:
    """The (1, 2, 1)/4 filter along rows and columns, edges repeated; any leading axes."""
    for axis in (-1, -2):
        image = (_shift(image, axis, 1) + _shift(image, axis, -1)) * np.float32(0.25) + image * np.float32(0.5)
    return image


def _shift(image: Floats, axis: int, by: int) -> Floats:
    front = [slice(None)] * image.ndim
    edge = list(front)
    front[axis] = slice(1, None) if by > 0 else slice(None, -1)
    edge[axis] = slice(-1, None) if by > 0 else slice(None, 1)
    parts = (image[tuple(front)], image[tuple(edge)])
    return np.concatenate(parts if by > 0 else parts[::-1], axis=axis)


def _object(scene: Geometry) -> Floats:
    return scene.second + (scene.colour - scene.second) * scene.tone[:, None]


def _is_gray(scene: Geometry) -> npt.NDArray[np.bool_]:
    colour = scene.colour[:, :, 0, 0]
    return np.asarray(colour.max(axis=1) - colour.min(axis=1) < 0.02)


def _lens(image: Floats, blurred: Floats, contrast: Floats, exposure: Floats) -> Floats:
    """Random blur (0..1 of the filter), contrast (0.6..1.2) and brightness (+-0.12)."""
    image = image + (blur(image) - image) * column(blurred)[:, None]
    return (image - 0.5) * (0.6 + 0.6 * column(contrast))[:, None] + 0.5 + (0.24 * (column(exposure) - 0.5))[:, None]


def _background(scene: Geometry, u: Floats) -> Floats:
    """A random tint with low-frequency noise and up to two lines and two blobs, kept apart in brightness."""
    v = draws(scene.seeds, "background", 8)
    tint = 0.1 + 0.8 * v[:, :1] + 0.35 * (v[:, 1:4] - 0.5)
    texture = smooth(scene.seeds, "texture", 6) - np.float32(0.5)
    ground = _apart(tint, scene, v[:, 4])[:, :, None, None] + (texture * column(0.15 + 0.35 * v[:, 5]))[:, None]
    for index in range(2):
        ground = _line(ground, draws(scene.seeds, f"line{index}", 8))
        ground = _blob(ground, draws(scene.seeds, f"blob{index}", 8))
    return ground


def _apart(tint: Floats, scene: Geometry, coin: Floats) -> Floats:
    """The tint, moved where its brightness is within 0.25 of the object's (which would then be invisible)."""
    own = brightness(scene.colour[:, :, 0, 0])
    gap = brightness(tint) - own
    up = np.where(own > 0.72, False, np.where(own < 0.28, True, coin < 0.5))
    wanted = np.where(up, np.maximum(gap, 0.25), np.minimum(gap, -0.25))
    return tint + np.where(np.abs(gap) < 0.25, wanted - gap, 0)[:, None]


def _line(ground: Floats, v: Floats) -> Floats:
    """A straight line with probability 0.4."""
    x, y = grid()
    cos, sin = (column(part) for part in turned(2 * v[:, 1] - 1))
    away = np.abs(cos * x + sin * y - column((v[:, 2] - 0.5) * SIZE)) - column(0.4 + v[:, 3])
    return paint(ground, v[:, 4:7, None, None], np.clip(0.5 - away, 0, 1) * column(v[:, 0] < 0.4))


def _blob(ground: Floats, v: Floats) -> Floats:
    """A small disc with probability 0.4."""
    x, y = grid()
    dx, dy = x - column((v[:, 1] - 0.5) * SIZE), y - column((v[:, 2] - 0.5) * SIZE)
    away = np.sqrt(dx * dx + dy * dy) - column(1.5 + 4 * v[:, 3])
    return paint(ground, v[:, 4:7, None, None], np.clip(0.5 - away, 0, 1) * column(v[:, 0] < 0.4))
