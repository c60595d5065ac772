"""The photographs beside the repository: every image with its own label, name, domain and person."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from fake_data import PAPER, experiment_of

from fedvlm.data import Federation, Source, federate, load_source
from fedvlm.data.pixels import read_images
from fedvlm.experiment import Experiment

NOISE = ["Not sure", "Skip", "Other"]


@pytest.fixture(scope="module")
def caltech(shared: Path) -> tuple[Source, Experiment]:
    experiment = experiment_of(
        {"source": "coop", "path": str(shared / "data/caltech-101"), "shots": 16}, {"order": "paper"}
    )
    return load_source(experiment.data, 0), experiment


@pytest.fixture(scope="module")
def clothing(shared: Path) -> Source:
    data = {"source": "manifest", "path": str(shared / "data/clothing"), "manifest": "images.csv",
            "image_path": "images/{}.jpg", "client": "sender_id", "exclude": NOISE}  # fmt: skip
    return load_source(experiment_of(data).data, 0)


@pytest.fixture(scope="module")
def office(shared: Path) -> Source:
    data = {"source": "folder", "layout": "domain", "path": str(shared / "data/office_caltech_10"),
            "on_duplicate": "keep"}  # fmt: skip
    return load_source(experiment_of(data).data, 0)


def test_caltech_is_its_split_file(caltech: tuple[Source, Experiment], shared: Path) -> None:
    source, _ = caltech
    lists = json.loads((shared / "data/caltech-101/split_zhou_Caltech101.json").read_text())
    expected = {
        ("101_ObjectCategories/" + path, label, name, split)
        for split, rows in lists.items()
        for path, label, name in rows
    }
    assert {(r.image.key, r.label, r.name, r.split) for r in source.records} == expected
    assert source.warnings == ()
    assert (source.classnames[0], source.classnames[99]) == ("face", "yin_yang")


def test_caltech_in_the_papers_partition(caltech: tuple[Source, Experiment]) -> None:
    source, experiment = caltech
    federation = federate(source, experiment, 1)
    assert [client.classes for client in federation.clients] == [tuple(sorted(ids)) for ids in PAPER[50]]
    assert {len(client.train) for client in federation.clients} == {80}
    assert federation.tests.keys() == {"base", "novel"}
    assert len(federation.tests["base"]) + len(federation.tests["novel"]) == 2465
    assert sum(len(client.local) for client in federation.clients) == len(federation.tests["base"])


def test_clothing_is_its_table_without_noise(clothing: Source, shared: Path) -> None:
    with (shared / "data/clothing/images.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["label"] not in NOISE]
    images = {path.stem for path in (shared / "data/clothing/images").iterdir()}
    expected = {(f"images/{x['image']}.jpg", x["label"], x["sender_id"]) for x in lines if x["image"] in images}
    assert {(r.image.key, r.name, r.client) for r in clothing.records} == expected
    assert clothing.classnames == tuple(sorted({label for _, label, _ in expected}))
    assert len(clothing.classnames) == 17


def test_people_keep_their_clothes(clothing: Source) -> None:
    experiment = experiment_of({"novel": "none"}, {"kind": "natural", "clients": None, "min_images": 1})
    federation = federate(clothing, experiment, 0)
    owned: dict[str, set[int]] = defaultdict(set)
    for place, record in enumerate(clothing.records):
        owned[str(record.client)].add(place)
    assert {client.name for client in federation.clients} == owned.keys()
    for client in federation.clients:
        assert {*client.train, *client.local} == owned[client.name]
        assert bool(client.local) == (len(owned[client.name]) >= 2)
    share = len(federation.tests["base"]) / len(clothing)
    assert 0.27 < share < 0.33


def test_office_domains(office: Source, shared: Path) -> None:
    folders = Counter(path.parts[-3] for path in (shared / "data/office_caltech_10").glob("*/*/*.jpg"))
    assert Counter(str(record.domain) for record in office.records) == folders
    assert len(office) == 2533
    assert all(f"{record.domain}/{record.name}/" in record.image.key for record in office.records)


def test_office_by_domain_and_labels(office: Source) -> None:
    partition = {"kind": "domain", "clients_per_domain": 5, "alpha": 0.3}
    federation = federate(office, experiment_of({"novel": "none"}, partition, {"general": "own_domain"}), 0)
    assert len(federation.clients) == 20
    assert sum(len(client.train) + len(client.local) for client in federation.clients) == 2533


def test_every_kind_of_file_decodes(caltech: tuple[Source, Experiment], clothing: Source, office: Source) -> None:
    for source in (caltech[0], clothing, office):
        found = read_images([record.image for record in source.records[:: len(source) // 20]])
        assert all(image.ndim == 3 and image.shape[2] == 3 and min(image.shape[:2]) > 50 for image in found)


def test_what_is_saved_comes_back(office: Source) -> None:
    federation = federate(office, experiment_of({}, {"kind": "domain"}), 0)
    assert Federation.from_json(office, json.loads(json.dumps(federation.to_json()))) == federation
