"""Rows of a folder, list or hub data set: images with the values beside them, before and after inspection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedvlm.data.decode import ImageFacts, Problem
from fedvlm.data.record import Image, Split


class InspectableImage(Image, Protocol):
    """An image that can be inspected before it is used."""

    def inspect(self, lookup: Callable[[str], ImageFacts | None]) -> ImageFacts | Problem:
        """Facts of the image, from `lookup` by digest or from a full decode; or the problem that makes it unusable."""
        ...

    def with_facts(self, facts: ImageFacts, bits: int) -> Image:
        """The image tied to the inspected bytes, with this range of grey values of more than 8 bits."""
        ...


@dataclass(frozen=True, slots=True)
class ImageRow:
    """An image with its class name, domain, client and split; class ids are assigned later."""

    image: InspectableImage
    name: str
    domain: str | None = None
    client: str | None = None
    split: Split | None = None
    superclass: str | None = None
    """Super-class, the same for all images of a class."""


@dataclass(frozen=True, slots=True)
class InspectedRow:
    """A row whose image was inspected and is usable."""

    row: ImageRow
    facts: ImageFacts
