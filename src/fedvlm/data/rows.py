"""One image as a folder, list or hub data set names it, before it has been looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedvlm.data.decode import ImageFacts, Problem
from fedvlm.data.record import Image, Split


class InspectableImage(Image, Protocol):
    """An image that can be looked at before it is used."""

    def inspect(self, lookup: Callable[[str], ImageFacts | None]) -> ImageFacts | Problem:
        """What is in it, decoded in full unless `lookup` has its bytes' digest; or why it cannot be used."""
        ...

    def with_facts(self, facts: ImageFacts, bits: int) -> Image:
        """The image as it was looked at, with this range of grey values of more than 8 bits."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image with the words that stand beside it; class ids come later."""

    image: InspectableImage
    name: str
    domain: str | None = None
    client: str | None = None
    split: Split | None = None
    superclass: str | None = None
    """The class that the class belongs to, the same for all images of a class."""


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A row whose image was looked at and can be used."""

    row: ImageRow
    facts: ImageFacts
