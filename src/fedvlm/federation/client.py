"""A client's work in a round: training and evaluation. The same functions run in a simulation and at a site."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fedvlm.data import Client
from fedvlm.errors import DivergenceError, FedvlmError, listed
from fedvlm.federation.spec import RunSpec
from fedvlm.methods.base import Config, EvalPoint, Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training.activations import TEST
from fedvlm.training.evaluation import ClientMetrics, compute_outputs, evaluate
from fedvlm.training.local import (
    Batch,
    LocalJob,
    Trained,
    check_precision,
    epoch_batches,
    schedule_factor,
    train_together,
)
from fedvlm.training.metrics import Outputs
from fedvlm.training.optimizers import OptimizerFactory, make_optimizer
from fedvlm.training.site import Site


@dataclass(frozen=True)
class ClientInput:
    """Input of a client's training: its stored tensors (None before its first round) and the received tensors."""

    client: Client
    personal: Named | None
    received: Named


@dataclass(frozen=True)
class ClientUpdate:
    """Result of a client's training: uplink, tensors to store, loss before each step (nats), seconds."""

    uplink: Uplink
    personal: Named
    losses: list[float]
    seconds: float


def train_client(
    spec: RunSpec, site: Site, round_: int, client: Client, personal: Named | None, received: Named
) -> ClientUpdate:
    """Train on a client's images in round `round_` (from 0). Raises `DivergenceError` if its loss is not finite."""
    return train_clients(spec, site, round_, [ClientInput(client, personal, received)])[0]


def train_clients(
    spec: RunSpec, site: Site, round_: int, inputs: Sequence[ClientInput], factory: OptimizerFactory = make_optimizer
) -> list[ClientUpdate]:
    """`train_client` for several clients in batched steps; each client's seconds are an equal share of all."""
    start = time.perf_counter()
    try:
        if spec.method.gathers:
            done = [_gather(spec, site, one.client) for one in inputs]
        else:
            done = _descend(spec, site, round_, inputs, factory)
    except FedvlmError as error:
        place = error.place if isinstance(error, DivergenceError) else None
        who = listed(one.client.name for one in (inputs if place is None else [inputs[place]]))
        raise type(error)(f"round {round_ + 1}, client {who}: {error}") from error
    stored = [_personal_tensors(spec, round_, one, trained) for one, trained in zip(inputs, done, strict=True)]
    seconds = (time.perf_counter() - start) / len(inputs)
    sent = [clone(spec.method.uplink(own, one.received)) for one, own in zip(inputs, stored, strict=True)]
    return [
        ClientUpdate(Uplink(one.client.name, float(len(one.client.train)), up), own, trained.losses, seconds)
        for one, up, own, trained in zip(inputs, sent, stored, done, strict=True)
    ]


def _descend(
    spec: RunSpec, site: Site, round_: int, inputs: Sequence[ClientInput], factory: OptimizerFactory
) -> list[Trained]:
    """Local training of several clients."""
    check_precision(spec.method, site.activations.device)
    config = spec.method.config
    assert isinstance(config, Config)
    jobs = [
        LocalJob(spec.assemble(one.personal, one.received), one.received, local_batches(spec, site, round_, one.client))
        for one in inputs
    ]
    lr_factor = schedule_factor(config, round_, spec.rounds)
    return train_together(spec.method, site.base, jobs, site.activations.device, lr_factor, factory)


@torch.no_grad()
def _gather(spec: RunSpec, site: Site, client: Client) -> Trained:
    """A client's statistics in the place of trained tensors."""
    found = spec.method.statistics(site.base, site.support_set(client, site.base.entry))
    shapes, declared = ({name: tuple(t.shape) for name, t in named.items()} for named in (found, spec.initial))
    if shapes != declared:
        raise FedvlmError(f"{spec.method.name}: its statistics are {shapes}, but its tuner's `init` has {declared}")
    return Trained(found, [])


def evaluate_client(
    spec: RunSpec, site: Site, point: EvalPoint, client: Client, personal: Named | None, received: Named,
    *, tradeoff: bool = False,
) -> ClientMetrics:  # fmt: skip
    """A client's metrics in the state `point`; `tradeoff`: also at every weight of zero-shot's logits.

    Raises `DivergenceError` if a prediction is not finite.
    """
    return client_metrics(
        spec,
        site,
        client,
        compute_outputs(site, client, evaluation_tensors(spec, point, personal, received), received),
        tradeoff,
    )


def client_metrics(
    spec: RunSpec, site: Site, client: Client, outputs: Outputs, tradeoff: bool = False
) -> ClientMetrics:
    """A client's metrics of its model's outputs. Raises `DivergenceError` if a logit is not finite."""
    if not outputs.finite():
        raise DivergenceError(
            f"client {client.name}: {spec.method.name} predicts values that are not finite: lower the learning rate"
        )
    if not (tradeoff and site.zero_shot):
        return evaluate(outputs, spec.metrics)
    zero_shot = compute_outputs(site, client, {}, {}, site.zero_shot)
    return evaluate(outputs, spec.metrics, zero_shot, spec.method.mixing)


def evaluation_tensors(spec: RunSpec, point: EvalPoint, personal: Named | None, received: Named) -> Named:
    """The tensors that a client is evaluated with.

    `after_aggregation`: the tensors received from the server's new state, laid over the client's stored tensors.
    `after_training`: the client's tensors after its last training, or the received ones before its first round.
    """
    if point == "after_training" and personal is not None:
        return spec.assemble(personal, {})
    return spec.assemble(personal, received)


def _personal_tensors(spec: RunSpec, round_: int, one: ClientInput, trained: Trained) -> Named:
    """The tensors that the client stores: the trained ones, and those that the method keeps in addition."""
    own = {name: tensor.cpu() for name, tensor in trained.tensors.items()}
    return own | spec.method.keep(own, one.received, stream(spec.seed, "keep", one.client.name, round_))


def local_batches(spec: RunSpec, site: Site, round_: int, client: Client) -> Iterator[Batch]:
    """Shuffled batches of all epochs; order and views come from streams named by client, round and epoch."""
    config = spec.method.config
    assert isinstance(config, Config)
    labels = site.labels(client.train)
    entry = site.base.entry
    for epoch in range(config.epochs):
        draws = stream(spec.seed, "order", client.name, round_, epoch)
        views = _draw_views(spec, client, round_, epoch)
        for batch in epoch_batches(len(client.train), config.batch, config.drop_last, draws):
            indices = [client.train[position] for position in batch]
            if spec.views == "online":
                names = ("view", client.name, round_, epoch)
                hidden = site.activations.get_online(indices, entry, spec.seed, *names)
            else:
                hidden = site.activations.get(indices, entry, [views[position] for position in batch])
            yield hidden, labels[site.activations.device.send(torch.tensor(batch))]


def _draw_views(spec: RunSpec, client: Client, round_: int, epoch: int) -> list[int]:
    """The number of the cached view that an epoch uses, for each training image."""
    if isinstance(spec.views, str):
        return [TEST] * len(client.train)
    draws = stream(spec.seed, "view", client.name, round_, epoch)
    return [int(view) for view in draws.integers(spec.views, size=len(client.train))]
