"""Captions for the pre-training of the embedded model: attributes, wording and length.

A caption names the shape and, by chance, the fill and the colour; it says nothing false. Some are short ("a photo of
a striped fish."), others carry the same phrase far behind unrelated words, so that every position of the text
encoder is trained and words before a class name do not change what is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedvlm.data.scenes import COLOURS, FILLS, SHAPES

Numbers = npt.NDArray[np.int64]

CONTEXT = 32
"""Number of positions of the text encoder."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc",), "square": ("box",), "moon": ("crescent",), "cross": ("plus",), "house": ("home",),
    "tree": ("fir",), "drop": ("droplet",), "flower": ("blossom",), "bolt": ("lightning",), "mushroom": ("toadstool",),
    "diamond": ("rhombus",), "cup": ("mug",), "ring": ("donut",), "solid": ("plain", "filled"),
    "striped": ("stripy", "lined"), "dotted": ("spotted",), "outlined": ("hollow",), "checked": ("checkered",),
    "gradient": ("shaded",), "gray": ("grey",), "purple": ("violet",), "cyan": ("turquoise",),
}  # fmt: skip

FAVOURITE = "a photo of a {}."
"""The template of zero-shot evaluation."""

TEMPLATES = (
    "a photo of the {}.", "a picture of a {}.", "an image of a {}.", "a {}", "the {}", "{}", "this is a {}.",
    "there is a {} here.", "a photo of one {}.", "a good photo of a {}.", "a bad photo of the {}.",
    "a blurry photo of a {}.", "a close photo of a {}.", "a cropped photo of the {}.", "a dark photo of a {}.",
    "a bright photo of a {}.", "a photo of a small {}.", "a photo of a large {}.", "a photo of my {}.",
    "i can see a {}.", "look at this {}!", "what is it? it is a {}.", "a view of a {}.", "an example of a {}.",
    "a kind of {}.", "a photo of a {}, a type of object.",
)  # fmt: skip

DRAWING = (
    "a drawing of a {}.", "a cartoon of a {}.", "a {} drawn on paper.", "a simple drawing of the {}.",
    "a comic picture of a {}.",
)  # fmt: skip

OPENINGS = (
    "in this picture", "on a quiet morning", "taken near the old town", "from our collection", "with a cheap camera",
    "number 1 2 3", "as we came back late", "after the long rain", "for the second time today", "made by a machine",
    "in the middle of the page", "not very clear but still", "at first sight", "if you look here",
    "somewhere in the north", "between two other things", "page 4 7", "file 9 0 5 8 6", "found in a book of pictures",
)  # fmt: skip

CLOSINGS = (
    "on a white wall", "seen from the side", "with some noise around it", "and nothing else", "in front of a door",
    "for you to find", "as it was last year", "with a few lines behind", "in soft light", "that nobody wants",
    "and it is very nice", "which we like a lot", "at the end of the day", "in many colors and styles",
)  # fmt: skip


def vocabulary() -> list[str]:
    """All words of captions, sorted."""
    phrases = [*SHAPES, *FILLS, *COLOURS, *(word for words in SYNONYMS.values() for word in words)]
    texts = [FAVOURITE, *TEMPLATES, *DRAWING, *OPENINGS, *CLOSINGS, *phrases]
    letters = "".join(character if character.isalpha() else " " for character in " ".join(texts))
    return sorted({word for word in letters.split() if len(word) > 1})


def chatter() -> list[str]:
    """Words that do not describe an image, sorted."""
    taken = {*SHAPES, *FILLS, *COLOURS, *(word for words in SYNONYMS.values() for word in words)}
    return [word for word in vocabulary() if word not in taken]


@dataclass(frozen=True)
class Captioned:
    """B captions with the attributes that they mention: positions in SHAPES, FILLS and COLOURS, -1 if not mentioned."""

    texts: list[str]
    shape: Numbers
    fill: Numbers
    colour: Numbers


def describe(
    shape: Numbers, fill: Numbers, colour: Numbers, drawing: npt.NDArray[np.bool_], draw: np.random.Generator, *,
    long: bool,
) -> Captioned:  # fmt: skip
    """One caption for each of B images with these attributes; `long` ones fill the context."""
    kind = draw.choice(4, size=len(shape), p=(0.36, 0.32, 0.20, 0.12))
    named_fill = np.where(kind <= 1, fill, -1)
    named_colour = np.where((kind == 0) | (kind == 2), colour, -1)
    texts = []
    for index in range(len(shape)):
        phrase = _phrase(int(shape[index]), int(named_fill[index]), int(named_colour[index]), draw)
        text = _template(bool(drawing[index]), draw).format(phrase)
        texts.append(_lengthened(text, phrase, draw) if long else text)
    return Captioned(texts, shape, named_fill, named_colour)


def _phrase(shape: int, fill: int, colour: int, draw: np.random.Generator) -> str:
    words = []
    if fill >= 0:
        words.append(_word(FILLS[fill], draw))
    if colour >= 0:
        words.append(_word(list(COLOURS)[colour], draw))
    if len(words) == 2 and draw.random() < 0.5:
        words.reverse()
    return " ".join([*words, _word(SHAPES[shape], draw)])


def _word(word: str, draw: np.random.Generator) -> str:
    others = SYNONYMS.get(word, ())
    return others[int(draw.integers(len(others)))] if others and draw.random() < 0.3 else word


def _template(drawing: bool, draw: np.random.Generator) -> str:
    chance = draw.random()
    if drawing and chance < 0.3:
        return _one(DRAWING, draw)
    return FAVOURITE if chance < 0.55 else _one(TEMPLATES, draw)


def _one(choices: tuple[str, ...], draw: np.random.Generator) -> str:
    return choices[int(draw.integers(len(choices)))]


def _lengthened(text: str, phrase: str, draw: np.random.Generator) -> str:
    """The caption with other text: sentences around it, or words or letters before it."""
    kind = draw.random()
    if kind < 0.45:
        openings = [_one(OPENINGS, draw) for _ in range(int(draw.integers(0, 4)))]
        closings = [_one(CLOSINGS, draw) for _ in range(int(draw.integers(0, 3)))]
        return ", ".join([*openings, text.rstrip(".") + " " + " ".join(closings)])
    if kind < 0.9:
        words = chatter()
        count = int(draw.integers(1, 25))
        loose = " ".join(words[int(index)] for index in draw.integers(len(words), size=count))
        return f"{loose} {phrase}" + ("." if draw.random() < 0.7 else "")
    letters = " ".join(chr(int(code)) for code in draw.integers(33, 127, size=int(draw.integers(1, 16))))
    return f"{letters} {text}"
