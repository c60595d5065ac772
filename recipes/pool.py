"""The images of pre-training: neutral scenes drawn once, handed out in random batches, shifted and mirrored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes import COLOURS, FILLS, SHAPES, SIZE, SceneSpec, render
from fedvlm.streams import key, stream

Numbers = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

DRAWINGS = 0.3
"""Share of drawings; the rest are photos."""


@dataclass(frozen=True)
class Pool:
    """N images `[N, S, S, 3]` with the positions of their attributes in SHAPES, FILLS and COLOURS, `[N]` each."""

    pixels: Pixels
    shape: Numbers
    fill: Numbers
    colour: Numbers
    drawing: npt.NDArray[np.bool_]

    def rows(self, rows: Numbers) -> Pool:
        """The images at these positions."""
        return Pool(self.pixels[rows], self.shape[rows], self.fill[rows], self.colour[rows], self.drawing[rows])


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
    return Pool(pixels, shape, fill, np.where(colourless(pixels), names.index("gray"), colour), drawing)


def colourless(pixels: Pixels) -> npt.NDArray[np.bool_]:
    """Which images `[N, S, S, 3]` are black and white: what a caption calls gray in them is gray."""
    return np.array([bool((image.max(axis=-1) - image.min(axis=-1)).max() <= 2) for image in pixels])


def batch(pool: Pool, size: int, draw: np.random.Generator) -> Pool:
    """Random images, rolled by up to two pixels either way and mirrored half of the time."""
    chosen = pool.rows(draw.integers(len(pool.shape), size=size))
    rows, columns = (np.arange(SIZE) + draw.integers(-2, 3, size=(size, 1)) for _ in range(2))
    columns = np.where(draw.random((size, 1)) < 0.5, columns[:, ::-1], columns)
    image = np.arange(size)[:, None, None]
    moved = chosen.pixels[image, (rows % SIZE)[:, :, None], (columns % SIZE)[:, None, :]]
    return Pool(moved, chosen.shape, chosen.fill, chosen.colour, chosen.drawing)
