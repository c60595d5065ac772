"""Reading many images: drawn ones are rendered together, others are decoded in parallel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.record import Drawn, Image

Pixels = NDArray[np.uint8]


def read_images(images: Sequence[Image], threads: int | None = None) -> list[Pixels]:
    """The pixels `[H, W, 3]` of each image, RGB 0..255, in the order given; sizes differ from image to image.

    Raises FedvlmError naming the first file that cannot be decoded.
    """
    drawn = {place: image for place, image in enumerate(images) if isinstance(image, Drawn)}
    others = [place for place in range(len(images)) if place not in drawn]
    found: dict[int, Pixels] = dict(zip(drawn, _render(list(drawn.values())), strict=True))
    found.update(zip(others, _decode([images[place] for place in others], threads), strict=True))
    return [found[place] for place in range(len(images))]


def _render(images: Sequence[Drawn]) -> list[Pixels]:
    if not images:
        return []
    from fedvlm.data.scenes import render

    return list(render([image.spec for image in images]))


def _decode(images: Sequence[Image], threads: int | None) -> list[Pixels]:
    """Pixels of each image, decoded in threads; decoders release the interpreter lock."""
    workers = min(threads or min(8, os.cpu_count() or 1), len(images))
    if workers < 2:
        return [_pixels(image) for image in images]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_pixels, images))


def _pixels(image: Image) -> Pixels:
    return np.asarray(image.open(), dtype=np.uint8)
