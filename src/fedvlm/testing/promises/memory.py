"""Promises on memory: only messages pass from one client, round or run to another."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from fedvlm import tensors
from fedvlm.federation import client as federation_client
from fedvlm.federation import server, simulation
from fedvlm.federation.client import train_client
from fedvlm.methods.base import Method
from fedvlm.tensors import Named
from fedvlm.testing import tiny
from fedvlm.testing.case import Case, promise
from fedvlm.training import local
from fedvlm.training.local import LocalJob


@promise("descends")
def all_clients_start_from_the_same_tensors(case: Case) -> None:
    """In the first round all clients train the same initial tensors, and training does not change these."""
    seen: list[str] = []
    real = local.train_together

    def spy(method: Method, tuner: Any, jobs: Sequence[LocalJob], *more: Any) -> Any:
        seen.extend(tensors.digest(job.tensors) for job in jobs)
        return real(method, tuner, jobs, *more)

    run = case.simulation(case.brief(fine_tune=0), rounds=1, every=100)
    before = tensors.digest(run.spec.initial)
    with patch.object(federation_client, "train_together", spy):
        tiny.run(run)
    assert set(seen) == {before}
    assert len(seen) == len(case.federation.clients)
    assert tensors.digest(run.spec.initial) == before


@promise("trained")
def a_visit_does_not_depend_on_who_was_visited_before(case: Case) -> None:
    """No optimizer, no module and no random state passes from client to client."""
    state, _ = tiny.run(case.simulation(rounds=2, every=100))
    clients = case.federation.clients

    def result(before: int) -> list[str]:
        run = case.simulation(rounds=3)
        for client in [*clients[:before], clients[-1]]:
            received = server.downlink(run.spec, state, client.name)
            done = train_client(run.spec, run.site, 2, client, state.personal[client.name], received)
        return [tensors.digest(done.personal), tensors.digest(done.uplink.tensors), repr(done.losses)]

    assert result(0) == result(3) == result(1)


def _storages(every: Named) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in every.values() if tensor.numel()}


@promise("trained")
def states_share_no_memory(case: Case) -> None:
    """Stored tensors of clients, the server's and the initial tensors share no memory."""
    run = case.simulation(rounds=2, every=100)
    state, _ = tiny.run(run)
    every = [state.server, run.spec.initial, *state.personal.values()]
    assert sum(len(_storages(one)) for one in every) == len(set().union(*map(_storages, every)))
    first = case.federation.clients[0]
    done = train_client(run.spec, run.site, 1, first, None, server.downlink(run.spec, state, first.name))
    assert not _storages(done.personal) & _storages(done.uplink.tensors)
    assert not _storages(done.personal) & _storages(state.server)


@promise("shared")
def writing_into_what_was_received_changes_nothing_on_the_server(case: Case) -> None:
    """A downlink holds copies of the server's tensors."""
    run = case.simulation(case.method())
    state = simulation.start(run)
    before = tiny.fingerprint(state)
    for tensor in server.downlink(run.spec, state, case.federation.clients[0].name).values():
        tensor.add_(1)
    assert tiny.fingerprint(state) == before


@contextmanager
def _fresh() -> Iterator[None]:
    """Ignore objects that exist already; other libraries have many."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _live_bytes() -> int:
    gc.collect()
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor}
    return sum(seen.values())


@promise("descends")
def visits_keep_no_graph_and_memory_does_not_grow_with_rounds(case: Case) -> None:
    """No graph is kept, and memory does not grow with rounds (but for a cache of 4 clients x 4 rounds of prompts)."""
    with _fresh():
        run, sizes = case.simulation(rounds=4, every=100), []
        for state, _ in simulation.run_rounds(run, simulation.start(run)):
            assert not any(t.requires_grad for own in [state.server, *state.personal.values()] for t in own.values())
            sizes.append(_live_bytes())
        gc.collect()
        kinds = (Tensor, torch.nn.Parameter)
        assert not [item for item in gc.get_objects() if type(item) in kinds and item.grad_fn is not None]
    slack = 4 * 4 * 4 * 16 * 4  # cached experts: clients x rounds x classes x features x bytes
    assert max(sizes[1:4]) - min(sizes[1:4]) <= slack, sizes


@promise("all")
def the_frozen_encoder_stays_frozen(case: Case) -> None:
    """Weights of the encoder do not change, and have no gradients."""
    before = tensors.digest(dict(case.clip.state_dict()))
    tiny.run(case.simulation(rounds=1))
    assert tensors.digest(dict(case.clip.state_dict())) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in case.clip.parameters())


@promise("descends")
def a_run_depends_on_its_seed_and_on_no_global_generator(case: Case) -> None:
    """Global generators have no effect, and nothing is drawn from them."""
    prints, kept = [], (torch.get_rng_state(), np.random.get_state())
    try:
        for seed, disturbance in ((1, 0), (1, 99), (2, 0)):
            torch.manual_seed(disturbance)
            np.random.seed(disturbance)
            before = torch.get_rng_state()
            state, _ = tiny.run(case.simulation(rounds=1, seed=seed, views="online", every=100))
            assert torch.equal(torch.get_rng_state(), before)
            prints.append(tiny.fingerprint(state))
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
    assert prints[0] == prints[1] != prints[2]
