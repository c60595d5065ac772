"""Faults of pFedMoAP's released loop: experts fixed at the start or left over, gates inherited, an open pool."""

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
    methods = ("pfedmoap",)
    code = "pFedMoAP"

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Where there are experts."""
        return method.name in cls.methods and not method.config.alone


class FixedExperts(_MixtureFault):
    """Experts are the first K clients, of those that have trained, of one permutation drawn at the start."""

    name = "fixed_experts"
    title = "experts are the first of one permutation drawn at the start, whatever the client and round"
    where = "pFedMoAP federated_main.py:370, 402 (--sparse_selection unused), trainers/pfedmoap.py:296-297, 321-329"

    def simulation(self, run: Simulation) -> Simulation:
        """Another choice of experts."""
        names = sorted(client.name for client in run.site.federation.clients)
        order = stream(run.spec.seed, "fault", self.name).permutation(names).tolist()
        return replace_method(run, subclass_method(run.spec.method, _FixedExpertChoice, order=order))


class _FixedExpertChoice(PFedMoAP):
    order: list[str]

    def choose(self, server: Named, client: str, draw: np.random.Generator) -> list[str]:
        """The first others of the order that are in the pool; nobody for a client that is not."""
        if self.config.alone or f"{POOL}{client}" not in server:
            return []
        others = [name for name in self.order if name != client and f"{POOL}{name}" in server]
        return others[: self.config.experts - 1]


class InheritedGate(_MixtureFault):
    """At its second visit a client's gate begins as the client before it left its own.

    The gate of a first visit is not stored, and the second visit loads nothing over the model, which still holds the
    gate of whoever was visited last. From the third visit on a client has a gate of its own.
    """

    name = "inherited_gate"
    title = "at its second visit a client's gate begins as the client before left its own"
    where = "pFedMoAP federated_main.py:215, 365-368, 386, 400"

    def simulation(self, run: Simulation) -> Simulation:
        """Gates handed on."""
        return replace(run, procedure=_InheritedGate(run.procedure))


class _InheritedGate(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.visits: dict[str, int] = {}
        self.gate: Named = {}
        """Of the client that trained last."""

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """With the gate of the client before at the second visit."""
        name = one.client.name
        if self.visits.get(name) == 1:
            one = replace(one, personal={**(one.personal or {}), **clone(self.gate)})
        update = super().train_one(spec, site, round_, one, factory)
        self.visits[name] = self.visits.get(name, 0) + 1
        self.gate = tensors.select(update.personal, ["gating.*"])
        return update


class LeftoverExperts(_MixtureFault):
    """A client that has no experts yet is trained, and tested in that round, with those of the client before it.

    Nothing is left over in the first round, so it needs clients that come later: participation below 1.
    """

    name = "leftover_experts"
    title = "a client's first visit after the first round uses the experts of the client before it"
    where = "pFedMoAP trainers/pfedmoap.py:186-187, 230; federated_main.py:372-374"

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Where some clients come later."""
        return super().applies(method, experiment) and experiment.participation < 1

    def simulation(self, run: Simulation) -> Simulation:
        """Experts handed on."""
        return replace(run, procedure=_LeftoverExperts(run.procedure))


class _LeftoverExperts(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.experts: Named = {}
        """Of the client that trained last and had any."""
        self.given: dict[str, Named] = {}
        """By client, what this round's clients were given."""
        self.round = -1

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """With the experts of the client before, if it has none."""
        if round_ != self.round:
            self.round, self.given = round_, {}
        own = tensors.select(one.received, [f"{EXPERT}*"])
        if not own and self.experts:
            self.given[one.client.name] = self.experts
            one = replace(one, received=one.received | self.experts)
        self.experts = own or self.experts
        return super().train_one(spec, site, round_, one, factory)

    def outputs(self, site: Site, client: Client, own: Named, received: Named) -> Outputs:
        """With what it was trained with."""
        if not tensors.select(received, [f"{EXPERT}*"]):
            received = received | self.given.get(client.name, {})
        return super().outputs(site, client, own, received)


class OpenPool(_MixtureFault):
    """Prompts enter the pool during the round: later clients are dealt prompts of the same round.

    Clients are tested with what they were trained with; those that did not take part with the pool at the round's end.
    """

    name = "open_pool"
    title = "prompts enter the pool during the round, so that later clients get this round's"
    where = "pFedMoAP federated_main.py:357-387"

    def simulation(self, run: Simulation) -> Simulation:
        """A pool that is written in every visit."""
        return replace(run, procedure=_OpenPool(run.procedure))


@dataclass
class _RoundPool:
    """The prompts written in a round, and what its clients received."""

    written: Named = field(default_factory=dict)
    given: dict[str, Named] = field(default_factory=dict)


class _OpenPool(ProcedureWrapper):
    def __init__(self, inner: Procedure) -> None:
        super().__init__(inner)
        self.rounds: dict[int, _RoundPool] = {}
        """By the number of rounds before it: the one that is under way and, while it is evaluated, the one after it."""

    def downlink(self, spec: RunSpec, state: ServerState, client: str) -> Named:
        """From the pool as it is written now; the same again for who has received already."""
        now = self.rounds.setdefault(state.round, _RoundPool())
        if client in now.given:
            return clone(now.given[client])
        return super().downlink(spec, ServerState(state.round, state.server | now.written), client)

    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Writes the prompt at once."""
        self.rounds = {number: each for number, each in self.rounds.items() if number >= round_}
        now = self.rounds.setdefault(round_, _RoundPool())
        update = super().train_one(spec, site, round_, one, factory)
        now.given[one.client.name] = one.received
        if round_ < spec.rounds:  # in local rounds nothing is sent
            now.written[f"{POOL}{one.client.name}"] = update.uplink.tensors["prompt"]
        return update
