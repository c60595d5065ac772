"""Optimizers of local training: torch's rules, a new state for every client and round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from fedvlm.methods.base import Config, Method
from fedvlm.tensors import Named

EPSILON = 1e-8
"""Adam's, as in torch."""


class Optimizer:
    """SGD, Adam or AdamW over a client's leaves; biases decay like all others.

    The rules are torch's own functions. Its classes would import torch's compiler when the first of them is made: 1.8 s
    and 800 modules at the start of every process.
    """

    def __init__(self, config: Config, leaves: Named, rates: dict[str, float]) -> None:
        """`rates` holds a learning rate for each of the leaves."""
        self.config, self.leaves, self.rates = config, leaves, rates
        self.state: dict[str, Named] = {}
        """What is kept from step to step, by the leaf's name: nothing before its first step with a gradient."""
        self.before_step: list[Callable[[], None]] = []
        """Called before every step, when gradients are there."""
        self.after_step: list[Callable[[], None]] = []
        """Called after every step."""

    @torch.no_grad()
    def step(self) -> None:
        """Move every leaf that has a gradient; leaves of one rate together, which is faster on a GPU."""
        for call in self.before_step:
            call()
        moved = [name for name, leaf in self.leaves.items() if leaf.grad is not None]
        for rate in dict.fromkeys(self.rates[name] for name in moved):
            self._step([name for name in moved if self.rates[name] == rate], rate)
        for call in self.after_step:
            call()

    def _step(self, names: list[str], rate: float) -> None:
        leaves = [self.leaves[name] for name in names]
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        momentum, decay = self.config.momentum, self.config.weight_decay
        if self.config.optimizer == "sgd":
            buffers = [self.state.get(name, {}).get("momentum") for name in names]
            sgd(leaves, gradients, buffers, weight_decay=decay, momentum=momentum, lr=rate, dampening=0.0,
                nesterov=False, maximize=False)  # fmt: skip
            self.state |= {n: {"momentum": one} for n, one in zip(names, buffers, strict=True) if one is not None}
            return
        for name, leaf in zip(names, leaves, strict=True):
            if name not in self.state:
                zeros = {part: torch.zeros_like(leaf) for part in ("mean", "square")}
                self.state[name] = {**zeros, "steps": torch.tensor(0.0)}
        means, squares, steps = ([self.state[name][part] for name in names] for part in ("mean", "square", "steps"))
        rule = adam if self.config.optimizer == "adam" else adamw
        rule(leaves, gradients, means, squares, [], steps, amsgrad=False, beta1=momentum,
             beta2=self.config.second_momentum, lr=rate, weight_decay=decay, eps=EPSILON, maximize=False)  # fmt: skip


OptimizerFactory = Callable[[Method, Named, float], Optimizer]
"""What makes the optimizer of a client's local training, as `make_optimizer` does."""


def make_optimizer(method: Method, leaves: Named, lr_factor: float = 1.0) -> Optimizer:
    """A new optimizer over the leaves, each at its configured rate times `lr_factor`."""
    return Optimizer(method.config, leaves, {name: method.rate(name) * lr_factor for name in leaves})
