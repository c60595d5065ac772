"""Captions for the pre-training of the embedded model: what they name, in which words, and of what they are true.

A caption names the shape and, by chance, the fill, the colour and conditions that can be seen in the picture; it says
nothing false. A shape may be called by a word of two meanings (`fedvlm.data.scenes.words`). A place that the caption
names decides what the word means; no picture shows it. Every word says something: words that say nothing would teach
the text encoder to overlook what stands before a class, and with it a learned prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from conditions import CONDITIONS, Draw, Flags
from pool import Numbers, Pool

from fedvlm.data.scenes import COLOURS, FILLS, SHAPES
from fedvlm.data.scenes.words import HOMONYMS, PLACES

CONTEXT = 32
"""Number of positions of the text encoder."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc",), "square": ("box",), "moon": ("crescent",), "cross": ("plus",), "house": ("home",),
    "tree": ("fir",), "drop": ("droplet",), "flower": ("blossom",), "bolt": ("lightning",), "mushroom": ("toadstool",),
    "diamond": ("rhombus",), "cup": ("mug",), "ring": ("donut",), "solid": ("plain", "filled"),
    "striped": ("stripy", "lined"), "dotted": ("spotted",), "outlined": ("hollow",), "checked": ("checkered",),
    "gradient": ("shaded",), "gray": ("grey",), "purple": ("violet",), "cyan": ("turquoise",),
}  # fmt: skip

FAVOURITE = "a {} of a {}."
"""The pattern of zero-shot evaluation; the first gap is for "photo" and its adjectives."""

PATTERNS = (
    "a {} of the {}.", "this is a {} of a {}.", "the {} shows a {}.", "a {} of one {}.",
    "a {} of my {}.", "look at this {} of a {}!", "what is in this {}? a {}.", "a {} of a {}, a type of object.",
    "one {} of the {}.",
)  # fmt: skip

BARE = (
    "a {}", "the {}", "{}", "this is a {}.", "there is a {} here.", "i can see a {}.", "look at this {}!",
    "an example of a {}.", "a kind of {}.",
)  # fmt: skip
"""Patterns without a picture."""

PICTURES = ("photo", "picture", "image", "view")
DRAWINGS = ("drawing", "cartoon", "illustration", "comic picture")
FIRST_MEANING = 0.75
"""How often a word of two meanings has its first one where no place decides."""


def vocabulary() -> list[str]:
    """All words of captions, sorted."""
    phrases = [*SHAPES, *FILLS, *COLOURS, *(word for words in SYNONYMS.values() for word in words), *HOMONYMS]
    said = [text for one in CONDITIONS.values() for text in (*one.before, *one.behind)]
    places = [text for texts in PLACES.values() for text in texts]
    texts = [FAVOURITE, *PATTERNS, *BARE, *PICTURES, *DRAWINGS, *phrases, *said, *places]
    letters = "".join(character if character.isalpha() else " " for character in " ".join(texts))
    return sorted({word for word in letters.split() if len(word) > 1})


@dataclass(frozen=True)
class Said:
    """What B captions name: positions in SHAPES, FILLS and COLOURS, -1 if not mentioned, and conditions."""

    shape: Numbers
    fill: Numbers
    colour: Numbers
    conditions: Flags
    """`[B, conditions]`"""

    def fits(self, images: Pool) -> Flags:
        """Which captions (columns) are true of which images (rows) in all they say, `[N, B]`."""
        result = images.shape[:, None] == self.shape[None]
        for own, said in ((images.fill, self.fill), (images.colour, self.colour)):
            result &= (said[None] < 0) | (own[:, None] == said[None])
        missing = self.conditions[None] & ~images.conditions[:, None]
        return np.asarray(result & ~missing.any(axis=-1))


@dataclass(frozen=True)
class Habits:
    """How often captions do something, as probabilities."""

    condition: float = 0.35
    """Name a condition of the picture that a filter made."""
    scene: float = 0.15
    """Name its medium or its size."""
    place: float = 0.6
    homonym: float = 0.6
    twice: float = 0.08
    """Say conditions and place again in other words: what fills the context is true as well."""


def choose(images: Pool, draw: Draw, habits: Habits) -> Said:
    """What the captions of B images name, one for each image."""
    count = len(images.shape)
    kind = draw.choice(4, size=count, p=(0.36, 0.32, 0.20, 0.12))
    fill = np.where(kind <= 1, images.fill, -1)
    colour = np.where(((kind == 0) | (kind == 2)) & (images.colour >= 0), images.colour, -1)
    often = np.where([one.filter is None for one in CONDITIONS.values()], habits.scene, habits.condition)
    return Said(images.shape, fill, colour, images.conditions & (draw.random(images.conditions.shape) < often))


def worded(said: Said, draw: Draw, habits: Habits) -> list[str]:
    """B captions that name this, each in words, with a place and at a length of its own."""
    texts = []
    for index in range(len(said.shape)):
        place = _one(tuple(PLACES), draw) if draw.random() < habits.place else None
        names = [name for name, flag in zip(CONDITIONS, said.conditions[index].tolist(), strict=True) if flag]
        shape, fill, colour = (int(each[index]) for each in (said.shape, said.fill, said.colour))
        phrase = _phrase(shape, fill, colour, place, draw, habits)
        texts.append(_sentence(phrase, names, place, draw.random() < habits.twice, draw))
    return texts


def _phrase(shape: int, fill: int, colour: int, place: str | None, draw: Draw, habits: Habits) -> str:
    """The object: "red striped fish"."""
    words = []
    if fill >= 0:
        words.append(_word(FILLS[fill], draw))
    if colour >= 0:
        words.append(_word(list(COLOURS)[colour], draw))
    if len(words) == 2 and draw.random() < 0.5:
        words.reverse()
    name = _homonym(SHAPES[shape], place, draw) if draw.random() < habits.homonym else None
    return " ".join([*words, name or _word(SHAPES[shape], draw)])


def _homonym(shape: str, place: str | None, draw: Draw) -> str | None:
    """A word of two meanings that means this shape: always so in a place, by chance elsewhere."""
    if place is None:
        second = draw.random() >= FIRST_MEANING
        return next(word for word, one in HOMONYMS.items() if (one.second if second else one.first) == shape)
    words = tuple(word for word, one in HOMONYMS.items() if one.meaning(place) == shape)
    return _one(words, draw) if words else None


def _word(word: str, draw: Draw) -> str:
    others = SYNONYMS.get(word, ())
    return _one(others, draw) if others and draw.random() < 0.3 else word


def _one(choices: Sequence[str], draw: Draw) -> str:
    return choices[int(draw.integers(len(choices)))]


def _sentence(phrase: str, said: list[str], place: str | None, twice: bool, draw: Draw) -> str:
    """The caption: adjectives before the picture's word, other phrases at its beginning or its end."""
    adjectives: list[str] = []
    around: list[str] = []
    for name in said:
        one = CONDITIONS[name]
        if one.before and (twice or draw.random() < 0.5):
            adjectives.append(_one(one.before, draw))
            if not twice:
                continue
        around.extend(draw.permutation(one.behind).tolist() if twice else [_one(one.behind, draw)])
    if place is not None:
        around.extend(draw.permutation(PLACES[place])[: 3 if twice else 1].tolist())
    text = _pattern(phrase, adjectives, "drawing" in said, draw)
    before: list[str] = []
    behind: list[str] = []
    for piece in draw.permutation(around).tolist():
        (before if draw.random() < (0.75 if twice else 0.5) else behind).append(piece)
    if behind:
        text = f"{text.rstrip('.!')} {', '.join(behind)}."
    return ", ".join([*before, text])


def _pattern(phrase: str, adjectives: list[str], drawn: bool, draw: Draw) -> str:
    if not adjectives and draw.random() < 0.25:
        return _one(BARE, draw).format(phrase)
    pattern = FAVOURITE if draw.random() < 0.6 else _one(PATTERNS, draw)
    if drawn and draw.random() < 0.5:
        picture = _one(DRAWINGS, draw)
    else:
        picture = "photo" if draw.random() < 0.6 else _one(PICTURES, draw)
    text = pattern.format(" ".join([*adjectives, picture]), phrase)
    return text.replace("a image", "an image").replace("a inverted", "an inverted")
