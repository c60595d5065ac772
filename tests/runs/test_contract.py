"""The contract says what is trained, what leaves, and what stays on the machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedvlm import methods
from fedvlm.experiment import Experiment, parse
from fedvlm.methods import base
from fedvlm.runs import contract
from fedvlm.tensors import Named
from fedvlm.testing import tiny


def test_the_contract_of_a_run() -> None:
    clip, fed = tiny.clip(), tiny.federation()
    lines = [contract.method_terms(name, tiny.simulation(tiny.method(name), clip, fed)) for name in ("pfedmma", "coop")]
    scenes = contract.contract_text(Experiment(), clip, fed, lines)
    assert "clients     4, each with 3 to 11 training images" in scenes
    assert "coop: nothing" in scenes
    assert "pfedmma: shared.2.weight [4, 4]" in scenes
    assert "kept here" not in scenes


def test_photographs_are_told_what_is_remembered_of_them() -> None:
    clip, fed = tiny.clip(), tiny.federation()
    data = {"source": "folder", "path": "photos"}
    kept = contract.contract_text(parse({"data": data}), clip, fed, [])
    assert ": activations of the images, and which of them can be decoded (compute.disk_gib=0" in kept
    none = parse({"data": data, "compute": {"disk_gib": 0}})
    assert "activations" not in contract.contract_text(none, clip, fed, [])


def test_who_sees_what_leaves() -> None:
    """A mean of two tells each the other's; single prompts are told to be seen whole; who sends nothing is not named."""
    clip, fed = tiny.clip(), tiny.federation()
    lines = [
        contract.method_terms(n, tiny.simulation(tiny.method(n), clip, fed))
        for n in ("pfedmma", "coop", "pfedmoap", "fedmma")
    ]
    said = contract.contract_text(Experiment(), clip, fed, lines).split("other clients see:\n")[1].splitlines()
    assert said == [
        "  the mean over a round's clients: pfedmma, fedmma",
        "  the mean over a round's clients, and whole prompts of single clients, unnamed but in the order of names: pfedmoap",
    ]
    few = contract.contract_text(Experiment(participation=0.5), clip, fed, lines)
    assert few.endswith("with 2 in a round the mean tells each client the other's tensors")
    assert contract.contract_text(Experiment(participation=0.1), clip, fed, lines).endswith("that client's own tensors")
    assert "server sees" not in contract.contract_text(Experiment(), clip, fed, lines[1:2])


def test_columns_never_touch_and_visits_after_the_last_round_are_told() -> None:
    clip, fed = tiny.clip(), tiny.federation()
    line = contract.method_terms("promptfl_ft", tiny.simulation(tiny.method("promptfl", fine_tune=20), clip, fed))
    wide = replace(line, trained=4_206_080, shared=4_206_080, up_bytes=16_824_320, down_bytes=(59_392, 16_824_320))
    text = contract.contract_text(Experiment(), clip, fed, [wide]).splitlines()
    row = next(each for each in text if each.startswith("promptfl_ft"))
    assert row.split()[:8] == ["promptfl_ft", "4,206,080", "0", "4,206,080", "16,824,320", "59,392", "to", "16,824,320"]
    assert " + 20 visits  after training" in row


@pytest.mark.parametrize("name", sorted(methods.known()))
def test_every_method_says_what_others_see(name: str) -> None:
    assert methods.build(name, {}).exposes != base.UNKNOWN


def test_a_downlink_of_its_own_is_not_called_a_mean() -> None:
    class Pool(base.Method):
        def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
            return server

    assert Pool().exposes == base.UNKNOWN
