"""Real processes, killed with `kill -9` in the middle of a training: the run ends with the digests of one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import SEED, STYLES
from trial import Watched

from fedvlm import tensors
from fedvlm.testing import tiny

METHOD = "pfedmoap"
LONG = {"all": {"epochs": 12, "batch": 2}}
"""A training of seconds, so that a kill falls into it."""


@pytest.fixture
def trial(field_of: Any) -> Iterator[Watched]:
    made = Watched(field_of(METHOD, method=LONG), STYLES)
    yield made
    made.stop()


def check(trial: Watched) -> None:
    state, records = tiny.run(trial.place.simulation(METHOD))
    found = trial.result(METHOD)
    assert found.tensors.server == tensors.digest(state.server)
    assert found.final == records[-1].means
    assert found.clients == records[-1].clients
    assert trial.personal(METHOD, SEED) == {name: tensors.digest(state.personal[name]) for name in STYLES}


VICTIMS = {
    "a site": ["site-neon"], "a carrier": ["carrier-neon"], "the coordinator": ["coordinator"],
    "a site and its carrier": ["site-neon", "carrier-neon"],
    "all": ["coordinator", *(f"{kind}-{name}" for kind in ("site", "carrier") for name in STYLES)],
}  # fmt: skip


def kill_in_the_second_round(trial: Watched, victims: list[str], seconds: float = 240) -> None:
    """Kill parts in the middle of a training, start them again, and play to the end."""
    trial.begin()
    trial.start("coordinator")
    trial.wait(lambda: trial.training("neon", 1), "the second round's training", seconds)
    time.sleep(0.3)
    trial.kill(*victims)
    for part in victims:
        trial.start(part, *(["--resume"] if part == "coordinator" else []))
    trial.finish(seconds)


@pytest.mark.parametrize(
    "who", [pytest.param(who, marks=pytest.mark.long if who == "all" else pytest.mark.network) for who in VICTIMS]
)
def test_killed_in_the_middle_of_a_training_and_started_again(who: str, trial: Watched) -> None:
    kill_in_the_second_round(trial, VICTIMS[who])
    check(trial)


def test_a_site_that_is_started_twice_says_so(trial: Watched) -> None:
    trial.start("site-neon")
    trial.wait(lambda: "socket" in trial.log("site-neon"), "the site")
    first = trial.processes["site-neon"]
    second = trial.start("site-neon")
    trial.wait(lambda: second.poll() is not None, "the second site")
    assert second.returncode == 2
    assert "this site runs already" in trial.log("site-neon")
    assert first.poll() is None
    trial.processes["first"] = first
