"""Drawn scenes: images of coloured, patterned shapes in many styles; a federation without files or network."""

from fedvlm.data.scenes.render import render
from fedvlm.data.scenes.spec import COLOURS, FILLS, SHAPES, SIZE, SceneSpec
from fedvlm.data.scenes.styles import NEUTRAL, STYLES

__all__ = [
    "COLOURS", "FILLS", "NEUTRAL", "SHAPES", "SIZE", "STYLES", "SceneSpec", "render",
]  # fmt: skip
