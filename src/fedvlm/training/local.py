"""The local training loop: a client's update in one round, in a simulation and at a site."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedvlm.errors import DivergenceError, FedvlmError
from fedvlm.methods.base import Config, Method, Step
from fedvlm.tensors import Named
from fedvlm.training.device import Device
from fedvlm.training.optimizers import OptimizerFactory, StackedOptimizer, make_optimizer
from fedvlm.tuners.base import Tuner, predict

Batch = tuple[Tensor, Tensor]
"""Activations `[B, ...]` at the tuner's entry and labels `[B]`."""


@dataclass(frozen=True)
class Trained:
    """A client's tensors after local training, and the loss of every batch before its update."""

    tensors: Named
    losses: list[float]


def train(
    method: Method,
    tuner: Tuner,
    tensors: Named,
    received: Named,
    batches: Iterable[Batch],
    device: Device,
    lr_factor: float = 1.0,
    factory: OptimizerFactory = make_optimizer,
) -> Trained:
    """Train `tensors` on `batches` with a new optimizer; the arguments are not changed.

    `lr_factor` multiplies every learning rate (the round's place in the schedule). Raises `DivergenceError` when the
    loss is no longer a number.
    """
    leaves = {name: device.send(tensor.detach()).clone().requires_grad_() for name, tensor in tensors.items()}
    received = {name: device.send(tensor) for name, tensor in received.items()}
    optimizer = factory(method, leaves, lr_factor)
    with device.autocast():
        constants = tuner.prepare(received)
    losses: list[Tensor] = []
    for hidden, labels in batches:
        with device.autocast():
            classifier = tuner.classifier(leaves, constants)
            logits, beside = predict(tuner, leaves, classifier, hidden)
        loss = method.loss(Step(logits, labels, leaves, received, classifier, beside))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return _collect(method, {name: leaf.detach() for name, leaf in leaves.items()}, losses)


def check_precision(method: Method, device: Device) -> None:
    """Raise `FedvlmError` if a method would train in float16, in which small gradients silently become zero."""
    if method.trains and device.dtype == torch.float16:
        raise FedvlmError(
            f"compute.dtype = 'float16' cannot train {method.name}: gradients below 6e-8 become zero, and fedvlm does "
            "not scale the loss; set compute.dtype to 'bfloat16' or 'float32' (methods without training may use "
            "float16)"
        )


def _collect(method: Method, tensors: Named, losses: list[Tensor], place: int = 0) -> Trained:
    # One synchronisation with a GPU per client and round, not one per step.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
    *values, sound = torch.cat([*(loss.float()[None] for loss in losses), finite.all().float()[None]]).tolist()
    if not (sound and all(math.isfinite(value) for value in values)):
        broken = [name for name, ok in zip(tensors, finite.tolist(), strict=True) if not ok]
        where = f"'{broken[0]}'" if broken else "its loss"
        raise DivergenceError(f"{method.name}: {where} is no longer finite: lower the learning rate", place)
    return Trained(tensors, values)


@dataclass(frozen=True)
class LocalJob:
    """Input of one client's local training: initial tensors, received tensors, batches."""

    tensors: Named
    received: Named
    batches: Iterable[Batch]


def train_together(
    method: Method, tuner: Tuner, jobs: Sequence[LocalJob], device: Device, lr_factor: float = 1.0,
    factory: OptimizerFactory = make_optimizer,
) -> list[Trained]:  # fmt: skip
    """`train` for several clients; steps of equal shapes are computed as one batched step. Equal up to rounding.

    Gradients do not mix: each client's loss depends on its own slice of the stacked tensors only, so the gradient of
    the summed losses holds every client's gradient. Clients with fewer batches finish earlier. With another factory
    than `make_optimizer`, clients train one after another. For three clients (A: 3 batches, B: 2, C: 2, whose last one
    is smaller):

        step 1   A1 B1 C1   equal shapes: one batched step of three clients
        step 2   A2 B2 | C2   C2 has fewer images: a step of its own
        step 3   A3   B and C have finished
    """
    if len(jobs) == 1 or factory is not make_optimizer:
        return [train(method, tuner, v.tensors, v.received, v.batches, device, lr_factor, factory) for v in jobs]
    received = [{name: device.send(tensor) for name, tensor in one.received.items()} for one in jobs]
    with device.autocast():
        constants = [tuner.prepare(own) for own in received]
    stacked = {n: device.send(torch.stack([one.tensors[n].detach() for one in jobs]))
               for n in jobs[0].tensors}  # fmt: skip
    optimizer = StackedOptimizer(method, stacked, lr_factor)
    losses: list[list[Tensor]] = [[] for _ in jobs]
    iterators = [iter(one.batches) for one in jobs]
    while any(batches := [next(each, None) for each in iterators]):
        for members in _group_by_shape(batches, constants, received):
            own = [received[place] for place in members]
            fixed = {n: torch.stack([constants[place][n] for place in members]) for n in constants[members[0]]}
            hidden, labels = (
                torch.stack(part) for part in zip(*(batches[place] or () for place in members), strict=True)
            )
            rows = device.send(torch.tensor(members))
            leaves = optimizer.leaves(rows)
            with device.autocast():
                classifier = tuner.classifier(leaves, fixed)
                logits, beside = predict(tuner, leaves, classifier, hidden)
            each = [method.loss(_client_step(row, logits, labels, leaves, own[row], classifier, beside))
                    for row in range(len(members))]  # fmt: skip
            torch.stack(each).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step(rows, leaves)
            for place, loss in zip(members, each, strict=True):
                losses[place].append(loss.detach())
    return [_collect(method, {n: t[place].clone() for n, t in stacked.items()}, losses[place], place)
            for place in range(len(jobs))]  # fmt: skip


def _group_by_shape(
    batches: Sequence[Batch | None], constants: Sequence[Named], received: Sequence[Named]
) -> list[list[int]]:
    """Positions of the clients that have a batch, grouped by the shapes of the tensors of their step."""
    groups: dict[object, list[int]] = {}
    for place, batch in enumerate(batches):
        if batch is not None:
            kind = (batch[0].shape, *((n, t.shape) for named in (constants[place], received[place])
                                      for n, t in sorted(named.items())))  # fmt: skip
            groups.setdefault(kind, []).append(place)
    return list(groups.values())


def _client_step(
    row: int, logits: Tensor, labels: Tensor, leaves: Named, received: Named, classifier: Named, beside: Named
) -> Step:
    """The `Step` of one client, from tensors that were computed for several."""
    mine, made, more = ({n: t[row] for n, t in named.items()} for named in (leaves, classifier, beside))
    return Step(logits[row], labels[row], mine, received, made, more)


def schedule_factor(config: Config, round_: int, rounds: int) -> float:
    """Factor on the learning rate in round `round_` (from 0) of `rounds`: 1, or half a cosine from 1 towards 0.

    Local rounds after the last federated round have the factor of that round.
    """
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(round_, rounds - 1) / rounds))


def epoch_batches(images: int, batch: int, drop_last: bool, draws: np.random.Generator) -> list[list[int]]:
    """One epoch's batches of positions 0..images-1 in random order; the last may be smaller."""
    order = draws.permutation(images).tolist()
    full = images - images % batch if drop_last and images >= batch else images
    return [order[start : min(start + batch, full)] for start in range(0, full, batch)]
