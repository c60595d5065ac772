"""A site: the place that holds images, of one client in a real federation, of all clients in a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedvlm.clip import FEATURE, Entry
from fedvlm.data import Client, Federation
from fedvlm.tensors import Named, clone, equal
from fedvlm.training.activations import Activations
from fedvlm.tuners.base import SupportSet, Tuner, predict

MAX_CACHED_MODELS = 8
"""Number of models whose predictions are cached: two class lists, with and without a support set, and those of
faults."""

Tuners = tuple[Tuner, Tuner | None]
"""Tuners for the base classes, and for the novel classes if there are any."""


@dataclass(frozen=True)
class Site:
    """What training and evaluation need at one place: tuners for both class lists, clients, images and labels.

    A site holds no client's tensors; they are passed to its methods. `federation` lists the clients whose images are
    here.
    """

    base: Tuner
    novel: Tuner | None
    federation: Federation
    activations: Activations
    batch: int
    """Number of images evaluated at a time."""
    zero_shot: Tuners | None = None
    """Zero-shot tuners for both class lists, with whose logits predictions may be mixed."""
    test_features: dict[tuple[str, Entry], Tensor] = field(default_factory=dict, init=False, repr=False)
    """Features of shared test sets, computed once for all clients, by set and entry."""
    cached_models: dict[tuple[int, bool], _CachedModel] = field(default_factory=dict, init=False, repr=False)
    """The last model of each tuner, with or without a support set. Clients with equal models share its predictions on
    shared test sets."""

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Positions of the images' classes among the base (or the novel) classes, `[B]`."""
        return self.activations.device.send(torch.tensor(self.federation.labels(indices), dtype=torch.long))

    def support_set(self, client: Client, entry: Entry) -> SupportSet:
        """A function that gives a client's training images at `entry` with their labels, for tuners that use them."""
        return lambda: (self.activations.get(client.train, entry), self.labels(client.train))

    @contextmanager
    def caching_predictions(self) -> Iterator[None]:
        """Cache predictions on shared test sets inside this context, and drop them at its end."""
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
        """A model ready to predict. The model is cached unless the tuner used the support set."""
        requests = []

        def request() -> tuple[Tensor, Tensor]:
            requests.append(True)
            assert support_set is not None
            return support_set()

        device = self.activations.device
        # Copies, so that later changes in place are noticed.
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
        """Logits `[B, K]` float32 from a computed classifier; all tensors are on the device."""
        with self.activations.device.autocast():
            logits = [predict(tuner, tensors, classifier, rows)[0] for rows in self._hidden(images, tuner.entry)]
        found = torch.cat(logits)
        return found if found.ndim == 2 else found.mean(1)

    @torch.no_grad()
    def expert_weights(self, tensors: Named, received: Named, images: Sequence[int]) -> Tensor:
        """Mean weights of the experts `[M]` in predictions on these images, the client's own one first.

        For methods with `experts`, whose tuners have `weights`.
        """
        tuner: Any = self.base
        model = self._model(tuner, tensors, received, None)
        with self.activations.device.autocast():
            found = [
                tuner.weights(model.on_device, model.classifier, rows) for rows in self._hidden(images, tuner.entry)
            ]
        return torch.cat(found).double().mean(0).cpu()

    def _hidden(self, images: Sequence[int] | str, entry: Entry) -> Iterable[Tensor]:
        """Activations at a tuner's entry, in batches."""
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
        """Whether this model has this tuner and equal tensors."""
        return self.tuner is tuner and equal(self.tensors, tensors) and equal(self.received, received)
