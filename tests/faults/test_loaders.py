"""Faults of the data: who gets which name, label and image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fedvlm import faults
from fedvlm.data import Federation
from fedvlm.errors import FedvlmError
from fedvlm.experiment import Experiment
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.testing import tiny


def wrong(fed: Federation, *names: str, seed: int = 0) -> Federation:
    experiment = Experiment(faults=list(names))
    return faults.FaultSet(ZeroShot(), experiment).federation(fed, seed)


def many(base: int = 30, each: int = 10) -> Federation:
    """Thirty classes in two domains, dealt to two clients each."""
    source = tiny.source(tuple(f"thing {i}" for i in range(base)), ("odd", "queer"), each=each)
    records = tuple(replace(record, domain=("ink", "oil")[place % 2]) for place, record in enumerate(source.records))
    source = replace(source, records=records)
    clients, tests = [], {}
    for domain in ("ink", "oil"):
        images = [i for i, record in enumerate(records) if record.domain == domain]
        tests[f"base/{domain}"] = tuple(i for i in images if records[i].label < base and i % 10 >= 6)
        tests[f"novel/{domain}"] = tuple(i for i in images if records[i].label >= base)
        for part in range(2):
            classes = tuple(range(part, base, 2))
            mine = [i for i in images if records[i].label in classes]
            train, local = (tuple(i for i in mine if (i % 10 >= 6) is test) for test in (False, True))
            clients.append(
                tiny.Client(f"{domain}{part}", train, local, f"base/{domain}", f"novel/{domain}", classes, domain)
            )
    return Federation(source, tuple(range(base)), (base, base + 1), tuple(clients), tests)


def test_names_are_permuted_and_nothing_else() -> None:
    fed = many()
    found = wrong(fed, "permuted_names")
    assert sorted(found.base_names) == sorted(fed.base_names)
    assert sorted(found.novel_names) == sorted(fed.novel_names)
    right = sum(one == other for one, other in zip(found.base_names, fed.base_names, strict=True))
    assert right < 8  # one in the mean; more than 7 of 30 less often than once in 10,000
    images = list(range(len(fed.source)))[:40]
    assert found.labels(images) == fed.labels(images)
    assert found.clients == fed.clients


def test_every_seed_has_a_permutation_of_its_own() -> None:
    fed = many()
    assert wrong(fed, "permuted_names").base_names == wrong(fed, "permuted_names").base_names
    assert wrong(fed, "permuted_names").base_names != wrong(fed, "permuted_names", seed=1).base_names


def agreement(fed: Federation, images: list[int]) -> float:
    labels = fed.labels(images)
    return float(
        np.mean(
            [fed.source.records[image].label == fed.base[label] for image, label in zip(images, labels, strict=True)]
        )
    )


def test_labels_agree_with_images_by_chance_in_training_and_test() -> None:
    fed = many()
    found = wrong(fed, "detached_labels")
    assert agreement(fed, list(fed.clients[0].train)) == 1
    for part in ("train", "local"):
        images = [image for client in found.clients for image in getattr(client, part)]
        # Chance is 1 / 30; with 120 to 180 images a share above 0.12 is less likely than 1 in 10,000.
        assert agreement(found, images) < 0.12
    assert agreement(found, [i for key, images in found.tests.items() if "base" in key for i in images]) < 0.12


def test_a_client_keeps_its_labels_and_gets_other_images_of_its_domain() -> None:
    fed = many()
    found = wrong(fed, "detached_labels")
    for before, after in zip(fed.clients, found.clients, strict=True):
        for part in ("train", "local"):
            old, new = getattr(before, part), getattr(after, part)
            assert Counter(found.labels(new)) == Counter(fed.labels(old))
            assert {found.source.records[image].domain for image in new} == {before.domain}
            assert list(new) == sorted(set(new))
        assert after.classes == before.classes
        assert not set(after.train) & set(after.local)
        assert set(after.local) <= set(found.tests[after.base])
    trained = [image for client in found.clients for image in client.train]
    assert len(trained) == len(set(trained))


def test_training_images_are_never_test_images() -> None:
    fed = many()
    tested = {image for images in fed.tests.values() for image in images}
    found = wrong(fed, "detached_labels")
    assert {image for images in found.tests.values() for image in images} == tested
    assert not {image for client in found.clients for image in client.train} & tested


def test_both_faults_of_data_together() -> None:
    fed = many()
    both, names, labels = (wrong(fed, *each) for each in (
        ("permuted_names", "detached_labels"), ("permuted_names",), ("detached_labels",)))  # fmt: skip
    assert both.base_names == names.base_names
    assert both.clients == labels.clients
    images = list(labels.clients[1].train)
    assert both.labels(images) == labels.labels(images)


def test_client_five_is_missing() -> None:
    fed = tiny.federation((5, 5, 4, 4, 4, 4, 3))
    experiment = Experiment.model_validate({"faults": ["missing_client"], "partition": {"clients": 7}})
    found = faults.FaultSet(tiny.method("coop"), experiment).federation(fed, 0)
    assert [client.name for client in found.clients] == [f"site-{i}" for i in (0, 1, 2, 3, 4, 6)]


def test_client_five_of_five() -> None:
    experiment = Experiment.model_validate({"faults": ["missing_client"], "partition": {"kind": "domain"}})
    with pytest.raises(FedvlmError, match="needs 6 clients, here are 4"):
        faults.FaultSet(tiny.method("coop"), experiment).federation(tiny.federation(), 0)


def test_zero_shot_is_at_chance_with_either_fault_of_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The embedded CLIP knows the drawn scenes: 73 % of 20 classes; chance is 5 %."""
    import fedvlm

    words = [
        "methods=zero_shot",
        "data.shots=1",
        "data.test_per_class=6",
        "data.val_per_class=1",
        "partition.clients=4",
    ]
    for faults_ in ("permuted_names", "detached_labels"):
        out = tmp_path_factory.mktemp("chance") / "run"
        found = fedvlm.run("quickstart", *words, f"faults={faults_}", out=out)
        point = found.points[f"zero_shot [{faults_}]"][0].final["after_aggregation"]
        # 480 images in all; the standard deviation of guessing is 1 %, of few right names more.
        assert point["base"] < 0.2
        assert point["novel"] < 0.2
