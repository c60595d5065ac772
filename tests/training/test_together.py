"""Clients that train together get what each would have got alone, up to rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.federation import client, server, simulation
from fedvlm.federation.client import ClientInput, train_clients
from fedvlm.federation.procedure import ProcedureWrapper
from fedvlm.methods import known
from fedvlm.testing import tiny
from fedvlm.training import local
from fedvlm.training.optimizers import Optimizer

TRAINED = [name for name, method in known().items() if method.trains]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.mark.parametrize(
    ("how", "together"),
    [({}, 3), ({}, 4), ({"views": "online"}, 2), ({"participation": 0.5}, 2)],
    ids=["plain-3", "plain-4", "online-2", "partial-2"],
)
@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_the_same(name: str, how: dict[str, Any], together: int, clip: FrozenCLIP) -> None:
    """Clients of 11, 6, 3 and 9 images in batches of 4: steps of four sizes, visits of three lengths."""
    fed = tiny.federation()
    # Adam divides rounding by rounding where a gradient is nearly zero; its rules are compared in test_optimizers.
    method, rounds = tiny.method(name, epochs=1, optimizer="sgd"), 3 if "participation" in how else 2
    alone, records = tiny.run(tiny.simulation(method, clip, fed, rounds=rounds, **how))
    other, grouped = tiny.run(tiny.simulation(method, clip, fed, rounds=rounds, clients_per_step=together, **how))
    for mine, theirs in (
        (alone.server, other.server),
        *((alone.personal[c], other.personal[c]) for c in alone.personal),
    ):
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.allclose(tensor, theirs[key], rtol=1e-4, atol=1e-5), key
    for one, two in zip(records, grouped, strict=True):
        assert [visit.client for visit in one.visits] == [visit.client for visit in two.visits]
        for a, b in zip(one.visits, two.visits, strict=True):
            assert a.losses == pytest.approx(b.losses, rel=1e-4)
            assert (a.up_bytes, a.down_bytes, a.images) == (b.up_bytes, b.down_bytes, b.images)
        for state, means in one.means.items():
            assert means == pytest.approx(two.means[state], abs=1e-4)


def test_a_client_that_diverges_is_named_alone(clip: FrozenCLIP) -> None:
    fed = tiny.federation()
    task = tiny.simulation(tiny.method("pfedmma"), clip, fed, clients_per_step=4)
    state = simulation.start(task)
    state.personal["site-1"] = {name: torch.full_like(tensor, torch.nan) for name, tensor in task.spec.initial.items()}
    with pytest.raises(FedvlmError, match=r"^round 1, client site-1: pfedmma: .*no longer finite"):
        next(simulation.run_rounds(task, state))


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_waits_for_the_device(
    name: str, together: int, clip: FrozenCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU and the program wait for each other at the end of a visit only, so nothing reads a number in its steps.

    Seen on the CPU: operations with results of unknown size, and Python's ways to numbers, which the steps do not take.
    """
    # torch's Adam asks for its number of steps, which it keeps on the CPU.
    method = tiny.method(name, epochs=3, optimizer="sgd")
    task = tiny.simulation(method, clip, tiny.federation(), clients_per_step=together, rounds=3)
    state, _ = next(simulation.run_rounds(task, simulation.start(task)))
    inputs = [ClientInput(one, state.personal[one.name], server.downlink(task.spec, state, one.name))
              for one in task.site.federation.clients[:together]]  # fmt: skip
    calls = Counter[str]()
    inside, inner = [False], client.train_together

    def watched(supply: Iterable[local.Batch]) -> Iterator[local.Batch]:
        for number, batch in enumerate(supply):
            inside[0] = number > 0
            yield batch
        inside[0] = False

    def train_together(method: Any, tuner: Any, visitors: list[local.LocalJob], *more: Any) -> Any:
        return inner(method, tuner, [replace(one, batches=watched(one.batches)) for one in visitors], *more)

    monkeypatch.setattr(client, "train_together", train_together)

    def noted(way: str) -> Any:
        real = getattr(torch.Tensor, way)

        def asked(tensor: Any, *args: Any) -> Any:
            calls[f"Tensor.{way}"] += inside[0]
            return real(tensor, *args)

        return asked

    for way in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, way, noted(way))

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if inside[0]:
                calls[str(func.overloadpacket)] += 1
            return func(*args, **(kwargs or {}))

    with Watch():
        train_clients(task.spec, task.site, 1, inputs)
    assert calls["aten.sigmoid"] + calls["aten._log_softmax"] > 0
    waiting = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2"}
    assert not waiting & calls.keys()
    assert not {way: times for way, times in calls.items() if way.startswith("Tensor.") and times}


def test_every_client_gets_its_own_of_another_optimizer(clip: FrozenCLIP) -> None:
    """What an optimizer keeps from step to step is one client's."""
    fed, method, made = tiny.federation(), tiny.method("promptfl", epochs=1), list[float]()

    def maker(method: Any, leaves: Any, factor: float = 1.0) -> Optimizer:
        made.append(factor)
        return Optimizer(method.config, leaves, dict.fromkeys(leaves, 0.0))

    task = tiny.simulation(method, clip, fed, rounds=1, clients_per_step=4)

    class Other(ProcedureWrapper):
        def train_one(self, spec: Any, site: Any, round_: int, one: ClientInput, factory: Any) -> Any:
            return super().train_one(spec, site, round_, one, maker)

    task = replace(task, procedure=Other(task.procedure))
    state, _ = tiny.run(task)
    assert made == [1.0] * 4
    assert torch.equal(state.server["prompt"], task.spec.initial["prompt"])
