"""Evaluation of one client's tensors on its own, base and novel images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedvlm.clip import Entry
from fedvlm.data import Client, Federation
from fedvlm.tensors import Named, clone, equal
from fedvlm.training import metrics
from fedvlm.training.activations import Activations
from fedvlm.training.metrics import Metrics
from fedvlm.tuners.base import Own, Tuner

REMEMBERED = 8
"""Tuners whose last answers are remembered: two class lists, with and without training, and what faults put in."""

Tuners = tuple[Tuner, Tuner | None]
"""For the base classes and, where there are any, for the novel ones."""


@dataclass(frozen=True)
class Bench:
    """Everything evaluation needs that is the same for all clients: tuners for both class lists, images, labels."""

    base: Tuner
    novel: Tuner | None
    federation: Federation
    activations: Activations
    batch: int
    zero: Tuners | None = None
    """Zero-shot over both class lists, towards which predictions may be moved."""
    sets: dict[tuple[str, Entry], Tensor] = field(default_factory=dict, init=False, repr=False)
    """Finished features of shared test sets, gathered once for all clients, by set and entry."""
    said: dict[tuple[int, bool], _Said] = field(default_factory=dict, init=False, repr=False)
    """What each tuner, with or without a client's own images to ask for, last said of shared test sets: clients with
    equal models are measured there once."""

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Positions of the images' classes among the base (or the novel) classes, `[B]`."""
        return self.activations.device.send(torch.tensor(self.federation.labels(indices), dtype=torch.long))

    def own(self, client: Client, entry: Entry) -> Own:
        """A client's training images as a tuner may ask for them."""
        return lambda: (self.activations.get(client.train, entry), self.labels(client.train))

    @torch.no_grad()
    def logits(
        self, tuner: Tuner, tensors: Named, received: Named, *images: Sequence[int] | str, own: Own | None = None
    ) -> Tensor:
        """Logits `[B, K]` float32 under a client's tensors; the text features are computed once.

        Images are indices, or the name of one of the federation's test sets; several follow each other. `own`: the
        client's own training images, where the tuner's class list is theirs.
        """
        said = self.said.get((id(tuner), own is None))
        if said is None or not said.still(tuner, tensors, received):
            said = self._begun(tuner, tensors, received, own)
        parts = []
        for one in images:
            if isinstance(one, str):
                if one not in said.sets and self.federation.tests[one]:
                    said.sets[one] = self.answers(tuner, said.there, said.classifier, one)
                parts += [said.sets[one]] if one in said.sets else []
            elif one:
                parts.append(self.answers(tuner, said.there, said.classifier, one))
        return torch.cat(parts)

    def _begun(self, tuner: Tuner, tensors: Named, received: Named, own: Own | None) -> _Said:
        """A model ready to answer. It is remembered unless it was made from the client's own images."""
        asked = []

        def ask() -> tuple[Tensor, Tensor]:
            asked.append(True)
            assert own is not None
            return own()

        device = self.activations.device
        # Copies, so that tensors changed in place are seen to have changed.
        tensors, received = clone(tensors), clone(received)
        there, came = ({n: device.send(t) for n, t in named.items()} for named in (tensors, received))
        with device.autocast():
            classifier = tuner.classifier(there, tuner.prepare(came, ask if own else None))
        said = _Said(tuner, tensors, received, there, classifier)
        if not asked:
            while len(self.said) >= REMEMBERED:
                self.said.pop(next(iter(self.said)))
            self.said[id(tuner), own is None] = said
        return said

    @torch.no_grad()
    def answers(self, tuner: Tuner, tensors: Named, classifier: Named, images: Sequence[int] | str) -> Tensor:
        """Logits `[B, K]` float32 from a classifier that is there already, all on the device."""
        with self.activations.device.autocast():
            logits = [tuner.logits(tensors, classifier, rows).float() for rows in self._hidden(images, tuner.entry)]
        found = torch.cat(logits)
        return found if found.ndim == 2 else found.mean(1)

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


@dataclass(frozen=True)
class _Said:
    """A tuner with a client's tensors, and its logits on shared test sets by their names."""

    tuner: Tuner
    tensors: Named
    received: Named
    there: Named
    """The tensors on the device."""
    classifier: Named
    sets: dict[str, Tensor] = field(default_factory=dict)

    def still(self, tuner: Tuner, tensors: Named, received: Named) -> bool:
        """Whether this is the model asked for."""
        return self.tuner is tuner and equal(self.tensors, tensors) and equal(self.received, received)


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


def outputs(bench: Bench, client: Client, tensors: Named, received: Named, tuners: Tuners | None = None) -> Outputs:
    """What the tuners (by default the bench's) say of one client's evaluation images under its tensors."""
    base, novel = tuners or (bench.base, bench.novel)
    shared = bench.federation.tests[client.base]
    place = {index: row for row, index in enumerate(shared)}
    others = [index for index in client.local if index not in place]
    place |= {index: len(shared) + row for row, index in enumerate(others)}
    logits = bench.logits(base, tensors, received, client.base, others, own=bench.own(client, base.entry))
    labels = bench.labels([*shared, *others])
    local = None
    if client.local:
        rows = bench.activations.device.send(torch.tensor([place[index] for index in client.local]))
        local = Scored(logits[rows], labels[rows])
    unseen = None
    if novel is not None and client.novel is not None and (images := bench.federation.tests[client.novel]):
        unseen = Scored(bench.logits(novel, tensors, received, client.novel), bench.labels(images))
    return Outputs(Scored(logits[: len(shared)], labels[: len(shared)]), local, unseen, client.classes)


def evaluate(found: Outputs) -> Metrics:
    """Accuracies (0..1) of one client.

    `local`: own evaluation images, arg-max over all base classes; `local_own`: over own classes only; `base`,
    `novel`: the shared sets, over their class lists; with macro-F1 and loss (nats) on own images.
    """
    result = accuracies(found)
    if found.local is not None:
        logits, labels = found.local.logits, found.local.labels
        result["local_own"] = metrics.own_accuracy(logits, labels, found.classes)
        result["macro_f1"] = metrics.macro_f1(logits, labels)
        result["loss"] = metrics.loss(logits, labels)
    return result


def summary(clients: Mapping[str, Metrics], own: Sequence[Scored]) -> Metrics:
    """`metrics.summary`, and `ece`, the calibration error of all clients' own images together.

    One client has too few of them: with 20 images in 15 bins a perfectly calibrated model would be told an error.
    """
    result = metrics.summary(clients)
    if own:
        logits, labels = (torch.cat([getattr(scored, name) for scored in own]) for name in ("logits", "labels"))
        result["ece"] = metrics.calibration_error(logits, labels)
    return result


def accuracies(found: Outputs) -> Metrics:
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
