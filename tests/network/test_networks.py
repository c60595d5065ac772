"""Flower and NVFlare for real: the bits of one process, also when any part is killed with `kill -9`.

These tests need the extras `federation-simulation` and `nvflare`: `make test-networks`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from conftest import STYLES
from test_crashes import LONG, METHOD, check, kill_in_the_second_round
from test_simulated import plain
from trial import Watched

from fedvlm import experiment
from fedvlm.runs import result

pytestmark = pytest.mark.network
flower = pytest.mark.skipif(util.find_spec("flwr") is None, reason="Flower is not installed")
nvflare = pytest.mark.skipif(util.find_spec("nvflare") is None, reason="NVFlare is not installed")
ray = pytest.mark.skipif(util.find_spec("ray") is None, reason="Ray is not installed")


def free_port() -> int:
    """The first of five ports that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def by(field_of: Any) -> Iterator[Any]:
    made: list[Watched] = []

    def trial(carrier: str, **more: Any) -> Watched:
        made.append(Watched(field_of("zero_shot", METHOD, **more), STYLES, carrier, free_port()))
        return made[0]

    yield trial
    for one in made:
        one.stop()


NETWORKS = [pytest.param("flower", marks=flower), pytest.param("nvflare", marks=nvflare)]


@pytest.mark.parametrize("carrier", NETWORKS)
def test_the_numbers_are_those_of_one_process(carrier: str, by: Any) -> None:
    trial = by(carrier)
    trial.begin()
    trial.start("coordinator")
    trial.finish(300)
    check(trial)


VICTIMS = {
    "the node": ["carrier-neon"], "the server": ["server"], "the coordinator": ["coordinator"], "a site": ["site-neon"],
    "all": ["coordinator", "server", *(f"{kind}-{name}" for kind in ("site", "carrier") for name in STYLES)],
}  # fmt: skip


@flower
@pytest.mark.parametrize("who", VICTIMS)
def test_flower_killed_in_the_middle_of_a_training(who: str, by: Any) -> None:
    trial = by("flower", method=LONG)
    kill_in_the_second_round(trial, VICTIMS[who], 400)
    check(trial)


JOBS = {"a client's job": ("worker_process", "neon"), "the server's job": ("runner_process", "")}
"""NVFlare's own processes of a job: module, and the client that is named in the command."""


def jobs(trial: Watched, who: str) -> list[int]:
    """Processes of NVFlare's that play a part in the job of this trial."""
    module, client = JOBS[who]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if any(word.endswith(module) for word in words) and str(trial.workspace) in " ".join(words):
                found += [int(path.parent.name)] if not client or f"/{client}" in " ".join(words) else []
    return found


@nvflare
@pytest.mark.parametrize("who", [*JOBS, "the coordinator", "a site"])
def test_nvflare_killed_in_the_middle_of_a_training(who: str, by: Any) -> None:
    """A dead job process costs a new job, which continues at the unfinished round."""
    trial = by("nvflare", method=LONG)
    if who not in JOBS:
        kill_in_the_second_round(trial, VICTIMS[who], 400)
        return check(trial)
    trial.begin()
    trial.start("coordinator")
    trial.wait(lambda: trial.training("neon", 1), "the second round's training", 240)
    victims = jobs(trial, who)
    assert victims, "the job runs"
    for process in victims:
        os.kill(process, signal.SIGKILL)
    trial.finish(400)
    return check(trial)


@ray
@pytest.mark.parametrize("method", ["pfedmma", "pfedmoap"])
def test_flowers_simulation_has_the_numbers_of_fedvlm_run(method: str, tmp_path: Path) -> None:
    agreed = experiment.parse(plain(method))
    file = tmp_path / "one.toml"
    file.write_text(toml(agreed.resolved()))
    run = [sys.executable, "-m", "fedvlm"]
    for command in (
        [*run, "federation", "init", "simulated", str(file), "--carrier", "flower_simulation"],
        [*run, "federation", "run", "simulated"],
        [*run, "run", str(file), "--out", "one"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    found, alone = (
        result.read(tmp_path / where / f"seed-{agreed.seeds[0]}" / method / "result.json")
        for where in ("simulated/run", "one")
    )
    assert found.tensors.server == alone.tensors.server
    assert found.final == alone.final
    assert found.clients == alone.clients


def toml(table: dict[str, Any], above: str = "") -> str:
    """Plain settings as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()
             if not isinstance(value, dict) and value is not None]  # fmt: skip
    parts = [
        f"[{above}{key}]\n{toml(value, f'{above}{key}.')}" for key, value in table.items() if isinstance(value, dict)
    ]
    return "\n".join([*lines, *parts]) + "\n"


def test_nothing_is_left_over() -> None:
    """After the tests above no process of a network is left."""
    if shutil.which("pgrep"):
        done = subprocess.run(["pgrep", "-f", "flower-supernode|flower-superlink"], capture_output=True, text=True)
        assert done.stdout == ""
