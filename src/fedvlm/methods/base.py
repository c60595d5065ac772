"""What a method is: six parts with defaults, so that a method's file holds only what its paper adds.

1. a configuration class
2. a tuner
3. `shared`, name patterns of what crosses the network (every other trainable tensor is private)
4. a loss
5. a downlink
6. an aggregate

Everything else is derived from these. Few methods need more: how a client puts its tensors together (`assemble`), what
it stores (`keep`) and sends (`uplink`), the server's first state (`server`), bytes of a downlink (`downlink_bytes`),
who sees what (`exposes`), rates by tensor (`rates`); which tensors are trained in a round (`trainable`), what the
server makes and sends besides (`constants`, among them the number of the round), two gradients in one step
(`Step.gradient`, `with_gradient`), statistics in the place of training (`statistics`). An optimisation at the server is
torch in `aggregate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.config import Count, Section, problems
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet, Tuner

EvalPoint = Literal["after_aggregation", "after_training"]
"""When in a round a client's model is measured."""


Rate = Annotated[float, Field(ge=0)]


class ExchangeConfig(Section):
    """Settings of every method with tensors that may cross."""

    share: list[str] | None = None
    """Name patterns of the tensors that cross, instead of the method's own; every other one is private."""


class Config(ExchangeConfig):
    """Settings of every method that trains."""

    lr: Rate = 0.002
    """Learning rate in the first round."""
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", serialization_alias="optimiser")
    schedule: Literal["constant", "cosine"] = "constant"
    """Over rounds: the rate stays, or falls from `lr` in the first round to zero after the last (half a cosine)."""
    epochs: Count = 1
    """Local epochs of one round."""
    batch: Count = 32
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum (Adam's first beta) starts from zero at every visit: no optimiser state outlives it or passes between
    clients."""
    second_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Adam's second beta."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    drop_last: bool = False
    """Leave out an epoch's incomplete last batch where the client has at least one full batch (as released)."""
    fine_tune: Annotated[int, Field(ge=0)] = 0
    """Number of local rounds after the last federated one, in which every client trains and nothing is sent."""


@dataclass(frozen=True)
class Step:
    """One batch of one client as a loss sees it. B images, K classes, G groups."""

    logits: Tensor
    """float32 `[B, K]`, or `[B, G, K]`."""
    labels: Tensor
    """`[B]`."""
    trained: Named
    """The client's tensors, leaves of the graph; those that are not trained in this round need no gradient."""
    received: Named
    classifier: Named
    """What the tuner made of the trained tensors, such as `text [K, E]`."""
    extras: Named = field(default_factory=dict)
    """What the tuner gave beside the logits."""

    def gradient(self, loss: Tensor) -> Named:
        """Gradient of a loss with respect to this client's tensors, those that are trained; zero where it has no part.

        The graph stays, so that a loss may ask for several gradients and combine them (`with_gradient`).
        """
        leaves = {name: tensor for name, tensor in self.trained.items() if tensor.requires_grad}
        found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
        return {name: torch.zeros_like(leaf) if one is None else one
                for (name, leaf), one in zip(leaves.items(), found, strict=True)}  # fmt: skip

    def with_gradient(self, value: Tensor, gradient: Named) -> Tensor:
        """A loss with this value and this gradient with respect to the client's tensors, whatever it was made of."""
        slope = torch.stack([(self.trained[name] * one.detach()).sum() for name, one in gradient.items()]).sum()
        return value.detach() + slope - slope.detach()


ROUND = "round"
"""Name of the constant that tells clients the number of the round."""
MEAN = "the mean over a round's clients"
UNKNOWN = "what the method's own downlink makes of it (not declared)"


@dataclass(frozen=True)
class Uplink:
    """What the server gets from one client: its name, its number of training images, the shared tensors."""

    client: str
    weight: float
    tensors: Named


class Method:
    """A personalised federated method. `trains` is false where there is nothing to learn."""

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    Config: ClassVar[type[Config]] = Config
    config: Any
    shared: tuple[str, ...] = ("*",)
    rates: ClassVar[Mapping[str, str]] = {"*": "lr"}
    """Which configuration field is the learning rate of which tensors (first matching pattern)."""
    state: EvalPoint = "after_aggregation"
    """The client state whose accuracies the paper reports."""
    trains: ClassVar[bool] = True
    shareable: ClassVar[bool] = True
    """Whether the setting `share` may choose what crosses; false where messages are not the shared tensors as such."""
    constants: ClassVar[tuple[str, ...]] = ()
    """Name patterns of what the server makes and sends besides shared tensors, and nobody trains. `round`, where it is
    named, is the number of the round, an int64 without dimensions from 0 on."""
    gathers: ClassVar[bool] = False
    """Whether clients compute `statistics` once, in one round of all clients, instead of training."""
    mixing: ClassVar[tuple[float, ...]] = tuple(step / 10 for step in range(11))
    """Weights of zero-shot's logits at which the method's trade-off is drawn (0: the method, 1: zero-shot)."""

    def __init__(self, settings: Mapping[str, Any] | None = None, table: str | None = None) -> None:
        """`table` is the name of the `[method.*]` table the settings come from, for error messages."""
        try:
            self.config = self.Config.model_validate(dict(settings or {}))
        except ValidationError as error:
            raise FedvlmError("\n".join(problems(error, self.Config, f"method.{table or self.name}."))) from None
        if self.trains and self.config.share is not None:
            if not self.shareable:
                raise FedvlmError(
                    f"setting 'method.{table or self.name}.share': {self.name} makes its messages itself; take the "
                    "setting (or the one of method.all) away"
                )
            self.shared = tuple(self.config.share)
        if self.local_rounds:
            self.state = "after_training"

    @classmethod
    def check(cls, key: str, value: Any) -> None:
        """Refuse a value that `[method.all]` gives to a setting of this method."""
        try:
            cls.Config.model_validate({key: value})
        except ValidationError as error:
            found = [detail for detail in error.errors() if detail["loc"]]
            if found:
                raise FedvlmError(problems(error, cls.Config, "method.all.")[0]) from None

    @property
    def descends(self) -> bool:
        """Whether clients train by gradient steps."""
        return self.trains and not self.gathers

    @property
    def local_rounds(self) -> int:
        """Number of rounds after the federated ones, in which every client trains for itself."""
        return int(self.config.fine_tune) if self.descends else 0

    def rounds(self, configured: int) -> int:
        """Number of federated rounds: the experiment's, or one for statistics."""
        return 1 if self.gathers else configured

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Tuner:
        """The tuner for a class list (called for the base and for the novel classes)."""
        raise NotImplementedError(f"{type(self).__name__} defines no tuner")

    def trainable(self, received: Named) -> tuple[str, ...]:
        """Name patterns of the tensors that a client trains with what it received.

        All others keep their values in this round, to the bit: no gradient and no decay reaches them, and they are not
        sent (RoLoRA trains one factor in even and the other in odd rounds). The contract names all shared tensors.
        """
        return ("*",)

    def statistics(self, tuner: Tuner, support: SupportSet) -> Named:
        """What a client computes of its images, in the place of training, where `gathers` is true.

        Tensors with the names, shapes and dtypes of `tuner.init`; the support set gives activations at the tuner's
        entry and labels.
        """
        raise NotImplementedError(f"{type(self).__name__} gathers statistics, but defines none")

    def loss(self, step: Step) -> Tensor:
        """Loss of a batch; may anchor what is trained to what was received."""
        return F.cross_entropy(step.logits, step.labels)

    def assemble(self, personal: Named, received: Named) -> Named:
        """A client's tensors: its own with the received ones of the same names laid over them."""
        return {name: received.get(name, tensor) for name, tensor in personal.items()}

    def keep(self, trained: Named, received: Named, draw: np.random.Generator) -> Named:
        """What a client stores beside its trained tensors, such as a choice it made."""
        return {}

    def uplink(self, personal: Named, received: Named) -> Named:
        """What a client sends of what it stores after training: the shared tensors that it trained in this round."""
        return tensors.select(tensors.select(personal, self.shared), self.trainable(received))

    def server(self, initial: Named) -> Named:
        """The server's state before the first round: the shared tensors as initialised, and `round` if it is needed."""
        first = {ROUND: torch.tensor(0)} if ROUND in self.constants else {}
        return tensors.select(initial, self.shared) | first

    def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
        """The named tensors this client receives now: shared ones and constants."""
        return tensors.select(server, (*self.shared, *self.constants))

    def experts(self, server: Named, client: str, draw: np.random.Generator) -> list[str]:
        """Names of the other clients whose own tensors are in this client's downlink, in the tuner's order.

        Known to the server alone. Where there are any, the tuner has `weights` (see `training.site.expert_weights`).
        """
        return []

    def downlink_bytes(self, shared_bytes: int, clients: int) -> tuple[int, int]:
        """Least and most bytes one client receives in a round; a test holds the downlink to it."""
        total = shared_bytes + (8 if ROUND in self.constants else 0)
        return total, total

    @property
    def budget(self) -> str:
        """How long a client trains, such as `2 epochs x 32` images of a batch, `+ 5 visits` after the last round."""
        if not self.trains:
            return ""
        if self.gathers:
            return "statistics, once"
        epochs, visits = self.config.epochs, self.local_rounds
        own = f" + {visits} visit{'s' * (visits > 1)}" if visits else ""
        return f"{epochs} epoch{'s' * (epochs > 1)} x {self.config.batch}{own}"

    @property
    def exposes(self) -> str:
        """What other clients get to see of what a client sends, in words for the contract."""
        plain = type(self).downlink is Method.downlink and type(self).aggregate is Method.aggregate
        return MEAN if plain else UNKNOWN

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """The next server state from this round's uplinks: the mean weighted by images."""
        # In the order of names: replies may arrive in any order, sums of floats depend on it.
        replies = sorted(uplinks, key=lambda up: up.client)
        return server | tensors.weighted_mean([up.tensors for up in replies], [up.weight for up in replies])

    def rate(self, name: str) -> float:
        """Configured learning rate of a tensor."""
        for pattern, setting in self.rates.items():
            if tensors.matches(name, [pattern]):
                return float(getattr(self.config, setting))
        raise KeyError(name)
