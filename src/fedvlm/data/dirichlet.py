"""Dirichlet partitions: uneven shares of each class, drawn a bounded number of times, then moves of images."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedvlm.data.splits import Ints, grouped

MAX_DRAWS = 100
"""Maximum number of draws, after which images are moved instead; the papers' code draws without a bound."""

Floats = NDArray[np.float64]


def draw_shares(
    totals: Ints,
    clients: int,
    alpha: float,
    least: int,
    draw: Callable[[int], np.random.Generator],
    *,
    cap: bool,
    tests: Ints | None = None,
    least_tests: int = 0,
) -> tuple[Floats, int]:
    """The first draw that gives every client `least` images, or of `MAX_DRAWS` draws the one with the fewest failures.

    totals: images of each class `[K]`; draw: gives the generator of each attempt; tests: test images of each class, of
    which every client must get `least_tests` in the same shares. Returns shares `[K, N]`, and the number of clients
    that have too few images of either kind.
    """
    tests = np.zeros_like(totals) if tests is None else tests
    best: tuple[Floats, int] | None = None
    for attempt in range(MAX_DRAWS):
        shares = dirichlet_shares(totals, clients, alpha, draw(attempt), cap=cap)
        too_small = round_shares(totals, shares).sum(axis=0) < least
        short = int((too_small | (round_shares(tests, shares).sum(axis=0) < least_tests)).sum())
        if best is None or short < best[1]:
            best = (shares, short)
        if short == 0 or totals.sum() < least * clients or tests.sum() < least_tests * clients:
            break  # no draw can give everyone enough of too few images
    assert best is not None
    return best


def dirichlet_shares(totals: Ints, clients: int, alpha: float, generator: np.random.Generator, *, cap: bool) -> Floats:
    """Shares of each class by client `[K, N]`, every row from Dirichlet(alpha).

    cap: a client that already has its fair number of images (all / N) gets none of the classes that follow, as in
    NIID-Bench (Li et al., ICDE 2022), whose partition the papers use for CIFAR-10. An example with 12 images, so a fair
    number of 4:

        class (images)   drawn shares        client:  0  1  2
        cat (6)          0.67  0.17  0.17             4  1  1   client 0 has 4 images: it gets no more
        dog (4)          0.50  0.25  0.25             0  2  2   (0, 0.25, 0.25) / 0.5
        owl (2)          0.10  0.60  0.30             0  1  1   (0, 0.60, 0.30) / 0.9, rounded
    """
    shares = generator.dirichlet(np.full(clients, alpha), len(totals))
    if not cap:
        return shares
    held = np.zeros(clients, np.int64)
    for label in range(len(totals)):
        left = shares[label] * (held < totals.sum() / clients)
        if left.sum() > 0:
            shares[label] = left / left.sum()
        held += round_shares(totals[[label]], shares[[label]])[0]
    return shares


def round_shares(totals: Ints, shares: Floats) -> Ints:
    """Whole images `[K, N]` in these shares, every row summing to its total.

    The cumulative shares are rounded to the nearest number. Rounded down, as in the papers' code, the last client would
    get an image of nearly every class.
    """
    edges = np.rint(np.cumsum(shares, axis=1) * totals[:, None]).astype(np.int64)
    edges[:, -1] = totals
    return np.diff(np.minimum(edges, totals[:, None]), axis=1, prepend=0)


def owners_by_shares(labels: Ints, shares: Floats, generator: np.random.Generator) -> Ints:
    """Owner of each image: the shuffled images of a class are split into consecutive parts for clients 0, 1, ..."""
    owner = np.empty(len(labels), np.int64)
    sizes = round_shares(np.bincount(labels, minlength=len(shares)), shares)
    for (label,), members in grouped(np.arange(len(labels)), [labels]):
        owner[generator.permutation(members)] = np.repeat(np.arange(shares.shape[1]), sizes[label])
    return owner


def top_up(owner: Ints, clients: int, least: int, generator: np.random.Generator) -> int:
    """Move images, in place, from the largest clients to those with fewer than `least`; returns the number moved.

    No giving client falls below `least`, so some clients may have fewer images afterwards.
    """
    sizes = np.bincount(owner, minlength=clients)
    shuffled = generator.permutation(len(owner))
    held = {ids[0]: members.tolist() for ids, members in grouped(shuffled, [owner[shuffled]])}
    givers = [(-size, client) for client, size in enumerate(sizes.tolist()) if size > least]
    heapq.heapify(givers)
    moved = 0
    for client in np.flatnonzero(sizes < least).tolist():
        while sizes[client] < least and givers:
            size, giver = heapq.heappop(givers)
            owner[held[giver].pop()] = client
            sizes[client] += 1
            moved += 1
            if -size - 1 > least:
                heapq.heappush(givers, (size + 1, giver))
    return moved
