"""A federation: index lists of each client's training and evaluation images, which can be saved and compared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError

from fedvlm.config import Section
from fedvlm.data.notes import Note, public
from fedvlm.data.record import Source
from fedvlm.errors import FedvlmError

VERSION: Literal[1] = 1
"""Version of the saved form."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client's share. All index lists point into `Federation.source.records`, in rising order."""

    name: str
    """Unique and safe as a file name."""
    train: tuple[int, ...]
    local: tuple[int, ...]
    """Local evaluation images; may be empty."""
    base: str
    """Key of the base evaluation images in `Federation.tests`."""
    novel: str | None
    """Key of the novel evaluation images; None if there are none."""
    classes: tuple[int, ...]
    """Positions in `Federation.base` of the classes that the client trains on, in rising order."""
    domain: str | None
    """The domain of all the client's images; None if there is not exactly one."""
    is_newcomer: bool = False
    """Whether the client joins after the last round; newcomers are in no round and in no average."""


@dataclass(frozen=True)
class Federation:
    """A source dealt to clients. The label a model learns is the position of a class in `base` (or `novel`)."""

    source: Source
    base: tuple[int, ...]
    """Source label ids of the classes that are trained on, in order."""
    novel: tuple[int, ...]
    """Source label ids of the classes that no client trains on, in order."""
    clients: tuple[Client, ...]
    tests: dict[str, tuple[int, ...]]
    """Evaluation images that several clients share, by name."""
    notes: tuple[str, ...] = ()
    """Notes on settings that could not be satisfied, and on left-out data (`source.warnings`)."""

    @property
    def trained(self) -> tuple[Client, ...]:
        """The clients that take part in rounds."""
        return tuple(client for client in self.clients if not client.is_newcomer)

    @property
    def newcomers(self) -> tuple[Client, ...]:
        """The clients that join after the last round."""
        return tuple(client for client in self.clients if client.is_newcomer)

    def subset(self, names: Collection[str]) -> Federation:
        """The federation restricted to these clients and their test sets, for a site without other clients' images."""
        clients = tuple(client for client in self.clients if client.name in names)
        used = {key for client in clients for key in (client.base, client.novel)}
        return replace(self, clients=clients, tests={key: t for key, t in self.tests.items() if key in used})

    @property
    def base_names(self) -> list[str]:
        """Class names in the order of the base labels."""
        return [self.source.classnames[label] for label in self.base]

    @property
    def novel_names(self) -> list[str]:
        """Class names in the order of the novel labels."""
        return [self.source.classnames[label] for label in self.novel]

    def labels(self, images: Sequence[int]) -> list[int]:
        """For each image the position of its class in `base`, or in `novel` for a novel class."""
        return [self._position[self.source.records[image].label] for image in images]

    @cached_property
    def _position(self) -> dict[int, int]:
        return {label: place for labels in (self.base, self.novel) for place, label in enumerate(labels)}

    def digest(self) -> str:
        """SHA-256 over index lists, class lists and image names, but not over notes and image bytes."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The federation without its images, as JSON values; `from_json` with the same source gives it back.

        "counts" are the training images of each client by label id, for readers without the source.

        "content" is the digest of the images' bytes, if they have any. "notes" name no file and no client; "details"
        are the full notes, if these differ.
        """
        public_notes, full = [public(note) for note in self.notes], [str(note) for note in self.notes]
        content = {} if self.source.content is None else {"content": self.source.content}
        details = {} if public_notes == full else {"details": full}
        return {
            "version": VERSION,
            **self._content(),
            **content,
            "counts": {client.name: self._counts(client) for client in self.clients},
            "notes": public_notes,
            **details,
            "digest": self.digest(),
        }

    def _counts(self, client: Client) -> dict[str, int]:
        """Training images by label id, as text, in the order of `base`."""
        found = Counter(self.source.records[image].label for image in client.train)
        return {str(label): found[label] for label in self.base if label in found}

    def _content(self) -> dict[str, Any]:
        clients = [{key: _plain(value) for key, value in _facts(client).items()} for client in self.clients]
        return {
            "source": self.source.name,
            "records": len(self.source),
            "images": self.source.digest,
            "base": {str(label): self.source.classnames[label] for label in self.base},
            "novel": {str(label): self.source.classnames[label] for label in self.novel},
            "clients": clients,
            "tests": {name: list(images) for name, images in self.tests.items()},
        }

    @staticmethod
    def from_json(source: Source, saved: dict[str, Any]) -> Federation:
        """The saved federation. Raises FedvlmError if the source differs or the file was changed."""
        try:
            read = _Saved.model_validate(saved)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FedvlmError(f"this is no saved partition: {where}: {first['msg']}") from None
        if (read.records, read.images) != (len(source), source.digest):
            raise FedvlmError(
                f"the partition was made for other images: {read.records} of '{read.source}' then, {len(source)} of "
                f"'{source.name}' now (digests of paths, labels, domains and clients differ; data.on_duplicate decides "
                "about copies). Put the data back as it was, or start a new run"
            )
        if read.content is not None and read.content != source.content:
            raise FedvlmError(
                f"the images of '{source.name}' are not those the partition was made for: their names are the same, "
                "but the bytes of some differ, or data.grey_bits does. Put the files back as they were, or start a "
                "new run"
            )
        federation = _restored(source, read)
        if federation is None or federation.digest() != read.digest:
            raise FedvlmError("the saved partition was changed after it was written (its digest does not fit)")
        return federation


class _SavedClient(Section):
    name: str
    train: list[int]
    local: list[int]
    base: str
    novel: str | None
    classes: list[int]
    domain: str | None
    late: bool = False


class _Saved(Section):
    version: Literal[1]
    source: str
    records: int
    images: str
    base: dict[str, str]
    novel: dict[str, str]
    clients: list[_SavedClient]
    tests: dict[str, list[int]]
    content: str | None = None
    """None in partitions of earlier versions."""
    counts: dict[str, dict[str, int]] | None = None
    """None in partitions of earlier versions."""
    notes: list[str]
    details: list[str] | None = None
    digest: str


def _restored(source: Source, read: _Saved) -> Federation | None:
    """The federation of a saved form; None if a list points outside the source."""
    clients = tuple(
        Client(c.name, tuple(c.train), tuple(c.local), c.base, c.novel, tuple(c.classes), c.domain, c.late)
        for c in read.clients
    )
    tests = {name: tuple(images) for name, images in read.tests.items()}
    lists = [images for client in clients for images in (client.train, client.local)] + list(tests.values())
    if not all(0 <= image < len(source) for images in lists for image in images):
        return None
    if not all(word.isdecimal() and int(word) < len(source.classnames) for word in [*read.base, *read.novel]):
        return None
    base, novel = (tuple(int(word) for word in words) for words in (read.base, read.novel))
    notes = tuple(map(Note, read.details, read.notes)) if read.details else tuple(read.notes)
    return Federation(source, base, novel, clients, tests, notes)


def _facts(client: Client) -> dict[str, Any]:
    """The fields of a client as they are saved. `is_newcomer` is saved as `late`, and only where it is true, so that
    federations without newcomers keep their digests."""
    fields = asdict(client)
    return fields | {"late": True} if fields.pop("is_newcomer") else fields


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
