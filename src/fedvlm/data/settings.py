"""What settings of data have in common, and how a source is found by its name.

A data source is one file in `data/sources`: a section of settings that can load what it describes. A source of another
package is named `package.module:Class`.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from fedvlm import plugins
from fedvlm.config import Count, Section, Share
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.record import Source

GROUP = "fedvlm.sources"
"""Entry points of other packages' sources."""


class DataSource(Section):
    """The settings of a data source, `[data]`, and how it is loaded."""

    source: str
    """The source's name: a file in `data/sources`, an entry point, or `package.module:Class`."""
    shots: Count | None = None
    """Training images per class (and domain); all of them where not given."""
    seeded: ClassVar[bool] = False
    """Whether every seed has images of its own."""
    on_disk: ClassVar[bool] = True
    """Whether images are slow to read, so that what is made of them is worth keeping."""

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """All records, every image checked, but those that `decode_cache` knows by their bytes.

        Raises `FedvlmError`, naming the file and what to do, for data that cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is loaded")

    @property
    def transform(self) -> str:
        """What is done to images before the model sees them (`clip.preprocess`)."""
        return "clip"

    @property
    def held_out(self) -> tuple[float, float]:
        """Shares of training images for testing and validation where the source has no such split of its own."""
        return 0.0, 0.0

    @property
    def max_tests(self) -> int | None:
        """At most this many test images per class (and domain)."""
        return None

    def base_count(self, classes: int) -> int:
        """How many of the first classes are base classes; the others are novel."""
        return classes


class FileData(DataSource):
    """What all sources of real photographs share."""

    path: str
    """Folder that holds the photographs."""
    novel: Literal["half", "none"] = "half"
    """`half`: the first ceil(C/2) classes are base, the rest novel; `none`: every class is base."""
    classes: list[str] = Field(default=[])
    """Class names in the order of their numbers at every site; images of others are left out. Empty: the data's own."""
    include: list[str] = Field(default=[])
    """The only labels to use (the papers take 10 of DomainNet's 345); all of them where empty."""
    exclude: list[str] = Field(default=[])
    """Labels to leave out (noise labels)."""
    test_fraction: Share = 0.3
    """Share of each class (and client) held out for testing where the source has no split of its own."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images held out for validation where the source has no split of its own."""
    test_per_class: Count | None = None
    """At most so many test images per class (and domain); all of them where not given."""
    max_megapixels: Annotated[float, Field(gt=0)] = 40.0
    """Larger images are refused before they are decoded."""
    on_unreadable: Literal["skip", "error"] = "skip"
    """What an unreadable image does: left out and counted in the warnings, or an error."""
    on_duplicate: Literal["once", "keep"] = "once"
    """Images with the same pixels: used once (an error under two labels), or every one, as some published protocols
    have it. The warnings count them either way."""
    grey_bits: Literal[8, 10, 12, 14, 16] | None = None
    """Range of grey values that are stored in more than 8 bits; the least of 8, 12 and 16 that holds all of them where
    not given. Sites of one federation should give it, so that all have the same."""
    preprocess: Literal["clip", "cifar10", "cifar100"] = "clip"
    """`clip`: the model's own transform. `cifar10`, `cifar100`: what the papers' released code does with these data
    (images of 32 x 32, no augmentation)."""

    @property
    def transform(self) -> str:
        """As set."""
        return self.preprocess

    @property
    def held_out(self) -> tuple[float, float]:
        """As set."""
        return self.test_fraction, self.val_fraction

    @property
    def max_tests(self) -> int | None:
        """As set."""
        return self.test_per_class

    def base_count(self, classes: int) -> int:
        """The first half of the classes, rounded up, or all of them."""
        return (classes + 1) // 2 if self.novel == "half" else classes


@cache
def builtin_sources() -> dict[str, type[DataSource]]:
    """The package's own sources by name."""
    from fedvlm.data import sources  # they import this module

    found = plugins.classes(sources, DataSource)
    return {str(each.model_fields["source"].annotation.__args__[0]): each for each in found}  # type: ignore[union-attr]


def find_source(name: str) -> type[DataSource]:
    """A source's class by name. Raises `FedvlmError` if there is none."""
    return plugins.find(name, builtin_sources(), DataSource, GROUP, "data source")
