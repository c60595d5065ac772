"""Evaluation of one client's tensors on its own, base and novel images; what it tells a server; how that is pooled."""

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
    """What is measured, when, on which images."""

    every: Count = 1
    """Evaluate after every so many rounds (the last round always)."""
    state: EvalPoint | None = None
    """State whose accuracies head the table; the method's own default where not given. Both are recorded."""
    split: Literal["test", "val"] = "test"
    """`val` to choose hyper-parameters without looking at test images."""
    general: Literal["own_domain", "all"] = "all"
    """Base and novel images: of the client's own domain, or of all domains."""
    template: Template = "a photo of a {}."
    """What texts are made of, with `{}` for the class name; or a CoOp data set for its template (`OxfordPets`)."""
    metrics: list[str] = Field(default=[])
    """Metrics of other packages, measured beside our own: `package.module:NAME` or the name of an entry point."""
    batch: Count | None = None
    """Images at a time; by default 256, and on a CPU 32, which its caches hold."""


@dataclass(frozen=True)
class ClientMetrics:
    """All that a client tells of its model: sums and counts. No logits and no labels are among them."""

    statistics: dict[str, Statistic]
    """By metric."""
    by_weight: dict[float, dict[str, Statistic]] = field(default_factory=dict)
    """Those of `Metric.on_tradeoff`, with logits moved towards zero-shot's by each weight."""

    @property
    def values(self) -> Metrics:
        """The means as numbers; of other statistics one client has too few images."""
        return {name: one.value for name, one in self.statistics.items() if isinstance(one, Mean)}


def compute_outputs(
    site: Site, client: Client, tensors: Named, received: Named, tuners: Tuners | None = None
) -> Outputs:
    """What the tuners (by default the site's) predict on one client's evaluation images under its tensors."""
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
    """The metrics of one client. `weights`: at which logits are moved towards those of `zero_shot` besides."""
    moved = [metric for metric in metrics if metric.on_tradeoff]
    curve = {
        weight: measure_all(mix_outputs(outputs, zero_shot, weight), moved)
        for weight in weights
        if zero_shot is not None
    }
    return ClientMetrics(measure_all(outputs, metrics), curve)


def pool_metrics(clients: Mapping[str, ClientMetrics], metrics: Sequence[Metric] = METRICS) -> Metrics:
    """The federation's metrics, from what every client told."""
    return pool_statistics({name: one.statistics for name, one in clients.items()}, metrics)


def tradeoff_curve(clients: Mapping[str, ClientMetrics], metrics: Sequence[Metric] = METRICS) -> list[Metrics]:
    """The federation's metrics at every weight of zero-shot, each with its `weight`."""
    weights = dict.fromkeys(weight for one in clients.values() for weight in one.by_weight)
    return [
        {"weight": weight} | pool_statistics({name: one.by_weight[weight] for name, one in clients.items()}, metrics)
        for weight in weights
    ]


def mix_outputs(trained: Outputs, zero_shot: Outputs, weight: float) -> Outputs:
    """Logits moved towards zero-shot's: (1 - weight) trained + weight zero_shot. No training, no message."""

    def mix(one: Scored | None, other: Scored | None) -> Scored | None:
        if one is None or other is None:
            return None
        return Scored(torch.lerp(one.logits, other.logits, weight), one.labels)

    base = mix(trained.base, zero_shot.base)
    assert base is not None
    return Outputs(base, mix(trained.local, zero_shot.local), mix(trained.novel, zero_shot.novel), trained.classes)
