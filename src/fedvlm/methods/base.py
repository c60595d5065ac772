"""What a method is: six parts with defaults, so that a method's file holds only what its paper adds.

1. a configuration class; 2. a tuner; 3. `shared`, name patterns of what crosses the network (every other trainable
tensor is private); 4. a loss; 5. a downlink; 6. an aggregate. Everything else is derived from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Section, problems
from fedvlm.tensors import Named
from fedvlm.tuners.base import Tuner

State = Literal["after_aggregation", "after_training"]


class Config(Section):
    """What every trained method has."""

    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.002
    """Learning rate of SGD in the first round."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Over rounds: the rate stays, or falls from `lr` in the first round to zero after the last (half a cosine)."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Local epochs of one visit."""
    batch: Annotated[int, Field(ge=1)] = 32
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum starts from zero at every visit: no optimiser state outlives it or passes between clients."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    drop_last: bool = False
    """Leave out an epoch's incomplete last batch where the client has at least one full batch (as released)."""


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
    shared: ClassVar[tuple[str, ...]] = ("*",)
    rates: ClassVar[Mapping[str, str]] = {"*": "lr"}
    """Which configuration field is the learning rate of which tensors (first matching pattern)."""
    state: ClassVar[State] = "after_aggregation"
    """The client state whose accuracies the paper reports."""
    trains: ClassVar[bool] = True

    def __init__(self, settings: Mapping[str, Any] | None = None, table: str | None = None) -> None:
        """`table` is the name of the `[method.*]` table the settings come from, for error messages."""
        try:
            self.config = self.Config.model_validate(dict(settings or {}))
        except ValidationError as error:
            raise FedvlmError("\n".join(problems(error, self.Config, f"method.{table or self.name}."))) from None

    @classmethod
    def check(cls, key: str, value: Any) -> None:
        """Refuse a value that `[method.all]` gives to a setting of this method."""
        try:
            cls.Config.model_validate({key: value})
        except ValidationError as error:
            found = [detail for detail in error.errors() if detail["loc"]]
            if found:
                raise FedvlmError(problems(error, cls.Config, "method.all.")[0]) from None

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Tuner:
        """The tuner for a class list (called for the base and for the novel classes)."""
        raise NotImplementedError(f"{type(self).__name__} defines no tuner")

    def loss(self, logits: Tensor, labels: Tensor, trained: Named, received: Named) -> Tensor:
        """Loss of a batch, logits `[B, K]` and labels `[B]`; may anchor `trained` to what was `received`."""
        return F.cross_entropy(logits, labels)

    def server(self, initial: Named) -> Named:
        """The server's state before the first round: the shared tensors as initialised."""
        return tensors.select(initial, self.shared)

    def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
        """The named tensors this client receives now."""
        return tensors.select(server, self.shared)

    def downlink_bytes(self, shared_bytes: int, clients: int) -> tuple[int, int]:
        """Least and most bytes one client receives in a round; a test holds the downlink to it."""
        return shared_bytes, shared_bytes

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """The next server state from this round's uplinks: the mean weighted by images."""
        # In the order of names: replies may arrive in any order, sums of floats depend on it.
        replies = sorted(uplinks, key=lambda up: up.client)
        return server | tensors.weighted_mean([up.tensors for up in replies], [up.weight for up in replies])

    def rate(self, name: str) -> float:
        """Configured learning rate of a tensor."""
        for pattern, field in self.rates.items():
            if tensors.matches(name, [pattern]):
                return float(getattr(self.config, field))
        raise KeyError(name)
