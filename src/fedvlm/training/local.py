r"""The one local training loop: what a client does in a round, alone or together with others.

Clients that train together make one step of the frozen encoders together; each has tensors and an optimizer of its own.
Client 1 has three batches, client 2 has one, client 3 has three, the last of them smaller:

    step       1          2          3        3 again
    client 1   [4] \      [4] \      [4]                 [4]: a batch of 4 images. Batches of equal shape are stacked,
    client 2   [4]  } one      }                          and with them the tensors of their clients, [N, ...]; what
    client 3   [4] /      [4] /                 [2]       comes out is cut into clients again, and so are gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedvlm.errors import DivergenceError, FedvlmError
from fedvlm.methods.base import Config, Method, Step
from fedvlm.tensors import Named, select
from fedvlm.training.device import Device
from fedvlm.training.optimizers import OptimizerFactory, make_optimizer
from fedvlm.tuners.base import Tuner, predict

Batch = tuple[Tensor, Tensor]
"""Activations `[B, ...]` at the tuner's entry and labels `[B]`."""


@dataclass(frozen=True)
class LocalJob:
    """A client about to train: the tensors it starts from, what it received, its batches."""

    tensors: Named
    received: Named
    batches: Iterable[Batch]


@dataclass(frozen=True)
class Trained:
    """A client's tensors after training, and the loss of every batch before its update."""

    tensors: Named
    losses: list[float]


def train(
    method: Method, tuner: Tuner, tensors: Named, received: Named, batches: Iterable[Batch], device: Device,
    lr_factor: float = 1.0, factory: OptimizerFactory = make_optimizer,
) -> Trained:  # fmt: skip
    """Train one client (`train_together`)."""
    return train_together(method, tuner, [LocalJob(tensors, received, batches)], device, lr_factor, factory)[0]


def train_together(
    method: Method, tuner: Tuner, jobs: Sequence[LocalJob], device: Device, lr_factor: float = 1.0,
    factory: OptimizerFactory = make_optimizer,
) -> list[Trained]:  # fmt: skip
    """Train clients from their first tensors over their batches, each with a fresh optimizer.

    Steps of equal shape become one batched step, in which gradients do not mix: each client's loss depends on its own
    slice of the stacked tensors only, so the gradient of the sum holds every client's own. The result is that of each
    client alone, up to rounding. Nothing that is passed in is changed. `lr_factor` multiplies every learning rate (the
    round's place in the schedule). Raises `DivergenceError` when a loss or a tensor is no longer a number.
    """
    clients = [_Client(method, tuner, job, device, factory, lr_factor) for job in jobs]
    step = _step_alone if len(jobs) == 1 else _step_stacked
    while any(batches := [next(client.batches, None) for client in clients]):
        for members in _group_by_shape(batches, clients):
            some = [clients[place] for place in members]
            losses = step(method, tuner, some, [batches[place] or () for place in members], device)
            for leaf in (leaf for client in some for leaf in client.leaves.values()):
                leaf.grad = None
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            for client, loss in zip(some, losses, strict=True):
                client.optimizer.step()
                client.losses.append(loss.detach())
    return [client.finish(method, place) for place, client in enumerate(clients)]


class _Client:
    """A client in training: its leaves and optimizer, and what stays the same for all its batches."""

    def __init__(
        self, method: Method, tuner: Tuner, job: LocalJob, device: Device, factory: OptimizerFactory, lr_factor: float
    ) -> None:
        self.leaves = {name: device.send(one.detach()).clone() for name, one in job.tensors.items()}
        self.received = {name: device.send(tensor) for name, tensor in job.received.items()}
        trained = select(self.leaves, method.trainable(self.received))
        if not trained:
            raise FedvlmError(f"{method.name} trains no tensor in this round: its `trainable` patterns match none")
        for leaf in trained.values():
            leaf.requires_grad_()
        # The others are not in the optimizer: its decay would move them without a gradient.
        self.optimizer = factory(method, trained, lr_factor)
        with device.autocast():
            self.constants = tuner.prepare(self.received)
        self.batches = iter(job.batches)
        self.losses: list[Tensor] = []

    def finish(self, method: Method, place: int) -> Trained:
        """Tensors and losses, once all batches are done; `place` is the client's among those that train together."""
        # One synchronisation with a GPU for all steps, not one per step.
        tensors = {name: leaf.detach() for name, leaf in self.leaves.items()}
        finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
        *values, sound = torch.cat([*(loss.float()[None] for loss in self.losses), finite.all().float()[None]]).tolist()
        if not (sound and all(math.isfinite(value) for value in values)):
            broken = [name for name, ok in zip(tensors, finite.tolist(), strict=True) if not ok]
            where = f"'{broken[0]}'" if broken else "its loss"
            raise DivergenceError(f"{method.name}: {where} is no longer finite: lower the learning rate", place)
        return Trained(tensors, values)


def _step_alone(
    method: Method, tuner: Tuner, clients: Sequence[_Client], batches: Sequence[Sequence[Tensor]], device: Device
) -> list[Tensor]:
    """The loss of one client's batch."""
    (client,), ((hidden, labels),) = clients, batches
    with device.autocast():
        classifier = tuner.classifier(client.leaves, client.constants)
        logits, extras = predict(tuner, client.leaves, classifier, hidden)
    return [method.loss(Step(logits, labels, client.leaves, client.received, classifier, extras))]


def _step_stacked(
    method: Method, tuner: Tuner, clients: Sequence[_Client], batches: Sequence[Sequence[Tensor]], device: Device
) -> list[Tensor]:
    """The losses of several clients' batches of equal shape, from one pass: every tensor is `[N, ...]`."""
    leaves = {name: torch.stack([one.leaves[name] for one in clients]) for name in clients[0].leaves}
    constants = {name: torch.stack([one.constants[name] for one in clients]) for name in clients[0].constants}
    hidden, labels = (torch.stack(part) for part in zip(*batches, strict=True))
    with device.autocast():
        classifier = tuner.classifier(leaves, constants)
        logits, extras = predict(tuner, leaves, classifier, hidden)

    def loss(row: int, client: _Client) -> Tensor:
        made, more = ({n: t[row] for n, t in named.items()} for named in (classifier, extras))
        return method.loss(Step(logits[row], labels[row], client.leaves, client.received, made, more))

    return [loss(row, client) for row, client in enumerate(clients)]


def _group_by_shape(batches: Sequence[Batch | None], clients: Sequence[_Client]) -> list[list[int]]:
    """Places of the clients that have a batch, grouped by the shapes of what goes into their step."""
    groups: dict[object, list[int]] = {}
    for place, batch in enumerate(batches):
        if batch is not None:
            fixed = (clients[place].constants, clients[place].received)
            kind = batch[0].shape, *((n, t.shape) for named in fixed for n, t in sorted(named.items()))
            groups.setdefault(kind, []).append(place)
    return list(groups.values())


def check_precision(method: Method, device: Device) -> None:
    """Raises `FedvlmError` where a method would train in float16, whose small gradients become zero without a word."""
    if method.descends and device.dtype == torch.float16:
        raise FedvlmError(
            f"compute.dtype = 'float16' cannot train {method.name}: gradients below 6e-8 become zero, and fedvlm does "
            "not scale the loss; set compute.dtype to 'bfloat16' or 'float32' (methods without training may use "
            "float16)"
        )


def schedule_factor(config: Config, round_: int, rounds: int) -> float:
    """Factor on the learning rate in round `round_` (from 0) of `rounds`: 1, or half a cosine from 1 towards 0.

    Visits after the last round have its factor.
    """
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(round_, rounds - 1) / rounds))


def epoch_batches(images: int, batch: int, drop_last: bool, draws: np.random.Generator) -> list[list[int]]:
    """One epoch's batches of positions 0..images-1 in random order; the last may be smaller."""
    order = draws.permutation(images).tolist()
    full = images - images % batch if drop_last and images >= batch else images
    return [order[start : min(start + batch, full)] for start in range(0, full, batch)]
