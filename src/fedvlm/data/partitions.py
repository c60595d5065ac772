"""Partitions: the owner of each image. Every kind ends after a bounded number of steps and notes unmet requirements."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from fedvlm.config import Count, Section
from fedvlm.data.dirichlet import MAX_DRAWS, draw_shares, owners_by_shares, top_up
from fedvlm.data.pachinko import pachinko_owners
from fedvlm.data.splits import Ints
from fedvlm.errors import FedvlmError, listed
from fedvlm.streams import stream


class PartitionSection(Section):
    """How training images (and local test images) are dealt to clients."""

    kind: Literal["pathological", "dirichlet", "pachinko", "domain", "natural", "iid", "quantity"] = "pathological"
    clients: Count | None = 10
    """Number of clients (`natural`: the maximum, largest first; `domain`: not used)."""
    order: Literal["seeded", "paper"] = "seeded"
    """`seeded`: from the run's seed. `paper`: fixed as in the papers' code, for `pathological` the constant
    `random.seed(2023)` shuffle of classes; for `pachinko` a constant seed, the run's seed only permutes the clients."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Dirichlet concentration over labels (`dirichlet`, and `domain` to split each domain unevenly), over super-classes
    (`pachinko`), or over the clients' sizes (`quantity`)."""
    inner_alpha: Annotated[float, Field(gt=0)] = 10.0
    """`pachinko`: Dirichlet concentration over the classes inside a super-class."""
    cap: bool = False
    """`dirichlet` and uneven `domain`: a client with a fair share of all (the domain's) images gets none of the classes
    that follow, as in the papers' code."""
    clients_per_domain: Count = 1
    """`domain`: number of clients for each domain."""
    one_domain_each: bool = False
    """`pathological`/`iid`/`dirichlet`/`quantity`: client i sees only domain i mod D."""
    min_images: Count = 1
    """`natural`: clients with fewer usable images are left out. `dirichlet`, `quantity` and uneven `domain`: shares are
    drawn again until every client has as many training images."""
    min_test: Annotated[int, Field(ge=0)] = 0
    """`dirichlet`, `quantity` and uneven `domain`: shares are drawn again until every client has as many local test
    images. Training images depend on the test images only if this is set."""
    newcomers: int | list[str] = Field(default=0, serialization_alias="late")
    """Clients that join after the last round: a number, drawn with the run's seed, or names of clients or domains
    (`["webcam"]`). Newcomers are in no round and in no average, and are evaluated separately: on arrival, and after
    `method.all.fine_tune` local rounds."""

    @field_validator("newcomers", mode="before")
    @classmethod
    def _number_or_names(cls, value: Any) -> Any:
        """A string is a list of names (`a,b`); a whole number in a list is a name."""
        value = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        if isinstance(value, list) and all(type(item) in (str, int) and item != "" for item in value):
            return [str(item) for item in value]
        if type(value) is int and value >= 0:
            return value
        raise ValueError("expected a number of clients, or a list of names of clients or domains")


PAPER_SEED = 2023
"""The papers shuffle the class ids with this constant, whatever the run's seed."""
PAPER_PACHINKO_SEED = 12345
"""The constant of the papers' two-level split of CIFAR-100."""


@dataclass(frozen=True)
class ImageTable:
    """Images to deal, `[n]` each: position in the base classes, domain and natural client (-1: none)."""

    label: Ints
    domain: Ints
    client: Ints


@dataclass(frozen=True)
class PartitionInput:
    """The images to deal: training images, and evaluation images, which are dealt in the same proportions."""

    train: ImageTable
    test: ImageTable
    classes: int
    """Number of base classes."""
    domains: tuple[str, ...]
    """Names by domain id."""
    groups: Ints | None = None
    """Super-class of each base class; None if the data name none."""


@dataclass(frozen=True)
class Assignment:
    """The owner of each training and evaluation image (-1: nobody), and the domain of each client (-1: any)."""

    train: Ints
    test: Ints
    domains: list[int]
    notes: list[str] = field(default_factory=list)


def partition(images: PartitionInput, section: PartitionSection, seed: int) -> Assignment:
    """Deal images to clients. Raises FedvlmError if this is impossible with the settings.

    The owner of a training image does not depend on the evaluation images, except for `pachinko`, which deals both
    together, and if `min_test` is set.
    """
    if section.kind == "natural":
        count = 1 + max(table.client.max(initial=-1) for table in (images.train, images.test))
        return Assignment(images.train.client, images.test.client, [-1] * count)
    if section.kind == "pathological":
        return _pathological(images, section, seed)
    if section.kind in ("dirichlet", "pachinko", "quantity") and section.alpha is None:
        raise FedvlmError(f'partition.kind = "{section.kind}" needs partition.alpha (the papers use 0.1 to 0.5)')
    if section.kind == "quantity":  # NIID-Bench's quantity skew: `dirichlet` as if all images had the same class
        train, test = (replace(table, label=np.zeros_like(table.label)) for table in (images.train, images.test))
        images = replace(images, train=train, test=test, classes=1)
    assignment = Assignment(
        _unassigned(images.train), _unassigned(images.test), client_domains(images.domains, section)
    )
    for domain in sorted(set(assignment.domains)):
        _partition_domain(images, domain, assignment, section, seed)
    return assignment


def _unassigned(table: ImageTable) -> Ints:
    return np.full(len(table.label), -1)


def _partition_domain(
    images: PartitionInput, domain: int, assignment: Assignment, section: PartitionSection, seed: int
) -> None:
    """Deal the images of one domain (-1: all images) to its clients, in place: evenly, or in Dirichlet shares.

    Example of Dirichlet shares with two classes and three clients; `owners_by_shares` cuts the shuffled images of each
    class, `top_up` moves images to clients with fewer than `min_images`:

        shares   cat 0.5 0.3 0.2     images of cat (10)  [0 0 0 0 0 | 1 1 1 | 2 2]
                 dog 0.9 0.1 0.0     images of dog (10)  [0 0 0 0 0 0 0 0 0 | 1]
        sizes    14  4  2            with min_images = 3, one image moves from client 0 to client 2: 13 4 3
    """
    clients = np.flatnonzero(np.array(assignment.domains) == domain)
    name = images.domains[domain] if domain >= 0 else ""
    train, test = (np.flatnonzero((table.domain == domain) | (domain < 0)) for table in (images.train, images.test))
    if section.kind == "pachinko":
        _partition_pachinko(images, (train, test), clients, assignment, section, seed, name)
        return
    draws = [stream(seed, "partition", name, what) for what in ("train", "test", "moves", "test moves")]
    if section.kind == "iid" or section.alpha is None:
        assignment.train[train] = clients[_even_owners(len(train), len(clients), draws[0])]
        assignment.test[test] = clients[_even_owners(len(test), len(clients), draws[1])]
        return
    totals, tests = (
        np.bincount(table.label[part], minlength=images.classes)
        for table, part in ((images.train, train), (images.test, test))
    )
    shares, short = draw_shares(
        totals, len(clients), section.alpha, section.min_images,
        lambda attempt: stream(seed, "partition", name, "shares", attempt), cap=section.cap,
        tests=tests, least_tests=section.min_test,
    )  # fmt: skip
    kinds = (
        (assignment.train, images.train, train, section.min_images),
        (assignment.test, images.test, test, section.min_test),
    )
    for (out, table, part, least), draw, moves in zip(kinds, draws[:2], draws[2:], strict=True):
        owner = owners_by_shares(table.label[part], shares, draw)
        moved = top_up(owner, len(clients), least, moves) if short else 0
        out[part] = clients[owner]
        if moved:
            assignment.notes.append(_moved_note(moved, name, least, is_test=out is assignment.test))


def _moved_note(moved: int, domain: str, least: int, *, is_test: bool) -> str:
    where = f" of domain '{domain}'" if domain else ""
    wanted = f"partition.min_test = {least} own test" if is_test else f"partition.min_images = {least} training"
    return (
        f"no draw in {MAX_DRAWS} gave every client {wanted} images{where}: {moved} were moved from the largest clients"
    )


def _partition_pachinko(
    images: PartitionInput,
    parts: tuple[Ints, Ints],
    clients: Ints,
    assignment: Assignment,
    section: PartitionSection,
    seed: int,
    name: str,
) -> None:
    """Deal training and evaluation images together (`pachinko`), in place; every image keeps its split.

    order = "paper": the shares come from a constant seed, and the run's seed only permutes the clients, as published.
    The seed is the published one, but draws come from our named streams, so the lists of the released code are not
    reproduced image by image.
    """
    if images.groups is None:
        raise FedvlmError(
            'partition.kind = "pachinko" needs super-classes, and the data names none: CIFAR-100 has them '
            '(data.source = "cifar", or data.superclass = "coarse_label" of the hub\'s copy); else "dirichlet"'
        )
    is_fixed = section.order == "paper"
    generator = stream(PAPER_PACHINKO_SEED if is_fixed else seed, "partition", name, "pachinko")
    labels = np.concatenate([images.train.label[parts[0]], images.test.label[parts[1]]])
    alphas = (section.alpha or 0.0, section.inner_alpha)
    owner, again = pachinko_owners(labels, images.groups, len(clients), alphas, generator)
    if is_fixed:
        owner = stream(seed, "partition", name, "clients").permutation(len(clients))[owner]
    assignment.train[parts[0]], assignment.test[parts[1]] = np.split(clients[owner], [len(parts[0])])
    if again:
        assignment.notes.append(
            f"{again} of {len(labels) + again} draws fell on classes that were used up and were repeated among the "
            "rest, as published: the last clients' mixtures are not quite Dirichlet"
        )


def _even_owners(count: int, clients: int, generator: np.random.Generator) -> Ints:
    """Owners of `count` images, equal numbers to within one."""
    owner = np.empty(count, np.int64)
    owner[generator.permutation(count)] = np.arange(count) % clients
    return owner


def client_domains(domains: tuple[str, ...], section: PartitionSection) -> list[int]:
    """The domain to which each client is bound; -1 if it gets images of all domains."""
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


def _pathological(images: PartitionInput, section: PartitionSection, seed: int) -> Assignment:
    """Disjoint classes: each image goes to the owner of its class, if that client has the image's domain."""
    domains = client_domains(images.domains, section)
    chunks = class_chunks(class_order(images.classes, section.order, seed), len(domains))
    owner_of = np.empty(images.classes, np.int64)
    for client, chunk in enumerate(chunks):
        owner_of[chunk] = client
    bound = np.array(domains)[owner_of]  # by class
    train, test = (
        np.where((bound[table.label] < 0) | (bound[table.label] == table.domain), owner_of[table.label], -1)
        for table in (images.train, images.test)
    )
    assignment = Assignment(train, test, domains)
    if len(chunks[-1]) != len(chunks[0]):
        assignment.notes.append(f"every client has {len(chunks[0])} base classes, but the last has {len(chunks[-1])}")
    return assignment


def class_order(classes: int, order: str, seed: int) -> list[int]:
    """The base classes in the order of dealing: the papers' constant shuffle, or one per seed."""
    if order == "paper":
        ids = list(range(classes))
        random.Random(PAPER_SEED).shuffle(ids)
        return ids
    return [int(label) for label in stream(seed, "partition", "classes").permutation(classes)]


def class_chunks(order: list[int], clients: int) -> list[list[int]]:
    """Disjoint classes by client: round(B / N) each, the last client takes the remainder.

    Raises FedvlmError, naming possible numbers of clients, if a client would get no class.
    """
    size = round(len(order) / clients)
    if size == 0 or size * (clients - 1) >= len(order):
        fit = [n for n in range(1, len(order) + 1) if round(len(order) / n) * (n - 1) < len(order)]
        near = sorted(sorted(fit, key=lambda n: abs(n - clients))[:4])
        some = "1 base class" if len(order) == 1 else f"{len(order)} base classes"
        raise FedvlmError(
            f"{some} cannot be dealt to {clients} clients, round({len(order)} / {clients}) = {size} to each: "
            f"a client would get none. Set partition.clients to, for example, {listed(near)} "
            f'(at most {len(order)}), or partition.kind = "dirichlet"'
        )
    return [order[i * size : (i + 1) * size] for i in range(clients - 1)] + [order[(clients - 1) * size :]]
