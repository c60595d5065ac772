"""What can be seen of a picture beside its object: conditions that captions name, and how pictures get them.

The federation's styles are not among them: those stay unseen in pre-training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes.geometry import LUMA

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Draw = np.random.Generator


@dataclass(frozen=True)
class Condition:
    """How captions say it, and the filter that makes it (None: the scene is drawn so)."""

    before: tuple[str, ...]
    """Adjectives of the picture: "a dark photo of a ..."."""
    behind: tuple[str, ...]
    """Phrases that may stand anywhere else: "a photo of a ..., in the dark"."""
    filter: Callable[[Floats, Draw], Floats] | None = None
    """Pictures `[B, S, S, 3]` in 0..1 and chance, to pictures that may leave 0..1."""
    hides_colour: bool = False
    """Whether the object's colour can no longer be told."""


def _level(draw: Draw, pictures: Floats, low: float, high: float) -> Floats:
    """A number for each picture, `[B, 1, 1, 1]`."""
    return draw.uniform(low, high, size=(len(pictures), 1, 1, 1)).astype(np.float32)


def _brightness(pictures: Floats) -> Floats:
    return (pictures @ np.array(LUMA, dtype=np.float32))[..., None]


def _dark(x: Floats, draw: Draw) -> Floats:
    return x * _level(draw, x, 0.3, 0.5)


def _bright(x: Floats, draw: Draw) -> Floats:
    return 1 - (1 - x) * _level(draw, x, 0.35, 0.55)


def _blurry(x: Floats, draw: Draw) -> Floats:
    for _ in range(3):
        for axis in (1, 2):
            x = (np.roll(x, 1, axis) + np.roll(x, -1, axis)) * np.float32(0.25) + x * np.float32(0.5)
    return x


def _noisy(x: Floats, draw: Draw) -> Floats:
    return x + _level(draw, x, 0.25, 0.45) * (draw.random(x.shape, dtype=np.float32) - np.float32(0.5))


def _misty(x: Floats, draw: Draw) -> Floats:
    return x + (np.float32(0.82) - x) * _level(draw, x, 0.45, 0.7)


def _gray(x: Floats, draw: Draw) -> Floats:
    return np.repeat(_brightness(x), 3, axis=-1)


def _negative(x: Floats, draw: Draw) -> Floats:
    return 1 - x


def _tinted(*rgb: float) -> Callable[[Floats, Draw], Floats]:
    light = np.array(rgb, dtype=np.float32)

    def tinted(x: Floats, draw: Draw) -> Floats:
        return x + (_brightness(x) * np.float32(0.4) + light * np.float32(0.6) - x) * _level(draw, x, 0.45, 0.65)

    return tinted


def _pixelated(x: Floats, draw: Draw) -> Floats:
    count, size, side = len(x), x.shape[1], 4
    cells = x.reshape(count, size // side, side, size // side, side, 3).mean((2, 4))
    return cells.repeat(side, axis=1).repeat(side, axis=2)


def _harsh(x: Floats, draw: Draw) -> Floats:
    return (x - np.float32(0.5)) * _level(draw, x, 2.5, 3.5) + np.float32(0.5)


def _torn(x: Floats, draw: Draw) -> Floats:
    size = x.shape[1]
    shift = draw.integers(-7, 8, size=(len(x), 8)).repeat(size // 8, axis=1)
    columns = (np.arange(size) + shift[:, :, None]) % size
    return np.take_along_axis(x, columns[..., None], axis=2)


CONDITIONS: dict[str, Condition] = {
    "drawing": Condition((), ("drawn on paper", "drawn with a pen")),
    "small": Condition((), ("of small size", "seen from far away")),
    "large": Condition((), ("of large size", "seen from near by")),
    "dark": Condition(("dark", "dim"), ("in the dark", "in low light"), _dark),
    "bright": Condition(("bright", "pale"), ("in bright light", "in the sun"), _bright),
    "blurry": Condition(("blurry", "soft"), ("out of focus", "with blur"), _blurry),
    "noisy": Condition(("noisy", "grainy"), ("with noise", "with grain"), _noisy),
    "misty": Condition(("misty", "hazy"), ("in the mist", "behind haze"), _misty),
    "gray": Condition(("colorless", "monochrome"), ("in black and white", "without color"), _gray, True),
    "negative": Condition(("negative", "inverted"), ("as a negative", "with inverted colors"), _negative, True),
    "reddish": Condition(("reddish",), ("in reddish light", "with a reddish tint"), _tinted(0.9, 0.25, 0.25), True),
    "greenish": Condition(("greenish",), ("in greenish light", "with a greenish tint"), _tinted(0.25, 0.9, 0.25), True),
    "bluish": Condition(("bluish",), ("in bluish light", "with a bluish tint"), _tinted(0.25, 0.25, 0.9), True),
    "pixelated": Condition(("pixelated", "coarse"), ("in large pixels", "in low resolution"), _pixelated),
    "harsh": Condition(("harsh", "stark"), ("with high contrast", "in hard light"), _harsh),
    "torn": Condition(("torn", "broken"), ("torn to strips", "with broken lines"), _torn),
}  # fmt: skip
NAMES = tuple(CONDITIONS)
FILTERS = tuple(name for name, one in CONDITIONS.items() if one.filter is not None)
COLOUR_HIDING = np.array([one.hides_colour for one in CONDITIONS.values()])
"""`[conditions]`"""


def filtered(
    pixels: npt.NDArray[np.uint8], counts: tuple[float, ...], draw: Draw
) -> tuple[npt.NDArray[np.uint8], Flags]:
    """Pictures `[B, S, S, 3]` under random filters, and which, `[B, conditions]`.

    `counts`: the probabilities of no filter, one, two ... The filters of a picture are applied in the order of the
    table.
    """
    number = draw.choice(len(counts), size=len(pixels), p=counts)
    ranks = draw.random((len(pixels), len(FILTERS))).argsort(axis=1).argsort(axis=1)
    flags = np.zeros((len(pixels), len(NAMES)), dtype=bool)
    flags[:, [NAMES.index(name) for name in FILTERS]] = ranks < number[:, None]
    pictures = pixels.astype(np.float32) / np.float32(255)
    for column, one in enumerate(CONDITIONS.values()):
        rows = np.flatnonzero(flags[:, column])
        if one.filter is not None and len(rows):
            pictures[rows] = np.clip(one.filter(pictures[rows], draw), 0, 1)
    return (pictures * 255 + 0.5).astype(np.uint8), flags
