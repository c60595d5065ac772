"""Evaluation of one client's tensors on its own, base and novel images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedvlm.clip import Entry
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
    sets: dict[tuple[str, Entry], Tensor] = field(default_factory=dict, repr=False)
    """Finished features of shared test sets, gathered once for all clients, by set and entry."""

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Positions of the images' classes among the base (or the novel) classes, `[B]`."""
        return self.activations.device.send(torch.tensor(self.federation.labels(indices), dtype=torch.long))

    @torch.no_grad()
    def logits(self, tuner: Tuner, tensors: Named, received: Named, *images: Sequence[int] | str) -> Tensor:
        """Logits `[B, K]` float32 under a client's tensors; the text features are computed once.

        Images are indices, or the name of one of the federation's test sets; several follow each other.
        """
        device = self.activations.device
        tensors, received = ({n: device.send(t) for n, t in named.items()} for named in (tensors, received))
        with device.autocast():
            return self.scores(tuner, tensors, tuner.prepare(received), *images)

    @torch.no_grad()
    def scores(self, tuner: Tuner, tensors: Named, constants: Named, *images: Sequence[int] | str) -> Tensor:
        """The same from constants of the visit that are there already, all on the device."""
        classifier = tuner.classifier(tensors, constants)
        hidden = (rows for one in images for rows in self._hidden(one, tuner.entry))
        return torch.cat([tuner.logits(tensors, classifier, rows) for rows in hidden]).float()

    def _hidden(self, images: Sequence[int] | str, entry: Entry) -> Iterable[Tensor]:
        """Activations at a tuner's entry, some images at a time."""
        if not isinstance(images, str):
            return (self.activations.get(images[start : start + self.batch], entry)
                    for start in range(0, len(images), self.batch))  # fmt: skip
        if entry != self.activations.clip.visual.depth + 1 or not self.federation.tests[images]:
            return self._hidden(self.federation.tests[images], entry)
        if (images, entry) not in self.sets:
            self.sets[images, entry] = torch.cat(list(self._hidden(self.federation.tests[images], entry)))
        return self.sets[images, entry].split(self.batch)


def evaluate(bench: Bench, client: Client, tensors: Named, received: Named) -> Metrics:
    """Accuracies (0..1) of one client.

    `local`: own evaluation images, arg-max over all base classes; `local_own`: over own classes only; `base`,
    `novel`: the shared sets, over their class lists; with macro-F1 and loss (nats) on the own images.
    """
    shared = bench.federation.tests[client.base]
    place = {index: row for row, index in enumerate(shared)}
    others = [index for index in client.local if index not in place]
    place |= {index: len(shared) + row for row, index in enumerate(others)}
    logits = bench.logits(bench.base, tensors, received, client.base, others)
    labels = bench.labels([*shared, *others])
    result: Metrics = {}
    if client.local:
        own = bench.activations.device.send(torch.tensor([place[index] for index in client.local]))
        result["local"] = metrics.accuracy(logits[own], labels[own])
        result["local_own"] = metrics.own_accuracy(logits[own], labels[own], client.classes)
        result["macro_f1"] = metrics.macro_f1(logits[own], labels[own])
        result["loss"] = metrics.loss(logits[own], labels[own])
    result["base"] = metrics.accuracy(logits[: len(shared)], labels[: len(shared)])
    if bench.novel is not None and client.novel is not None and bench.federation.tests[client.novel]:
        logits = bench.logits(bench.novel, tensors, received, client.novel)
        result["novel"] = metrics.accuracy(logits, bench.labels(bench.federation.tests[client.novel]))
    return result
