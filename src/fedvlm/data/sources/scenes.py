"""Drawn scenes as a data source: classes are fill + shape ("striped fish"), every style is a domain."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import PIL.Image
from pydantic import Field

from fedvlm.config import Count
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.record import Record, Source, Split
from fedvlm.data.scenes.render import render
from fedvlm.data.scenes.spec import FILLS, SHAPES, SceneSpec
from fedvlm.data.scenes.styles import NEUTRAL, STYLES
from fedvlm.data.scenes.words import class_words, related
from fedvlm.data.settings import DataSource
from fedvlm.errors import FedvlmError, nearest
from fedvlm.streams import key, stream

Probability = Annotated[float, Field(ge=0, le=1)]


class ScenesData(DataSource):
    """Drawn scenes (no files, no network)."""

    source: Literal["scenes"] = "scenes"
    styles: list[str] = Field(default=["sketch"], min_length=1)
    """Visual styles; each is a domain. `style:0.7` sets the strength."""
    base_classes: Count = 20
    novel_classes: Annotated[int, Field(ge=0)] = 20
    shots: Count = 16
    """Training images per class and style."""
    val_per_class: Annotated[int, Field(ge=0)] = 8
    test_per_class: Count = 20
    """Test images per class and style."""
    novel_shapes: Literal["any", "own"] = "any"
    """`any`: novel classes are new combinations of fill and shape. `own`: they have no shape of the base classes, and
    the shapes of either are such as words with two meanings confuse."""
    homonyms: Probability = 0.0
    """Share of shapes that are called by a word of two meanings (`fedvlm.data.scenes.words`)."""
    rarer: Probability = 0.5
    """Share of these that are called by a word which means them less often."""

    seeded: ClassVar[bool] = True
    on_disk: ClassVar[bool] = False

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of drawn scenes (`scenes_source`)."""
        return scenes_source(self, seed)

    def base_count(self, classes: int) -> int:
        """The setting `base_classes`."""
        return self.base_classes


MOST = len(FILLS) * len(SHAPES)
"""Number of possible classes."""
MOST_IMAGES = 2_000_000
"""Maximum number of images; the records of more images would fill the memory."""


@dataclass(frozen=True)
class SceneImage:
    """A scene that is rendered when it is opened."""

    spec: SceneSpec

    @property
    def key(self) -> str:
        """All fields of the specification: equal keys, equal pixels."""
        spec = self.spec
        return f"scene-{spec.seed:016x}-{spec.style}-{spec.strength!r}-{spec.colour}-{spec.fill}-{spec.shape}"

    def open(self) -> PIL.Image.Image:
        """The scene, 48 x 48 RGB."""
        return PIL.Image.fromarray(render([self.spec])[0])


def scenes_source(config: ScenesData, seed: int) -> Source:
    """All records of every style and class. Images depend on the seed, style, class, split and their number only.

    The first `base_classes` class names are the base classes, the others the novel ones. Raises FedvlmError for
    styles that are unknown or given twice, for more classes than there are combinations of fill and shape, and for more
    than `MOST_IMAGES`.
    """
    classes = choose_classes(config.base_classes, config.novel_classes, seed, own=config.novel_shapes == "own")
    _check_count(config)
    words = class_words({shape for _, shape in classes}, config.homonyms, config.rarer, stream(seed, "class words"))
    names = tuple(f"{fill} {words[shape]}" for fill, shape in classes)
    records = [
        Record(SceneImage(spec), label, names[label], domain=domain, split=split)
        for domain, (style, strength) in read_styles(config.styles).items()
        for label, (fill, shape) in enumerate(classes)
        for split, spec in _specs(config, seed, domain, SceneSpec(0, shape, fill, None, style, strength))
    ]
    return Source("scenes", names, tuple(records))


def _check_count(config: ScenesData) -> None:
    each = config.shots + config.val_per_class + config.test_per_class
    classes = config.base_classes + config.novel_classes
    count = len(config.styles) * classes * each
    if count > MOST_IMAGES:
        raise FedvlmError(
            f"these scenes would be {count:,} images ({len(config.styles)} styles x {classes} classes x {each:,}), and "
            f"{MOST_IMAGES:,} are the most: lower data.shots, data.val_per_class or data.test_per_class"
        )


def choose_classes(base: int, novel: int, seed: int, *, own: bool = False) -> list[tuple[str, str]]:
    """Base classes, then novel ones, as (fill, shape).

    Drawn without replacement from the combinations of all fills with as few shapes as make fills matter (about
    three shapes for five classes), so that novel classes are new combinations of largely known parts. With `own` the
    base and the novel classes have such shapes of their own, as many as there are for their number: neighbours in the
    row in which a word's second meaning follows its first (`words.related`), begun at a random shape.
    """
    if base + novel > MOST:
        raise FedvlmError(
            f"data.base_classes + data.novel_classes = {base + novel}, but drawn scenes have at most {MOST} classes "
            f"({len(FILLS)} fills x {len(SHAPES)} shapes): ask for fewer"
        )
    draw = stream(seed, "scene classes")
    if own:
        first, second = _shared_out(base, novel)
        row, start = related(), int(draw.integers(len(SHAPES)))
        shapes = [*row[start:], *row[:start]]
        return _combined(shapes[:first], base, draw) + _combined(shapes[first : first + second], novel, draw)
    shapes = [SHAPES[index] for index in draw.permutation(len(SHAPES))]
    return _combined(shapes[: max(_enough(max(base, novel)), _least(base + novel))], base + novel, draw)


def _combined(shapes: list[str], count: int, draw: np.random.Generator) -> list[tuple[str, str]]:
    combinations = [(fill, shape) for fill in FILLS for shape in shapes]
    return [combinations[index] for index in draw.permutation(len(combinations))[:count]]


def _enough(classes: int) -> int:
    """Number of shapes with which fills matter for so many classes: about three for five."""
    return min(len(SHAPES), max(math.ceil(0.6 * classes), 2)) if classes else 0


def _least(classes: int) -> int:
    """The smallest number of shapes that gives so many combinations with all fills."""
    return math.ceil(classes / len(FILLS))


def _shared_out(base: int, novel: int) -> tuple[int, int]:
    """Numbers of shapes of the base and the novel classes, in proportion where there are not enough."""
    first, second = _enough(base), _enough(novel)
    if first + second > len(SHAPES):
        first = min(max(round(len(SHAPES) * base / (base + novel)), _least(base)), len(SHAPES) - _least(novel))
        second = len(SHAPES) - first
    if first < _least(base) or second < _least(novel):
        raise FedvlmError(
            f"{base} base and {novel} novel classes need {_least(base) + _least(novel)} shapes of their own, and there "
            f"are {len(SHAPES)}: ask for fewer classes, or set data.novel_shapes to 'any'"
        )
    return first, second


def read_styles(entries: list[str]) -> dict[str, tuple[str, float]]:
    """Domain name to (style, strength), from entries `style` or `style:strength`.

    The domain is named after the style, or after the whole entry where a style stands in the list several times.
    """
    parsed = [_style(entry) for entry in entries]
    styles = [style for style, _ in parsed]
    domains = [style if styles.count(style) == 1 else f"{style}:{strength:g}" for style, strength in parsed]
    if len(set(domains)) < len(domains):
        twice = next(domain for domain in domains if domains.count(domain) > 1)
        raise FedvlmError(f"data.styles lists '{twice}' twice: each style is one domain, give it once")
    return dict(zip(domains, parsed, strict=True))


def _style(entry: str) -> tuple[str, float]:
    style, sign, text = (part.strip() for part in entry.partition(":"))
    known = {**NEUTRAL, **STYLES}
    if style not in known:
        words = ", ".join(known)
        raise FedvlmError(f"data.styles: unknown style '{style}'{nearest(style, known)}; known: {words}")
    if not sign:
        return style, known[style]
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= 1:
        raise FedvlmError(
            f"data.styles: the strength in '{entry}' is a number from 0 (neutral) to 1, as in '{style}:0.7'"
        )
    return style, strength


def _specs(config: ScenesData, seed: int, domain: str, kind: SceneSpec) -> Iterator[tuple[Split, SceneSpec]]:
    counts: dict[Split, int] = {"train": config.shots, "val": config.val_per_class, "test": config.test_per_class}
    for split, count in counts.items():
        for index in range(count):
            number = key(seed, "scene", domain, kind.fill, kind.shape, split, index) & (2**64 - 1)
            yield split, SceneSpec(number, kind.shape, kind.fill, kind.colour, kind.style, kind.strength)
