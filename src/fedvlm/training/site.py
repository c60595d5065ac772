"""A site: the place where images are. Of one client in a real federation, of all of them in a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedvlm.clip import FEATURE, Entry
from fedvlm.data import Client, Federation
from fedvlm.tensors import Named, clone, equal
from fedvlm.training.activations import Activations
from fedvlm.tuners.base import SupportSet, Tuner, predict

MAX_CACHED_MODELS = 8
"""Models whose predictions are cached: two class lists, with and without a client's own images, and what faults put
in."""

Tuners = tuple[Tuner, Tuner | None]
"""For the base classes and, where there are any, for the novel ones."""


@dataclass(frozen=True)
class Site:
    """What training and evaluation need of a place: tuners for both class lists, its clients, their images and labels.

    Nothing here belongs to one client: tensors are handed in. `federation` lists the clients whose images are here.
    """

    base: Tuner
    novel: Tuner | None
    federation: Federation
    activations: Activations
    batch: int
    """Images that are evaluated at a time."""
    zero_shot: Tuners | None = None
    """Zero-shot over both class lists, towards which predictions may be moved."""
    test_features: dict[tuple[str, Entry], Tensor] = field(default_factory=dict, init=False, repr=False)
    """Finished features of shared test sets, gathered once for all clients, by set and entry."""
    cached_models: dict[tuple[int, bool], _CachedModel] = field(default_factory=dict, init=False, repr=False)
    """The last model of each tuner, with or without a client's own images: clients with equal models are measured on
    shared test sets once."""

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Positions of the images' classes among the base (or the novel) classes, `[B]`."""
        return self.activations.device.send(torch.tensor(self.federation.labels(indices), dtype=torch.long))

    def support_set(self, client: Client, entry: Entry) -> SupportSet:
        """A client's training images as a tuner may ask for them."""
        return lambda: (self.activations.get(client.train, entry), self.labels(client.train))

    @contextmanager
    def caching_predictions(self) -> Iterator[None]:
        """Predictions on shared test sets are cached inside of this context, and dropped at its end."""
        try:
            yield
        finally:
            self.cached_models.clear()

    @torch.no_grad()
    def logits(
        self,
        tuner: Tuner,
        tensors: Named,
        received: Named,
        *images: Sequence[int] | str,
        support_set: SupportSet | None = None,
    ) -> Tensor:
        """Logits `[B, K]` float32 under a client's tensors; the text features are computed once.

        Images are indices, or the name of one of the federation's test sets; several follow each other.
        `support_set`: the client's own training images, where the tuner's class list is theirs.
        """
        model = self.cached_models.get((id(tuner), support_set is None))
        if model is None or not model.matches(tuner, tensors, received):
            model = self._model(tuner, tensors, received, support_set)
        parts = []
        for one in images:
            if isinstance(one, str):
                if one not in model.predictions and self.federation.tests[one]:
                    model.predictions[one] = self.predict(tuner, model.on_device, model.classifier, one)
                parts += [model.predictions[one]] if one in model.predictions else []
            elif one:
                parts.append(self.predict(tuner, model.on_device, model.classifier, one))
        return torch.cat(parts)

    def _model(self, tuner: Tuner, tensors: Named, received: Named, support_set: SupportSet | None) -> _CachedModel:
        """A model ready to predict. It is cached unless it was made from the client's own images."""
        requests = []

        def request() -> tuple[Tensor, Tensor]:
            requests.append(True)
            assert support_set is not None
            return support_set()

        device = self.activations.device
        # Copies, so that tensors changed in place are seen to have changed.
        tensors, received = clone(tensors), clone(received)
        on_device, received_on_device = ({n: device.send(t) for n, t in named.items()} for named in (tensors, received))
        with device.autocast():
            classifier = tuner.classifier(
                on_device, tuner.prepare(received_on_device, request if support_set else None)
            )
        model = _CachedModel(tuner, tensors, received, on_device, classifier)
        if not requests:
            while len(self.cached_models) >= MAX_CACHED_MODELS:
                self.cached_models.pop(next(iter(self.cached_models)))
            self.cached_models[id(tuner), support_set is None] = model
        return model

    @torch.no_grad()
    def predict(self, tuner: Tuner, tensors: Named, classifier: Named, images: Sequence[int] | str) -> Tensor:
        """Logits `[B, K]` float32 from a classifier that is there already, all on the device."""
        with self.activations.device.autocast():
            logits = [predict(tuner, tensors, classifier, rows)[0] for rows in self._hidden(images, tuner.entry)]
        found = torch.cat(logits)
        return found if found.ndim == 2 else found.mean(1)

    def _hidden(self, images: Sequence[int] | str, entry: Entry) -> Iterable[Tensor]:
        """Activations at a tuner's entry, some images at a time."""
        if not isinstance(images, str):
            return (self.activations.get(images[start : start + self.batch], entry)
                    for start in range(0, len(images), self.batch))  # fmt: skip
        if entry != FEATURE or not self.federation.tests[images]:
            return self._hidden(self.federation.tests[images], entry)
        if (images, entry) not in self.test_features:
            self.test_features[images, entry] = torch.cat(list(self._hidden(self.federation.tests[images], entry)))
        return self.test_features[images, entry].split(self.batch)


@dataclass(frozen=True)
class _CachedModel:
    """A tuner with a client's tensors, and its logits on shared test sets by their names."""

    tuner: Tuner
    tensors: Named
    received: Named
    on_device: Named
    classifier: Named
    predictions: dict[str, Tensor] = field(default_factory=dict)

    def matches(self, tuner: Tuner, tensors: Named, received: Named) -> bool:
        """Whether this is the model asked for."""
        return self.tuner is tuner and equal(self.tensors, tensors) and equal(self.received, received)
