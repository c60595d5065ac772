"""Accuracies of one client and of a federation. K classes, B images; accuracies in 0..1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Metrics = dict[str, float]


@dataclass(frozen=True)
class Mean:
    """A mean as a sum and the number of its terms. Two of them add up to the mean over both groups."""

    total: float
    count: int

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean itself."""
        return self.total / self.count


@dataclass(frozen=True)
class Calibration:
    """What an expected calibration error (Guo et al. 2017) is made of. Two of them add up.

    `gaps`: for each of the bins of equal width, the sum over its images of confidence (the largest softmax probability)
    minus 1 for a right answer and 0 for a wrong one.
    """

    gaps: tuple[float, ...]
    images: int

    def __add__(self, other: Calibration) -> Calibration:
        gaps = tuple(one + two for one, two in zip(self.gaps, other.gaps, strict=True))
        return Calibration(gaps, self.images + other.images)

    @property
    def error(self) -> float:
        """Mean gap between confidence and accuracy; a bin counts with its share of the images."""
        return math.fsum(map(abs, self.gaps)) / self.images


def accuracy(logits: Tensor, labels: Tensor) -> Mean:
    """Share of images `[B, K]`, `[B]` whose largest logit is their label's."""
    return Mean(float((logits.argmax(-1) == labels).sum()), len(labels))


def own_accuracy(logits: Tensor, labels: Tensor, own: Sequence[int]) -> Mean:
    """`accuracy` with the arg-max over the client's own classes only."""
    own_ids = torch.tensor(sorted(own), device=logits.device)
    return Mean(float((own_ids[logits[:, own_ids].argmax(-1)] == labels).sum()), len(labels))


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
    """The sums of which the calibration error is made."""
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


def summary(clients: Mapping[str, Metrics]) -> Metrics:
    """Unweighted means over clients; the harmonic mean of the means of local, base and novel; the worst tenth.

    A metric that some clients lack (no novel classes) is averaged over those that have it.
    """
    names = dict.fromkeys(name for metrics in clients.values() for name in metrics)
    result = {name: _mean([m[name] for m in clients.values() if name in m]) for name in names}
    if {"local", "base", "novel"} <= result.keys():
        result["hm"] = harmonic_mean([result["local"], result["base"], result["novel"]])
    if "local" in result:
        result["worst_tenth"] = worst_tenth([m["local"] for m in clients.values() if "local" in m])
    return result


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
