"""The steps of a round as one object, so that a fault of released code can be wrapped around the right procedure."""

from __future__ import annotations

from collections.abc import Sequence

from fedvlm.data import Client
from fedvlm.federation import client as clients
from fedvlm.federation import server
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.server import ServerState
from fedvlm.federation.spec import RunSpec
from fedvlm.tensors import Named
from fedvlm.training import evaluation
from fedvlm.training.metrics import Metrics, Outputs
from fedvlm.training.optimizers import OptimizerFactory, make_optimizer
from fedvlm.training.site import Site


class Procedure:
    """The four steps: downlink, training, prediction, and choice of the evaluation that is the result."""

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """The tensors that a client receives (`server.downlink`)."""
        return server.downlink(spec, state, client)

    def train(
        self, spec: RunSpec, site: Site, round_: int, inputs: Sequence[ClientInput],
        factory: OptimizerFactory = make_optimizer,
    ) -> list[ClientUpdate]:  # fmt: skip
        """Train several clients (`client.train_clients`)."""
        return clients.train_clients(spec, site, round_, inputs, factory)

    def outputs(self, site: Site, client: Client, tensors: Named, received: Named) -> Outputs:
        """Predictions on a client's evaluation images (`evaluation.compute_outputs`)."""
        return evaluation.compute_outputs(site, client, tensors, received)

    def result(self, means: Sequence[Metrics]) -> int:
        """Position of the evaluation that is the result: the last one, so that nothing is chosen on test images.

        `means`: means over clients in the reported state, by evaluation.
        """
        return len(means) - 1


class ProcedureWrapper(Procedure):
    """A procedure that delegates every step to an inner one; subclasses change single steps."""

    def __init__(self, inner: Procedure) -> None:
        self.inner = inner

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """The downlink of the inner procedure."""
        return self.inner.downlink(spec, state, client)

    def train(
        self, spec: RunSpec, site: Site, round_: int, inputs: Sequence[ClientInput],
        factory: OptimizerFactory = make_optimizer,
    ) -> list[ClientUpdate]:  # fmt: skip
        """Train the clients one after another (`train_one`)."""
        return [self.train_one(spec, site, round_, one, factory) for one in inputs]

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train one client as the inner procedure does."""
        return self.inner.train(spec, site, round_, [one], factory)[0]

    def outputs(self, site: Site, client: Client, tensors: Named, received: Named) -> Outputs:
        """The predictions of the inner procedure."""
        return self.inner.outputs(site, client, tensors, received)

    def result(self, means: Sequence[Metrics]) -> int:
        """The choice of the inner procedure."""
        return self.inner.result(means)
