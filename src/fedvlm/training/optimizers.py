"""Optimizers of local training: torch's own, a new one for every client and round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedvlm.methods.base import Config, Method
from fedvlm.tensors import Named

EPSILON = 1e-8
"""Adam's, as in torch."""
OptimizerFactory = Callable[[Method, Named, float], torch.optim.Optimizer]
"""What makes the optimizer of a client's local training, as `make_optimizer` does."""


def make_optimizer(method: Method, leaves: Named, lr_factor: float = 1.0) -> torch.optim.Optimizer:
    """A new optimizer over the leaves, each at its configured rate times `lr_factor`; biases decay like all others."""
    config: Config = method.config
    rates: dict[float, list[Tensor]] = {}
    for name, leaf in leaves.items():
        rates.setdefault(method.rate(name), []).append(leaf)
    groups = [{"params": params, "lr": rate * lr_factor} for rate, params in rates.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    betas = (config.momentum, config.second_momentum)
    return kind(groups, betas=betas, eps=EPSILON, weight_decay=config.weight_decay)
