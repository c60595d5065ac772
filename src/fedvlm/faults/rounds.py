"""Faults of rounds: penalties without gradient, a baseline that restarts, selection on test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from fedvlm.experiment import Experiment
from fedvlm.faults.base import Fault, replace_method, subclass_method
from fedvlm.federation.client import ClientInput, ClientUpdate
from fedvlm.federation.procedure import ProcedureWrapper
from fedvlm.federation.simulation import Simulation
from fedvlm.federation.spec import RunSpec
from fedvlm.methods import Method
from fedvlm.methods.base import Step
from fedvlm.training.metrics import Metrics
from fedvlm.training.optimizers import OptimizerFactory
from fedvlm.training.site import Site


class DetachedPenalty(Fault):
    """The distance to received tensors is computed from detached tensors: it adds to the loss without a gradient."""

    name = "detached_penalty"
    title = "the proximal penalty is made of detached tensors and has no gradient"
    code = "pFedMoAP, FedOTP, FedPGP, pFedMMA, PromptFolio (their FedProx); PromptFolio (FedAMP)"
    where = "pFedMoAP trainers/promptfl.py:293-296, trainers/clip.py: the term is built from state_dict()"
    methods = ("fedamp", "promptfl_prox")

    def simulation(self, run: Simulation) -> Simulation:
        """The run with a penalty on detached tensors."""
        return replace_method(run, subclass_method(run.spec.method, _DetachedPenaltyLoss))


class _DetachedPenaltyLoss(Method):
    def loss(self, step: Step) -> Tensor:
        """The loss with detached trained tensors; logits are not detached, so cross-entropy still trains."""
        return super().loss(replace(step, trained={name: tensor.detach() for name, tensor in step.trained.items()}))


class RestartedLocal(Fault):
    """A local baseline starts every round from the initial tensors, so it only has the training of one round."""

    name = "restarted_local"
    title = "local training starts again from the initial tensors in every round"
    code = "FedPGP, pFedMMA (their local rows)"
    where = "the `local` branch of federated_main.py in both repositories (pFedMMA: around line 366)"
    methods = ("coop", "local_mma")

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether there is a second round."""
        return method.name in cls.methods and experiment.rounds > 1

    def simulation(self, run: Simulation) -> Simulation:
        """The run in which clients do not use their stored tensors."""
        return replace(run, procedure=_RestartedLocal(run.procedure))


class _RestartedLocal(ProcedureWrapper):
    def train_one(
        self, spec: RunSpec, site: Site, round_: int, one: ClientInput, factory: OptimizerFactory
    ) -> ClientUpdate:
        """Train from the initial tensors."""
        return super().train_one(spec, site, round_, replace(one, personal=None), factory)


class TestSelection(Fault):
    """The result is the evaluated round with the highest mean Local on test images, its Base and Novel included."""

    __test__ = False  # not a test class for pytest
    name = "test_selection"
    title = "the round with the best mean Local on test images is reported instead of the last"
    code = "pFedMMA (its checkpoint); pFedMoAP, FedOTP, FedPGP print the maximum"
    where = "pFedMMA federated_main.py:579-580"

    @classmethod
    def applies(cls, method: Method, experiment: Experiment) -> bool:
        """Whether the method trains, and is evaluated more than once."""
        return method.descends and experiment.rounds > experiment.evaluation.every

    def simulation(self, run: Simulation) -> Simulation:
        """The run with selection on test images."""
        return replace(run, procedure=_BestOnTest(run.procedure))


class _BestOnTest(ProcedureWrapper):
    def result(self, means: Sequence[Metrics]) -> int:
        """Position of the first highest Local; the last position if no client has local test images."""
        if not all("local" in point for point in means):
            return len(means) - 1
        return max(range(len(means)), key=lambda place: (means[place]["local"], -place))
