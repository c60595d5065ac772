"""Clients of a simulation that answer messages: the numbers of `fedvlm run`, on whatever worker a client comes to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SCENES, SEED, settings
from test_coordinator import Notes

from fedvlm import experiment, methods, tensors
from fedvlm.errors import FedvlmError
from fedvlm.federation import setup
from fedvlm.network import simulated
from fedvlm.network.carriers.local import LocalCarrier
from fedvlm.network.coordinator.run import Coordinator
from fedvlm.network.coordinator.settings import SIMULATED, FederationSettings
from fedvlm.network.simulated import Worker
from fedvlm.network.site.state import StateFolder
from fedvlm.testing import tiny


def plain(method: str, **more: Any) -> dict[str, Any]:
    """Five clients in three styles; three of them train in a round."""
    common = settings([method], method={"all": {"epochs": 1, "batch": 4, "first_block": 5, "last_block": 6}})
    return common | {
        "data": SCENES.dump(), "partition": {"kind": "pathological", "clients": 4},
        "evaluation": {"every": 2}, "participation": 0.5, **more,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap"])
def test_two_workers_give_the_numbers_of_one_process(method: str, tmp_path: Path) -> None:
    agreed = experiment.parse(plain(method))
    (tmp_path / "one.json").write_text(json.dumps(agreed.resolved()))
    workers = [Worker.load(experiment.parse(plain(method)), tmp_path / "state") for _ in range(2)]
    names, turn = workers[0].names, iter(range(1000))
    carrier = LocalCarrier({
        name: lambda data, name=name: workers[next(turn) % 2].answer(name, data) for name in names
    })  # fmt: skip
    settings = FederationSettings(sites=names, carrier=SIMULATED)
    found = Coordinator.load(agreed, settings, tmp_path / "run").run(carrier, Notes())[method][SEED]
    loaded = setup.load(agreed)
    state, records = tiny.run(setup.simulation(loaded, loaded.seed(SEED), methods.build(method, agreed.method)))
    assert found.tensors.server == tensors.digest(state.server)
    assert found.final == records[-1].means
    assert found.clients == records[-1].clients
    assert state.personal
    for name, personal in state.personal.items():
        stored = StateFolder(tmp_path / "state" / name).load(agreed.digest(), method, SEED)
        assert stored is not None
        assert tensors.digest(stored.after or {}) == tensors.digest(personal)


def test_the_worker_of_a_process_is_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(experiment.parse(plain("coop")).resolved()))
    where = str(tmp_path / "one.json"), str(tmp_path / "state")
    assert simulated.worker(*where) is simulated.worker(*where)


def test_what_messages_cannot_play_is_refused() -> None:
    partition = {"kind": "pathological", "clients": 4, "newcomers": 1}
    with pytest.raises(FedvlmError, match="newcomers = 0"):
        simulated.check_simulated(experiment.parse(plain("coop", partition=partition)))
