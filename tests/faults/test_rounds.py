"""Penalties without gradient, a baseline that forgets, the best round on test images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedvlm import faults
from fedvlm.experiment import Experiment
from fedvlm.federation.client import train_client
from fedvlm.federation.simulation import start
from fedvlm.methods.base import Step
from fedvlm.testing import tiny


@pytest.mark.parametrize(
    ("name", "field", "anchor"), [("promptfl_prox", "mu", "prompt"), ("fedamp", "decay", "anchor")]
)
def test_the_penalty_has_a_value_and_no_gradient(name: str, field: str, anchor: str) -> None:
    right = tiny.simulation(tiny.method(name, **{field: 3.0}), tiny.clip(), tiny.federation())
    wrong = faults.FaultSet(right.spec.method, Experiment(faults=["detached_penalty"])).simulation(right)
    received = {anchor: torch.zeros(3, 24)}
    gradient, value = {}, {}
    for key, task in (("right", right), ("wrong", wrong)):
        prompt = right.spec.initial["prompt"].clone().requires_grad_()
        logits = torch.zeros(2, 4, requires_grad=True)
        loss = task.spec.method.loss(Step(logits, torch.tensor([0, 1]), {"prompt": prompt}, received, {}))
        loss.backward()
        gradient[key], value[key] = prompt.grad, float(loss.detach())
    assert value["right"] == value["wrong"]
    torch.testing.assert_close(gradient["right"], 3.0 * right.spec.initial["prompt"])
    assert gradient["wrong"] is None


def test_fedprox_is_then_promptfl() -> None:
    made = tiny.simulation(tiny.method("promptfl_prox", mu=5.0), tiny.clip(), tiny.federation())
    wrong = faults.FaultSet(made.spec.method, Experiment(faults=["detached_penalty"])).simulation(made)
    plain = tiny.simulation(tiny.method("promptfl"), tiny.clip(), tiny.federation())
    assert tiny.fingerprint(tiny.run(wrong)[0]) == tiny.fingerprint(tiny.run(plain)[0])
    assert tiny.fingerprint(tiny.run(made)[0]) != tiny.fingerprint(tiny.run(plain)[0])


def test_local_training_begins_again_every_round() -> None:
    made = tiny.simulation(tiny.method("coop"), tiny.clip(), tiny.federation(), rounds=3)
    wrong = faults.FaultSet(made.spec.method, Experiment(faults=["restarted_local"])).simulation(made)
    state, _ = tiny.run(wrong)
    for client in made.site.federation.clients:
        alone = train_client(
            made.spec, made.site, 2, client, None, made.procedure.downlink(made.spec, start(made), client.name)
        )
        assert torch.equal(state.personal[client.name]["prompt"], alone.personal["prompt"])


def test_the_best_round_is_the_first_with_the_highest_local() -> None:
    curve = [{"local": value, "base": -value} for value in (0.3, 0.7, 0.5, 0.7)]
    task = tiny.simulation(tiny.method("pfedmma"), tiny.clip(), tiny.federation(), rounds=2)
    wrong = faults.FaultSet(task.spec.method, Experiment(faults=["test_selection"])).simulation(task)
    assert wrong.procedure.result(curve) == 1
    assert wrong.procedure.result([{"base": 0.1}, {"base": 0.9}, {"base": 0.2}]) == 2
    assert task.procedure.result(curve) == 3


@pytest.mark.parametrize("name", ["zero_shot", "promptfl", "pfedmma", "pfedmoap", "fedamp"])
def test_without_faults_a_task_is_the_same_object(name: str) -> None:
    task = tiny.simulation(tiny.method(name), tiny.clip(), tiny.federation())
    built = faults.FaultSet(task.spec.method, Experiment())
    assert built.simulation(task) is task
    assert built.federation(task.site.federation, 0) is task.site.federation


EVERY = [
    (fault, method)
    for fault in faults.all_faults().values()
    for method in (*fault.methods, *(["promptfl"] if not fault.methods else []))
]


@pytest.mark.parametrize(("fault", "name"), EVERY, ids=[f"{fault.name}-{name}" for fault, name in EVERY])
def test_every_fault_runs_on_every_method_that_has_it_and_repeats(fault: type[faults.Fault], name: str) -> None:
    experiment = Experiment.model_validate({"faults": [fault.name], "rounds": 3, "participation": 0.9})

    def played() -> tuple[dict[str, str], list[dict[str, float]]]:
        method, fed = tiny.method(name), tiny.federation((8, 6, 3, 4, 4, 3, 4))
        built = faults.FaultSet(method, experiment)
        task = tiny.simulation(method, tiny.clip(), built.federation(fed, 1), rounds=3, participation=0.67)
        state, records = tiny.run(built.simulation(replace(task, validation=task.site)))
        return tiny.fingerprint(state), [means for record in records for means in record.means.values()]

    first, again = played(), played()
    assert first == again
