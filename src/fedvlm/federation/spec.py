"""What a server and all its clients agree on before the first round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedvlm.federation import messages
from fedvlm.methods.base import EvalPoint, Method
from fedvlm.tensors import Named
from fedvlm.training.metrics import METRICS, Metric


@dataclass(frozen=True)
class RunSpec:
    """One method with one seed: the same object on every machine of a federation. It knows no image and no client."""

    method: Method
    initial: Named
    """Trainable tensors at the start, the same for every client, private ones included."""
    seed: int
    rounds: int
    views: str | int = "none"
    """What training sees (see `Experiment.views`)."""
    report: EvalPoint | None = None
    """The state to report where the experiment names one."""

    metrics: tuple[Metric, ...] = METRICS
    """What clients measure, and how it is pooled."""

    def __post_init__(self) -> None:
        messages.check_share(self.method, self.initial)

    @property
    def reported(self) -> EvalPoint:
        """The state that heads the table: the experiment's, or the method's own."""
        return self.report or self.method.state

    @property
    def last_round(self) -> int:
        """Number of the last round, counting the local rounds after the federated ones, in which nothing is sent."""
        return self.rounds + (self.method.config.fine_tune if self.method.trains else 0)

    @cached_property
    def uplink_template(self) -> Named:
        """An uplink of untrained tensors: names, shapes and dtypes of all uplinks."""
        return messages.uplink_template(self.method, self.initial)

    def assemble(self, personal: Named | None, received: Named) -> Named:
        """A client's tensors: those it stored last (or the common start) with the received ones in their places."""
        return self.method.assemble(self.initial if personal is None else personal, received)
