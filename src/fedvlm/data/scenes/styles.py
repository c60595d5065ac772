"""The federated styles: ten ways to draw a scene that the embedded model has never seen in pre-training.

Each takes the geometry and the neutral photo of B scenes and returns `[B, 3, S, S]`. A style keeps what names the
class, shape and fill, though often not the colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedvlm.data.scenes.draws import Floats, draws
from fedvlm.data.scenes.geometry import Geometry, brightness, column, grid, wave
from fedvlm.data.scenes.neutral import blur, drawing, grain, paint, smooth
from fedvlm.data.scenes.spec import SIZE

Style = Callable[[Geometry, Floats], Floats]

STYLES: dict[str, float] = {
    "sketch": 0.5, "neon": 0.52, "blueprint": 0.52, "watercolour": 0.97, "night": 0.93, "halftone": 0.75,
    "mosaic": 0.82, "fog": 0.97, "chalk": 0.5, "glitch": 0.88,
}  # fmt: skip
"""Federated styles and their default strengths (how hard they are for the embedded model: its card)."""

NEUTRAL: dict[str, float] = {"photo": 1.0, "drawing": 1.0}
"""Neutral styles: those of pre-training."""


def styled(name: str, scene: Geometry, photo: Floats) -> Floats:
    """B scenes, `[B, 3, S, S]` in 0..1, in the full strength of a style."""
    return np.clip(_STYLES[name](scene, photo), 0, 1)


def _colour(rgb: Sequence[float]) -> Floats:
    return np.array(rgb, dtype=np.float32)[None, :, None, None]


def _stroke(scene: Geometry, width: float) -> Floats:
    """A line along the outline of the shape, `[B, S, S]`."""
    return np.clip(width + 0.5 - np.abs(scene.distance), 0, 1)


def _body(scene: Geometry) -> Floats:
    """1 where the main colour shows, 0 elsewhere: the pattern without its colours."""
    return scene.cover * scene.tone


def _sketch(scene: Geometry, photo: Floats) -> Floats:
    """Pencil: outline and hatching of the dark parts on paper."""
    x, y = grid()
    u = draws(scene.seeds, "sketch", 3)
    wobble = smooth(scene.seeds, "wobble", 12)
    hatch = wave(x + y + 3 * wobble, np.float32(3.4)) * 0.6 + 0.25
    ink = np.maximum(_stroke(scene, 0.5) * 0.9, _body(scene) * hatch)
    paper = 0.93 - 0.06 * wobble + 0.08 * grain(scene.seeds, "paper grain")
    return (paper * (1 - ink * (0.75 + 0.2 * column(u[:, 0]))))[:, None] * _colour((1.0, 0.99, 0.96))


def _neon(scene: Geometry, photo: Floats) -> Floats:
    """Tubes of light: the object shines in a vivid colour before a dark wall."""
    peak = np.maximum(np.maximum(scene.colour[:, :1], scene.colour[:, 1:2]), scene.colour[:, 2:])
    vivid = np.clip((scene.colour / peak - 0.35) * 1.5, 0.05, 1)
    halo = 1 / (1 + np.maximum(scene.distance, 0) ** 2 * np.float32(0.12))
    glow = np.maximum(_stroke(scene, 0.8), _body(scene) * 0.75) + 0.35 * blur(blur(_stroke(scene, 1.2)))
    wall = 0.05 + 0.06 * smooth(scene.seeds, "wall", 8)[:, None] * _colour((0.8, 0.7, 1.3))
    return wall + vivid * (glow + 0.3 * halo)[:, None] + (0.3 * _stroke(scene, 0.1))[:, None]


def _blueprint(scene: Geometry, photo: Floats) -> Floats:
    """White lines on blue squared paper."""
    x, y = grid()
    shift = np.floor(draws(scene.seeds, "squares", 2) * 6)[:, :, None, None]
    ruled = (np.floor(x + shift[:, 0]) % 6 == 0) | (np.floor(y + shift[:, 1]) % 6 == 0)
    line = np.maximum(_stroke(scene, 0.4), 0.55 * _body(scene))
    paper = _colour((0.08, 0.22, 0.55)) + (0.09 * ruled + 0.06 * grain(scene.seeds, "blue"))[:, None]
    return paint(np.asarray(paper), _colour((0.88, 0.94, 1.0)), line)


def _watercolour(scene: Geometry, photo: Floats) -> Floats:
    """Thin pigment that pools at the edges of the object and lets the paper through."""
    pool = 0.35 + 0.65 * smooth(scene.seeds, "pigment", 9) + 0.35 * _stroke(scene, 0.6) * scene.cover
    soft = blur(blur(photo))
    washed = paint(np.full_like(photo, 0.95), soft, np.clip(pool, 0, 1))
    return washed + (0.10 * grain(scene.seeds, "fibres"))[:, None]


def _night(scene: Geometry, photo: Floats) -> Floats:
    """Little, bluish light, a noisy sensor and a few lamps."""
    u = draws(scene.seeds, "lamps", 12).reshape(-1, 4, 3)
    x, y = grid()
    image = photo * _colour((0.26, 0.30, 0.46)) + (0.16 * grain(scene.seeds, "sensor"))[:, None]
    for lamp in range(4):
        dx, dy = x - column((u[:, lamp, 0] - 0.5) * SIZE), y - column((u[:, lamp, 1] - 0.5) * SIZE)
        shine = column(0.3 + u[:, lamp, 2]) / (1 + dx * dx + dy * dy)
        image = image + shine[:, None] * _colour((1.0, 0.85, 0.5))
    return image


def _halftone(scene: Geometry, photo: Floats) -> Floats:
    """Newspaper print: black dots on white, their size from the darkness of the picture."""
    x, y = grid()
    a, b = (x + y) * np.float32(0.7071), (x - y) * np.float32(0.7071)
    cell = np.float32(3.2)
    da, db = a / cell, b / cell
    da, db = da - np.floor(da) - 0.5, db - np.floor(db) - 0.5
    dark = 1 - brightness(blur(photo))
    ink = np.clip((np.sqrt(np.clip(dark, 0, 1)) * 0.75 - np.sqrt(da * da + db * db)) * cell + 0.5, 0, 1)
    return (0.95 - 0.88 * ink)[:, None] * _colour((1.0, 0.99, 0.97))


def _mosaic(scene: Geometry, photo: Floats) -> Floats:
    """Tiles of 3 x 3 pixels of uneven brightness, with grout between every second pair."""
    side = 3
    tiles = sum(photo[:, :, i::side, j::side] for i in range(side) for j in range(side)) / np.float32(side * side)
    count = SIZE // side
    uneven = 0.8 + 0.4 * draws(scene.seeds, "tiles", count * count).reshape(-1, 1, count, count)
    flat = np.repeat(np.repeat(tiles * uneven, side, axis=2), side, axis=3)
    x, y = (np.floor(axis + SIZE / 2).astype(np.intp) % (2 * side) == 0 for axis in grid())
    return np.where(x | y, flat * 0.6 + 0.1, flat)


def _fog(scene: Geometry, photo: Floats) -> Floats:
    """Uneven white haze over a blurred picture."""
    haze = 0.62 + 0.34 * smooth(scene.seeds, "haze", 5)
    return paint(blur(photo), _colour((0.84, 0.86, 0.88)), haze)


def _chalk(scene: Geometry, photo: Floats) -> Floats:
    """Rubbed chalk on a blackboard."""
    rough = np.clip(0.35 + 1.3 * draws(scene.seeds, "dust", SIZE * SIZE).reshape(-1, SIZE, SIZE), 0, 1)
    chalk = np.maximum(_stroke(scene, 0.7), 0.6 * _body(scene)) * rough
    board = _colour((0.12, 0.20, 0.16)) + (0.12 * smooth(scene.seeds, "smear", 7))[:, None]
    return paint(np.asarray(board), _colour((0.93, 0.93, 0.86)), chalk)


def _glitch(scene: Geometry, photo: Floats) -> Floats:
    """A torn signal: bands of rows and the three colour channels are displaced, every third row is dark."""
    u = draws(scene.seeds, "bands", 16)
    band = np.minimum((np.arange(SIZE) * 16) // SIZE, 15)
    torn = np.where(u < 0.45, np.floor((u / 0.45 - 0.5) * 14), 0).astype(np.intp)[:, band]
    parts = draws(scene.seeds, "channels", 3)
    columns = np.arange(SIZE)
    channels = []
    for index in range(3):
        offset = torn + np.floor((parts[:, index : index + 1] - 0.5) * 7).astype(np.intp)
        source = (columns[None, None, :] + offset[:, :, None]) % SIZE
        channels.append(np.take_along_axis(photo[:, index], source, axis=2))
    image = np.stack(channels, axis=1)
    return image * np.where(np.arange(SIZE) % 3 == 0, np.float32(0.72), np.float32(1))[:, None]


_STYLES: dict[str, Style] = {
    "photo": lambda scene, photo: photo, "drawing": drawing,
    "sketch": _sketch, "neon": _neon, "blueprint": _blueprint, "watercolour": _watercolour, "night": _night,
    "halftone": _halftone, "mosaic": _mosaic, "fog": _fog, "chalk": _chalk, "glitch": _glitch,
}  # fmt: skip
