"""Promises on training: results are independent of interruptions and of the order of clients."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvlm.federation import simulation
from fedvlm.federation.checkpoint import Checkpoint
from fedvlm.federation.records import RoundRecord
from fedvlm.federation.simulation import FederationState
from fedvlm.testing import central, tiny
from fedvlm.testing.case import Case, promise
from fedvlm.tuners.base import predict


@promise("trained")
def the_order_of_clients_does_not_change_a_byte(case: Case) -> None:
    """Results depend on names of clients, not on their positions."""
    first, _ = tiny.run(case.simulation(every=100))
    turned = replace(case.federation, clients=tuple(case.federation.clients[place] for place in (3, 1, 0, 2)))
    second, _ = tiny.run(case.simulation(federation=turned, every=100))
    assert tiny.fingerprint(second) == tiny.fingerprint(first)


def _part(case: Case, folder: Path, count: int | None = None, **how: Any) -> tuple[FederationState, list[RoundRecord]]:
    """Continue from the folder's checkpoint as a new process would, for `count` rounds or to the end."""
    run = case.simulation(**how)
    checkpoint, records = Checkpoint(folder, 0), list[RoundRecord]()  # clients' tensors on disk only
    found = checkpoint.load()
    state = begun = simulation.start(run, checkpoint.empty_clients()) if found is None else found[0]
    for state, record in simulation.run_rounds(run, begun):
        records.append(record)
        checkpoint.save(state, 0)
        if len(records) == count:
            break
    return state, records


def _resumed(case: Case, stop: int, **how: Any) -> tuple[FederationState, list[RoundRecord]]:
    """Run with an interruption after `stop` rounds."""
    with tempfile.TemporaryDirectory() as place:
        _, records = _part(case, Path(place), stop, **how)
        state, later = _part(case, Path(place), **how)
        return replace(state, personal=dict(state.personal)), records + later


def _figures(records: Sequence[RoundRecord]) -> list[Any]:
    """Content of records without timings."""
    return [(r.round, r.clients, r.means, [(v.client, v.losses, v.up_bytes, v.down_bytes) for v in r.visits])
            for r in records]  # fmt: skip


@promise("trained")
def stopped_and_resumed_equals_uninterrupted(case: Case) -> None:
    """State, losses and accuracies are equal bit for bit if the run is stopped after every round."""
    whole, records = tiny.run(case.simulation())
    again: list[RoundRecord] = []
    with tempfile.TemporaryDirectory() as place:
        for stop in range(1, len(records) + 2):
            state, more = _part(case, Path(place), 1)
            again += more
            assert len(again) == min(stop, len(records))
        assert _figures(again) == _figures(records)
        assert tiny.fingerprint(state) == tiny.fingerprint(whole)


@promise("trained")
def stopped_and_resumed_with_half_of_the_clients(case: Case) -> None:
    """Resuming is exact without cached activations, also for clients that have not trained for several rounds."""
    how: dict[str, Any] = {"rounds": 4, "participation": 0.5, "limit": 0, "every": 2}
    whole, records = tiny.run(case.simulation(**how))
    state, again = _resumed(case, 2, **how)
    assert _figures(again) == _figures(records)
    assert tiny.fingerprint(state) == tiny.fingerprint(whole)


@promise("descends")
def augmented_runs_resume_too(case: Case) -> None:
    """Crops and flips of a resumed run equal those of the uninterrupted run."""
    how: dict[str, Any] = {"rounds": 2, "views": "online", "every": 100}
    whole, _ = tiny.run(case.simulation(**how))
    state, _ = _resumed(case, 1, **how)
    assert tiny.fingerprint(state) == tiny.fingerprint(whole)
    plain, _ = tiny.run(case.simulation(rounds=2, every=100))
    assert tiny.fingerprint(plain) != tiny.fingerprint(whole)


@promise("descends")
def one_client_with_everything_shared_is_central_training(case: Case) -> None:
    """With one client and everything shared, training equals an ordinary PyTorch loop."""
    method, fed = case.method(), tiny.federation(sizes=(26,))
    method.shared = ("*",)
    run = case.simulation(method, fed)
    state, _ = tiny.run(run)
    expected = central.trained(run)
    own = state.personal["site-0"]
    assert method.assemble(own, {}).keys() == expected.keys()
    for name, tensor in expected.items():
        assert (own[name] - tensor).abs().max() < 1e-5 * max(1.0, float(tensor.abs().max())), name
    for name in state.server.keys() & expected.keys() if run.spec.last_round == run.spec.rounds else ():
        assert torch.equal(state.server[name], own[name]), name
    moved = [(run.spec.initial[name] - tensor).abs().max() > 1e-3 for name, tensor in expected.items()]
    assert any(moved), "nothing was trained"


@promise("descends")
def the_loss_falls(case: Case) -> None:
    """In five rounds the loss falls below 0.7 of the first, and Local exceeds chance."""
    run = case.simulation(case.method(), rounds=5, every=100)
    _, records = tiny.run(run)
    means = [np.mean([loss for one in record.visits for loss in one.losses]) for record in records]
    assert means[-1] < 0.7 * means[0], means
    assert records[-1].means[run.spec.reported]["local"] > 0.4


@promise("all")
def a_class_order_turned_round_turns_the_logits_round(case: Case) -> None:
    """Class names and labels stay together: logit k belongs to the k-th name."""
    method, names = case.method(), list(case.federation.base_names)
    one, other = (method.tuner(case.clip, order, "a photo of a {}.") for order in (names, names[::-1]))
    start = case.simulation(method).spec.initial
    side = case.clip.config.vision.image
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    hidden = case.clip.visual.hidden(images, one.entry)
    first, second = (predict(t, start, t.classifier(start, t.prepare({})), hidden)[0] for t in (one, other))
    assert (first - second.flip(-1)).abs().max() < 1e-4
