"""Base and novel classes, held-out images, few shots, evaluation sets, and the saved form."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from fake_data import classes, experiment_of, source_of

from fedvlm.data import Federation, Source, federate
from fedvlm.data.assembly import safe_names
from fedvlm.errors import FedvlmError
from fedvlm.experiment import parse

IID = {"kind": "iid", "clients": 2}


def dealt(source: Source, seed: int = 0, **sections: Any) -> Federation:
    return federate(source, experiment_of(**({"partition": IID} | sections)), seed)


def trained(federation: Federation) -> list[int]:
    return sorted(i for client in federation.clients for i in client.train)


@pytest.mark.parametrize(("count", "base"), [(1, 1), (2, 1), (5, 3), (37, 19), (102, 51), (397, 199)])
def test_the_first_half_rounded_up_is_base(count: int, base: int) -> None:
    source = source_of(classes(count, 2), classes(count, 1))
    federation = dealt(source)
    assert federation.base_names == [f"class {label:03d}" for label in range(base)]
    assert federation.novel_names == [f"class {label:03d}" for label in range(base, count)]
    assert dealt(source, data={"novel": "none"}).novel == ()


def test_novel_labels_start_at_zero_too() -> None:
    federation = dealt(source_of(classes(5, 2), classes(5, 1)))
    assert federation.labels(federation.tests["base"]) == [0, 1, 2]
    assert federation.labels(federation.tests["novel"]) == [0, 1]
    assert federation.clients[0].novel == "novel"
    assert dealt(source_of(classes(5, 2), classes(5, 1)), data={"novel": "none"}).clients[0].novel is None


def test_shots_per_class_and_domain() -> None:
    source = source_of({"a": 9, "b": 2}, {"a": 1, "b": 1}, domains=("x", "y"))
    federation = dealt(source, data={"novel": "none", "shots": 3})
    found = Counter((source.records[i].name, source.records[i].domain) for i in trained(federation))
    assert found == {("a", "x"): 3, ("a", "y"): 3, ("b", "x"): 2, ("b", "y"): 2}
    assert "2 classes have fewer than 3 training images: b / x (2), b / y (2)" in federation.notes


def test_shots_differ_from_seed_to_seed_but_not_from_other_classes() -> None:
    few, many = source_of({"a": 50}, {"a": 1}), source_of({"a": 50, "b": 50}, {"a": 1, "b": 1})

    def chosen(source: Source, seed: int) -> set[str]:
        found = dealt(source, seed, data={"novel": "none", "shots": 5})
        return {source.records[i].image.key for i in trained(found) if source.records[i].name == "a"}

    assert chosen(few, 0) != chosen(few, 1)
    assert chosen(few, 0) == chosen(many, 0), "another class in the data does not change this one's draw"


def test_more_shots_include_the_fewer() -> None:
    source = source_of(classes(3, 40), classes(3, 1))
    draws = [set(trained(dealt(source, data={"shots": n, "novel": "none"}))) for n in (1, 4, 16)]
    assert draws[0] < draws[1] < draws[2]


def test_held_out_images_per_class() -> None:
    source = source_of({"a": 10, "b": 2, "c": 1, "d": 3}, domains=("x", "y"))
    federation = dealt(source, data={"novel": "none", "test_fraction": 0.3})
    held = Counter((source.records[i].name, source.records[i].domain) for i in federation.tests["base"])
    # round(3.0), round(0.6) = 1, one image alone stays for training, round(0.9)
    assert held == {(name, domain): n for name, n in (("a", 3), ("b", 1), ("d", 1)) for domain in ("x", "y")}
    assert sorted(trained(federation) + list(federation.tests["base"])) == list(range(len(source)))


def test_held_out_images_per_client() -> None:
    parts = [
        source_of({"a": 20, "b": 10, "c": 1}, clients=("big",)),
        source_of({"a": 1, "b": 1, "c": 0}, clients=("two",)),
        source_of({"a": 0, "b": 0, "c": 1}, clients=("one",)),
    ]
    source = Source("sample", ("a", "b", "c"), tuple(record for part in parts for record in part.records))
    federation = dealt(source, data={"novel": "none", "test_fraction": 0.3}, partition={"kind": "natural"})
    big, one, two = federation.clients
    assert Counter(source.records[i].name for i in big.local) == {"a": 6, "b": 3}
    assert (len(two.train), len(two.local)) == (1, 1)
    assert (len(one.train), len(one.local)) == (1, 0)


def test_one_client_more_does_not_change_the_others() -> None:
    source = source_of(classes(4, 9), clients=("ann", "bob"))
    more = source_of(classes(4, 9), clients=("ann", "bob", "cid"))
    keys = [
        {source.records[i].image.key for i in dealt(source, partition={"kind": "natural"}).clients[0].train}
        for source in (source, more)
    ]
    assert keys[0] == keys[1]


def test_test_images_per_class_are_capped() -> None:
    source = source_of(classes(4, 5), classes(4, 9), domains=("x", "y"))
    federation = dealt(source, data={"test_per_class": 3})
    assert len(federation.tests["base"]) == 2 * 2 * 3
    assert len(federation.tests["novel"]) == 2 * 2 * 3


def test_validation_images_never_are_test_or_training_images() -> None:
    source = source_of(classes(4, 20), classes(4, 6))
    data = {"val_fraction": 0.2}
    test = dealt(source, data=data)
    val = dealt(source, data=data, evaluation={"split": "val"})
    assert trained(test) == trained(val), "choosing hyper-parameters trains on what is trained on afterwards"
    assert len(val.tests["base"]) == 2 * 4
    assert not {*val.tests["base"], *val.tests["novel"]} & {*test.tests["base"], *test.tests["novel"], *trained(val)}
    assert all(set(client.local) <= set(val.tests["base"]) for client in val.clients)


def test_the_sources_own_validation_split_is_used() -> None:
    source = dealt_with_val()
    federation = dealt(source, data={"novel": "none", "val_fraction": 0.5}, evaluation={"split": "val"})
    assert [source.records[i].split for i in federation.tests["base"]] == ["val", "val"]
    assert any("val_fraction is not used" in note for note in federation.notes)


def dealt_with_val() -> Source:
    source = source_of({"a": 6}, {"a": 2})
    records = [*source.records]
    for place in (1, 4):
        record = records[place]
        records[place] = type(record)(record.image, record.label, record.name, split="val")
    return Source("sample", source.classnames, tuple(records))


def test_own_domain_test_sets() -> None:
    source = source_of(classes(4, 4), classes(4, 2), domains=("x", "y"))
    partition = {"kind": "domain", "clients_per_domain": 2}
    federation = dealt(source, partition=partition, evaluation={"general": "own_domain"})
    assert sorted(federation.tests) == ["base/x", "base/y", "novel/x", "novel/y"]
    assert [(client.base, client.novel) for client in federation.clients] == [
        ("base/x", "novel/x"), ("base/x", "novel/x"), ("base/y", "novel/y"), ("base/y", "novel/y"),
    ]  # fmt: skip
    assert {source.records[i].domain for i in federation.tests["novel/y"]} == {"y"}


def test_classes_without_training_images_are_told() -> None:
    federation = dealt(source_of({"a": 3, "b": 0, "c": 2}, {"a": 1, "b": 1}), data={"novel": "none"})
    assert federation.base_names == ["a", "b", "c"]
    assert "1 base class is trained on by no client: b" in federation.notes


def test_base_classes_need_images() -> None:
    with pytest.raises(FedvlmError, match=r"no training image.*data.novel"):
        dealt(source_of({"a": 0, "b": 3}, {"a": 1, "b": 1}))
    with pytest.raises(FedvlmError, match="no test image"):
        dealt(source_of({"a": 1, "b": 3}, None))
    with pytest.raises(FedvlmError, match="look at its train split"):
        dealt(source_of({"a": 0, "b": 0}, {"a": 1, "b": 1}))


def test_scenes_take_the_configured_base_classes() -> None:
    experiment = parse({"data": {"source": "scenes", "base_classes": 1, "val_per_class": 0}, "partition": IID})
    source = source_of(classes(5, 3), classes(5, 2))
    assert federate(source, experiment, 0).base == (0,)
    with pytest.raises(FedvlmError, match=r"data.val_per_class"):
        federate(source, parse(experiment.resolved() | {"evaluation": {"split": "val"}}), 0)


def test_saved_and_read_again() -> None:
    source = source_of(classes(4, 4), classes(4, 2), domains=("x", "y"))
    federation = dealt(source, partition={"kind": "domain"}, evaluation={"general": "own_domain"})
    saved = json.loads(json.dumps(federation.to_json()))
    assert Federation.from_json(source, saved) == federation
    assert saved["digest"] == federation.digest()
    assert saved["base"] == {"0": "class 000", "1": "class 001"}


def test_the_digest_covers_lists_and_images_but_not_notes() -> None:
    source = source_of(classes(4, 4), classes(4, 2))
    federation = dealt(source)
    assert dealt(source).digest() == federation.digest()
    assert dealt(source, 1).digest() != federation.digest()
    noted = Federation(source, federation.base, federation.novel, federation.clients, federation.tests, ("x",))
    assert noted.digest() == federation.digest()
    renamed = source_of({f"x{name}": n for name, n in classes(4, 4).items()}, None)
    assert renamed.digest != source.digest


def test_a_saved_partition_of_other_images_is_refused() -> None:
    saved = dealt(source_of(classes(4, 4), classes(4, 2))).to_json()
    with pytest.raises(FedvlmError, match=r"made for other images: 24 of 'sample' then, 28.*start a new run"):
        Federation.from_json(source_of(classes(4, 5), classes(4, 2)), saved)


@pytest.mark.parametrize(
    "change",
    [
        {"tests": {"base": [0, 10**9]}},
        {"tests": {"base": [-1]}},
        {"tests": {}},
        {"base": {"99": "x"}},
        {"base": {"x": "x"}},
        {"clients": []},
        {"digest": "0"},
        {"version": 2},
    ],
)
def test_a_changed_file_is_refused(change: dict[str, Any]) -> None:
    source = source_of(classes(4, 4), classes(4, 2))
    with pytest.raises(FedvlmError, match=r"changed after it was written|version"):
        Federation.from_json(source, dealt(source).to_json() | change)


@pytest.mark.parametrize("saved", [{}, {"version": "1"}, {"clients": 3}])
def test_a_file_that_is_no_partition_is_refused(saved: dict[str, Any]) -> None:
    with pytest.raises(FedvlmError, match="no saved partition"):
        Federation.from_json(source_of(classes(2, 1), None), saved)


def test_names_are_safe_and_differ() -> None:
    names = ["Ann", "ann", "a/b", "a_b", "..", "", "Zoë", "x" * 200, "con\n", "7"]
    safe = safe_names(names)
    assert len({name.casefold() for name in safe}) == len(names)
    assert all(name and "/" not in name and "\n" not in name and not name.startswith(".") for name in safe)
    assert max(len(name) for name in safe) < 80
    assert (safe[6], safe[9]) == ("Zoë", "7")
    assert safe_names(names[:1]) == ["Ann"]
