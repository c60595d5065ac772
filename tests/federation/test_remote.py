"""A server and two clients that exchange nothing but message bytes give what one process gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import remote_client
from pydantic import TypeAdapter

from fedvlm import experiment, methods, overrides, presets, tensors
from fedvlm.federation import messages, server, setup, simulation
from fedvlm.federation.messages import Header, Message
from fedvlm.methods.base import EvalPoint, Uplink
from fedvlm.testing import tiny
from fedvlm.training.evaluation import ClientMetrics, pool_metrics, tradeoff_curve

WORDS = ["data.shots=2", "data.val_per_class=0", "data.test_per_class=2", "data.base_classes=4", "data.novel_classes=4",
         "partition.clients=2", "rounds=2", "seeds=3", "compute.clients_per_step=1"]  # fmt: skip


class Remote:
    """A client's process, as the server sees it."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, remote_client.__file__, *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, header: Header, named: dict[str, Any] | None = None) -> None:
        assert self.process.stdin is not None
        remote_client.send(self.process.stdin, Message(header, named or {}))

    def receive(self) -> Message:
        assert self.process.stdout is not None
        return remote_client.receive(self.process.stdout)


@contextmanager
def remotes(file: Path, method: str, names: list[str]) -> Iterator[dict[str, Remote]]:
    found = {name: Remote(str(file), method, name) for name in names}
    try:
        yield found
    finally:
        for one in found.values():
            one.process.kill()
            one.process.communicate()


def evaluated(
    run: simulation.Simulation, state: server.ServerState, round_: int, point: EvalPoint, clients: dict[str, Remote]
) -> dict[str, ClientMetrics]:
    for name, one in clients.items():
        one.send(Header(kind="evaluate", round=round_, point=point), server.downlink(run.spec, state, name))
    told = {name: one.receive().header.metrics for name, one in clients.items()}
    return {name: TypeAdapter(ClientMetrics).validate_python(metrics) for name, metrics in told.items()}


@pytest.mark.parametrize("name", ["pfedmma", "pfedmoap"])
def test_a_server_and_two_clients_in_processes_of_their_own(name: str, tmp_path: Path) -> None:
    settings = overrides.apply_words(presets.settings("quickstart"), [*WORDS, f"methods={name}"])
    (tmp_path / "experiment.json").write_text(json.dumps(settings))
    chosen = experiment.parse(settings)
    loaded = setup.load(chosen)
    run = setup.simulation(loaded, loaded.seed(3), methods.build(name, chosen.method))
    expected, records = tiny.run(run)

    # From here on the server has names of clients and `run.spec`, and no image.
    spec, names = run.spec, [client.name for client in run.site.federation.trained]
    with remotes(tmp_path / "experiment.json", name, names) as clients:
        state = before = server.start(spec)
        while state.round < spec.rounds:
            before, uplinks = state, list[Uplink]()
            for one in server.sample_clients(spec, names, 1.0, state.round):
                header = Header(kind="train", method=name, round=state.round, client=one)
                received = server.downlink(spec, state, one)
                clients[one].send(header, received)
                reply = clients[one].receive()
                messages.check_uplink(spec.expected_uplink(received), reply.tensors, one, state.round + 1)
                uplinks.append(Uplink(one, reply.header.images, reply.tensors))
            state = server.aggregate(spec, state, uplinks)
        for point in records[-1].means:
            found = evaluated(run, before if point == "after_training" else state, state.round, point, clients)
            assert pool_metrics(found) == records[-1].means[point]
            assert {one: metrics.values for one, metrics in found.items()} == records[-1].clients[point]
            if point == spec.reported:
                assert tradeoff_curve(found) == records[-1].curves["test"]
        for one in clients.values():
            one.send(Header(kind="stop"))
        private = {one: clients[one].receive().header.metrics for one in names}
    assert tensors.digest(state.server) == tensors.digest(expected.server)
    assert private == {one: {"digest": tensors.digest(own)} for one, own in expected.personal.items()}
