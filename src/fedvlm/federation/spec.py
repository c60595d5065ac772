"""The specification of a run, on which server and clients agree before the first round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedvlm.federation import messages
from fedvlm.methods.base import EvalPoint, Method
from fedvlm.tensors import Named
from fedvlm.training.metrics import METRICS, Metric


@dataclass(frozen=True)
class RunSpec:
    """One method with one seed: equal on every machine of a federation, without images and without clients."""

    method: Method
    initial: Named
    """Initial trainable tensors, private ones included; the same for every client."""
    seed: int
    rounds: int
    views: str | int = "none"
    """Views of training images (see `Experiment.views`)."""
    report: EvalPoint | None = None
    """The state to report; None for the method's own."""
    metrics: tuple[Metric, ...] = METRICS
    """The metrics that clients measure."""

    def __post_init__(self) -> None:
        messages.check_share(self.method, self.initial)

    @property
    def reported(self) -> EvalPoint:
        """The reported state: the experiment's choice, or the method's own."""
        return self.report or self.method.state

    @property
    def last_round(self) -> int:
        """Number of the last round, including the local rounds that follow the federated ones."""
        return self.rounds + self.method.local_rounds

    @cached_property
    def may_cross(self) -> Named:
        """Every tensor that leaves a client in some round, untrained."""
        return messages.may_cross(self.method, self.initial)

    def expected_uplink(self, received: Named) -> Named:
        """An uplink of untrained tensors: names, shapes and dtypes that a client sends that received these tensors."""
        return messages.uplink_template(self.method, self.initial, received)

    def assemble(self, personal: Named | None, received: Named) -> Named:
        """A client's tensors: its stored ones (or the initial ones) with the received ones laid over them."""
        return self.method.assemble(self.initial if personal is None else personal, received)
