"""How a round is done, as one object: so that a fault of released code can be put around the right procedure."""

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
    """What a server sends, how clients train, what a model predicts, which evaluation is the result."""

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """What a client receives (`server.downlink`)."""
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

        `means` are those over clients, in the reported state.
        """
        return len(means) - 1


class ProcedureWrapper(Procedure):
    """A procedure that does as an inner one does; a subclass changes a part of it."""

    def __init__(self, inner: Procedure) -> None:
        self.inner = inner

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """As the inner one."""
        return self.inner.downlink(spec, state, client)

    def train(
        self, spec: RunSpec, site: Site, round_: int, inputs: Sequence[ClientInput],
        factory: OptimizerFactory = make_optimizer,
    ) -> list[ClientUpdate]:  # fmt: skip
        """As the inner one, client by client (`train_one`)."""
        return [self.train_one(spec, site, round_, one, factory) for one in inputs]

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """As the inner one trains this client."""
        return self.inner.train(spec, site, round_, [one], factory)[0]

    def outputs(self, site: Site, client: Client, tensors: Named, received: Named) -> Outputs:
        """As the inner one."""
        return self.inner.outputs(site, client, tensors, received)

    def result(self, means: Sequence[Metrics]) -> int:
        """As the inner one."""
        return self.inner.result(means)
