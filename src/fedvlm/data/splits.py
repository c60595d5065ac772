"""Splits: base and novel classes; training, validation and test images; few shots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.notes import counted_note
from fedvlm.data.record import Source
from fedvlm.data.settings import DataSource
from fedvlm.errors import FedvlmError
from fedvlm.streams import Name, stream

Ints = NDArray[np.int64]

_SPLITS = (None, "train", "val", "test")


@dataclass(frozen=True)
class Columns:
    """A source's records by column, `[R]` each; -1 where a record has no domain or client."""

    label: Ints
    domain: Ints
    client: Ints
    split: Ints
    """0 none, 1 train, 2 validation, 3 test."""
    classnames: tuple[str, ...]
    domains: tuple[str, ...]
    clients: tuple[str, ...]

    def groups(self, images: Ints, *, by_client: bool) -> Iterator[tuple[tuple[Name, ...], Ints]]:
        """Names and images of each combination of class and domain (and client)."""
        keys = [self.label[images], self.domain[images]] + ([self.client[images]] if by_client else [])
        for ids, members in grouped(images, keys):
            domain = self.domains[ids[1]] if ids[1] >= 0 else ""
            yield (self.classnames[ids[0]], domain, *(self.clients[i] if i >= 0 else "" for i in ids[2:])), members


def source_columns(source: Source) -> Columns:
    """The columns of a source."""
    domains, clients = source.domains(), source.clients()
    domain_id = {name: i for i, name in enumerate(domains)} | {None: -1}
    client_id = {name: i for i, name in enumerate(clients)} | {None: -1}
    split_id = {name: i for i, name in enumerate(_SPLITS)}
    rows = [(r.label, domain_id[r.domain], client_id[r.client], split_id[r.split]) for r in source.records]
    label, domain, client, split = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Columns(label, domain, client, split, source.classnames, domains, clients)


def class_lists(source: Source, config: DataSource) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Label ids of the base classes, which come first, and of the novel classes."""
    count = len(source.classnames)
    base = min(config.base_count(count), count)
    return tuple(range(base)), tuple(range(base, count))


@dataclass(frozen=True)
class SplitIndices:
    """Indices of the training, validation and test images, each in rising order."""

    train: Ints
    val: Ints
    test: Ints


def split_images(
    table: Columns, config: DataSource, *, novel: Sequence[int], by_client: bool, seed: int
) -> SplitIndices:
    """The source's split; missing test and validation splits are held out of the training images.

    Images are held out of each class and domain (`by_client`: of each client, its classes in proportion), at least one
    and never all of two or more images. Raises FedvlmError if no training image is left.
    """
    train, val, test = (np.flatnonzero(mask) for mask in (table.split <= 1, table.split == 2, table.split == 3))
    if not len(train):
        raise FedvlmError("the data has no training image: look at its train split")
    is_novel, (for_test, for_val) = np.isin(table.label, novel), config.held_out
    if not len(test) and for_test:
        test = _held_out(table, train, is_novel, for_test, (seed, "holdout"), by_client=by_client)
        train = np.setdiff1d(train, test, assume_unique=True)
    if not len(val) and for_val:
        val = _held_out(table, train, is_novel, for_val, (seed, "validation"), by_client=by_client)
        train = np.setdiff1d(train, val, assume_unique=True)
    return SplitIndices(train, val, test)


def sample_shots(table: Columns, images: Ints, count: int | None, seed: int, purpose: str, *, by_client: bool) -> Ints:
    """At most `count` images per class and domain (and client), drawn from `stream(seed, purpose, class, domain)`."""
    if count is None or not len(images):
        return images
    chosen = [
        stream(seed, purpose, *names).permutation(members)[:count]
        for names, members in table.groups(images, by_client=by_client)
    ]
    return np.sort(np.concatenate(chosen))


def check_shots(table: Columns, images: Ints, shots: int) -> list[str]:
    """A note on the classes (and domains) with fewer than `shots` training images, in a list; else an empty list."""
    short = [
        f"{' / '.join(str(name) for name in names if name)} ({len(members)})"
        for names, members in table.groups(images, by_client=False)
        if len(members) < shots
    ]
    one, many = f"class has fewer than {shots} training images", f"classes have fewer than {shots} training images"
    return [counted_note(short, one, many, is_public=True)] if short else []


def grouped(values: Ints, keys: Sequence[Ints]) -> Iterator[tuple[tuple[int, ...], Ints]]:
    """The values of each combination of keys, in the order of the combinations."""
    if not len(values):
        return
    order = np.lexsort(tuple(reversed(keys)))
    ids = np.stack([key[order] for key in keys])
    starts = np.flatnonzero(np.any(ids[:, 1:] != ids[:, :-1], axis=0)) + 1
    for place, members in zip([0, *starts.tolist()], np.split(values[order], starts), strict=True):
        yield tuple(ids[:, place].tolist()), members


def _held_out(
    table: Columns, images: Ints, is_novel: NDArray[np.bool_], share: float, draw: tuple[int, str], *, by_client: bool
) -> Ints:
    """Images drawn from each group, in rising order."""
    seed, purpose = draw
    chosen = [np.empty(0, np.int64)]
    if by_client:
        keys = [table.client[images], is_novel[images].astype(np.int64)]
        for (client, novel), members in grouped(images, keys):
            generator = stream(
                seed, purpose, table.clients[client] if client >= 0 else "", "novel" if novel else "base"
            )
            chosen.append(_sample_proportionally(members, table.label[members], share, generator))
    else:
        for names, members in table.groups(images, by_client=False):
            chosen.append(stream(seed, purpose, *names).permutation(members)[: _held_out_count(len(members), share)])
    return np.sort(np.concatenate(chosen))


def _held_out_count(count: int, share: float) -> int:
    """Number of held-out images of `count`: the rounded share, but neither none nor all of two or more."""
    return 0 if count < 2 else min(max(round(share * count), 1), count - 1)


def _sample_proportionally(members: Ints, labels: Ints, share: float, generator: np.random.Generator) -> Ints:
    """About `share` of the members, each label in proportion (Webster's rule; ties at random).

    A label keeps one training image as long as another label can give one.
    """
    order = generator.permutation(len(members))
    rank = np.empty(len(members))  # rank of being held out: the place within the label, as a share of its size
    for _, places in grouped(order, [labels[order]]):
        rank[places] = (np.arange(len(places)) + 0.5) / len(places) + (np.arange(len(places)) == len(places) - 1)
    first = order[np.argsort(rank[order], kind="stable")]
    return members[first[: _held_out_count(len(members), share)]]
