"""Many scenes at once, as pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes.geometry import geometry
from fedvlm.data.scenes.neutral import photo
from fedvlm.data.scenes.spec import SIZE, SceneSpec
from fedvlm.data.scenes.styles import styled

Pixels = npt.NDArray[np.uint8]

CHUNK = 32
"""Scenes drawn together: few enough for the planes to stay in the processor's cache."""


def render(specs: Sequence[SceneSpec]) -> Pixels:
    """Scenes as `[B, 48, 48, 3]`. An image depends only on its own specification, not on its neighbours."""
    result = np.empty((len(specs), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(specs), CHUNK):
        result[start : start + CHUNK] = _chunk(specs[start : start + CHUNK])
    return result


def _chunk(specs: Sequence[SceneSpec]) -> Pixels:
    scene = geometry(specs)
    image = photo(scene)
    for style in dict.fromkeys(spec.style for spec in specs):
        rows = np.array([index for index, spec in enumerate(specs) if spec.style == style])
        strength = np.array([specs[row].strength for row in rows], dtype=np.float32)[:, None, None, None]
        neutral = image[rows]
        image[rows] = neutral + (styled(style, scene.rows(rows), neutral) - neutral) * strength
    return np.floor(np.clip(image, 0, 1).transpose(0, 2, 3, 1) * 255 + 0.5).astype(np.uint8)
