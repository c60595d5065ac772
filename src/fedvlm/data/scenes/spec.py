"""What a drawn scene is made of: the words for shapes, fills and colours, and the specification of one image."""

from __future__ import annotations

from dataclasses import dataclass

SIZE = 48
"""Height and width of a scene in pixels."""

SHAPES: tuple[str, ...] = (
    "circle", "square", "triangle", "star", "heart", "moon", "cross", "arrow", "house", "tree",
    "fish", "cloud", "drop", "flower", "bolt", "mushroom", "ring", "diamond", "crown", "cup",
)  # fmt: skip

FILLS: tuple[str, ...] = ("solid", "striped", "dotted", "outlined", "checked", "gradient")

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.96, 0.53, 0.08),
    "yellow": (0.95, 0.86, 0.18),
    "green": (0.16, 0.62, 0.22),
    "cyan": (0.16, 0.80, 0.86),
    "blue": (0.13, 0.27, 0.84),
    "purple": (0.50, 0.18, 0.70),
    "pink": (0.97, 0.55, 0.76),
    "gray": (0.50, 0.50, 0.50),
}
"""Colour words and their RGB values (0..1); every image jitters them a little."""


@dataclass(frozen=True)
class SceneSpec:
    """One image. Its pixels depend on nothing but these fields."""

    seed: int
    """Names everything random about the image (pose, background, clutter, noise), 0 <= seed < 2**64."""
    shape: str
    fill: str
    colour: str | None = None
    """A word of `COLOURS`; drawn from the seed where None."""
    style: str = "photo"
    strength: float = 1.0
    """How much of the style: 0 is the neutral photo of the same scene, 1 the full style."""
