"""What a client does in a round. The same function runs in the simulation's loop and behind a network."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedvlm.data import Client
from fedvlm.errors import FedvlmError
from fedvlm.federation import wire
from fedvlm.methods.base import Config, Method, State, Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training.activations import TEST
from fedvlm.training.evaluation import Bench
from fedvlm.training.local import Batch, orders, schedule, train


@dataclass(frozen=True)
class Task:
    """All that stays the same while one method runs with one seed."""

    method: Method
    bench: Bench
    initial: Named
    """Trainable tensors at the start, the same for every client, private ones included."""
    seed: int
    rounds: int
    participation: float = 1.0
    views: str | int = "none"
    """What training sees (see `Experiment.views`)."""
    every: int = 1
    """Evaluate after every so many rounds."""
    state: State | None = None
    """The state to report where the experiment names one."""

    @property
    def reported(self) -> State:
        """The state that heads the table: the experiment's, or the method's own."""
        return self.state or self.method.state


@dataclass(frozen=True)
class Visit:
    """A client's round: what it sends, what it keeps, the loss before each update."""

    uplink: Uplink
    personal: Named
    losses: list[float]
    seconds: float


def assemble(task: Task, personal: Named | None, received: Named) -> Named:
    """A client's tensors: its own from its last visit (or the common start), the received ones laid over them."""
    own = task.initial if personal is None else personal
    return {name: received.get(name, tensor) for name, tensor in own.items()}


def visit(task: Task, round_: int, client: Client, personal: Named | None, received: Named) -> Visit:
    """Train on the client's images in round `round_` (from 0) and give back what leaves and what stays."""
    start = time.perf_counter()
    method, config = task.method, task.method.config
    assert isinstance(config, Config)
    try:
        trained = train(
            method,
            task.bench.base,
            assemble(task, personal, received),
            received,
            batches(task, round_, client),
            task.bench.activations.device,
            schedule(config, round_, task.rounds),
        )
    except FedvlmError as error:
        raise FedvlmError(f"round {round_ + 1}, client {client.name}: {error}") from error
    kept = {name: tensor.cpu() for name, tensor in trained.tensors.items()}
    uplink = Uplink(client.name, float(len(client.train)), clone(wire.shared(method, kept)))
    return Visit(uplink, kept, trained.losses, time.perf_counter() - start)


def batches(task: Task, round_: int, client: Client) -> Iterator[Batch]:
    """Shuffled batches of all epochs; order and views come from streams named by client, round and epoch."""
    config, bench = task.method.config, task.bench
    assert isinstance(config, Config)
    labels = bench.labels(client.train)
    entry = bench.base.entry
    for epoch in range(config.epochs):
        draws = stream(task.seed, "order", client.name, round_, epoch)
        views = _views(task, client, round_, epoch)
        for batch in orders(len(client.train), config.batch, config.drop_last, draws):
            indices = [client.train[position] for position in batch]
            if task.views == "online":
                names = ("view", client.name, round_, epoch)
                hidden = bench.activations.online(indices, entry, task.seed, *names)
            else:
                hidden = bench.activations.get(indices, entry, [views[position] for position in batch])
            yield hidden, labels[torch.tensor(batch, device=labels.device)]


def _views(task: Task, client: Client, round_: int, epoch: int) -> list[int]:
    """Which remembered view of each training image an epoch uses."""
    if isinstance(task.views, str):
        return [TEST] * len(client.train)
    draws = stream(task.seed, "view", client.name, round_, epoch)
    return [int(view) for view in draws.integers(task.views, size=len(client.train))]
