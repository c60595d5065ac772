"""Settings that data sources share, and the search for a source by name.

A data source is one file in `data/sources`: a section of settings with a method that loads the data. A source of
another package is named `package.module:Class`.
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
"""Name of the entry-point group in which other packages offer sources."""


class DataSource(Section):
    """The settings of a data source (`[data]`), and the method that loads it."""

    source: str
    """The source's name: a file in `data/sources`, an entry point, or `package.module:Class`."""
    shots: Count | None = None
    """Training images per class (and domain); by default all."""
    seeded: ClassVar[bool] = False
    """Whether images differ between seeds."""
    on_disk: ClassVar[bool] = True
    """Whether images are files, whose facts and activations are worth caching."""

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """All records. Every image is inspected, unless `decode_cache` has its digest.

        Raises `FedvlmError`, naming the file and what to do, for data that cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it is loaded")

    @property
    def transform(self) -> str:
        """Name of the transform of images for the model (`clip.preprocess`)."""
        return "clip"

    @property
    def held_out(self) -> tuple[float, float]:
        """Shares of training images held out for test and validation, if the source has no such split."""
        return 0.0, 0.0

    @property
    def max_tests(self) -> int | None:
        """Maximum number of test images per class (and domain)."""
        return None

    def base_count(self, classes: int) -> int:
        """Number of base classes, which come first in the list; the others are novel."""
        return classes


class PhotographData(DataSource):
    """Settings of real photographs that are the same wherever they lie: what is learned, and how they are dealt."""

    novel: Literal["half", "none"] = "half"
    """`half`: the first ceil(C/2) classes are base, the rest novel; `none`: every class is base."""
    classes: list[str] = Field(default=[])
    """Class names in the order of their label ids, for all sites; images of others are left out. Empty: the data's
    own."""
    test_fraction: Share = 0.3
    """Share of each class (and client) held out for testing, if the source has no test split."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training images held out for validation, if the source has no validation split."""
    test_per_class: Count | None = None
    """Maximum number of test images per class (and domain); by default all."""
    on_duplicate: Literal["once", "keep"] = "once"
    """Treatment of images with the same pixels: used once (an error if their labels differ), or all used, as in some
    published protocols. The warnings count them in both cases."""
    grey_bits: Literal[8, 10, 12, 14, 16] | None = None
    """Range of grey values that are stored in more than 8 bits; by default the least sufficient of 8, 12 and 16. Sites
    of one federation should set it, so that all have the same."""
    preprocess: Literal["clip", "cifar10", "cifar100"] = "clip"
    """`clip`: the model's own transform. `cifar10`, `cifar100`: the transforms of the papers' released code for these
    data (images of 32 x 32, no augmentation)."""

    @property
    def transform(self) -> str:
        """The setting `preprocess`."""
        return self.preprocess

    @property
    def held_out(self) -> tuple[float, float]:
        """The settings `test_fraction` and `val_fraction`."""
        return self.test_fraction, self.val_fraction

    @property
    def max_tests(self) -> int | None:
        """The setting `test_per_class`."""
        return self.test_per_class

    def base_count(self, classes: int) -> int:
        """The first half of the classes, rounded up, or all of them."""
        return (classes + 1) // 2 if self.novel == "half" else classes


class FileData(PhotographData):
    """Settings of all sources of real photographs that lie here."""

    path: str
    """Folder that holds the photographs."""
    rename: dict[str, str] = Field(default={})
    """Labels of the data by the class names that are used for them (`{ melanoma = "malignant mole" }`)."""
    include: list[str] = Field(default=[])
    """The only labels to use (the papers take 10 of DomainNet's 345); empty: all labels."""
    exclude: list[str] = Field(default=[])
    """Labels to leave out (noise labels)."""
    max_megapixels: Annotated[float, Field(gt=0)] = 40.0
    """Maximum size of an image; larger ones are not decoded."""
    on_unreadable: Literal["skip", "error"] = "skip"
    """Treatment of unreadable images: left out and counted in the warnings, or an error."""


@cache
def builtin_sources() -> dict[str, type[DataSource]]:
    """The sources of this package by name."""
    from fedvlm.data import sources  # sources import this module

    found = plugins.classes(sources, DataSource)
    return {str(each.model_fields["source"].annotation.__args__[0]): each for each in found}  # type: ignore[union-attr]


def find_source(name: str) -> type[DataSource]:
    """A source's class by name. Raises `FedvlmError` if there is none."""
    return plugins.find(name, builtin_sources(), DataSource, GROUP, "data source")
