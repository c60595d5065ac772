"""What a client's training sees: views drawn anew for every client, round and epoch (house.md rule 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedvlm.clip import FrozenCLIP
from fedvlm.data import Federation
from fedvlm.federation.client import local_batches
from fedvlm.streams import stream
from fedvlm.testing import tiny
from fedvlm.training.activations import TEST

VISITS = [(client, round_) for client in (0, 3) for round_ in (0, 1)]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    return tiny.federation()


def test_online_views_are_fresh_for_every_client_round_and_epoch(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.simulation(tiny.method("promptfl", epochs=2), clip, fed, views="online", seed=7)
    asked: list[tuple[Any, ...]] = []
    hidden = torch.zeros(1)
    monkeypatch.setattr(
        task.site.activations, "get_online", lambda indices, entry, *names: (asked.append(names), hidden)[1]
    )
    for client, round_ in VISITS:
        list(local_batches(task.spec, task.site, round_, fed.clients[client]))
    assert set(asked) == {
        (7, "view", fed.clients[client].name, round_, epoch) for client, round_ in VISITS for epoch in (0, 1)
    }


def seen(clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch, views: Any, seed: int) -> dict[Any, Any]:
    """The view of every image, by client, round and epoch."""
    task = tiny.simulation(tiny.method("promptfl", epochs=2), clip, fed, views=views, seed=seed)
    asked: list[list[tuple[int, int]]] = []

    def get(indices: list[int], entry: object, chosen: list[int]) -> torch.Tensor:
        asked.append(list(zip(indices, chosen, strict=True)))
        return torch.zeros(len(indices), 1)

    monkeypatch.setattr(task.site.activations, "get", get)
    found = {}
    for client, round_ in VISITS:
        asked.clear()
        list(local_batches(task.spec, task.site, round_, fed.clients[client]))
        for epoch in (0, 1):
            half = len(asked) // 2
            pairs = [pair for batch in asked[epoch * half :][:half] for pair in batch]
            found[client, round_, epoch] = dict(pairs)
            assert sorted(index for index, _ in pairs) == sorted(fed.clients[client].train)
    return found


def test_views_of_the_bank_come_from_streams_named_by_client_round_and_epoch(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = seen(clip, fed, monkeypatch, 50, 7)
    for (client, round_, epoch), views in found.items():
        one = fed.clients[client]
        drawn = stream(7, "view", one.name, round_, epoch).integers(50, size=len(one.train))
        assert views == dict(zip(one.train, drawn.tolist(), strict=True))
    assert len({tuple(views.values()) for views in found.values()}) == len(found)
    assert seen(clip, fed, monkeypatch, 50, 8)[0, 0, 0] != found[0, 0, 0]


def test_without_views_training_sees_the_test_transform(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = seen(clip, fed, monkeypatch, "none", 7)
    assert {view for views in found.values() for view in views.values()} == {TEST}
