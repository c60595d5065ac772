"""What the study of experts says of a small federation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fedvlm
from fedvlm import experiment, overrides, presets

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import experts

SMALL = ["rounds=2", "data.base_classes=6", "data.novel_classes=2", "data.shots=4", "data.val_per_class=1",
         "data.test_per_class=4", "partition.clients=3", "data.styles=sketch,fog,night", "evaluation.every=1000",
         "method.pfedmoap.experts=3", "method.pfedmoap.lr=2"]  # fmt: skip


def study(*words: str) -> experts.Numbers:
    settings = experiment.parse(overrides.apply_words(presets.settings("quickstart"), [*SMALL, *words]))
    return experts.study(settings, "pfedmoap", 3)


def test_the_model_as_trained_has_the_accuracy_of_the_run(tmp_path: Path) -> None:
    numbers = study()
    run = fedvlm.run("quickstart", *SMALL, methods=["pfedmoap"], seeds=[3], out=tmp_path / "run")
    assert numbers["Local, gate as trained"] == pytest.approx(100 * run.points["pfedmoap"][3].reported["local"])
    assert numbers["text: two clients, one class"] > 1e-5
    assert numbers["text: trained and template"] > 1e-5
    assert 0 < numbers["predictions that differ (%)"] < 100


def test_prompts_that_do_not_move_are_all_the_template() -> None:
    numbers = study("method.pfedmoap.lr=0")
    assert numbers["text: two clients, one class"] == pytest.approx(0, abs=1e-5)
    assert numbers["text: trained and template"] == pytest.approx(0, abs=1e-5)
    assert numbers["predictions that differ (%)"] == 0
    assert (
        numbers["Local with the own prompt"]
        == numbers["Local with another client's"]
        == numbers["Local with the template"]
    )
    assert numbers["Local, gate as trained"] == numbers["Local, experts are copies of the own prompt"]
