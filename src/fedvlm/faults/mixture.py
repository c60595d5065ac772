"""Faults of pFedMoAP's released loop: fixed or left-over experts, inherited gates, an open pool."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedvlm import tensors
from fedvlm.data import Client
from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault, replace_method, subclass_method
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.procedure import Procedure, ProcedureWrapper
from fedvlm.federation.server import ServerState
from fedvlm.federation.simulation import Simulation
from fedvlm.federation.spec import RunSpec
from fedvlm.methods import Method
from fedvlm.methods.pfedmoap import EXPERT, POOL, PFedMoAP
from fedvlm.streams import stream
from fedvlm.tensors import Named, clone
from fedvlm.training.metrics import Outputs
from fedvlm.training.optimizers import OptimizerFactory
from fedvlm.training.site import Site


class _MixtureFault(Fault):
    """A fault of pFedMoAP, which applies if there are experts."""

    methods = ("pfedmoap",)
    code = "pFedMoAP"

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether the method uses experts."""
        return method.name in cls.methods and not method.config.alone


class FixedExperts(_MixtureFault):
    """Experts are the first K clients that have trained, in a permutation that is drawn once."""

    name = "fixed_experts"
    title = "experts are the first of one permutation drawn at the start, whatever the client and round"
    where = "pFedMoAP federated_main.py:370, 402 (--sparse_selection unused), trainers/pfedmoap.py:296-297, 321-329"

    def simulation(self, run: Simulation) -> Simulation:
        """The run with fixed experts."""
        names = sorted(client.name for client in run.site.federation.clients)
        order = stream(run.spec.seed, "fault", self.name).permutation(names).tolist()
        return replace_method(run, subclass_method(run.spec.method, _FixedExpertChoice, order=order))


class _FixedExpertChoice(PFedMoAP):
    order: list[str]

    def experts(self, server: Named, client: str, draw: np.random.Generator) -> list[str]:
        """The first other clients of the order that are in the pool; none for a client that is not in the pool."""
        if self.config.alone or f"{POOL}{client}" not in server:
            return []
        others = [name for name in self.order if name != client and f"{POOL}{name}" in server]
        return others[: self.config.experts - 1]


class InheritedGate(_MixtureFault):
    """In its second round of training a client's gate starts from the gate of the client that trained before it.

    The gate of a client's first round is not stored, so in its second round the model still holds the gate of the
    client that trained last. From its third round on a client has its own gate.
    """

    name = "inherited_gate"
    title = "at its second visit a client's gate begins as the client before left its own"
    where = "pFedMoAP federated_main.py:215, 365-368, 386, 400"

    def simulation(self, run: Simulation) -> Simulation:
        """The run with inherited gates."""
        return replace(run, procedure=_InheritedGate(run.procedure))


class _InheritedGate(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.visits: dict[str, int] = {}
        self.gate: Named = {}
        """Gate of the client that trained last."""

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train; in a client's second round with the gate of the client that trained before."""
        name = one.client.name
        if self.visits.get(name) == 1:
            one = replace(one, personal={**(one.personal or {}), **clone(self.gate)})
        update = super().train_one(spec, site, round_, one, factory)
        self.visits[name] = self.visits.get(name, 0) + 1
        self.gate = tensors.select(update.personal, ["gating.*"])
        return update


class LeftoverExperts(_MixtureFault):
    """A client without experts is trained, and tested in that round, with the experts of the client before it.

    In the first round no client has experts, so the fault needs clients that first train later: participation below 1.
    """

    name = "leftover_experts"
    title = "a client's first visit after the first round uses the experts of the client before it"
    where = "pFedMoAP trainers/pfedmoap.py:186-187, 230; federated_main.py:372-374"

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether some clients first train in a later round."""
        return super().applies(method, experiment) and experiment.participation < 1

    def simulation(self, run: Simulation) -> Simulation:
        """The run with left-over experts."""
        return replace(run, procedure=_LeftoverExperts(run.procedure))


class _LeftoverExperts(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.experts: Named = {}
        """Experts of the last client that trained with any."""
        self.given: dict[str, Named] = {}
        """Left-over experts of this round, by client."""
        self.round = -1

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train; a client without experts has those of the client before."""
        if round_ != self.round:
            self.round, self.given = round_, {}
        own = tensors.select(one.received, [f"{EXPERT}*"])
        if not own and self.experts:
            self.given[one.client.name] = self.experts
            one = replace(one, received=one.received | self.experts)
        self.experts = own or self.experts
        return super().train_one(spec, site, round_, one, factory)

    def outputs(self, site: Site, client: Client, own: Named, received: Named) -> Outputs:
        """Predict with the experts of the client's training."""
        if not tensors.select(received, [f"{EXPERT}*"]):
            received = received | self.given.get(client.name, {})
        return super().outputs(site, client, own, received)


class OpenPool(_MixtureFault):
    """Prompts enter the pool during the round: later clients receive prompts of the same round.

    Clients are tested with the experts of their training; clients that did not train, with the pool at the round's end.
    """

    name = "open_pool"
    title = "prompts enter the pool during the round, so that later clients get this round's"
    where = "pFedMoAP federated_main.py:357-387"

    def simulation(self, run: Simulation) -> Simulation:
        """The run with an open pool."""
        return replace(run, procedure=_OpenPool(run.procedure))


@dataclass
class _RoundPool:
    """Prompts that were written in a round, and tensors that its clients received."""

    written: Named = field(default_factory=dict)
    given: dict[str, Named] = field(default_factory=dict)


class _OpenPool(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.rounds: dict[int, _RoundPool] = {}
        """Pools by round (from 0): the present round and, during its evaluation, the next one."""

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """The downlink from the present pool; a client that has received already gets the same tensors again."""
        now = self.rounds.setdefault(state.round, _RoundPool())
        if client in now.given:
            return clone(now.given[client])
        return super().downlink(spec, ServerState(state.round, state.server | now.written), client)

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train, and write the prompt to the pool immediately."""
        self.rounds = {number: each for number, each in self.rounds.items() if number >= round_}
        now = self.rounds.setdefault(round_, _RoundPool())
        update = super().train_one(spec, site, round_, one, factory)
        now.given[one.client.name] = one.received
        if round_ < spec.rounds:  # local rounds send nothing
            now.written[f"{POOL}{one.client.name}"] = update.uplink.tensors["prompt"]
        return update
