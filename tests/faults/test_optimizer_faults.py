"""Faults of the optimiser against steps worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import faults
from fedvlm.experiment import Experiment
from fedvlm.faults.optimizers import swing_factor
from fedvlm.federation.client import local_batches
from fedvlm.federation.simulation import Simulation, run_rounds, start
from fedvlm.methods.base import Method
from fedvlm.testing import tiny
from fedvlm.training.optimizers import make_optimizer


def faulty(name: str, task: Simulation, **settings: Any) -> Simulation:
    experiment = Experiment.model_validate({"faults": [name], **settings})
    return faults.FaultSet(task.spec.method, experiment).simulation(task)


def prompt_task(**settings: Any) -> Simulation:
    method = tiny.method("promptfl", **{"epochs": 1, "momentum": 0.9, "weight_decay": 0.0, **settings})
    return tiny.simulation(method, tiny.clip(), tiny.federation(), rounds=2)


def gradients(task: Simulation, method: Method, start_: Tensor, client: int, round_: int, rate: Any, buffer: Any,
              half: bool = False) -> tuple[Tensor, Any, list[float]]:  # fmt: skip
    """A visit written out: v <- 0.9 v + g, P <- P - rate(step) v. Gives the prompt, v, the rates used."""
    prompt, used = start_.clone(), []
    squeeze = (lambda x: x.half().float()) if half else (lambda x: x)
    prompt = squeeze(prompt)
    tuner = task.site.base
    for step, (hidden, labels) in enumerate(
        local_batches(task.spec, task.site, round_, task.site.federation.clients[client])
    ):
        leaf = prompt.clone().requires_grad_()
        logits = tuner.logits({"prompt": leaf}, tuner.classifier({"prompt": leaf}, {}), hidden)
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels), [leaf])
        grad = squeeze(grad)
        buffer = squeeze(grad if buffer is None else 0.9 * buffer + grad)
        used.append(rate(step))
        prompt = squeeze(prompt - rate(step) * buffer)
    return prompt, buffer, used


def first_round(task: Simulation) -> list[Tensor]:
    """The prompts of all clients after round 0, in visiting order."""
    state, _ = next(run_rounds(task, start(task)))
    return [state.personal[name]["prompt"] for name in sorted(state.personal)]


def test_momentum_passes_from_client_to_client() -> None:
    task = prompt_task()
    found = first_round(faulty("shared_optimiser", task))
    begin, rate = task.spec.initial["prompt"], float(task.spec.method.config.lr)
    buffer = None
    for client, prompt in enumerate(found):
        expected, buffer, _ = gradients(task, task.spec.method, begin, client, 0, lambda step: rate, buffer)
        torch.testing.assert_close(prompt, expected, rtol=1e-5, atol=1e-6)
    alone, _, _ = gradients(task, task.spec.method, begin, 1, 0, lambda step: rate, None)
    torch.testing.assert_close(first_round(task)[1], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone, found[1], rtol=1e-3, atol=1e-4)


def test_momentum_passes_on_to_the_next_round() -> None:
    task = prompt_task()
    shared = faulty("shared_optimiser", task)
    begin, rate = task.spec.initial["prompt"], float(task.spec.method.config.lr)
    state, _ = tiny.run(shared)
    buffer, server, sizes = None, begin, [len(c.train) for c in task.site.federation.clients]
    for round_ in range(2):
        prompts = []
        for client in range(len(sizes)):
            prompt, buffer, _ = gradients(task, task.spec.method, server, client, round_, lambda step: rate, buffer)
            prompts.append(prompt)
        server = sum(size * prompt for size, prompt in zip(sizes, prompts, strict=True)) / sum(sizes)
    torch.testing.assert_close(state.server["prompt"], server, rtol=1e-4, atol=1e-5)


def test_the_rate_swings_as_released() -> None:
    """Section 3.3 of the notes on pFedMoAP: E = 5, 0.002, the first and second client of the stream."""
    released = [0.002 * swing_factor(k, 5) for k in range(21)]
    assert released[0] == pytest.approx(1e-5)
    odd = [1.809e-3, 2e-3, 1.809e-3, 1.309e-3, 0.691e-3]
    even = [0.191e-3, 0, 0.191e-3, 0.691e-3, 1.309e-3]
    assert released[5:10] == pytest.approx(even, abs=5e-7)
    assert released[10:15] == pytest.approx(odd, abs=5e-7)
    assert released[15:20] == pytest.approx(even, abs=5e-7)
    formula = [1e-5] + [0.001 * (1 + math.cos(math.pi * (k - 1) / 5)) for k in range(1, 21)]
    assert released == pytest.approx(formula)


def test_the_counter_runs_on_from_client_to_client() -> None:
    task = prompt_task(epochs=2)
    found = first_round(faulty("oscillating_rate", task))
    begin, rate, seen = task.spec.initial["prompt"], float(task.spec.method.config.lr), []
    for client, prompt in enumerate(found):
        per_epoch = math.ceil(len(task.site.federation.clients[client].train) / 4)

        def at(step: int, client: int = client, per_epoch: int = per_epoch) -> float:
            k = 2 * client + step // per_epoch
            return rate * (0.005 if k == 0 else 0.5 * (1 + math.cos(math.pi * (k - 1) / 2)))

        expected, _, used = gradients(task, task.spec.method, begin, client, 0, at, None)
        torch.testing.assert_close(prompt, expected, rtol=1e-5, atol=1e-6)
        seen += used
    assert len(set(seen)) > 3


def test_the_gates_rate_does_not_swing() -> None:
    """With the prompt's rate at zero a visit moves the gate alone, exactly as without the fault."""
    method = tiny.method("pfedmoap", lr=0.0)
    right = tiny.simulation(method, tiny.clip(), tiny.federation(), rounds=2)
    wrong = faulty("oscillating_rate", tiny.simulation(method, tiny.clip(), tiny.federation(), rounds=2))
    assert tiny.fingerprint(tiny.run(right)[0]) == tiny.fingerprint(tiny.run(wrong)[0])


def test_a_gate_with_the_prompts_rate_does_not_swing_either() -> None:
    method = tiny.method("pfedmoap", lr=0.05, gate_lr=0.05)
    wrong = faulty("oscillating_rate", tiny.simulation(method, tiny.clip(), tiny.federation(), rounds=1))
    made = wrong.procedure._make_optimizer(  # type: ignore[attr-defined]
        make_optimizer, wrong.spec.method, {n: t.clone().requires_grad_() for n, t in wrong.spec.initial.items()}, 1.0
    )
    for leaf in made.leaves.values():
        leaf.grad = torch.zeros_like(leaf)
    made.step()
    assert made.rates["prompt"] == pytest.approx(0.05 * 0.005)
    assert made.rates["gating.q.weight"] == 0.05


def halves(tensor: Tensor) -> bool:
    return bool((tensor.half().float() == tensor).all())


@pytest.mark.parametrize("name", ["promptfl", "pfedmoap", "promptfl_prox", "coop", "fedotp"])
def test_half_precision_holds_nothing_but_half_precision(name: str) -> None:
    task = faulty("half_precision", tiny.simulation(tiny.method(name), tiny.clip(), tiny.federation(), rounds=2))
    state, _ = tiny.run(task)
    held = [*state.server.values(), *(t for own in state.personal.values() for t in own.values())]
    assert held
    assert all(halves(tensor) for tensor in held)


def test_half_precision_step_by_step() -> None:
    task = prompt_task()
    wrong = faulty("half_precision", task)
    begin, rate = task.spec.initial["prompt"], float(task.spec.method.config.lr)
    for client, prompt in enumerate(first_round(wrong)):
        expected, _, _ = gradients(task, task.spec.method, begin, client, 0, lambda step: rate, None, half=True)
        torch.testing.assert_close(prompt, expected, rtol=2e-3, atol=6e-5)


def test_momentum_is_half_precision_too() -> None:
    task = faulty("half_precision", prompt_task())
    leaves = {"prompt": task.spec.initial["prompt"].clone().requires_grad_()}
    made = task.procedure._make_optimizer(make_optimizer, task.spec.method, leaves, 1.0)  # type: ignore[attr-defined]
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        leaves["prompt"].grad = torch.randn(leaves["prompt"].shape, generator=draw) * 1e-3
        made.step()
        assert halves(made.state["prompt"]["momentum"])
        assert halves(leaves["prompt"])


def test_small_steps_vanish_in_half_precision() -> None:
    """Near 0.02 one unit in the last place is 1.5e-5: a step of a tenth of it changes nothing."""
    task = faulty("half_precision", prompt_task(lr=1.0, momentum=0.0))
    leaves = {"prompt": torch.full((3, 24), 0.02).half().float().requires_grad_()}
    made = task.procedure._make_optimizer(make_optimizer, task.spec.method, leaves, 1.0)  # type: ignore[attr-defined]
    before = leaves["prompt"].detach().clone()
    leaves["prompt"].grad = torch.full((3, 24), 1.5e-6)
    made.step()
    assert torch.equal(leaves["prompt"], before)


def test_downlink_is_what_visits_start_from() -> None:
    """The oracle above starts every visit at the server's prompt."""
    task = prompt_task()
    received = task.procedure.downlink(task.spec, start(task), task.site.federation.clients[0].name)
    assert torch.equal(task.spec.assemble(None, received)["prompt"], task.spec.initial["prompt"])
