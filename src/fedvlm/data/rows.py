"""One image as a folder, list or hub data set names it, before it has been looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedvlm.data.decode import Problem, Seen
from fedvlm.data.record import Image, Split


class Found(Image, Protocol):
    """An image that can be looked at before it is used."""

    def look(self, known: Callable[[str], Seen | None]) -> Seen | Problem:
        """What is in it, decoded in full unless `known` has its bytes' digest; or why it cannot be used."""
        ...

    def settled(self, seen: Seen, bits: int) -> Image:
        """The image as it was looked at, with this range of grey values of more than 8 bits."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """An image with the words that stand beside it; class ids come later."""

    image: Found
    name: str
    domain: str | None = None
    client: str | None = None
    split: Split | None = None
    superclass: str | None = None
    """The class that the class belongs to, the same for all images of a class."""


@dataclass(frozen=True, slots=True)
class Usable:
    """A row whose image was looked at and can be used."""

    row: Row
    seen: Seen
