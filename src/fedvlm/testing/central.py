"""Central training as a reference: an ordinary PyTorch loop without messages and clients."""

from __future__ import annotations

from typing import Any

import torch

from fedvlm.federation.simulation import Simulation
from fedvlm.methods.base import ROUND, Step
from fedvlm.streams import stream
from fedvlm.tensors import Named, select
from fedvlm.tuners.base import predict


def trained(run: Simulation) -> Named:
    """The tensors after central training on the images of a run with one client, in the order of the run.

    The optimizer is new in every round, and a loss that refers to received tensors gets those at the round's start.
    """
    spec, site, tuner = run.spec, run.site, run.site.base
    config: Any = spec.method.config
    (client,) = site.federation.clients
    records, clip = site.federation.source.records, site.activations.clip
    images = torch.stack([clip.preprocess.test(records[i].image.open()) for i in client.train])
    hidden = clip.visual.hidden(clip.preprocess.normalise(images), tuner.entry)
    labels = torch.tensor(site.federation.labels(client.train))
    parameters = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in spec.initial.items()}
    leaves: Named = dict(parameters)
    for round_ in range(spec.last_round):
        begun = {name: leaf.detach().clone() for name, leaf in leaves.items()} | {ROUND: torch.tensor(round_)}
        begun |= {"anchor": begun["prompt"]} if "prompt" in begun else {}
        now = select(leaves, spec.method.trainable(begun))
        for name, leaf in parameters.items():
            leaf.requires_grad_(name in now)
        optimizer = _optimizer(run, {name: parameters[name] for name in now}, round_)
        for epoch in range(config.epochs):
            order = stream(spec.seed, "order", client.name, round_, epoch).permutation(len(client.train))
            for start in range(0, len(order), config.batch):
                rows = torch.from_numpy(order[start : start + config.batch])
                classifier = tuner.classifier(leaves, tuner.prepare({}))
                logits, extras = predict(tuner, leaves, classifier, hidden[rows])
                loss = spec.method.loss(Step(logits, labels[rows], leaves, begun, classifier, extras))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def _optimizer(run: Simulation, parameters: dict[str, torch.nn.Parameter], round_: int) -> torch.optim.Optimizer:
    spec = run.spec
    config: Any = spec.method.config
    turn = torch.tensor(torch.pi * round_ / spec.rounds, dtype=torch.float64)
    fall = float(0.5 * (1 + turn.cos())) if config.schedule == "cosine" else 1.0
    groups = [{"params": [leaf], "lr": spec.method.rate(name) * fall} for name, leaf in parameters.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    betas = (config.momentum, config.second_momentum)
    return kind(groups, betas=betas, weight_decay=config.weight_decay)
