"""From a source and an experiment to a federation: split, few shots, partition, evaluation sets."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from fedvlm.data.federation import Client, Federation
from fedvlm.data.newcomers import mark_newcomers
from fedvlm.data.notes import counted_note
from fedvlm.data.partitions import Assignment, ImageTable, PartitionInput, PartitionSection, partition
from fedvlm.data.record import Source
from fedvlm.data.settings import DataSource
from fedvlm.data.splits import (
    Columns,
    Ints,
    SplitIndices,
    check_shots,
    class_lists,
    sample_shots,
    source_columns,
    split_images,
)
from fedvlm.errors import FedvlmError


@dataclass(frozen=True)
class _Images:
    """The images that are dealt to clients: indices of the source's records, in rising order."""

    table: Columns
    train: Ints
    """Training images of base classes, after the few-shot draw."""
    base: Ints
    """Evaluation images of base classes."""
    novel: Ints
    """Evaluation images of novel classes."""
    tests: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The shared evaluation sets of clients by name; a set is added when the first client needs it."""


class EvaluationSettings(Protocol):
    """Settings of the images on which clients are evaluated."""

    @property
    def split(self) -> Literal["test", "val"]:
        """Evaluate on test images, or on validation images."""
        ...

    @property
    def general(self) -> Literal["own_domain", "all"]:
        """Base and novel images of the client's own domain, or of all domains."""
        ...


class FederationSettings(Protocol):
    """The settings of an experiment that decide how data are dealt to clients."""

    @property
    def data(self) -> DataSource:
        """Settings of the source."""
        ...

    @property
    def partition(self) -> PartitionSection:
        """Settings of the partition."""
        ...

    @property
    def evaluation(self) -> EvaluationSettings:
        """Settings of the evaluation images."""
        ...


@dataclass(frozen=True)
class _Settings:
    """The settings of `FederationSettings`, in one flat object."""

    data: DataSource
    partition: PartitionSection
    split: Literal["test", "val"]
    general: Literal["own_domain", "all"]

    @classmethod
    def from_experiment(cls, experiment: FederationSettings) -> _Settings:
        """The settings of an experiment."""
        evaluation = experiment.evaluation
        return cls(experiment.data, experiment.partition, evaluation.split, evaluation.general)

    @property
    def by_client(self) -> bool:
        """Whether the clients that the data name are used."""
        return self.partition.kind == "natural"


def federate(source: Source, experiment: FederationSettings, seed: int) -> Federation:
    """Deal a source to clients. The result depends on the source, the settings and the seed only.

    Raises FedvlmError for settings that the data cannot satisfy; smaller shortfalls and the source's warnings are
    listed in `Federation.notes`.
    """
    return _federate(source, _Settings.from_experiment(experiment), seed)


def _federate(source: Source, settings: _Settings, seed: int) -> Federation:
    section, notes = settings.partition, list(source.warnings)
    base, novel = class_lists(source, settings.data)
    images = _images(source_columns(source), settings, base, novel, seed, notes)
    if settings.by_client and not images.table.clients:
        advice = 'set data.layout = "client" or data.client'
        raise FedvlmError(f'partition.kind = "natural" needs clients, and the data names none: {advice}')
    position = np.full(len(source.classnames), -1)
    position[list(base)] = np.arange(len(base))
    train, test = (_image_table(images.table, members, position) for members in (images.train, images.base))
    assignment = partition(
        PartitionInput(train, test, len(base), images.table.domains, _superclass_ids(source, base)), section, seed
    )
    notes += assignment.notes
    clients = mark_newcomers(_clients(images, assignment, settings, position, notes), section.newcomers, seed)
    _note_gaps(images, assignment, settings, [source.classnames[label] for label in base], clients, notes)
    return Federation(source, base, novel, clients, images.tests, tuple(notes))


def federate_validation(source: Source, experiment: FederationSettings, seed: int) -> Federation | None:
    """`federate` with validation images in the place of test images; clients and training images are the same.

    None if the data has no validation images of base classes, if validation images are evaluated already, or if the
    partition of training images depends on the evaluation images (`pachinko`, `min_test`).
    """
    settings = _Settings.from_experiment(experiment)
    if settings.split == "val" or settings.partition.kind == "pachinko" or settings.partition.min_test:
        return None
    base, novel = class_lists(source, settings.data)
    table = source_columns(source)
    val = split_images(table, settings.data, novel=novel, by_client=settings.by_client, seed=seed).val
    if not np.isin(table.label[val], base).any():
        return None
    try:
        return _federate(source, replace(settings, split="val"), seed)
    except FedvlmError:  # some domain has no validation images; the run itself does not need them
        return None


def _superclass_ids(source: Source, base: Sequence[int]) -> Ints | None:
    """Super-class id of each base class, numbered by sorted names; None without super-classes."""
    if not source.superclasses:
        return None
    return np.unique([source.superclasses[label] for label in base], return_inverse=True)[1].astype(np.int64)


def _image_table(table: Columns, images: Ints, position: Ints) -> ImageTable:
    return ImageTable(position[table.label[images]], table.domain[images], table.client[images])


def _images(
    table: Columns, settings: _Settings, base: Sequence[int], novel: Sequence[int], seed: int, notes: list[str]
) -> _Images:
    """Few-shot training images of the base classes, and the evaluation images."""
    config, by_client = settings.data, settings.by_client
    split = split_images(table, config, novel=novel, by_client=by_client, seed=seed)
    evaluation = split.test if settings.split == "test" else _validation(split, config)
    evaluation = sample_shots(table, evaluation, config.max_tests, seed, "test", by_client=by_client)
    if config.held_out[1] and np.any(table.split == 2):
        notes.append("data.val_fraction is not used: the data has a validation split of its own")
    train = split.train[np.isin(table.label[split.train], base)]
    if config.shots is not None and not by_client:
        notes += check_shots(table, train, config.shots)
    train = sample_shots(table, train, config.shots, seed, "shots", by_client=by_client)
    is_base = np.isin(table.label[evaluation], base)
    if not len(train) or not is_base.any():
        what = "training" if not len(train) else settings.split
        raise FedvlmError(f'the base classes have no {what} image: give more images, or set data.novel = "none"')
    return _Images(table, train, evaluation[is_base], evaluation[~is_base])


def _validation(split: SplitIndices, config: DataSource) -> Ints:
    if len(split.val):
        return split.val
    drawn = "val_per_class" in type(config).model_fields
    advice = "data.val_per_class = 8" if drawn else "data.val_fraction = 0.2 to take a share of the training images"
    raise FedvlmError(f'evaluation.split = "val", but the data has no validation images: set {advice}')


def _clients(
    images: _Images, assignment: Assignment, settings: _Settings, position: Ints, notes: list[str]
) -> tuple[Client, ...]:
    """The clients that take part, with their training and evaluation images."""
    table, section = images.table, settings.partition
    count = len(assignment.domains)
    train, local = (
        _group_by_owner(images.train, assignment.train, count),
        _group_by_owner(images.base, assignment.test, count),
    )
    if section.kind == "natural":
        # Counted over all splits, so that held-out images do not change who takes part.
        mine = table.client[(position[table.label] >= 0) & (table.client >= 0)]
        kept = _select_natural(
            [len(part) for part in train], np.bincount(mine, minlength=count).tolist(), section, notes
        )
        names = safe_names([table.clients[i] for i in kept])
    else:
        kept = _select_trainable([len(part) for part in train], section, notes)
        names = _client_names(table.domains, assignment.domains, kept, section)
    found = []
    for name, i in zip(names, kept, strict=True):
        domain = _domain_of(table, np.concatenate([train[i], local[i]]), assignment.domains[i], section)
        base, novel = _general_sets(images, domain, settings)
        classes = np.unique(position[table.label[train[i]]]).tolist()
        found.append(Client(name, _as_tuple(train[i]), _as_tuple(local[i]), base, novel, tuple(classes), domain))
    return tuple(found)


def _client_names(
    domains: Sequence[str], bound: Sequence[int], clients: Sequence[int], section: PartitionSection
) -> list[str]:
    """Names of clients that the data do not name: domain, or domain and number if a domain has several, else number."""
    if section.kind != "domain":
        return [str(i).zfill(len(str(len(bound) - 1))) for i in clients]
    safe, each = safe_names(domains), section.clients_per_domain
    if each == 1:
        return [safe[bound[i]] for i in clients]
    return [f"{safe[bound[i]]}-{str(i % each).zfill(len(str(each - 1)))}" for i in clients]


def _as_tuple(images: Ints) -> tuple[int, ...]:
    return tuple(images.tolist())


def _group_by_owner(images: Ints, owner: Ints, count: int) -> list[Ints]:
    """The images of each of `count` owners, in rising order."""
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(count + 1))
    return [images[order[start:end]] for start, end in itertools.pairwise(edges)]


def _select_trainable(sizes: Sequence[int], section: PartitionSection, notes: list[str]) -> list[int]:
    """Numbers of the clients that have training images."""
    kept = [i for i, size in enumerate(sizes) if size]
    if len(kept) < len(sizes):
        notes.append(f"{len(sizes) - len(kept)} of {len(sizes)} clients have no training image and are left out")
    small = [i for i in kept if sizes[i] < section.min_images]
    if small:
        least_images = f"fewer than partition.min_images = {section.min_images} training images"
        notes.append(counted_note(small, f"client has {least_images}", f"clients have {least_images}"))
    return kept


def _select_natural(
    sizes: Sequence[int], usable: Sequence[int], section: PartitionSection, notes: list[str]
) -> list[int]:
    """Numbers of the natural clients with enough usable images that can train; at most `clients`, the largest first."""
    least = section.min_images
    kept = [i for i, size in enumerate(sizes) if size and usable[i] >= least]
    if not kept:
        raise FedvlmError(f"no client has {least} usable images: lower partition.min_images")
    if len(kept) < len(sizes):
        few_images = "no training image" if least == 1 else f"fewer than {least} usable images"
        notes.append(f"{len(sizes) - len(kept)} of {len(sizes)} clients have {few_images} and are left out")
    if section.clients is not None and len(kept) > section.clients:
        notes.append(f"the {section.clients} largest of {len(kept)} clients take part (partition.clients)")
        kept = sorted(sorted(kept, key=lambda i: (-usable[i], i))[: section.clients])
    return kept


def _domain_of(table: Columns, images: Ints, bound: int, section: PartitionSection) -> str | None:
    """The domain to which a client is bound; for a natural client, the one domain of all its images, or None."""
    if section.kind == "natural":
        seen = set(table.domain[images].tolist())
        bound = seen.pop() if len(seen) == 1 else -1
    return table.domains[bound] if bound >= 0 else None


def _general_sets(images: _Images, domain: str | None, settings: _Settings) -> tuple[str, str | None]:
    """Keys of a client's base and novel evaluation images."""
    if settings.general == "all":
        base, novel, only = "base", "novel", None
    elif domain is not None:
        base, novel, only = f"base/{domain}", f"novel/{domain}", images.table.domains.index(domain)
    else:
        advice = 'partition.kind = "domain", partition.one_domain_each = true, or evaluation.general = "all"'
        raise FedvlmError(f'evaluation.general = "own_domain" needs clients of one domain each: set {advice}')
    for key, members in ((base, images.base), (novel, images.novel)):
        if key not in images.tests:
            found = members if only is None else members[images.table.domain[members] == only]
            if len(found):
                images.tests[key] = _as_tuple(found)
    if base not in images.tests:
        raise FedvlmError(
            f"domain '{domain}' has no evaluation image of a base class: set evaluation.general = \"all\""
        )
    return base, novel if novel in images.tests else None


def _note_gaps(
    images: _Images,
    assignment: Assignment,
    settings: _Settings,
    base: list[str],
    clients: Sequence[Client],
    notes: list[str],
) -> None:
    """Add notes on clients without local test images, classes without training, images without an owner."""
    without = [client.name for client in clients if not client.local]
    if without:
        own = f"no {settings.split} image of"
        notes.append(counted_note(without, f"client has {own} its own", f"clients have {own} their own"))
    low = [client.name for client in clients if 0 < len(client.local) < settings.partition.min_test]
    if low:
        own = f"fewer than partition.min_test = {settings.partition.min_test} {settings.split} images of"
        notes.append(counted_note(low, f"client has {own} its own", f"clients have {own} their own"))
    seen = {place for client in clients if not client.is_newcomer for place in client.classes}
    unseen = [name for place, name in enumerate(base) if place not in seen]
    if unseen:
        who = "trained on by no client"
        notes.append(counted_note(unseen, f"base class is {who}", f"base classes are {who}", is_public=True))
    undealt = int((assignment.train < 0).sum())
    if undealt and not settings.partition.one_domain_each:
        notes.append(f"{undealt} of {len(assignment.train)} training images name no client or domain and are not used")
    idle = sorted(set(images.table.domains) - {client.domain for client in clients})
    if idle and settings.partition.one_domain_each:
        notes.append(counted_note(idle, "domain has no client", "domains have no client", is_public=True))


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that are valid on every file system and differ also if case is ignored.

    A name that had to be changed, or that equals another one up to case, ends in a digest of the original.
    """
    plain = [re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).lstrip(".-")[:48] for name in names]
    count = Counter(word.casefold() for word in plain)
    marks = [hashlib.sha256(name.encode()).hexdigest()[:8] for name in names]
    return [
        word if word == name and count[word.casefold()] == 1 else f"{word}-{mark}"
        for word, name, mark in zip(plain, names, marks, strict=True)
    ]
