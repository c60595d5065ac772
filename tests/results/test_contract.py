"""The contract says what is trained, what leaves, and what stays on the machine."""

from __future__ import annotations

import small

from fedvlm.experiment import Experiment
from fedvlm.results import contract


def test_the_contract_of_a_run() -> None:
    clip, fed = small.clip(), small.federation()
    lines = [contract.terms(name, small.task(small.method(name), clip, fed)) for name in ("pfedmma", "coop")]
    scenes = contract.text(Experiment(), clip, fed, lines)
    assert "clients     4, each with 3 to 11 training images" in scenes
    assert "coop: nothing" in scenes
    assert "pfedmma: shared.2.weight [4, 4]" in scenes
    assert "kept here" not in scenes


def test_photographs_are_told_what_is_remembered_of_them() -> None:
    clip, fed = small.clip(), small.federation()
    data = {"source": "folder", "path": "photos"}
    kept = contract.text(Experiment.model_validate({"data": data}), clip, fed, [])
    assert "activations of the images in" in kept
    none = Experiment.model_validate({"data": data, "compute": {"disk_gib": 0}})
    assert "activations" not in contract.text(none, clip, fed, [])


def test_who_sees_what_leaves() -> None:
    """A mean of two tells each the other's; single prompts are told to be seen whole; who sends nothing is not named."""
    clip, fed = small.clip(), small.federation()
    lines = [
        contract.terms(n, small.task(small.method(n), clip, fed)) for n in ("pfedmma", "coop", "pfedmoap", "fedmma")
    ]
    said = contract.text(Experiment(), clip, fed, lines).split("other clients see:\n")[1].splitlines()
    assert said == [
        "  the mean over a round's clients: pfedmma, fedmma",
        "  the mean over a round's clients, and whole prompts of single clients, without a name: pfedmoap",
    ]
    few = contract.text(Experiment(participation=0.5), clip, fed, lines)
    assert few.endswith("with 2 in a round the mean less one's own tensors is the other's")
    assert contract.text(Experiment(participation=0.1), clip, fed, lines).endswith("that client's own tensors")
    assert "server sees" not in contract.text(Experiment(), clip, fed, lines[1:2])
