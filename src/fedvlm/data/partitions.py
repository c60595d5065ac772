"""Partitions: which client owns each image. Every kind ends after a bounded number of steps and says what it missed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from fedvlm.data.dirichlet import DRAWS, owners_by_shares, suiting_shares, top_up
from fedvlm.data.splits import Ints
from fedvlm.errors import FedvlmError, listed
from fedvlm.experiment import PartitionSection
from fedvlm.streams import stream

PAPER_SEED = 2023
"""The papers shuffle the class ids with this constant, whatever the run's seed."""


@dataclass(frozen=True)
class Pool:
    """Images to deal, `[n]` each: position in the base classes, domain and natural client (-1: none)."""

    label: Ints
    domain: Ints
    client: Ints


@dataclass(frozen=True)
class Deck:
    """All that is dealt: training images, and evaluation images, which go the way of the training images."""

    train: Pool
    test: Pool
    classes: int
    """Number of base classes."""
    domains: tuple[str, ...]
    """Names by domain id."""


@dataclass(frozen=True)
class Dealt:
    """The owner of each training and evaluation image (-1: nobody), and the domain of each client (-1: any)."""

    train: Ints
    test: Ints
    domains: list[int]
    notes: list[str] = field(default_factory=list)


def deal(deck: Deck, section: PartitionSection, seed: int) -> Dealt:
    """The partition of these images. Raises FedvlmError for what cannot be dealt at all.

    Who owns a training image does not depend on the evaluation images.
    """
    if section.kind == "natural":
        count = 1 + max(pool.client.max(initial=-1) for pool in (deck.train, deck.test))
        return Dealt(deck.train.client, deck.test.client, [-1] * count)
    if section.kind == "pathological":
        return _pathological(deck, section, seed)
    if section.kind == "dirichlet" and section.alpha is None:
        raise FedvlmError('partition.kind = "dirichlet" needs partition.alpha (the papers use 0.1 to 0.5)')
    dealt = Dealt(_nobody(deck.train), _nobody(deck.test), client_domains(deck.domains, section))
    for domain in sorted(set(dealt.domains)):
        _deal_domain(deck, domain, dealt, section, seed)
    return dealt


def _nobody(pool: Pool) -> Ints:
    return np.full(len(pool.label), -1)


def _deal_domain(deck: Deck, domain: int, dealt: Dealt, section: PartitionSection, seed: int) -> None:
    """Deal the images of one domain (-1: all images) to the clients bound to it: evenly, or in Dirichlet shares."""
    clients = np.flatnonzero(np.array(dealt.domains) == domain)
    name = deck.domains[domain] if domain >= 0 else ""
    train, test = (np.flatnonzero((pool.domain == domain) | (domain < 0)) for pool in (deck.train, deck.test))
    draws = [stream(seed, "partition", name, what) for what in ("train", "test", "moves")]
    if section.kind == "iid" or section.alpha is None:
        dealt.train[train] = clients[_even(len(train), len(clients), draws[0])]
        dealt.test[test] = clients[_even(len(test), len(clients), draws[1])]
        return
    labels = deck.train.label[train]
    totals = np.bincount(labels, minlength=deck.classes)
    shares, short = suiting_shares(
        totals, len(clients), section.alpha, section.min_images,
        lambda attempt: stream(seed, "partition", name, "shares", attempt), cap=section.cap,
    )  # fmt: skip
    owner = owners_by_shares(labels, shares, draws[0])
    moved = top_up(owner, len(clients), section.min_images, draws[2]) if short else 0
    dealt.train[train] = clients[owner]
    dealt.test[test] = clients[owners_by_shares(deck.test.label[test], shares, draws[1])]
    if moved:
        dealt.notes.append(_moved(moved, name, section))


def _moved(moved: int, domain: str, section: PartitionSection) -> str:
    where = f" of domain '{domain}'" if domain else ""
    return (
        f"no draw in {DRAWS} gave every client partition.min_images = {section.min_images} training images{where}: "
        f"{moved} were moved from the largest clients"
    )


def _even(count: int, clients: int, generator: np.random.Generator) -> Ints:
    """Owners of `count` images, equal numbers to within one."""
    owner = np.empty(count, np.int64)
    owner[generator.permutation(count)] = np.arange(count) % clients
    return owner


def client_domains(domains: tuple[str, ...], section: PartitionSection) -> list[int]:
    """The domain each client is bound to; -1 where it gets images of all domains."""
    needs = 'needs domains, and the data names none: set data.layout = "domain" or data.domain'
    if section.kind == "domain":
        if not domains:
            raise FedvlmError(f'partition.kind = "domain" {needs}')
        return [domain for domain in range(len(domains)) for _ in range(section.clients_per_domain)]
    if section.clients is None:
        raise FedvlmError(f'partition.kind = "{section.kind}" needs partition.clients')
    if section.one_domain_each and not domains:
        raise FedvlmError(f"partition.one_domain_each {needs}")
    if section.one_domain_each:
        return [client % len(domains) for client in range(section.clients)]
    return [0 if len(domains) == 1 else -1] * section.clients


def _pathological(deck: Deck, section: PartitionSection, seed: int) -> Dealt:
    """Disjoint classes: each image goes to the owner of its class, if that client sees its domain."""
    domains = client_domains(deck.domains, section)
    chunks = class_chunks(class_order(deck.classes, section.order, seed), len(domains))
    owner_of = np.empty(deck.classes, np.int64)
    for client, chunk in enumerate(chunks):
        owner_of[chunk] = client
    bound = np.array(domains)[owner_of]  # by class
    train, test = (
        np.where((bound[pool.label] < 0) | (bound[pool.label] == pool.domain), owner_of[pool.label], -1)
        for pool in (deck.train, deck.test)
    )
    dealt = Dealt(train, test, domains)
    if len(chunks[-1]) != len(chunks[0]):
        dealt.notes.append(f"every client has {len(chunks[0])} base classes, but the last has {len(chunks[-1])}")
    return dealt


def class_order(classes: int, order: str, seed: int) -> list[int]:
    """The base classes in the order in which they are dealt: the papers' constant shuffle, or one per seed."""
    if order == "paper":
        ids = list(range(classes))
        random.Random(PAPER_SEED).shuffle(ids)
        return ids
    return [int(label) for label in stream(seed, "partition", "classes").permutation(classes)]


def class_chunks(order: list[int], clients: int) -> list[list[int]]:
    """Disjoint classes by client: round(B / N) in turn, the last client takes the remainder.

    Raises FedvlmError naming numbers of clients that work if somebody would get none.
    """
    size = round(len(order) / clients)
    if size == 0 or size * (clients - 1) >= len(order):
        fit = [n for n in range(1, len(order) + 1) if round(len(order) / n) * (n - 1) < len(order)]
        near = sorted(sorted(fit, key=lambda n: abs(n - clients))[:4])
        some = "1 base class" if len(order) == 1 else f"{len(order)} base classes"
        raise FedvlmError(
            f"{some} cannot be dealt to {clients} clients, round({len(order)} / {clients}) = {size} to each: "
            f"somebody would get none. Set partition.clients to, for example, {listed(near)} "
            f'(at most {len(order)}), or partition.kind = "dirichlet"'
        )
    return [order[i * size : (i + 1) * size] for i in range(clients - 1)] + [order[(clients - 1) * size :]]
