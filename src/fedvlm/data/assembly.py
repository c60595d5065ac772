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
from fedvlm.data.late import marked
from fedvlm.data.notes import counted
from fedvlm.data.partitions import Dealt, Deck, PartitionSection, Pool, deal
from fedvlm.data.record import Source
from fedvlm.data.settings import DataSource
from fedvlm.data.splits import Columns, Divided, Ints, class_lists, columns, divide, few, too_few
from fedvlm.errors import FedvlmError


@dataclass(frozen=True)
class _Images:
    """What is dealt: indices into the source's records, in rising order."""

    table: Columns
    train: Ints
    """Of base classes, after the few-shot draw."""
    base: Ints
    """Evaluation images of base classes."""
    novel: Ints
    tests: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The shared evaluation sets that some client needs, made when it is first asked for."""


class Evaluated(Protocol):
    """Which images clients are evaluated on."""

    @property
    def split(self) -> Literal["test", "val"]:
        """Test images, or validation images in their place."""
        ...

    @property
    def general(self) -> Literal["own_domain", "all"]:
        """Base and novel images of the client's own domain, or of all domains."""
        ...


class Settings(Protocol):
    """What of an experiment's settings decides how data are dealt."""

    @property
    def data(self) -> DataSource:
        """The source."""
        ...

    @property
    def partition(self) -> PartitionSection:
        """Which client gets what."""
        ...

    @property
    def evaluation(self) -> Evaluated:
        """On which images clients are evaluated."""
        ...


@dataclass(frozen=True)
class _Chosen:
    """The settings in one place."""

    data: DataSource
    partition: PartitionSection
    split: Literal["test", "val"]
    general: Literal["own_domain", "all"]

    @classmethod
    def of(cls, experiment: Settings) -> _Chosen:
        """Those of an experiment."""
        evaluation = experiment.evaluation
        return cls(experiment.data, experiment.partition, evaluation.split, evaluation.general)

    @property
    def by_client(self) -> bool:
        """Whether the data's own clients are kept."""
        return self.partition.kind == "natural"


def federate(source: Source, experiment: Settings, seed: int) -> Federation:
    """Deal a source to clients as the experiment says. Depends on the source, the settings and the seed only.

    Raises FedvlmError for settings that the data cannot meet; smaller shortfalls and the source's warnings are told in
    `Federation.notes`.
    """
    return _federate(source, _Chosen.of(experiment), seed)


def _federate(source: Source, chosen: _Chosen, seed: int) -> Federation:
    section, notes = chosen.partition, list(source.warnings)
    base, novel = class_lists(source, chosen.data)
    images = _images(columns(source), chosen, base, novel, seed, notes)
    if chosen.by_client and not images.table.clients:
        advice = 'set data.layout = "client" or data.client'
        raise FedvlmError(f'partition.kind = "natural" needs clients, and the data names none: {advice}')
    position = np.full(len(source.classnames), -1)
    position[list(base)] = np.arange(len(base))
    train, test = (_pool(images.table, members, position) for members in (images.train, images.base))
    dealt = deal(Deck(train, test, len(base), images.table.domains, _groups(source, base)), section, seed)
    notes += dealt.notes
    clients = marked(_clients(images, dealt, chosen, position, notes), section.newcomers, seed)
    _tell_gaps(images, dealt, chosen, [source.classnames[label] for label in base], clients, notes)
    return Federation(source, base, novel, clients, images.tests, tuple(notes))


def validated(source: Source, experiment: Settings, seed: int) -> Federation | None:
    """`federate` with the validation images in the place of the test images: the same clients train on the same.

    None where the data has no validation images of base classes, where they are what is evaluated already, or where
    the partition of the training images depends on the evaluation images (`pachinko`, `min_test`).
    """
    chosen = _Chosen.of(experiment)
    if chosen.split == "val" or chosen.partition.kind == "pachinko" or chosen.partition.min_test:
        return None
    base, novel = class_lists(source, chosen.data)
    table = columns(source)
    val = divide(table, chosen.data, novel=novel, by_client=chosen.by_client, seed=seed).val
    if not np.isin(table.label[val], base).any():
        return None
    try:
        return _federate(source, replace(chosen, split="val"), seed)
    except FedvlmError:  # validation images of some domain are missing: the run itself does not need them
        return None


def _groups(source: Source, base: Sequence[int]) -> Ints | None:
    """Super-class ids of the base classes, in the order of the super-classes' names."""
    if not source.superclasses:
        return None
    return np.unique([source.superclasses[label] for label in base], return_inverse=True)[1].astype(np.int64)


def _pool(table: Columns, images: Ints, position: Ints) -> Pool:
    return Pool(position[table.label[images]], table.domain[images], table.client[images])


def _images(
    table: Columns, chosen: _Chosen, base: Sequence[int], novel: Sequence[int], seed: int, notes: list[str]
) -> _Images:
    """Few-shot training images of the base classes, and the evaluation images."""
    config, by_client = chosen.data, chosen.by_client
    divided = divide(table, config, novel=novel, by_client=by_client, seed=seed)
    evaluation = divided.test if chosen.split == "test" else _validation(divided, config)
    evaluation = few(table, evaluation, config.most_tests, seed, "test", by_client=by_client)
    if config.held_out[1] and np.any(table.split == 2):
        notes.append("data.val_fraction is not used: the data has a validation split of its own")
    train = divided.train[np.isin(table.label[divided.train], base)]
    if config.shots is not None and not by_client:
        notes += too_few(table, train, config.shots)
    train = few(table, train, config.shots, seed, "shots", by_client=by_client)
    is_base = np.isin(table.label[evaluation], base)
    if not len(train) or not is_base.any():
        what = "training" if not len(train) else chosen.split
        raise FedvlmError(f'the base classes have no {what} image: give more images, or set data.novel = "none"')
    return _Images(table, train, evaluation[is_base], evaluation[~is_base])


def _validation(divided: Divided, config: DataSource) -> Ints:
    if len(divided.val):
        return divided.val
    drawn = "val_per_class" in type(config).model_fields
    advice = "data.val_per_class = 8" if drawn else "data.val_fraction = 0.2 to take a share of the training images"
    raise FedvlmError(f'evaluation.split = "val", but the data has no validation images: set {advice}')


def _clients(images: _Images, dealt: Dealt, chosen: _Chosen, position: Ints, notes: list[str]) -> tuple[Client, ...]:
    """The clients that take part."""
    table, section = images.table, chosen.partition
    count = len(dealt.domains)
    train, local = _by_owner(images.train, dealt.train, count), _by_owner(images.base, dealt.test, count)
    if section.kind == "natural":
        # Counted over all splits: who takes part does not depend on what is held out.
        mine = table.client[(position[table.label] >= 0) & (table.client >= 0)]
        kept = _natural([len(part) for part in train], np.bincount(mine, minlength=count).tolist(), section, notes)
        names = safe_names([table.clients[i] for i in kept])
    else:
        kept = _trainable([len(part) for part in train], section, notes)
        names = _numbered(table.domains, dealt.domains, kept, section)
    found = []
    for name, i in zip(names, kept, strict=True):
        domain = _domain(table, np.concatenate([train[i], local[i]]), dealt.domains[i], section)
        base, novel = _general(images, domain, chosen)
        classes = np.unique(position[table.label[train[i]]]).tolist()
        found.append(Client(name, _listed(train[i]), _listed(local[i]), base, novel, tuple(classes), domain))
    return tuple(found)


def _numbered(
    domains: Sequence[str], bound: Sequence[int], kept: Sequence[int], section: PartitionSection
) -> list[str]:
    """Names of clients that the data do not name: their domains', numbered where a domain has several; else numbers."""
    if section.kind != "domain":
        return [str(i).zfill(len(str(len(bound) - 1))) for i in kept]
    safe, each = safe_names(domains), section.clients_per_domain
    if each == 1:
        return [safe[bound[i]] for i in kept]
    return [f"{safe[bound[i]]}-{str(i % each).zfill(len(str(each - 1)))}" for i in kept]


def _listed(images: Ints) -> tuple[int, ...]:
    return tuple(images.tolist())


def _by_owner(images: Ints, owner: Ints, count: int) -> list[Ints]:
    """The images of each of `count` owners, in rising order."""
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(count + 1))
    return [images[order[start:end]] for start, end in itertools.pairwise(edges)]


def _trainable(sizes: Sequence[int], section: PartitionSection, notes: list[str]) -> list[int]:
    """Numbers of the clients that have anything to train on."""
    kept = [i for i, size in enumerate(sizes) if size]
    if len(kept) < len(sizes):
        notes.append(f"{len(sizes) - len(kept)} of {len(sizes)} clients have no training image and are left out")
    small = [i for i in kept if sizes[i] < section.min_images]
    if small:
        least_images = f"fewer than partition.min_images = {section.min_images} training images"
        notes.append(counted(small, f"client has {least_images}", f"clients have {least_images}"))
    return kept


def _natural(sizes: Sequence[int], usable: Sequence[int], section: PartitionSection, notes: list[str]) -> list[int]:
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


def _domain(table: Columns, images: Ints, bound: int, section: PartitionSection) -> str | None:
    """The domain a client is bound to; a natural client's, if all its images come from one."""
    if section.kind == "natural":
        seen = set(table.domain[images].tolist())
        bound = seen.pop() if len(seen) == 1 else -1
    return table.domains[bound] if bound >= 0 else None


def _general(images: _Images, domain: str | None, chosen: _Chosen) -> tuple[str, str | None]:
    """Keys of a client's base and novel evaluation images."""
    if chosen.general == "all":
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
                images.tests[key] = _listed(found)
    if base not in images.tests:
        raise FedvlmError(
            f"domain '{domain}' has no evaluation image of a base class: set evaluation.general = \"all\""
        )
    return base, novel if novel in images.tests else None


def _tell_gaps(
    images: _Images, dealt: Dealt, chosen: _Chosen, base: list[str], clients: Sequence[Client], notes: list[str]
) -> None:
    """Notes on clients without own evaluation images, classes that nobody trains on, images that nobody gets."""
    without = [client.name for client in clients if not client.local]
    if without:
        own = f"no {chosen.split} image of"
        notes.append(counted(without, f"client has {own} its own", f"clients have {own} their own"))
    low = [client.name for client in clients if 0 < len(client.local) < chosen.partition.min_test]
    if low:
        own = f"fewer than partition.min_test = {chosen.partition.min_test} {chosen.split} images of"
        notes.append(counted(low, f"client has {own} its own", f"clients have {own} their own"))
    seen = {place for client in clients if not client.late for place in client.classes}
    unseen = [name for place, name in enumerate(base) if place not in seen]
    if unseen:
        who = "trained on by no client"
        notes.append(counted(unseen, f"base class is {who}", f"base classes are {who}", is_public=True))
    undealt = int((dealt.train < 0).sum())
    if undealt and not chosen.partition.one_domain_each:
        notes.append(f"{undealt} of {len(dealt.train)} training images name no client or domain and are not used")
    idle = sorted(set(images.table.domains) - {client.domain for client in clients})
    if idle and chosen.partition.one_domain_each:
        notes.append(counted(idle, "domain has no client", "domains have no client", is_public=True))


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that every file system takes and that differ even where case does not count.

    A name that had to be changed, or that equals another one but for case, ends in a digest of the original.
    """
    plain = [re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", name)).lstrip(".-")[:48] for name in names]
    count = Counter(word.casefold() for word in plain)
    marks = [hashlib.sha256(name.encode()).hexdigest()[:8] for name in names]
    return [
        word if word == name and count[word.casefold()] == 1 else f"{word}-{mark}"
        for word, name, mark in zip(plain, names, marks, strict=True)
    ]
