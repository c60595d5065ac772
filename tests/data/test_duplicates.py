"""The same photograph twice: under another name, in another format, under another label, at another client."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fake_data import experiment_of, photos

from fedvlm.data import Source, federate, load_source
from fedvlm.data.sources.coop import CoopData
from fedvlm.data.sources.folder import FolderData
from fedvlm.data.sources.manifest import ManifestData
from fedvlm.errors import FedvlmError
from fedvlm.experiment import parse

TRAIN = ["train/cat/0.png", "train/cat/1.png", "train/dog/2.png", "train/dog/3.png"]
TEST = ["test/cat/4.png", "test/dog/5.png"]


def folder_of(root: Path, **settings: Any) -> Source:
    return load_source(FolderData(source="folder", path=str(root), **settings), 0)


def copy(root: Path, old: str, new: str) -> None:
    """The same bytes, or, where the suffix says so, the same pixels in another format."""
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    if Path(old).suffix == Path(new).suffix:
        shutil.copy(root / old, root / new)
    else:
        PIL.Image.open(root / old).save(root / new)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "pets", *TRAIN, *TEST)


def keys(source: Source) -> set[str]:
    return {record.image.key for record in source.records}


@pytest.mark.parametrize("copied", ["again.png", "again.bmp", "again.tiff"])
def test_a_copy_of_a_test_image_is_not_trained_on(root: Path, copied: str) -> None:
    copy(root, TEST[0], f"train/cat/{copied}")
    source = folder_of(root)
    assert keys(source) == {*TRAIN, *TEST}
    assert source.warnings == (
        f"1 image is a copy of another (used once): train/cat/{copied} = test/cat/4.png",
        f"1 photograph is among the training and the validation or test images (tested on, not trained on): train/cat/{copied} = test/cat/4.png",
    )


def test_copies_in_one_split_are_used_once(root: Path) -> None:
    copy(root, TRAIN[0], "train/cat/9.png")
    copy(root, TRAIN[0], "train/cat/8.bmp")
    source = folder_of(root)
    assert keys(source) == {*TRAIN, *TEST}
    (note,) = source.warnings
    assert note.startswith("2 images are copies of others (used once): train/cat/8.bmp = train/cat/0.png, ")


def test_no_copy_of_a_training_image_is_held_out(tmp_path: Path) -> None:
    root = photos(tmp_path, *(f"cat/{number}.png" for number in range(6)))
    for number in range(6):
        copy(root, f"cat/{number}.png", f"cat/again {number}.png")
    fed = federate(folder_of(root), experiment_of({"novel": "none"}, {"clients": 1}), 0)
    (client,) = fed.clients
    seen = [{fed.source.records[i].image.open().tobytes() for i in part} for part in (client.train, client.local)]
    assert not seen[0] & seen[1]
    assert len(client.train) + len(client.local) == 6


def test_a_photograph_with_two_labels_is_an_error_that_names_both(root: Path) -> None:
    copy(root, TRAIN[0], "train/dog/same.bmp")
    with pytest.raises(FedvlmError) as error:
        folder_of(root)
    for word in ("train/cat/0.png ('cat') = train/dog/same.bmp ('dog')", "data.exclude", 'data.on_duplicate = "keep"'):
        assert word in str(error.value)
    assert folder_of(root, exclude=["dog"]).warnings == (), "a label that is not used contradicts nothing"


def test_keep_uses_every_file_and_tells_all_counts(root: Path) -> None:
    copy(root, TRAIN[0], "train/dog/same.bmp")
    copy(root, TEST[0], "train/cat/again.png")
    source = folder_of(root, on_duplicate="keep")
    assert len(source) == 8
    assert source.warnings == (
        '2 images are copies of others (every file is used): train/cat/again.png = test/cat/4.png, train/dog/same.bmp = '
        "train/cat/0.png",
        "1 photograph stands under two labels: train/cat/0.png ('cat') = train/dog/same.bmp ('dog')",
        "1 photograph is among the training and the validation or test images (every file is used): train/cat/again.png = test/cat/4.png",
    )  # fmt: skip


def test_photographs_that_clients_share_are_told(tmp_path: Path) -> None:
    root = photos(tmp_path, "ann/cat/0.png", "ann/cat/1.png", "bob/cat/2.png", "cid/cat/3.png")
    copy(root, "ann/cat/0.png", "bob/cat/0.png")
    copy(root, "bob/cat/2.png", "cid/cat/x.bmp")
    source = folder_of(root, layout="client")
    assert [(r.client, r.image.key) for r in source.records] == [
        ("ann", "ann/cat/0.png"), ("ann", "ann/cat/1.png"), ("bob", "bob/cat/2.png"), ("cid", "cid/cat/3.png"),
    ]  # fmt: skip
    assert source.warnings[-1] == (
        "2 photographs are held by several clients (used once): ann/cat/0.png (ann, bob), bob/cat/2.png (bob, cid)"
    )


def test_a_row_twice_with_two_clients_is_told_too(tmp_path: Path) -> None:
    photos(tmp_path, "0.png", "1.png")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "who"], ["0.png", "cat", "ann"], ["0.png", "cat", "bob"],
                                    ["1.png", "cat", "bob"]])  # fmt: skip
    config = ManifestData(source="manifest", path=str(tmp_path), manifest="list.csv", client="who")
    source = load_source(config, 0)
    assert [(r.client, r.image.key) for r in source.records] == [("ann", "0.png"), ("bob", "1.png")]
    assert source.warnings[-1] == "1 photograph is held by several clients (used once): 0.png (ann, bob)"


def test_the_same_colours_in_another_shape_are_another_photograph(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 6), (6, 8), (12, 4)]):
        (tmp_path / "cat").mkdir(exist_ok=True)
        PIL.Image.new("RGB", size, (200, 30, 90)).save(tmp_path / "cat" / f"{number}.png")
    assert len(folder_of(tmp_path)) == 3


def test_an_orientation_that_was_applied_makes_a_copy(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cat").mkdir()
    image.save(tmp_path / "cat" / "held upright.png", exif=exif)
    image.transpose(PIL.Image.Transpose.ROTATE_270).save(tmp_path / "cat" / "turned.png")
    assert len(folder_of(tmp_path)) == 1


def test_published_protocols_use_every_file(shared: Path) -> None:
    """Office-Caltech10 holds 25 copies in amazon and one in caltech, none under two labels."""
    path = str(shared / "data/office_caltech_10")
    once = folder_of(Path(path), layout="domain")
    assert len(once) == 2533 - 26
    assert once.warnings[0].startswith(
        "26 images are copies of others (used once): amazon/headphones/frame_0079.jpg = "
    )
    assert (
        len(
            load_source(
                parse({"data": {"source": "folder", "layout": "domain", "path": path, "on_duplicate": "keep"}}).data, 0
            )
        )
        == 2533
    )
    config = CoopData(source="coop", path=str(shared / "data/caltech-101"))
    assert (config.on_duplicate, load_source(config, 0).warnings) == ("keep", ())
