"""Records of a data source: image, label, class name, domain and client belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import PIL.Image

Split = Literal["train", "val", "test"]


class Image(Protocol):
    """An image that is read when it is needed."""

    @property
    def key(self) -> str:
        """Identity within the source, the same in every process and on every machine."""
        ...

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming the file if it cannot be decoded."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """An image that is drawn from a description, so that many can be rendered at once (`pixels.read_images`)."""

    @property
    def spec(self) -> Any:
        """The description of the image (`scenes.spec.SceneSpec`)."""
        ...


@runtime_checkable
class Stored(Protocol):
    """An image that is stored as bytes. `open` refuses other bytes than those inspected when the source was read."""

    def digest(self) -> str:
        """Digest of the bytes, by which cached activations are found in later runs."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image. This package stores no label apart from its image."""

    image: Image
    label: int
    """Position in `Source.classnames`."""
    name: str
    """Class name as the source spells it, always `Source.classnames[label]`."""
    domain: str | None = None
    client: str | None = None
    split: Split | None = None
    """The split given by the source; None if images are held out later."""


@dataclass(frozen=True)
class Source:
    """All records of a data source, in an order that depends on the data only."""

    name: str
    classnames: tuple[str, ...]
    """Class name by label id."""
    records: tuple[Record, ...]
    warnings: tuple[str, ...] = ()
    """Notes on left-out data, with counts and the first files' names (`notes.public`: without names)."""
    superclasses: tuple[str, ...] = ()
    """Super-class by label id ("" if unknown); empty if the source has none."""

    def __post_init__(self) -> None:
        """Check that labels and class names belong together."""
        for record in self.records:
            if not 0 <= record.label < len(self.classnames) or self.classnames[record.label] != record.name:
                raise ValueError(f"{record.image.key}: label {record.label} does not go with the name '{record.name}'")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over key, label, class name, domain, client and split of all records, in order."""
        rows = [(r.image.key, r.label, r.name, r.domain, r.client, r.split) for r in self.records]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @cached_property
    def content(self) -> str | None:
        """SHA-256 over the digests of all images, in order; None if an image is drawn and has no digest."""
        digests = [record.image.digest() for record in self.records if isinstance(record.image, Stored)]
        if len(digests) < len(self.records):
            return None
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def domains(self) -> tuple[str, ...]:
        """Names of the domains in the order of their first records; empty if the source has none."""
        return _distinct(record.domain for record in self.records)

    def clients(self) -> tuple[str, ...]:
        """Names of the natural clients in sorted order; empty if the source has none."""
        return tuple(sorted(_distinct(record.client for record in self.records)))


def _distinct(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(value for value in dict.fromkeys(values) if value is not None)
