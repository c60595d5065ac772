"""The two-level partition of CIFAR-100: a client draws super-classes, then classes inside them, without replacement.

Pachinko allocation (Li and McCallum 2006; for federated CIFAR-100 in Reddi et al., ICLR 2021), as in pFedMMA's and
pFedMoAP's `noniid-labeldir100`: clients draw their images one after another. A client has a Dirichlet mixture over the
super-classes that still have images, and in each of these a mixture over the classes that still have images:

    client 0, 6 images
      animals   0.7 -> 4      fish  0.9 -> 3 (only 3 are left: the fourth draw is repeated)    bird  0.1 -> 1
      vehicles  0.3 -> 2      bus   0.5 -> 1                                                     train 0.5 -> 1
    client 1, 6 images: the same, from what client 0 left; the last client takes all the rest
"""

from __future__ import annotations

import numpy as np

from fedvlm.data.dirichlet import Floats
from fedvlm.data.splits import Ints


def pachinko_owners(
    labels: Ints, groups: Ints, clients: int, alphas: tuple[float, float], generator: np.random.Generator
) -> tuple[Ints, int]:
    """Owner of each image `[n]`, equal numbers to within one, and the number of draws that had to be repeated.

    labels: class of each image `[n]`; groups: super-class of each class `[K]`; alphas: the Dirichlet concentrations
    over super-classes, and over the classes of a super-class. All images are dealt; the last client takes the rest.
    """
    left = np.bincount(labels, minlength=len(groups))
    order = generator.permutation(len(labels))
    stacks = [order[labels[order] == label] for label in range(len(groups))]
    owner, redrawn = np.empty(len(labels), np.int64), 0
    for client in range(clients):
        size = len(labels) // clients + (client < len(labels) % clients)
        taken, refused = _draw_client(left, groups, size, alphas, generator)
        redrawn += refused
        for label in np.flatnonzero(taken).tolist():
            owner[stacks[label][left[label] - taken[label] : left[label]]] = client
        left -= taken
    return owner, redrawn


def _draw_client(
    left: Ints, groups: Ints, size: int, alphas: tuple[float, float], generator: np.random.Generator
) -> tuple[Ints, int]:
    """Number of images of each class `[K]` that a client takes of those left, `size` in all; and of repeated draws."""
    taken = np.zeros_like(left)
    if not size:
        return taken, 0
    ids = np.unique(groups[left > 0])
    room = np.bincount(groups, left, minlength=int(groups.max(initial=0)) + 1).astype(np.int64)[ids]
    counts, redrawn = capped_multinomial(size, dirichlet(alphas[0], len(ids), generator), room, generator)
    for group, count in zip(ids, counts.tolist(), strict=True):
        inside = np.flatnonzero((groups == group) & (left > 0))
        taken[inside], refused = capped_multinomial(
            count, dirichlet(alphas[1], len(inside), generator), left[inside], generator
        )
        redrawn += refused
    return taken, redrawn


def dirichlet(alpha: float, count: int, generator: np.random.Generator) -> Floats:
    """One draw of `count` shares; shares too small for a float are zero."""
    return np.nan_to_num(generator.dirichlet(np.full(count, alpha)))


def capped_multinomial(size: int, weights: Floats, room: Ints, generator: np.random.Generator) -> tuple[Ints, int]:
    """Counts `[G]` of `size` draws with these weights, at most `room` of each; and the number of repeated draws.

    A draw of an exhausted item is repeated among the others, which equals renormalising the weights when an item is
    exhausted. Every pass exhausts an item or is the last, so there are at most G + 1 passes. If all items with room
    have weight zero, they are drawn in proportion to their room.
    """
    drawn, redrawn = np.zeros_like(room), 0
    size = min(size, int(room.sum()))
    while size:
        open_ = weights * (drawn < room)
        open_ = open_ if open_.sum() > 0 else (room - drawn).astype(float)
        found = np.minimum(drawn + generator.multinomial(size, open_ / open_.sum()), room)
        size -= int((found - drawn).sum())
        drawn, redrawn = found, redrawn + size
    return drawn, redrawn
