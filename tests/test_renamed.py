"""Settings by their earlier names: the same experiment, told once as old; files keep the earlier names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from called import call

import fedvlm
from fedvlm import experiment
from fedvlm.errors import FedvlmError

RENAMED = [
    ("compute.together=3", "compute.clients_per_step=3"),
    ("compute.clients_gib=0.5", "compute.client_cache_gib=0.5"),
    ("compute.kept_as=float16", "compute.cache_dtype=float16"),
    ("partition.late=1", "partition.newcomers=1"),
    ("method.all.optimiser=adam", "method.all.optimizer=adam"),
    ("method.coop.words=a photo", "method.coop.init_text=a photo"),
    ("method.coop.place=front", "method.coop.class_position=front"),
]


@pytest.mark.parametrize(("before", "now"), RENAMED)
def test_an_earlier_name_is_the_same_setting_and_is_told(before: str, now: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = experiment.load("common_style", [now, "methods=coop", "method.coop.tokens=2"])
        assert experiment.parse(one.resolved()) == one
    key, name = before.split("=")[0], now.split("=")[0]
    with pytest.warns(FutureWarning, match=f"setting '{key}' is called '{name}' now"):
        other = experiment.load("common_style", [before, "methods=coop", "method.coop.tokens=2"])
    assert one == other
    assert one.digest() == other.digest()
    assert json.dumps(one.resolved()) == json.dumps(other.resolved())
    table, last = one.resolved(), key.split(".")
    for part in last[:-1]:
        table = table[part]
    assert last[-1] in table


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("words", [["partition.late=1", "partition.newcomers=2"],
                                   ["method.all.optimiser=sgd", "method.all.optimizer=adam"]])  # fmt: skip
def test_both_names_at_once_are_a_mistake(words: list[str]) -> None:
    with pytest.raises(FedvlmError, match="is the earlier name of"):
        experiment.load("quickstart", words)


def test_the_command_line_says_it_in_a_line(tmp_path: Path) -> None:
    words = ["data.shots=1", "data.test_per_class=1", "data.base_classes=4", "data.novel_classes=2", "rounds=1", "seeds=0",
             "partition.clients=2", "methods=coop"]  # fmt: skip
    out = tmp_path / "r"
    done = call("run", "quickstart", *words, "compute.together=1", "--out", str(out), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["fedvlm: setting 'compute.together' is called 'compute.clients_per_step' now"]
    before = json.loads((out / "seed-0/coop/point.json").read_text())["settings"]
    assert {"optimiser", "words", "place"} <= before.keys()
    again = fedvlm.run("quickstart", *words, "compute.clients_per_step=1", out=out, resume=True)
    assert again.complete
