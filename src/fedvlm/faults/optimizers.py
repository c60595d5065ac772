"""Faults of the released optimizers: one for all clients, an oscillating learning rate, half precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault, replace_method, subclass_method
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.procedure import Procedure, ProcedureWrapper
from fedvlm.federation.simulation import Simulation
from fedvlm.federation.spec import RunSpec
from fedvlm.methods import Method
from fedvlm.methods.base import Uplink
from fedvlm.streams import stream
from fedvlm.tensors import Named
from fedvlm.training.local import epoch_batches
from fedvlm.training.optimizers import Optimizer, OptimizerFactory
from fedvlm.training.site import Site

WARM_UP = 1e-5 / 0.002
"""The released warm-up rate over the released rate."""


class SharedOptimizer(Fault):
    """Momentum of one client moves the next client's tensors, because the optimizer's state is never reset.

    Clients train in the order of their names; released, the order is random in every round.
    """

    name = "shared_optimiser"
    title = "one optimiser for all clients: momentum passes from each visit to the next"
    code = "pFedMMA, pFedMoAP, FedOTP, FedPGP, PromptFolio, FedMGP"
    where = "pFedMMA trainers/pFedMMA.py:266-268, federated_main.py:511-525; pFedMoAP trainers/pfedmoap.py:277-283"
    methods = ("cocoop", "coop", "fedamp", "fedmgp", "fedmma", "fedotp", "fedper", "fedpgp", "local_mma", "maple",
               "pfedmma", "pfedmoap", "promptfl", "promptfl_prox", "promptfolio")  # fmt: skip

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether the optimizer has a state."""
        stateful = method.descends and (method.config.optimizer != "sgd" or method.config.momentum > 0)
        return method.name in cls.methods and stateful

    def simulation(self, run: Simulation) -> Simulation:
        """The run with one optimizer state for all clients."""
        return replace(run, procedure=_SharedOptimizer(run.procedure))


class _SharedOptimizer(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.state: dict[str, Named] = {}
        """What the optimizer of the client that trained last has kept, by the leaf's name."""

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train with the optimizer state of the last client."""
        return super().train_one(spec, site, round_, one, partial(self._make_optimizer, factory))

    def _make_optimizer(self, inner: OptimizerFactory, method: Method, leaves: Named, lr_factor: float) -> Optimizer:
        optimizer = inner(method, leaves, lr_factor)
        self.state = optimizer.state = {name: kept for name, kept in self.state.items() if name in leaves}
        return optimizer


class OscillatingRate(Fault):
    """The prompt's learning rate follows a cosine over E local epochs, whose counter continues from client to client.

    Let k be the number of earlier local epochs of all clients. The configured rate is multiplied by 0.005 for k = 0
    (released: 1e-5 of 0.002), and by (1 + cos(pi (k - 1) / E)) / 2 for k > 0, instead of the configured schedule: the
    period is 2E epochs, and the rate never anneals. The gate's rate does not change.
    """

    name = "oscillating_rate"
    title = "a cosine over local epochs runs on from client to client: one has high rates, the next low ones"
    code = "pFedMoAP (and its PromptFL, CoOp)"
    where = "pFedMoAP trainers/pfedmoap.py:382-383, Dassl/dassl/optim/lr_scheduler.py:270-291"
    methods = ("coop", "pfedmoap", "promptfl", "promptfl_prox")

    def simulation(self, run: Simulation) -> Simulation:
        """The run with rates that are set before every step."""
        return replace(run, procedure=_OscillatingRate(run.procedure))


class _OscillatingRate(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.epochs = 0
        """Local epochs of all clients before this one."""
        self.steps = 1
        """Number of steps in an epoch of the client that trains."""

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train with rates that depend on the number of earlier epochs of all clients."""
        config, images = spec.method.config, len(one.client.train)
        self.steps = max(1, len(epoch_batches(images, config.batch, config.drop_last, stream(0, "count"))))
        update = super().train_one(spec, site, round_, one, partial(self._make_optimizer, factory))
        self.epochs += config.epochs
        return update

    def _make_optimizer(self, inner: OptimizerFactory, method: Method, leaves: Named, lr_factor: float) -> Optimizer:
        optimizer = inner(method, leaves, lr_factor)
        swinging = {name: method.rate(name) for name in leaves if _rate_setting(method, name) == "lr"}
        steps = itertools.count()

        def set_rates() -> None:
            factor = swing_factor(self.epochs + next(steps) // self.steps, method.config.epochs)
            optimizer.rates |= {name: rate * factor for name, rate in swinging.items()}

        optimizer.before_step.append(set_rates)
        return optimizer


def swing_factor(epoch: int, period: int) -> float:
    """Factor of the learning rate in local epoch `epoch` (from 0, counted over all clients)."""
    return WARM_UP if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / period))


def _rate_setting(method: Method, name: str) -> str:
    return next(field for pattern, field in method.rates.items() if tensors.matches(name, [pattern]))


class HalfPrecision(Fault):
    """Trained tensors, gradients, momentum and the server's mean are rounded to half precision, without loss scaling.

    Arithmetic is in single precision; results are rounded after every step, and before the first step.
    """

    name = "half_precision"
    title = "prompt, gate and momentum in half precision without loss scaling: small steps vanish"
    code = "pFedMoAP, FedOTP (and their PromptFL, CoOp)"
    where = 'pFedMoAP configs: PREC = "fp16"; also FedOTP'
    methods = ("coop", "fedotp", "pfedmoap", "promptfl", "promptfl_prox")

    def simulation(self, run: Simulation) -> Simulation:
        """The run with rounding around every step and in the server's mean."""
        initial = {name: _round_to_half(tensor) for name, tensor in run.spec.initial.items()}
        halved = replace_method(run, subclass_method(run.spec.method, _HalfPrecisionServer), initial=initial)
        return replace(halved, procedure=_HalfPrecision(run.procedure))


class _HalfPrecision(ProcedureWrapper):
    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train with rounding after every step."""
        return super().train_one(spec, site, round_, one, partial(self._make_optimizer, factory))

    def _make_optimizer(self, inner: OptimizerFactory, method: Method, leaves: Named, lr_factor: float) -> Optimizer:
        _round_in_place(leaves.values())
        optimizer = inner(method, leaves, lr_factor)

        def round_after() -> None:
            _round_in_place(leaves.values())
            _round_in_place(tensor for kept in optimizer.state.values() for tensor in kept.values())

        optimizer.before_step.append(lambda: _round_in_place(leaf.grad for leaf in leaves.values()))
        optimizer.after_step.append(round_after)
        return optimizer


class _HalfPrecisionServer(Method):
    """A method whose server state is rounded to half precision."""

    def server(self, initial: Named) -> Named:
        """The initial server state, rounded."""
        return {name: _round_to_half(tensor) for name, tensor in super().server(initial).items()}

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """The aggregate of the method, rounded."""
        return {name: _round_to_half(tensor) for name, tensor in super().aggregate(server, uplinks).items()}


@torch.no_grad()
def _round_in_place(values: Iterable[Tensor | None]) -> None:
    for value in values:
        # Adam counts its steps in a tensor without dimensions.
        if value is not None and value.is_floating_point() and value.ndim:
            value.copy_(_round_to_half(value))


def _round_to_half(tensor: Tensor) -> Tensor:
    """The tensor rounded to half precision, in its own dtype."""
    return tensor.to(torch.float16).to(tensor.dtype) if tensor.is_floating_point() else tensor
