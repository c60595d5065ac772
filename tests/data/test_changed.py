"""An image that changes under its path: noticed within a run and between two runs of one folder."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import fake_datasets
import pytest
from fake_data import experiment_of, photo, photos, problem_of

import fedvlm
from fedvlm.data import Federation, Source, federate, load_source
from fedvlm.data.files import FileImage
from fedvlm.data.sources.cifar import CifarData
from fedvlm.data.sources.folder import FolderData
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.errors import FedvlmError

NAMES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(4)]


def folder_of(root: Path) -> Source:
    return load_source(FolderData(source="folder", path=str(root)), 0)


def saved(source: Source) -> dict[str, Any]:
    fed = federate(source, experiment_of({"novel": "none"}, {"clients": 2}), 0)
    content: dict[str, Any] = json.loads(json.dumps(fed.to_json()))
    return content


def test_other_bytes_than_those_that_were_looked_at_are_refused(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path, *NAMES))
    image = source.records[0].image
    before = (image.open().tobytes(), image.digest())  # type: ignore[attr-defined]
    old = (tmp_path / NAMES[0]).read_bytes()
    photo(tmp_path / NAMES[0], (9, 9, 200))
    with pytest.raises(FedvlmError, match=r"cat/0\.png has changed since the run began: put the file back"):
        image.open()
    assert image.digest() == before[1], "what was looked at, whatever lies there now"  # type: ignore[attr-defined]
    (tmp_path / NAMES[0]).write_bytes(old)
    assert image.open().tobytes() == before[0]


def test_a_digest_and_its_pixels_come_from_the_same_bytes(tmp_path: Path) -> None:
    """While a file is replaced again and again, it is opened right or not at all."""
    path = photo(tmp_path / "a.png", (1, 200, 3))
    image = FileImage(tmp_path, "a.png")
    seen = image.inspect(lambda digest: None)
    assert problem_of(image) is None
    image = image.with_facts(seen, 16)  # type: ignore[arg-type]
    right, other = path.read_bytes(), photo(tmp_path / "b.png", (90, 90, 9)).read_bytes()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for content in (other, right):
                (tmp_path / "new").write_bytes(content)
                (tmp_path / "new").replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = set()
    for _ in range(300):
        try:
            outcomes.add(image.open().getpixel((0, 0)))
        except FedvlmError as error:
            assert "has changed" in str(error)  # noqa: PT017
    stop.set()
    thread.join()
    assert outcomes <= {(1, 200, 3)}


def test_a_cifar_record_that_changed_is_refused(tmp_path: Path) -> None:
    batches = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    made = {name: [(0, fake_datasets.flat(place, 2, 3))] for place, name in enumerate(batches)}
    root = fake_datasets.cifar10(tmp_path, made, fake_datasets.CIFAR10)
    source = load_source(CifarData(source="cifar", path=str(root), complete=False), 0)
    file = root / "data_batch_2.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    source.records[0].image.open()
    with pytest.raises(FedvlmError, match=r"data_batch_2\.bin has changed since the run began: record 0"):
        source.records[1].image.open()


def test_a_saved_partition_is_refused_for_other_bytes(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path, *NAMES))
    content = saved(source)
    photo(tmp_path / NAMES[0], (9, 9, 200))
    other = folder_of(tmp_path)
    assert other.digest == source.digest, "paths and labels are the same"
    with pytest.raises(FedvlmError, match=r"bytes of some differ.*Put the files back as they were, or start a new run"):
        Federation.from_json(other, content)


def test_a_run_is_not_taken_up_with_other_images_under_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with `compute.disk_gib = 0` nothing of the images is left in the cache."""
    monkeypatch.setenv("FEDVLM_CACHE", str(tmp_path / "cache"))
    photos(tmp_path / "pets", *NAMES)
    words = ["data.source=folder", f"data.path={tmp_path / 'pets'}", "data.novel=none", "partition.clients=2",
             "compute.disk_gib=0"]  # fmt: skip
    (tmp_path / "pets.toml").write_text('methods = ["zero_shot"]\n[data]\nsource = "folder"\npath = "pets"\n')
    fedvlm.run(str(tmp_path / "pets.toml"), *words, out=tmp_path / "run")
    photo(tmp_path / "pets" / NAMES[0], (9, 9, 200))
    with pytest.raises(FedvlmError, match="bytes of some differ"):
        fedvlm.run(str(tmp_path / "pets.toml"), *words, "methods=zero_shot,majority", out=tmp_path / "run", resume=True)
    assert not (tmp_path / "cache").exists()


def test_a_partition_that_was_saved_before_bytes_were_is_read(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path, *NAMES))
    content = saved(source)
    fed = Federation.from_json(source, content)
    assert content.pop("content")
    assert Federation.from_json(source, content) == fed
    assert fed.digest() == content["digest"], "it does not count the bytes"


def test_drawn_scenes_have_no_bytes() -> None:
    source = load_source(ScenesData(base_classes=2, novel_classes=1, shots=2, val_per_class=1, test_per_class=1), 0)
    assert source.content is None
    fed = federate(source, experiment_of({"novel": "none"}, {"clients": 2}), 0)
    assert fed.to_json().keys() == {
        "version", "counts", "source", "records", "images", "base", "novel", "clients", "tests", "notes", "digest",
    }  # fmt: skip
