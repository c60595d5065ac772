"""What a client does in a round. The same function runs in the simulation's loop and behind a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fedvlm.data import Client
from fedvlm.errors import DivergenceError, FedvlmError, listed
from fedvlm.federation import wire
from fedvlm.methods.base import Config, Method, State, Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training.activations import TEST
from fedvlm.training.descent import Maker, optimiser
from fedvlm.training.evaluation import Bench, Outputs, outputs
from fedvlm.training.local import Batch, Trained, Visitor, check_precision, orders, schedule, train_together
from fedvlm.training.metrics import Metrics


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
    together: int = 1
    """So many clients train as one batched computation."""
    every: int = 1
    """Evaluate after every so many rounds."""
    state: State | None = None
    """The state to report where the experiment names one."""
    validation: Bench | None = None
    """The same with validation images in the place of test images."""
    conduct: Conduct = field(default_factory=lambda: Conduct())
    faults: tuple[str, ...] = ()
    """Faults of released code that were built in on purpose (`fedvlm.faults`)."""

    def __post_init__(self) -> None:
        wire.check_share(self.method, self.initial)
        check_precision(self.method, self.bench.activations.device)

    @property
    def reported(self) -> State:
        """The state that heads the table: the experiment's, or the method's own."""
        return self.state or self.method.state

    @property
    def visits(self) -> int:
        """Rounds, and the visits after the last one from which nothing is sent."""
        return self.rounds + (self.method.config.fine_tune if self.method.trains else 0)


@dataclass(frozen=True)
class Visit:
    """A client's round: what it sends, what it keeps, the loss before each update."""

    uplink: Uplink
    personal: Named
    losses: list[float]
    seconds: float


def assemble(task: Task, personal: Named | None, received: Named) -> Named:
    """A client's tensors: its own from its last visit (or the common start) and the received ones in their places."""
    return task.method.assemble(task.initial if personal is None else personal, received)


def visit(task: Task, round_: int, client: Client, personal: Named | None, received: Named) -> Visit:
    """Train on the client's images in round `round_` (from 0) and give back what leaves and what stays."""
    return task.conduct.visits(task, round_, [Guest(client, personal, received)])[0]


@dataclass(frozen=True)
class Guest:
    """A client about to train: its tensors of its last visit, if there was one, and what it received."""

    client: Client
    personal: Named | None
    received: Named


def visits(task: Task, round_: int, guests: Sequence[Guest]) -> list[Visit]:
    """`visit` for several clients whose steps are computed together; seconds are shared out evenly."""
    start = time.perf_counter()
    config = task.method.config
    assert isinstance(config, Config)
    visitors = [
        Visitor(assemble(task, guest.personal, guest.received), guest.received, batches(task, round_, guest.client))
        for guest in guests
    ]
    factor = schedule(config, round_, task.rounds)
    try:
        device, made = task.bench.activations.device, task.conduct.optimiser
        done = train_together(task.method, task.bench.base, visitors, device, factor, made)
    except FedvlmError as error:
        place = error.place if isinstance(error, DivergenceError) else None
        who = listed(guest.client.name for guest in (guests if place is None else [guests[place]]))
        raise type(error)(f"round {round_ + 1}, client {who}: {error}") from error
    kept = [_kept(task, round_, guest, trained) for guest, trained in zip(guests, done, strict=True)]
    seconds = (time.perf_counter() - start) / len(guests)
    return [
        Visit(Uplink(guest.client.name, float(len(guest.client.train)), clone(task.method.uplink(own))), own,
              trained.losses, seconds)
        for guest, own, trained in zip(guests, kept, done, strict=True)
    ]  # fmt: skip


def last(means: Sequence[Metrics]) -> int:
    """Position of the evaluation that is the result: the last one, so that nothing is chosen on test images."""
    return len(means) - 1


@dataclass(frozen=True)
class Conduct:
    """How clients are trained and measured. The one place where `fedvlm.faults` puts something else in."""

    visits: Callable[[Task, int, Sequence[Guest]], list[Visit]] = visits
    optimiser: Maker = optimiser
    outputs: Callable[[Bench, Client, Named, Named], Outputs] = outputs
    result: Callable[[Sequence[Metrics]], int] = last
    """Which evaluation is the result, from the means over clients of all of them in the reported state."""


def _kept(task: Task, round_: int, guest: Guest, trained: Trained) -> Named:
    """What the client stores: its trained tensors and what else the method keeps."""
    own = {name: tensor.cpu() for name, tensor in trained.tensors.items()}
    return own | task.method.keep(own, guest.received, stream(task.seed, "keep", guest.client.name, round_))


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
            yield hidden, labels[bench.activations.device.send(torch.tensor(batch))]


def _views(task: Task, client: Client, round_: int, epoch: int) -> list[int]:
    """Which remembered view of each training image an epoch uses."""
    if isinstance(task.views, str):
        return [TEST] * len(client.train)
    draws = stream(task.seed, "view", client.name, round_, epoch)
    return [int(view) for view in draws.integers(task.views, size=len(client.train))]
