"""Evaluation of one client's tensors on its own, base and novel images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedvlm.data import Client, Federation
from fedvlm.tensors import Named
from fedvlm.training import metrics
from fedvlm.training.activations import Activations
from fedvlm.training.metrics import Metrics
from fedvlm.tuners.base import Tuner


@dataclass(frozen=True)
class Bench:
    """Everything evaluation needs that is the same for all clients: tuners for both class lists, images, labels."""

    base: Tuner
    novel: Tuner | None
    federation: Federation
    activations: Activations
    batch: int

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Positions of the images' classes among the base (or the novel) classes, `[B]`."""
        return torch.tensor(self.federation.labels(indices), device=self.activations.device.device)

    @torch.no_grad()
    def logits(self, tuner: Tuner, tensors: Named, received: Named, indices: Sequence[int]) -> Tensor:
        """Logits `[B, K]` float32 of these images under a client's tensors; the text features are computed once."""
        device = self.activations.device
        tensors, received = ({n: t.to(device.device) for n, t in named.items()} for named in (tensors, received))
        with device.autocast():
            return self.scores(tuner, tensors, tuner.prepare(received), indices)

    @torch.no_grad()
    def scores(self, tuner: Tuner, tensors: Named, constants: Named, indices: Sequence[int]) -> Tensor:
        """The same from constants of the visit that are there already, all on the device."""
        classifier = tuner.classifier(tensors, constants)
        return torch.cat([
            tuner.logits(tensors, classifier, self.activations.get(indices[start : start + self.batch], tuner.entry))
            for start in range(0, len(indices), self.batch)
        ]).float()  # fmt: skip


def evaluate(bench: Bench, client: Client, tensors: Named, received: Named) -> Metrics:
    """Accuracies (0..1) of one client.

    `local`: own evaluation images, arg-max over all base classes; `local_own`: over own classes only; `base`,
    `novel`: the shared sets, over their class lists; with macro-F1 and loss (nats) on the own images.
    """
    federation = bench.federation
    base_set = federation.tests[client.base]
    union = list(dict.fromkeys([*client.local, *base_set]))
    place = {index: row for row, index in enumerate(union)}
    logits, labels = bench.logits(bench.base, tensors, received, union), bench.labels(union)
    result: Metrics = {}
    if client.local:
        own = [place[index] for index in client.local]
        result["local"] = metrics.accuracy(logits[own], labels[own])
        result["local_own"] = metrics.own_accuracy(logits[own], labels[own], client.classes)
        result["macro_f1"] = metrics.macro_f1(logits[own], labels[own])
        result["loss"] = metrics.loss(logits[own], labels[own])
    shared = [place[index] for index in base_set]
    result["base"] = metrics.accuracy(logits[shared], labels[shared])
    novel_set = federation.tests[client.novel] if client.novel is not None else ()
    if bench.novel is not None and novel_set:
        logits = bench.logits(bench.novel, tensors, received, novel_set)
        result["novel"] = metrics.accuracy(logits, bench.labels(novel_set))
    return result
