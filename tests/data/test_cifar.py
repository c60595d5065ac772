"""CIFAR's binary version: every record's image, label, name and super-class together; every damage told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_datasets
import numpy as np
import pytest

from fedvlm.data import Source, load_source
from fedvlm.data.pixels import read_images
from fedvlm.data.sources.cifar import CifarData
from fedvlm.errors import FedvlmError

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
COARSE = [(7 * fine + 3) % 20 for fine in range(100)]


def load(root: Path, **settings: Any) -> Source:
    return load_source(CifarData(source="cifar", path=str(root), **{"complete": False} | settings), 0)


def ten(root: Path) -> Path:
    """Three records of every class in every file; the colour says file, class and number."""
    images = {
        name: [
            (label, fake_datasets.flat(file * 40, label * 25, number * 80))
            for number in range(3)
            for label in (9, *range(9))
        ]
        for file, name in enumerate(BATCHES)
    }
    return fake_datasets.cifar10(root, images, fake_datasets.CIFAR10)


def hundred(root: Path) -> Path:
    images = {
        name: [
            (label, fake_datasets.flat(file * 40, label * 2, number * 80))
            for number in range(2)
            for label in range(100)
        ]
        for file, name in enumerate(["train", "test"])
    }
    return fake_datasets.cifar100(root, images, COARSE)


def test_every_image_keeps_its_label_and_name_in_cifar10(tmp_path: Path) -> None:
    source = load(ten(tmp_path))
    assert source.classnames == tuple(fake_datasets.CIFAR10)
    assert source.superclasses == ()
    assert len(source) == 180
    for found, one in zip(read_images([r.image for r in source.records]), source.records, strict=True):
        file, row = one.image.key.split("/")
        red, green, _ = found[5, 7].tolist()
        assert found.shape == (32, 32, 3)
        assert np.ptp(found, axis=(0, 1)).max() == 0, "planes are not mixed up"
        assert (green // 25, red // 40) == (one.label, BATCHES.index(file.removesuffix(".bin")))
        assert one.name == fake_datasets.CIFAR10[one.label]
        assert one.split == ("test" if file == "test_batch.bin" else "train")
        assert found[0, 0, 2] == int(row) // 10 * 80
    assert len({r.image.key for r in source.records}) == len({r.image.digest() for r in source.records}) == 180  # type: ignore[attr-defined]


def test_pixels_stand_where_they_stood(tmp_path: Path) -> None:
    image = fake_datasets.drawing("striped_fish", 0, side=32)
    root = fake_datasets.cifar10(tmp_path, {name: [(3, image)] for name in BATCHES}, fake_datasets.CIFAR10)
    assert np.array_equal(np.asarray(load(root).records[2].image.open()), np.asarray(image))


def test_every_image_keeps_its_labels_in_cifar100(tmp_path: Path) -> None:
    source = load(hundred(tmp_path))
    assert source.superclasses == tuple(f"coarse {label:02d}" for label in COARSE)
    assert Counter(record.split for record in source.records) == {"train": 200, "test": 200}
    for one in source.records:
        red, green, _ = one.image.open().getpixel((31, 0))  # type: ignore[misc]
        assert (green // 2, red // 40) == (one.label, int(one.split == "test"))
        assert one.name == f"fine {one.label:02d}"


def test_the_unpacked_archive_may_lie_in_the_folder(tmp_path: Path) -> None:
    ten(tmp_path / "cifar-10-batches-bin")
    assert load(tmp_path).digest == load(tmp_path / "cifar-10-batches-bin").digest
    hundred(tmp_path / "cifar-100-binary")
    with pytest.raises(FedvlmError, match=r"several data sets \(CIFAR-10 in .*CIFAR-100 in .*set data.path to one"):
        load(tmp_path)


def test_files_of_the_published_size_need_no_setting(tmp_path: Path) -> None:
    """Sparse files of zeros: 60,000 airplanes."""
    ten(tmp_path)
    for name in BATCHES:
        with (tmp_path / f"{name}.bin").open("r+b") as file:
            file.truncate(0)
            file.truncate(10_000 * 3073)
    source = load(tmp_path, complete=True)
    assert Counter(record.split for record in source.records) == {"train": 50_000, "test": 10_000}
    assert {record.name for record in source.records} == {"airplane"}
    assert source.records[59_999].image.open().size == (32, 32)


def test_only_some_classes(tmp_path: Path) -> None:
    source = load(ten(tmp_path), include=["cat", "dog"])
    assert source.classnames == ("cat", "dog")
    assert Counter(record.name for record in source.records) == {"cat": 18, "dog": 18}


def test_a_digest_is_that_of_the_pixels(tmp_path: Path) -> None:
    image = fake_datasets.flat(1, 2, 3)
    root = fake_datasets.cifar10(
        tmp_path,
        {name: [(0, image), (1, image), (2, fake_datasets.flat(1, 2, 4))] for name in BATCHES},
        fake_datasets.CIFAR10,
    )
    first, same, other = (record.image.digest() for record in load(root).records[:3])  # type: ignore[attr-defined]
    assert first == same != other


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def cut(root: Path) -> None:
    path = root / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])


def label(value: int, at: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / ("train.bin" if (root / "train.bin").exists() else "data_batch_2.bin")
        content = bytearray(path.read_bytes())
        content[at] = value
        path.write_bytes(content)

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_text(text)  # type: ignore[func-returns-value, return-value]


DAMAGE: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], dict[str, Any], list[str]]] = {
    "a file is missing": (ten, remove("data_batch_4.bin"), {}, ["data_batch_4.bin is missing", "CIFAR-10 needs"]),
    "the test file is missing": (hundred, remove("test.bin"), {}, ["test.bin is missing", "CIFAR-100 needs train.bin"]),
    "no names": (ten, remove("batches.meta.txt"), {}, ["no such file", "batches.meta.txt"]),
    "no super-class names": (hundred, remove("coarse_label_names.txt"), {}, ["coarse_label_names.txt"]),
    "a cut file": (ten, cut, {}, ["data_batch_3.bin has 92,189 bytes", "no whole number of records of 3073", "again"]),
    "an empty file": (ten, write("test_batch.bin", ""), {}, ["test_batch.bin has 0 bytes"]),
    "a smaller copy": (ten, lambda root: None, {"complete": True}, ["holds 30 images, the published file 10,000", "data.complete = false"]),
    "a smaller copy of the other": (hundred, lambda root: None, {"complete": True}, ["holds 200 images, the published file 50,000"]),
    "a label out of range": (ten, label(10, 3073 * 4), {}, ["data_batch_2.bin, record 4: the label 10 is not in 0..9"]),
    "a coarse label out of range": (hundred, label(20, 3074 * 7), {}, ["train.bin, record 7: the label 20 is not in 0..19"]),
    "a fine label out of range": (hundred, label(100, 3074 * 7 + 1), {}, ["record 7: the label 100 is not in 0..99"]),
    "a class in two super-classes": (hundred, label(COARSE[7] + 1, 3074 * 7), {}, ["the class 'fine 07'", "super-class", "damaged"]),
    "nine names": (ten, write("batches.meta.txt", "\n".join("abcdefghi")), {}, ["10 different names", "holds 9"]),
    "a name twice": (ten, write("batches.meta.txt", "\n".join("abcdefghii")), {}, ["10 different names", "holds 9"]),
    "no such class": (ten, lambda root: None, {"include": ["dogs"]}, ["data.include names 'dogs'", "did you mean 'dog'?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told(tmp_path: Path, case: str) -> None:
    make, change, settings, said = DAMAGE[case]
    change(make(tmp_path))
    told(lambda: load(tmp_path, **settings), said)


PICKLED = {
    "the python version": (["data_batch_1", "batches.meta", "test_batch"], ["CIFAR-10", "cifar-10-binary.tar.gz", "uoft-cs/cifar10"]),
    "of the other": (["train", "test", "meta"], ["CIFAR-100", "cifar-100-binary.tar.gz", "data.superclass=coarse_label"]),
    "a folder above": (["cifar-10-batches-py/data_batch_1"], ["CIFAR-10", "cifar-10-binary.tar.gz"]),
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLED)
def test_pickles_are_refused_unread(tmp_path: Path, case: str) -> None:
    names, said = PICKLED[case]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /nowhere'\ntR.")
    told(lambda: load(tmp_path), [*said, "pickles", "data.source=huggingface"])


def test_another_folder_is_told_what_to_hold(tmp_path: Path) -> None:
    told(lambda: load(tmp_path), ["neither data_batch_1.bin (CIFAR-10) nor train.bin (CIFAR-100)", "data.path"])
    told(lambda: load(tmp_path / "x"), ["does not exist", "data.path"])


def test_a_file_that_shrinks_afterwards_is_named(tmp_path: Path) -> None:
    source = load(ten(tmp_path))
    (tmp_path / "test_batch.bin").write_bytes(b"")
    told(lambda: source.records[-1].image.open(), ["test_batch.bin has become shorter", "record 29"])
    (tmp_path / "test_batch.bin").unlink()
    told(lambda: source.records[-1].image.open(), ["test_batch.bin cannot be read"])


def told(use: Callable[[], Any], said: list[str]) -> None:
    with pytest.raises(FedvlmError) as error:
        use()
    assert [word for word in said if word not in str(error.value)] == [], str(error.value)
