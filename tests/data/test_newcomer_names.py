"""Who joins late: by number, by name, by domain; and what does not change with it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest

from fedvlm import experiment, overrides, presets
from fedvlm.data import Federation, Source, federate, load_source
from fedvlm.data.picture import partition_figure, partition_table
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment

WORDS = ["data.shots=2", "data.val_per_class=1", "data.test_per_class=1", "data.base_classes=8", "data.novel_classes=4",
         "data.styles=sketch,neon,fog", "partition.clients=6"]  # fmt: skip


def chosen(*words: str) -> Experiment:
    return experiment.parse(overrides.apply_words(presets.settings("quickstart"), [*WORDS, *words]))


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source(chosen().data, 0)


def dealt(source: Source, *words: str, seed: int = 0) -> Federation:
    return federate(source, chosen(*words), seed)


@pytest.mark.parametrize(
    ("word", "names"),
    [("neon", {"1", "4"}), ('["neon", "0"]', {"0", "1", "4"}), ("2,fog", {"2", "5"}), ("[3]", {"3"}), ("[]", set()), ("0", set())],
)  # fmt: skip
def test_names_and_domains(word: str, names: set[str], source: Source) -> None:
    fed = dealt(source, f"partition.newcomers={word}")
    assert {client.name for client in fed.newcomers} == names
    assert {client.name for client in fed.trained} == set("012345") - names
    assert [client.name for client in fed.clients] == list("012345")


def test_a_number_is_drawn_by_the_seed(source: Source) -> None:
    counts: Counter[str] = Counter()
    for seed in range(60):
        fed = dealt(source, "partition.newcomers=2", seed=seed)
        assert len(fed.newcomers) == 2
        counts.update(client.name for client in fed.newcomers)
        assert fed.digest() == dealt(source, "partition.newcomers=2", seed=seed).digest()
    assert counts.keys() == set("012345")
    assert all(abs(count - 20) < 5 * (60 * 2 / 9) ** 0.5 for count in counts.values())


def test_being_late_changes_nobodys_images(source: Source) -> None:
    plain, fed = dealt(source), dealt(source, "partition.newcomers=neon")
    for one, other in zip(plain.clients, fed.clients, strict=True):
        assert (one.name, one.train, one.local, one.base, one.novel) == (
            other.name, other.train, other.local, other.base, other.novel,
        )  # fmt: skip
    assert plain.tests == fed.tests
    assert plain.digest() != fed.digest()


def test_a_partition_saved_before_there_were_late_clients_is_the_same(source: Source) -> None:
    """No key of it mentions them, so neither its form nor its digest has changed."""
    plain = dealt(source)
    saved: dict[str, Any] = json.loads(json.dumps(plain.to_json()))
    assert "late" not in json.dumps(saved)
    assert Federation.from_json(source, saved) == plain
    late = dealt(source, "partition.newcomers=fog")
    assert Federation.from_json(source, json.loads(json.dumps(late.to_json()))) == late
    marked = [client["name"] for client in late.to_json()["clients"] if client.get("late")]
    assert marked == ["2", "5"]


def test_an_experiment_without_late_clients_keeps_its_digest() -> None:
    """Otherwise a run that was begun before there were any could not be resumed."""
    settings = chosen().resolved()
    for unused in ("name", "faults"):
        settings.pop(unused)
    settings["compute"] = {key: settings["compute"][key] for key in ("dtype", "kept_as")}
    assert settings["partition"].pop("late") == 0
    assert settings["evaluation"].pop("metrics") == []
    assert settings["data"].pop("rarer") == 0.5  # later, too, and at its default here
    expected = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    assert chosen().digest() == chosen("partition.newcomers=[]").digest() == expected
    assert chosen("partition.newcomers=1").digest() != chosen("partition.newcomers=neon").digest() != expected


def test_classes_that_only_late_clients_have_are_told(source: Source) -> None:
    fed = dealt(source, "partition.newcomers=neon")
    own = {fed.base_names[place] for client in fed.newcomers for place in client.classes}
    (note,) = [note for note in fed.notes if "trained on by no client" in note]
    assert all(name in note for name in own)
    assert not [note for note in dealt(source).notes if "trained on by no client" in note]


def test_the_picture_and_the_table_say_who(source: Source) -> None:
    fed = dealt(source, "partition.newcomers=neon")
    assert [row.client for row in partition_table(fed)] == ["0", "1 (late)", "2", "3", "4 (late)", "5"]
    labels = [label.get_text() for label in partition_figure(fed).axes[0].get_yticklabels()]
    assert labels[1] == "1 (late)  neon"


@pytest.mark.parametrize(
    ("word", "message"),
    [("neonn", r"'neonn' is no client or domain here \(did you mean 'neon'\?\); there are: fog, neon, sketch, 0, 1"),
     ("chalk", "'chalk' is no client or domain"), ("6", "all 6 clients newcomers: no client is left"),
     ("sketch,neon,fog", "no client is left"), ("7", "newcomers = 7, but there are 6"), ("-1", "'partition.newcomers': .*a number of clients"),
     ("true", "a number of clients"), ("[1.5]", "a list of names"), ('[""]', "a list of names")],
)  # fmt: skip
def test_mistakes(word: str, message: str, source: Source) -> None:
    with pytest.raises(FedvlmError, match=message):
        dealt(source, f"partition.newcomers={word}")
