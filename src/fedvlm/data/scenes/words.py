"""Words with two meanings, and how a data set names its shapes with them.

A name means something else out of its context: "cap" is a mushroom's more often than a king's. The embedded model
learned both meanings from captions (`recipes/captions.py`), the first one three times as often; where a caption names a
place, the place decides. A data set is in no place that its names tell, and calls some of its shapes by such words,
some of them in their rarer meaning: zero-shot is wrong there as CLIP is with the names of EuroSAT, and a learned prompt
can help.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PLACES: dict[str, tuple[str, ...]] = {
    "forest": ("in the forest", "from the forest", "found in the woods", "under the leaves"),
    "sea": ("at sea", "from the sea", "on a ship", "of a sailor"),
    "kitchen": ("in the kitchen", "from the kitchen", "on the table", "of a cook"),
    "workshop": ("in the workshop", "from the workshop", "on the bench", "of a smith"),
    "court": ("at court", "from the court", "on a coat of arms", "of a king"),
    "game": ("in a game", "from a game", "on a card", "of a player"),
}
"""Places that decide what a word means, and how captions say them."""


@dataclass(frozen=True)
class Homonym:
    """A word for two shapes."""

    first: str
    """What it means more often."""
    second: str
    """What it means less often, and always in these places."""
    places: tuple[str, ...]

    def meaning(self, place: str) -> str:
        """The shape that is meant in a place."""
        return self.second if place in self.places else self.first


HOMONYMS: dict[str, Homonym] = {
    "button": Homonym("circle", "mushroom", ("forest", "kitchen", "game")),
    "block": Homonym("square", "house", ("forest", "sea", "court")),
    "cone": Homonym("triangle", "tree", ("forest", "workshop", "game")),
    "spark": Homonym("star", "bolt", ("sea", "workshop", "court")),
    "pip": Homonym("heart", "drop", ("forest", "sea", "kitchen")),
    "orb": Homonym("moon", "circle", ("kitchen", "workshop", "court")),
    "mark": Homonym("cross", "star", ("forest", "sea", "game")),
    "dart": Homonym("arrow", "fish", ("sea", "kitchen", "court")),
    "roof": Homonym("house", "triangle", ("kitchen", "workshop", "game")),
    "shade": Homonym("tree", "cloud", ("sea", "workshop", "game")),
    "ray": Homonym("fish", "arrow", ("forest", "court", "game")),
    "puff": Homonym("cloud", "ring", ("kitchen", "court", "game")),
    "pendant": Homonym("drop", "diamond", ("forest", "sea", "workshop")),
    "club": Homonym("flower", "cross", ("court", "workshop", "game")),
    "lock": Homonym("bolt", "square", ("forest", "kitchen", "workshop")),
    "cap": Homonym("mushroom", "crown", ("sea", "workshop", "court")),
    "halo": Homonym("ring", "moon", ("forest", "sea", "kitchen")),
    "gem": Homonym("diamond", "flower", ("forest", "kitchen", "court")),
    "prize": Homonym("crown", "cup", ("kitchen", "sea", "game")),
    "vessel": Homonym("cup", "heart", ("workshop", "court", "game")),
}
"""Each shape is the first meaning of one word and the second of another."""


def related() -> list[str]:
    """All shapes in a row, each followed by the one that its word means less often (or by the next such row)."""
    after = {one.first: one.second for one in HOMONYMS.values()}
    row: list[str] = []
    while rest := [shape for shape in after if shape not in row]:
        shape = rest[0]
        while shape not in row:
            row.append(shape)
            shape = after[shape]
    return row


def class_words(shapes: Iterable[str], share: float, rarer: float, draw: np.random.Generator) -> dict[str, str]:
    """What a data set calls each of its shapes: the plain word, or one with two meanings.

    A shape gets such a word with probability `share`, and then one that means it less often with probability `rarer`.
    No two shapes get the same word: the later one keeps its plain word.
    """
    names = {shape: shape for shape in shapes}
    for shape in draw.permutation(sorted(names)).tolist():
        ambiguous, second = draw.random(2) < (share, rarer)
        word = next(word for word, one in HOMONYMS.items() if (one.second if second else one.first) == shape)
        if ambiguous and word not in names.values():
            names[shape] = word
    return names
