"""How sure a personal model may be: a temperature and a threshold from the client's own training images.

A model is too sure of the images that it was trained on. So the images are dealt into folds; for each fold the client
trains anew on the others, from the initial tensors with what the server has sent last, in as many rounds as it has
trained; and the model predicts the fold. The temperature has the least negative log-likelihood on all these predictions
(Guo et al. 2017), with a standard normal prior on its logarithm, because few images, all predicted rightly, would ask
for a temperature of zero. "None of these" begins below the highest probability that all but one in twenty of them
reach. What is shared has seen all of these images; that part of its confidence stays. A model whose trained tensors are
all shared has seen every image whole: then no fold is held out (`Calibrated.held_out`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.data import Client
from fedvlm.errors import DivergenceError, FedvlmError
from fedvlm.federation.client import evaluation_tensors, train_client
from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import ROUND, EvalPoint
from fedvlm.personal.model import Calibrated
from fedvlm.streams import stream
from fedvlm.tensors import Named
from fedvlm.training.site import Site

LEAST = 10
"""Fewest training images from which anything is concluded."""
KEPT = 0.95
LOGARITHMS = [step / 50 for step in range(-200, 201)]
"""Logarithms of the temperatures that are looked through, 2 % apart."""


@dataclass(frozen=True)
class Replay:
    """What a client's training is played again from."""

    received: Named
    """What the client received with the evaluated state."""
    taught: Named
    """What it received for its last training that began with tensors of the server."""
    rounds: Sequence[int]
    """The rounds, from 0, in which it has trained."""


def calibrate(
    spec: RunSpec, site: Site, client: Client, point: EvalPoint, replay: Replay, folds: int = 5
) -> Calibrated:
    """Temperature and threshold from a client's training images, or why there are none.

    Costs `folds` times the client's training. Raises `FedvlmError` for one fold.
    """
    if folds == 1:
        raise FedvlmError("one fold leaves nothing to train on: take at least 2, or 0 for no calibration")
    if not folds:
        return Calibrated(why_not="it was not asked for (folds = 0)")
    if len(client.train) < max(LEAST, folds):
        return Calibrated(why_not=f"{len(client.train)} training images are too few")
    parts = deal(spec.seed, client, site.labels(client.train).tolist(), folds)
    try:
        found = [held_out(spec, site, client, point, replay, part) for part in parts]
    except DivergenceError:
        return Calibrated(why_not="the training diverged in a fold")
    logits, labels = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    temperature = best_temperature(logits.double(), labels)
    highest = torch.softmax(logits.double() / temperature, -1).amax(-1).sort().values
    threshold = float(highest[int((1 - KEPT) * len(highest))])
    before, after = (float(F.cross_entropy(logits.double() / one, labels)) for one in (1.0, temperature))
    return Calibrated(
        temperature=temperature, none_below=threshold, images=len(labels), folds=folds,
        held_out=not spec.method.trains or trains_own(spec, point, replay.received), before=before, after=after,
        kept=float((highest >= threshold).double().mean()),
    )  # fmt: skip


def trains_own(spec: RunSpec, point: EvalPoint, received: Named) -> bool:
    """Whether the evaluated model has a trained tensor that is not as the server has sent it."""
    return point == "after_training" or any(name not in received for name in spec.initial)


def deal(seed: int, client: Client, labels: Sequence[int], folds: int) -> list[list[int]]:
    """The client's training images in folds, those of each class spread over all of them."""
    order = stream(seed, "folds", client.name).permutation(len(labels)).tolist()
    spread = sorted(order, key=lambda place: labels[place])  # stable: shuffled within a class
    return [[client.train[place] for place in sorted(spread[first::folds])] for first in range(folds)]


def held_out(
    spec: RunSpec, site: Site, client: Client, point: EvalPoint, replay: Replay, fold: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Logits `[B, K]` and labels `[B]` of a fold, under a model that was trained on the other images."""
    kept, received = set(fold), replay.received
    other = replace(client, train=tuple(image for image in client.train if image not in kept))
    personal: Named | None = None
    for round_ in replay.rounds if spec.method.trains and trains_own(spec, point, received) else ():
        given = replay.taught | ({ROUND: torch.tensor(round_)} if ROUND in replay.taught else {})
        if round_ > spec.rounds:  # later local rounds go on from the client's own tensors
            given = {name: tensor for name, tensor in given.items() if name not in spec.initial}
        personal = train_client(spec, site, round_, other, personal, given).personal
    tensors = evaluation_tensors(spec, point, personal, received)
    logits = site.logits(site.base, tensors, received, list(fold), support_set=site.support_set(other, site.base.entry))
    return logits, site.labels(list(fold))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood of logits `[B, K]` and labels `[B]`, and of its prior."""

    def loss(log: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log), labels, reduction="sum")) + log * log / 2

    return round(math.exp(min(LOGARITHMS, key=loss)), 6)
