"""Evaluation of a client's tensors on its local, base and novel images; the metrics that it sends; pooling of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field

from fedvlm.clip.templates import Template
from fedvlm.config import Count, Section
from fedvlm.data import Client
from fedvlm.methods.base import EvalPoint
from fedvlm.tensors import Named
from fedvlm.training.metrics import (
    METRICS,
    Mean,
    Metric,
    Metrics,
    Outputs,
    Scored,
    Statistic,
    measure_all,
    pool_statistics,
)
from fedvlm.training.site import Site, Tuners


class EvaluationSection(Section):
    """Metrics, rounds and images of evaluation."""

    every: Count = 1
    """Number of rounds between evaluations (the last round is always evaluated)."""
    state: EvalPoint | None = None
    """State whose accuracies head the table; by default the method's own. Both states are recorded."""
    split: Literal["test", "val"] = "test"
    """`val`: evaluate on validation images, to choose hyper-parameters without test images."""
    general: Literal["own_domain", "all"] = "all"
    """Base and novel images: of the client's own domain, or of all domains."""
    template: Template = "a photo of a {}."
    """Template of the class texts, with `{}` for the class name; or a CoOp data set (`OxfordPets`) for its template."""
    metrics: list[str] = Field(default=[])
    """Additional metrics of other packages: `package.module:NAME` or the name of an entry point."""
    batch: Count | None = None
    """Number of images evaluated at a time; by default 256, and 32 on a CPU, whose caches hold as many."""


@dataclass(frozen=True)
class ClientMetrics:
    """All that a client reports about its model: sums and counts, no logits and no labels."""

    statistics: dict[str, Statistic]
    """By metric."""
    by_weight: dict[float, dict[str, Statistic]] = field(default_factory=dict)
    """Statistics of the metrics with `on_tradeoff`, by weight of zero-shot's logits."""

    @property
    def values(self) -> Metrics:
        """The means as numbers. Other statistics are left out, because one client has too few images for them."""
        return {name: one.value for name, one in self.statistics.items() if isinstance(one, Mean)}


def compute_outputs(
    site: Site, client: Client, tensors: Named, received: Named, tuners: Tuners | None = None
) -> Outputs:
    """Logits of one client's evaluation images under its tensors, from the site's tuners or the given ones."""
    base, novel = tuners or (site.base, site.novel)
    shared = site.federation.tests[client.base]
    place = {index: row for row, index in enumerate(shared)}
    others = [index for index in client.local if index not in place]
    place |= {index: len(shared) + row for row, index in enumerate(others)}
    logits = site.logits(base, tensors, received, client.base, others, support_set=site.support_set(client, base.entry))
    labels = site.labels([*shared, *others])
    local = None
    if client.local:
        rows = site.activations.device.send(torch.tensor([place[index] for index in client.local]))
        local = Scored(logits[rows], labels[rows])
    unseen = None
    if novel is not None and client.novel is not None and (images := site.federation.tests[client.novel]):
        unseen = Scored(site.logits(novel, tensors, received, client.novel), site.labels(images))
    return Outputs(Scored(logits[: len(shared)], labels[: len(shared)]), local, unseen, client.classes)


def evaluate(
    outputs: Outputs,
    metrics: Sequence[Metric] = METRICS,
    zero_shot: Outputs | None = None,
    weights: Sequence[float] = (),
) -> ClientMetrics:
    """The metrics of one client; also with logits mixed with those of `zero_shot` at each of `weights`."""
    moved = [metric for metric in metrics if metric.on_tradeoff]
    curve = {
        weight: measure_all(mix_outputs(outputs, zero_shot, weight), moved)
        for weight in weights
        if zero_shot is not None
    }
    return ClientMetrics(measure_all(outputs, metrics), curve)


def pool_metrics(clients: Mapping[str, ClientMetrics], metrics: Sequence[Metric] = METRICS) -> Metrics:
    """The federation's metrics, pooled from those of all clients."""
    return pool_statistics({name: one.statistics for name, one in clients.items()}, metrics)


def tradeoff_curve(clients: Mapping[str, ClientMetrics], metrics: Sequence[Metric] = METRICS) -> list[Metrics]:
    """The federation's metrics at every weight of zero-shot's logits; each entry holds its `weight`."""
    weights = dict.fromkeys(weight for one in clients.values() for weight in one.by_weight)
    return [
        {"weight": weight}
        | pool_statistics(
            {name: one.by_weight[weight] for name, one in clients.items() if weight in one.by_weight}, metrics
        )
        for weight in weights
    ]


def mix_outputs(trained: Outputs, zero_shot: Outputs, weight: float) -> Outputs:
    """Mix logits with zero-shot's: (1 - weight) trained + weight zero_shot."""

    def mix(one: Scored | None, other: Scored | None) -> Scored | None:
        if one is None or other is None:
            return None
        return Scored(torch.lerp(one.logits, other.logits, weight), one.labels)

    base = mix(trained.base, zero_shot.base)
    assert base is not None
    return Outputs(base, mix(trained.local, zero_shot.local), mix(trained.novel, zero_shot.novel), trained.classes)
