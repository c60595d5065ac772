"""Evaluation of one client's tensors on its own, base and novel images; what it tells a server; how that is pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedvlm.data import Client
from fedvlm.tensors import Named
from fedvlm.training import metrics
from fedvlm.training.metrics import Calibration, Mean, Metrics
from fedvlm.training.site import Site, Tuners


@dataclass(frozen=True)
class Outputs:
    """Logits and labels of one client's evaluation images: its base set, its own ones, its novel set."""

    base: Scored
    local: Scored | None
    novel: Scored | None
    classes: tuple[int, ...]
    """The client's own classes."""

    def finite(self) -> bool:
        """Whether all logits are numbers."""
        parts = [part for part in (self.base, self.local, self.novel) if part is not None]
        return bool(torch.stack([part.logits.isfinite().all() for part in parts]).all())


@dataclass(frozen=True)
class Scored:
    """Logits `[B, K]` and labels `[B]`."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClientMetrics:
    """All that a client tells of its model: sums and counts. No logits and no labels are among them."""

    means: dict[str, Mean]
    """By metric (see `evaluate`)."""
    calibration: Calibration | None
    """On own images; None where there are none."""
    by_weight: dict[float, dict[str, Mean]] = field(default_factory=dict)
    """`local`, `base` and `novel` with logits moved towards zero-shot's by each weight."""

    @property
    def values(self) -> Metrics:
        """The metrics as numbers."""
        return {name: mean.value for name, mean in self.means.items()}


def outputs(site: Site, client: Client, tensors: Named, received: Named, tuners: Tuners | None = None) -> Outputs:
    """What the tuners (by default the site's) predict on one client's evaluation images under its tensors."""
    base, novel = tuners or (site.base, site.novel)
    shared = site.federation.tests[client.base]
    place = {index: row for row, index in enumerate(shared)}
    others = [index for index in client.local if index not in place]
    place |= {index: len(shared) + row for row, index in enumerate(others)}
    logits = site.logits(base, tensors, received, client.base, others, own=site.own(client, base.entry))
    labels = site.labels([*shared, *others])
    local = None
    if client.local:
        rows = site.activations.device.send(torch.tensor([place[index] for index in client.local]))
        local = Scored(logits[rows], labels[rows])
    unseen = None
    if novel is not None and client.novel is not None and (images := site.federation.tests[client.novel]):
        unseen = Scored(site.logits(novel, tensors, received, client.novel), site.labels(images))
    return Outputs(Scored(logits[: len(shared)], labels[: len(shared)]), local, unseen, client.classes)


def evaluate(found: Outputs, zero: Outputs | None = None, weights: Sequence[float] = ()) -> ClientMetrics:
    """The metrics of one client; accuracies are in 0..1.

    `local`: own evaluation images, arg-max over all base classes; `local_own`: over own classes only; `base`,
    `novel`: the shared sets, over their class lists; with macro-F1 and loss (nats) on own images. `weights`: at which
    logits are moved towards those of `zero` besides.
    """
    means, calibration = accuracies(found), None
    if found.local is not None:
        logits, labels = found.local.logits, found.local.labels
        means["local_own"] = metrics.own_accuracy(logits, labels, found.classes)
        means["macro_f1"] = metrics.macro_f1(logits, labels)
        means["loss"] = metrics.loss(logits, labels)
        calibration = metrics.calibration(logits, labels)
    moved = {weight: accuracies(mixed(found, zero, weight)) for weight in weights if zero is not None}
    return ClientMetrics(means, calibration, moved)


def summary(clients: Mapping[str, ClientMetrics]) -> Metrics:
    """`metrics.summary` of all clients' values, and `ece`, the calibration error of their own images together.

    One client has too few of them: with 20 images in 15 bins a perfectly calibrated model would be told an error.
    """
    result = metrics.summary({name: one.values for name, one in clients.items()})
    parts = [one.calibration for one in clients.values() if one.calibration is not None]
    if parts:
        result["ece"] = sum(parts[1:], parts[0]).error
    return result


def tradeoff(clients: Mapping[str, ClientMetrics]) -> list[Metrics]:
    """`metrics.summary` at every weight of zero-shot, each with its `weight`."""
    weights = dict.fromkeys(weight for one in clients.values() for weight in one.by_weight)
    return [
        {"weight": weight}
        | metrics.summary(
            {name: {m: mean.value for m, mean in one.by_weight[weight].items()} for name, one in clients.items()}
        )
        for weight in weights
    ]


def accuracies(found: Outputs) -> dict[str, Mean]:
    """`local`, `base` and `novel`, those of them that exist."""
    parts = {"local": found.local, "base": found.base, "novel": found.novel}
    return {name: metrics.accuracy(part.logits, part.labels) for name, part in parts.items() if part is not None}


def mixed(own: Outputs, zero: Outputs, weight: float) -> Outputs:
    """Logits moved towards zero-shot's: (1 - weight) own + weight zero. No training, no message."""

    def mix(one: Scored | None, other: Scored | None) -> Scored | None:
        if one is None or other is None:
            return None
        return Scored(torch.lerp(one.logits, other.logits, weight), one.labels)

    base = mix(own.base, zero.base)
    assert base is not None
    return Outputs(base, mix(own.local, zero.local), mix(own.novel, zero.novel), own.classes)
