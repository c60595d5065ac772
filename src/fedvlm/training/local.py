"""The one local training loop: what a client does in a visit, wherever it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedvlm.errors import FedvlmError
from fedvlm.methods.base import Config, Method
from fedvlm.tensors import Named
from fedvlm.training.device import Device
from fedvlm.tuners.base import Tuner

Batch = tuple[Tensor, Tensor]
"""Activations `[B, ...]` at the tuner's entry and labels `[B]`."""


@dataclass(frozen=True)
class Trained:
    """Tensors after a visit, and the loss of every batch before its update."""

    tensors: Named
    losses: list[float]


def train(
    method: Method,
    tuner: Tuner,
    tensors: Named,
    received: Named,
    batches: Iterable[Batch],
    device: Device,
    factor: float = 1.0,
) -> Trained:
    """SGD from `tensors` over `batches`, with a fresh optimiser; nothing passed in is changed.

    `factor` multiplies every learning rate (the round's place in the schedule). Raises `FedvlmError` when the loss
    is no longer a number.
    """
    leaves = {name: tensor.detach().to(device.device).clone().requires_grad_() for name, tensor in tensors.items()}
    received = {name: tensor.to(device.device) for name, tensor in received.items()}
    optimiser = sgd(method, leaves, factor)
    with device.autocast():
        constants = tuner.prepare(received)
    losses: list[Tensor] = []
    for hidden, labels in batches:
        with device.autocast():
            logits = tuner.logits(leaves, tuner.classifier(leaves, constants), hidden)
        loss = method.loss(logits.float(), labels, leaves, received)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.detach())
    # One synchronisation with a GPU per visit, not one per step.
    values = torch.stack(losses).tolist() if losses else []
    broken = [name for name, leaf in leaves.items() if not bool(leaf.isfinite().all())]
    if broken or not all(math.isfinite(value) for value in values):
        where = f"'{broken[0]}'" if broken else "its loss"
        raise FedvlmError(f"{method.name}: {where} is no longer finite: lower the learning rate")
    return Trained({name: leaf.detach() for name, leaf in leaves.items()}, values)


def sgd(method: Method, leaves: Named, factor: float = 1.0) -> torch.optim.SGD:
    """A new SGD over the leaves, each at its configured rate times `factor`; biases decay like all others."""
    config = method.config
    assert isinstance(config, Config)
    rates: dict[float, list[Tensor]] = {}
    for name, leaf in leaves.items():
        rates.setdefault(method.rate(name), []).append(leaf)
    groups = [{"params": params, "lr": rate * factor} for rate, params in rates.items()]
    return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)


def schedule(config: Config, round_: int, rounds: int) -> float:
    """Factor on the learning rate in round `round_` (from 0) of `rounds`: 1, or half a cosine from 1 towards 0."""
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * round_ / rounds))


def orders(images: int, batch: int, drop_last: bool, draws: np.random.Generator) -> list[list[int]]:
    """One epoch's batches of positions 0..images-1 in random order; the last may be smaller."""
    order = draws.permutation(images).tolist()
    full = images - images % batch if drop_last and images >= batch else images
    return [order[start : min(start + batch, full)] for start in range(0, full, batch)]
