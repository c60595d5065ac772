"""Real processes, killed with `kill -9` in the middle of a training: the run ends with the digests of one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import SEED, STYLES
from trial import Trial

from fedvlm import tensors
from fedvlm.testing import tiny

METHOD = "pfedmoap"
LONG = {"all": {"epochs": 12, "batch": 2}}
"""A training of seconds, so that a kill falls into it."""


@pytest.fixture
def trial(field_of: Any) -> Iterator[Trial]:
    made = Trial(field_of(METHOD, method=LONG), STYLES)
    yield made
    made.stop()


def check(trial: Trial) -> None:
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


@pytest.mark.parametrize("who", VICTIMS)
def test_killed_in_the_middle_of_a_training_and_started_again(who: str, trial: Trial) -> None:
    trial.start_all()
    trial.wait(lambda: trial.training("neon", 1), "the second round's training")
    time.sleep(0.3)
    trial.kill(*VICTIMS[who])
    for name in VICTIMS[who]:
        kind, _, site = name.partition("-")
        if kind == "coordinator":
            trial.start_coordinator("--resume")
        else:
            {"site": trial.start_site, "carrier": trial.start_carrier}[kind](site)
    trial.finish()
    check(trial)


def test_a_site_that_is_started_twice_says_so(trial: Trial) -> None:
    trial.start_site("neon")
    trial.wait(lambda: "socket" in trial.log("site-neon"), "the site")
    second = trial.start("second", *trial.processes["site-neon"].args)  # type: ignore[misc]
    trial.wait(lambda: second.poll() is not None, "the second site")
    assert second.returncode == 2
    assert "this site runs already" in trial.log("second")
    assert trial.processes["site-neon"].poll() is None
