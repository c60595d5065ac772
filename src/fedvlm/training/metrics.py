"""The table of all metrics: how a client measures each, how it is pooled, its name, and where it is shown.

K classes, B images; accuracies are in 0..1. To add a metric, add an entry to `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import plugins
from fedvlm.errors import FedvlmError

Metrics = dict[str, float]
"""Values by a metric's name."""


@dataclass(frozen=True)
class Mean:
    """A mean, as a sum and the number of its terms. The sum of two `Mean`s is the mean over both groups."""

    total: float
    count: int

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean: total / count."""
        return self.total / self.count


@dataclass(frozen=True)
class Calibration:
    """Sums from which the expected calibration error (Guo et al. 2017) is computed; those of two groups add up.

    `gaps`: for each bin of equal width, the sum over its images of the confidence (the largest softmax probability),
    minus 1 for every right answer.
    """

    gaps: tuple[float, ...]
    images: int

    def __add__(self, other: Calibration) -> Calibration:
        gaps = tuple(one + two for one, two in zip(self.gaps, other.gaps, strict=True))
        return Calibration(gaps, self.images + other.images)

    @property
    def value(self) -> float:
        """The error: the mean gap between confidence and accuracy, bins weighted by their share of the images."""
        return math.fsum(map(abs, self.gaps)) / self.images


Statistic = Mean | Calibration
"""What a client reports for a metric: statistics of clients add up, and have a `value`."""


@dataclass(frozen=True)
class Scored:
    """Logits `[B, K]` and labels `[B]` of one set of images."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Outputs:
    """Logits and labels of one client's evaluation images: base set, local images, novel set."""

    base: Scored
    local: Scored | None
    novel: Scored | None
    classes: tuple[int, ...]
    """Positions of the classes that the client trains on."""

    def finite(self) -> bool:
        """Whether all logits are numbers."""
        parts = [part for part in (self.base, self.local, self.novel) if part is not None]
        return bool(torch.stack([part.logits.isfinite().all() for part in parts]).all())


Measure = Callable[[Outputs], Statistic | None]
"""Gives a client's statistic, or None if the client has no images for it."""
Clients = Mapping[str, Mapping[str, Statistic]]
"""Statistics by client and metric."""
Pool = Callable[[Clients], float | None]
"""Gives the federation's value, or None if no client has the statistics for it."""


def accuracy(logits: Tensor, labels: Tensor) -> Mean:
    """Share of images `[B, K]`, `[B]` whose largest logit is their label's."""
    return Mean(float((logits.argmax(-1) == labels).sum()), len(labels))


def own_class_accuracy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Mean:
    """`accuracy` with the arg-max over these classes only."""
    class_ids = torch.tensor(sorted(classes), device=logits.device)
    return Mean(float((class_ids[logits[:, class_ids].argmax(-1)] == labels).sum()), len(labels))


def macro_f1(logits: Tensor, labels: Tensor) -> Mean:
    """Mean over the classes present in `labels` of F1 = 2 TP / (2 TP + FP + FN)."""
    guesses, scores = logits.argmax(-1), []
    for label in labels.unique():
        hit = ((guesses == label) & (labels == label)).sum()
        scores.append(float(2 * hit / ((guesses == label).sum() + (labels == label).sum())))
    return Mean(sum(scores), len(scores))


def loss(logits: Tensor, labels: Tensor) -> Mean:
    """Cross-entropy in nats."""
    return Mean(float(F.cross_entropy(logits.double(), labels, reduction="sum")), len(labels))


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> Calibration:
    """The sums from which the calibration error is computed (`Calibration`)."""
    confidence, guess = logits.double().softmax(-1).max(-1)
    right = (guess == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add_(0, place, confidence - right)
    return Calibration(tuple(gaps.tolist()), len(labels))


def harmonic_mean(values: Sequence[float]) -> float:
    """n / sum 1/x; 0 when any is 0."""
    return 0.0 if any(value <= 0 for value in values) else len(values) / sum(1 / value for value in values)


def worst_tenth(values: Sequence[float]) -> float:
    """Mean of the lowest ceil(n/10) values."""
    lowest = sorted(values)[: math.ceil(len(values) / 10)]
    return math.fsum(lowest) / len(lowest)


def mean_of(name: str) -> Pool:
    """The unweighted mean over the clients that measured the metric `name`."""

    def pool(clients: Clients) -> float | None:
        values = _values(clients, name)
        return math.fsum(values) / len(values) if values else None

    return pool


def total_of(name: str) -> Pool:
    """The value of the sum of all clients' statistics, for metrics that need more images than one client has."""

    def pool(clients: Clients) -> float | None:
        parts = [one[name] for one in clients.values() if name in one]
        return reduce(add, parts).value if parts else None

    return pool


def worst_tenth_of(name: str) -> Pool:
    """The mean over the tenth of the clients with the lowest values of the metric `name`."""

    def pool(clients: Clients) -> float | None:
        values = _values(clients, name)
        return worst_tenth(values) if values else None

    return pool


def harmonic_mean_of(*names: str) -> Pool:
    """The harmonic mean of the clients' mean values of several metrics."""

    def pool(clients: Clients) -> float | None:
        means = [mean_of(name)(clients) for name in names]
        present = [mean for mean in means if mean is not None]
        return harmonic_mean(present) if len(present) == len(names) else None

    return pool


def _values(clients: Clients, name: str) -> list[float]:
    return [one[name].value for one in clients.values() if name in one]


def _measure_on(part: Literal["base", "local", "novel"], function: Callable[[Tensor, Tensor], Statistic]) -> Measure:
    """A function of logits and labels, measured on one part of a client's images."""

    def measure(outputs: Outputs) -> Statistic | None:
        scored: Scored | None = getattr(outputs, part)
        return None if scored is None else function(scored.logits, scored.labels)

    return measure


def _measure_own_classes(outputs: Outputs) -> Mean | None:
    local = outputs.local
    return None if local is None else own_class_accuracy(local.logits, local.labels, outputs.classes)


Unit = Literal["%", "nats", "weight"]
Place = Literal["run", "terminal", "core", "rounds", "compare", "compare terminal", "tested", "sweep", "subtracted"]
"""Places where a metric can be shown.

run: the tables of a run; terminal: the same on a terminal. core: where there is room for few: newcomers, audits,
targets. rounds: pictures over rounds and progress. compare: the tables of a comparison; compare terminal: the same on a
terminal. tested: differences from the reference in a comparison. sweep: the tables of a sweep; subtracted: those of
differences.
"""


@dataclass(frozen=True)
class Metric:
    """A metric: its name, how it is measured and pooled, and where it is shown."""

    name: str
    """The key in ledgers, results and tables. It is a file format and does not change."""
    heading: str
    """Heading of the metric's column."""
    about: str
    """Description in one line."""
    measure: Measure | None = None
    """Measures the metric at a client; None if it is computed from other metrics' statistics."""
    pool: Pool | None = None
    """Pools clients' statistics into the federation's value; None for a metric of a whole run, not of a round."""
    unit: Unit = "%"
    on_tradeoff: bool = False
    """Whether the metric is also measured on the trade-off curve, with logits mixed with zero-shot's."""
    shown: Mapping[Place, int] = field(default_factory=dict)
    """Places where the metric is shown, with its rank among the metrics shown there."""


METRICS: tuple[Metric, ...] = (
    Metric(
        "local", "Local", "accuracy on the client's own test images over all base classes",
        _measure_on("local", accuracy), mean_of("local"), on_tradeoff=True,
        shown={"run": 1, "terminal": 1, "core": 1, "rounds": 1, "compare": 1, "compare terminal": 1, "tested": 4,
               "sweep": 2, "subtracted": 2},
    ),
    Metric(
        "base", "Base", "accuracy on test images of all base classes",
        _measure_on("base", accuracy), mean_of("base"), on_tradeoff=True,
        shown={"run": 2, "terminal": 2, "core": 2, "rounds": 2, "compare": 2, "compare terminal": 2, "sweep": 3},
    ),
    Metric(
        "novel", "Novel", "accuracy on test images of classes that no client has, over those classes",
        _measure_on("novel", accuracy), mean_of("novel"), on_tradeoff=True,
        shown={"run": 3, "terminal": 3, "core": 3, "rounds": 3, "compare": 3, "compare terminal": 3, "sweep": 4},
    ),
    Metric(
        "local_own", "Own only", "accuracy on the client's own test images over its own classes only",
        _measure_own_classes, mean_of("local_own"), shown={"run": 6},
    ),
    Metric(
        "macro_f1", "Macro-F1", "mean over classes of F1 on the client's own test images",
        _measure_on("local", macro_f1), mean_of("macro_f1"), shown={"run": 7},
    ),
    Metric(
        "loss", "loss", "cross-entropy on the client's own test images",
        _measure_on("local", loss), mean_of("loss"), unit="nats", shown={"run": 8},
    ),
    Metric(
        "hm", "HM", "harmonic mean of the means of Local, Base and Novel",
        pool=harmonic_mean_of("local", "base", "novel"),
        shown={"run": 4, "terminal": 4, "core": 4, "compare": 4, "compare terminal": 4, "tested": 1, "sweep": 1,
               "subtracted": 1},
    ),
    Metric(
        "worst_tenth", "Worst 10%", "mean Local of the tenth of the clients that is worst off",
        pool=worst_tenth_of("local"), shown={"run": 5, "terminal": 5, "compare": 5},
    ),
    Metric(
        "ece", "ECE", "expected calibration error on all clients' own test images together: 20 images in 15 bins would "
        "tell a perfectly calibrated client an error",
        _measure_on("local", calibration), total_of("ece"), shown={"compare": 6},
    ),
)  # fmt: skip
"""The metrics of a round, in the order of their records."""


GROUP = "fedvlm.metrics"
"""Name of the entry-point group in which other packages offer metrics."""
_OUTSIDE: dict[str, Metric] = {}
"""Metrics of other packages that an experiment of this process has selected."""


def all_metrics() -> tuple[Metric, ...]:
    """Our own metrics, and those of other packages that were selected in this process."""
    return (*METRICS, *_OUTSIDE.values())


def select_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Our own metrics, which are always measured, and the named ones of other packages.

    Raises `FedvlmError` if a named metric cannot be found.
    """
    own = {metric.name for metric in METRICS}
    names = [name for name in names if name not in own]
    offered = plugins.entry_points(GROUP) if names else {}
    paths = [plugins.offered_path(name, offered, "metric") for name in names]
    added = [plugins.load_object(path, Metric, "metric") for path in paths]
    for path, metric in zip(names, added, strict=True):
        if metric.name in own or _OUTSIDE.setdefault(metric.name, metric) is not metric:
            raise FedvlmError(f"metric '{path}' calls itself '{metric.name}', as another one does: rename it")
    return (*METRICS, *added)


def measure_all(outputs: Outputs, metrics: Iterable[Metric] = METRICS) -> dict[str, Statistic]:
    """A client's statistics, by the name of every metric for which the client has images."""
    each = {metric.name: metric.measure(outputs) for metric in metrics if metric.measure is not None}
    return {name: statistic for name, statistic in each.items() if statistic is not None}


def pool_statistics(clients: Clients, metrics: Iterable[Metric] = METRICS) -> Metrics:
    """The federation's values, by the name of every metric for which clients have statistics."""
    each = {metric.name: metric.pool(clients) for metric in metrics if metric.pool is not None}
    return {name: value for name, value in each.items() if value is not None}
