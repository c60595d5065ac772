"""Optimizers of local training: torch's own for a client alone, and the same rules over stacked clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fedvlm.methods.base import Config, Method
from fedvlm.tensors import Named

EPSILON = 1e-8
"""Adam's, as in torch."""
OptimizerFactory = Callable[[Method, Named, float], torch.optim.Optimizer]
"""A function that makes the optimizer of a client's local training, such as `make_optimizer`."""


def make_optimizer(method: Method, leaves: Named, lr_factor: float = 1.0) -> torch.optim.Optimizer:
    """A new optimizer over the leaves, each at its configured rate times `lr_factor`; weight decay includes biases."""
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


class StackedOptimizer:
    """`make_optimizer` over stacked tensors `[C, ...]` of C clients, some of them at a time."""

    def __init__(self, method: Method, stacked: Named, lr_factor: float) -> None:
        self.config: Config = method.config
        self.stacked = stacked
        self.rates = {name: method.rate(name) * lr_factor for name in stacked}
        self.first = {name: torch.zeros_like(tensor) for name, tensor in stacked.items()}
        adam = self.config.optimizer != "sgd"
        self.second = {name: torch.zeros_like(tensor) for name, tensor in stacked.items()} if adam else {}
        self.steps = torch.zeros(len(next(iter(stacked.values()))), device=next(iter(stacked.values())).device)

    def leaves(self, rows: Tensor) -> Named:
        """Copies of these clients' tensors that require gradients."""
        return {name: tensor.index_select(0, rows).requires_grad_() for name, tensor in self.stacked.items()}

    @torch.no_grad()
    def step(self, rows: Tensor, leaves: Named) -> None:
        """One update of the clients in `rows`; tensors without a gradient are left as they are."""
        self.steps.index_add_(0, rows, torch.ones(len(rows), device=self.steps.device))
        for name, leaf in self._moved(leaves):
            change = self._sgd if self.config.optimizer == "sgd" else self._adam
            self.stacked[name].index_copy_(0, rows, change(name, rows, leaf))

    def _moved(self, leaves: Named) -> Iterable[tuple[str, Tensor]]:
        return ((name, leaf) for name, leaf in leaves.items() if leaf.grad is not None)

    def _sgd(self, name: str, rows: Tensor, leaf: Tensor) -> Tensor:
        assert leaf.grad is not None
        gradient = leaf.grad.add(leaf, alpha=self.config.weight_decay)
        momentum = self.first[name].index_select(0, rows).mul_(self.config.momentum).add_(gradient)
        self.first[name].index_copy_(0, rows, momentum)
        return leaf.detach().sub(momentum, alpha=self.rates[name])

    def _adam(self, name: str, rows: Tensor, leaf: Tensor) -> Tensor:
        assert leaf.grad is not None
        config, rate, value = self.config, self.rates[name], leaf.detach()
        gradient = leaf.grad
        if config.optimizer == "adamw":
            value = value * (1 - rate * config.weight_decay)
        else:
            gradient = gradient.add(leaf, alpha=config.weight_decay)
        first = self.first[name].index_select(0, rows).lerp_(gradient, 1 - config.momentum)
        second = self.second[name].index_select(0, rows).mul_(config.second_momentum)
        second.addcmul_(gradient, gradient, value=1 - config.second_momentum)
        self.first[name].index_copy_(0, rows, first)
        self.second[name].index_copy_(0, rows, second)
        steps = self.steps.index_select(0, rows).view(-1, *[1] * (leaf.ndim - 1))
        scale = rate / (1 - config.momentum**steps)
        spread = (second / (1 - config.second_momentum**steps)).sqrt_().add_(EPSILON)
        return value - scale * first / spread
