"""The images of pre-training: neutral scenes drawn once, handed out in random batches, moved, mirrored and filtered."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import conditions
import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes import COLOURS, FILLS, SHAPES, SIZE, SceneSpec, render
from fedvlm.data.scenes.geometry import geometry, relative_size
from fedvlm.streams import key, stream

Numbers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

DRAWINGS = 0.3
"""Share of drawings; the rest are photos."""
FILTERS = (0.4, 0.3, 0.3)
"""Probabilities of no filter, one and two."""


@dataclass(frozen=True)
class Pool:
    """N images `[N, S, S, 3]` with the positions of their attributes in SHAPES, FILLS and COLOURS, `[N]` each."""

    pixels: Pixels
    shape: Numbers
    fill: Numbers
    colour: Numbers
    """-1 where a filter hides it."""
    conditions: conditions.Flags
    """`[N, conditions]`: what can be seen of the picture."""
    outlines: npt.NDArray[np.uint8]
    """`[N, S * S / 8]`: which pixels lie inside the outline of the object, eight in a byte."""

    def inside(self) -> npt.NDArray[np.bool_]:
        """`outlines` as `[N, S, S]`."""
        return np.unpackbits(self.outlines, axis=1).reshape(-1, SIZE, SIZE).astype(bool)

    def rows(self, rows: Numbers) -> Pool:
        """The images at these positions."""
        return Pool(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_pool(count: int, seed: int) -> Pool:
    """All combinations of shape, fill and colour, equally often up to chance, in the two neutral styles."""
    draw = stream(seed, "pretraining pool")
    shape, fill = draw.integers(len(SHAPES), size=count), draw.integers(len(FILLS), size=count)
    colour, drawing = draw.integers(len(COLOURS), size=count), draw.random(count) < DRAWINGS
    start, names = key(seed, "pretraining scenes") & (2**63 - 1), list(COLOURS)
    specs = [
        SceneSpec(start + i, SHAPES[shape[i]], FILLS[fill[i]], names[colour[i]], "drawing" if drawing[i] else "photo")
        for i in range(count)
    ]
    blocks = [specs[first : first + 2048] for first in range(0, count, 2048)]
    with ThreadPoolExecutor(2) as workers:
        pixels = np.concatenate(list(workers.map(render, blocks)))
        outlines = np.concatenate(list(workers.map(outlined, blocks)))
    gray, size = colourless(pixels), relative_size(np.arange(start, start + count, dtype=np.uint64))
    seen = {"drawing": drawing, "small": size < 0.3, "large": size > 0.7, "gray": gray}
    flags = np.stack([seen.get(name, np.zeros(count, dtype=bool)) for name in conditions.NAMES], axis=1)
    return Pool(pixels, shape, fill, np.where(gray, names.index("gray"), colour), flags, outlines)


def outlined(specs: Sequence[SceneSpec]) -> npt.NDArray[np.uint8]:
    """The objects' outlines as in `Pool.outlines`."""
    return np.packbits((geometry(specs).distance < 0).reshape(len(specs), -1), axis=1)


def colourless(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Which images `[N, S, S, 3]` are black and white: what a caption calls gray in them is gray."""
    return np.array([bool((image.max(axis=-1) - image.min(axis=-1)).max() <= 2) for image in pixels])


def batch(pool: Pool, size: int, draw: np.random.Generator, filters: float = 1.0) -> Pool:
    """Random images, rolled by up to two pixels either way, mirrored half of the time, under up to two filters.

    `filters` scales the probability of having any.
    """
    chosen = pool.rows(draw.integers(len(pool.shape), size=size))
    rows, columns = (np.arange(SIZE) + draw.integers(-2, 3, size=(size, 1)) for _ in range(2))
    columns = np.where(draw.random((size, 1)) < 0.5, columns[:, ::-1], columns)
    image = np.arange(size)[:, None, None]
    where = (image, (rows % SIZE)[:, :, None], (columns % SIZE)[:, None, :])
    pixels, flags = conditions.filtered(chosen.pixels[where], scaled(filters), draw)
    hidden = (flags & conditions.COLOUR_HIDING).any(axis=1)
    return replace(
        chosen,
        pixels=pixels,
        colour=np.where(hidden, -1, chosen.colour),
        conditions=chosen.conditions | flags,
        outlines=np.packbits(chosen.inside()[where].reshape(size, -1), axis=1),
    )


def scaled(filters: float) -> tuple[float, ...]:
    """Probabilities of no filter, one and two where `filters` scales those of having any."""
    return (1 - filters * sum(FILTERS[1:]), *(filters * share for share in FILTERS[1:]))
