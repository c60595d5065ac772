"""Optimisers over stacked clients against torch's own, client by client."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.streams import torch_stream
from fedvlm.testing import tiny
from fedvlm.training.local import LocalJob, train, train_together
from fedvlm.training.optimizers import StackedOptimizer

OPTIMIZERS: list[dict[str, Any]] = [
    {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
    {"optimizer": "adam", "momentum": 0.8, "second_momentum": 0.95, "weight_decay": 0.1},
    {"optimizer": "adam", "momentum": 0.0, "second_momentum": 0.5, "weight_decay": 0.0},
    {"optimizer": "adamw", "momentum": 0.9, "second_momentum": 0.98, "weight_decay": 0.3},
]
STEPS = [[0, 1, 2, 3], [0, 2, 3], [3, 1], [0, 1, 2, 3], [2], [2], [3, 2], [2]]
"""Which clients take each step: 3, 3, 7 and 5 steps, in all orders."""


def theirs(config: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    decay, momentum = config["weight_decay"], config["momentum"]
    if config["optimizer"] == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config["optimizer"]]
    return kind(groups, betas=(momentum, config["second_momentum"]), weight_decay=decay)


def loss(leaf: dict[str, Tensor], client: int, number: int) -> Tensor:
    """Curved, with another gradient for every client and step."""
    prompt, gate = leaf["prompt"], leaf["gating.q.bias"]
    return (prompt * (client + 1) + number).sin().sum() + (prompt[0] * gate).square().sum() + gate.exp().sum()


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config['optimizer']}-{config['momentum']}")
def test_every_client_moves_as_with_torch(config: dict[str, Any]) -> None:
    """Two rates, clients with different numbers of steps, a tensor that a step's loss leaves out."""
    method = tiny.method("pfedmoap", lr=0.05, gate_lr=0.02, **config)
    draw = torch_stream(0, "start")
    start = {"prompt": torch.randn(4, 3, 5, generator=draw), "gating.q.bias": torch.randn(4, 5, generator=draw)}
    descent = StackedOptimizer(method, {name: tensor.clone() for name, tensor in start.items()}, 0.5)
    alone = [{name: torch.nn.Parameter(tensor[c].clone()) for name, tensor in start.items()} for c in range(4)]
    torches = [
        theirs(config, [{"params": [one["prompt"]], "lr": 0.025}, {"params": [one["gating.q.bias"]], "lr": 0.01}])
        for one in alone
    ]
    for number, members in enumerate(STEPS):
        rows = torch.tensor(members)
        leaves = descent.leaves(rows)
        each = [loss({name: leaf[row] for name, leaf in leaves.items()}, c, number) for row, c in enumerate(members)]
        torch.stack(each).sum().backward()
        descent.step(rows, leaves)
        for c in members:
            torches[c].zero_grad()
            loss(alone[c], c, number).backward()
            torches[c].step()
        for c in range(4):
            for name, tensor in alone[c].items():
                assert (descent.stacked[name][c] - tensor).abs().max() < 2e-6 * max(1.0, tensor.abs().max().item()), (
                    name
                )
    assert all((descent.stacked[name] - start[name]).abs().amax().item() > 0.02 for name in start)


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: f"{config['optimizer']}-{config['momentum']}")
def test_what_has_no_gradient_stays_even_under_decay(config: dict[str, Any]) -> None:
    method = tiny.method("pfedmoap", **config)
    start = {"prompt": torch.ones(2, 3, 5), "gating.q.bias": torch.ones(2, 5)}
    descent = StackedOptimizer(method, {name: tensor.clone() for name, tensor in start.items()}, 1.0)
    rows = torch.tensor([0, 1])
    leaves = descent.leaves(rows)
    leaves["prompt"].square().sum().backward()
    descent.step(rows, leaves)
    assert torch.equal(descent.stacked["gating.q.bias"], start["gating.q.bias"])
    assert not torch.equal(descent.stacked["prompt"], start["prompt"])


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    return tiny.federation()


@pytest.mark.parametrize("config", OPTIMIZERS[::2], ids=lambda config: config["optimizer"])
def test_every_visit_starts_with_an_optimizer_that_remembers_nothing(
    config: dict[str, Any], clip: FrozenCLIP, fed: Federation
) -> None:
    """Two visits are two fresh optimizers of torch's in a row, alone and side by side; not one that runs on."""
    method = tiny.method("promptfl", lr=0.1, **config)
    tuner = method.tuner(clip, fed.base_names, "")
    draw = torch_stream(0, "batches")
    batches = [(torch.randn(4, 16, generator=draw), torch.randint(0, 4, (4,), generator=draw)) for _ in range(6)]
    start = [torch.randn(3, 24, generator=draw) for _ in range(2)]

    def plain(prompt: Tensor, fresh: bool) -> Tensor:
        leaf = torch.nn.Parameter(prompt.clone())
        optimizer = theirs(config, [{"params": [leaf], "lr": 0.1}])
        for number, (hidden, labels) in enumerate(batches):
            if fresh and number == 3:
                optimizer = theirs(config, [{"params": [leaf], "lr": 0.1}])
            logits = 20 * torch.nn.functional.normalize(hidden, dim=-1) @ tuner.features(leaf).T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        return leaf.detach()

    for prompt in start:
        once = train(method, tuner, {"prompt": prompt}, {}, batches[:3], tiny.CPU).tensors
        twice = train(method, tuner, once, {}, batches[3:], tiny.CPU).tensors
        assert (twice["prompt"] - plain(prompt, True)).abs().max() < 1e-5
        assert (twice["prompt"] - plain(prompt, False)).abs().max() > 1e-3
    now = [{"prompt": prompt} for prompt in start]
    for part in (batches[:3], batches[3:]):
        now = [
            done.tensors for done in train_together(method, tuner, [LocalJob(one, {}, part) for one in now], tiny.CPU)
        ]
    for one, prompt in zip(now, start, strict=True):
        assert (one["prompt"] - plain(prompt, True)).abs().max() < 1e-5
