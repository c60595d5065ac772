"""Folders, manifests and CoOp's layout: image, label, name, domain, client and split stay together."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_data import photo, photos

from fedvlm.data import Source, load_source
from fedvlm.data.sources.coop import CoopData
from fedvlm.data.sources.folder import FolderData
from fedvlm.data.sources.manifest import ManifestData
from fedvlm.data.sources.scenes import ScenesData
from fedvlm.data.splits import class_lists
from fedvlm.errors import FedvlmError


def rows(source: Source) -> set[tuple[Any, ...]]:
    return {(r.image.key, r.name, r.domain, r.client, r.split) for r in source.records}


def folder_of(root: Path, **settings: Any) -> Source:
    return load_source(FolderData(source="folder", path=str(root), **settings), 0)


def manifest_of(root: Path, lines: list[list[str]], **settings: Any) -> Source:
    with (root / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return load_source(ManifestData(source="manifest", path=str(root), manifest="list.csv", **settings), 0)


def coop_of(root: Path, splits: dict[str, Any], name: str = "split_zhou_Tiny.json", **settings: Any) -> Source:
    (root / name).write_text(json.dumps(splits))
    return load_source(CoopData(source="coop", path=str(root), **settings), 0)


def test_folder_by_class(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path / "pets", "dog/1.png", "cat/2.jpg", "cat/1.jpg"))
    assert source.name == "pets"
    assert source.classnames == ("cat", "dog")
    assert [(r.image.key, r.label, r.name) for r in source.records] == [
        ("cat/1.jpg", 0, "cat"), ("cat/2.jpg", 0, "cat"), ("dog/1.png", 1, "dog"),
    ]  # fmt: skip
    assert source.records[0].split is None
    assert source.warnings == ()


@pytest.mark.parametrize("layout", ["client", "domain"])
def test_folder_by_client_or_domain(tmp_path: Path, layout: str) -> None:
    source = folder_of(photos(tmp_path, "a/cat/1.png", "b/cat/1.png", "b/dog/2.png"), layout=layout)
    assert {(getattr(r, layout), r.name, r.image.key) for r in source.records} == {
        ("a", "cat", "a/cat/1.png"), ("b", "cat", "b/cat/1.png"), ("b", "dog", "b/dog/2.png"),
    }  # fmt: skip
    assert (source.domains() if layout == "domain" else source.clients()) == ("a", "b")


def test_folder_with_splits_above(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path, "train/a/cat/1.png", "valid/a/cat/2.png", "Test/a/cat/3.png"), layout="client")
    assert rows(source) == {
        ("train/a/cat/1.png", "cat", None, "a", "train"),
        ("valid/a/cat/2.png", "cat", None, "a", "val"),
        ("Test/a/cat/3.png", "cat", None, "a", "test"),
    }


def test_a_class_named_like_a_split_needs_no_care_alone(tmp_path: Path) -> None:
    assert folder_of(photos(tmp_path, "test/1.png", "bus/2.png")).classnames == ("bus", "test")


def test_what_lies_about_is_counted_not_used(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.png", "dog/1.png", "top.png", "cat/deep/3.png", ".hidden/cat/1.png", "cat/.4.png")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    source = folder_of(tmp_path)
    assert len(source) == 2
    assert source.warnings == (
        "left out: 1 file is named like no image: cat/notes.txt",
        "left out: 2 images lie at another depth: cat/deep/3.png, top.png",
        "1 class folder is empty: empty",
    )


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert len(folder_of(tmp_path)) == 2


def test_links_to_folders_above_do_not_multiply_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight class folders, each with links to the top and to another class: nine folders to look into."""
    names = [f"class {n}" for n in range(8)]
    photos(tmp_path, *(f"{name}/1.png" for name in names))
    for n, name in enumerate(names):
        (tmp_path / name / "top").symlink_to(tmp_path)
        (tmp_path / name / "next").symlink_to(tmp_path / names[(n + 1) % 8])
    looked: list[Any] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked.append(path), real(path))[1])
    assert len(folder_of(tmp_path)) == 8
    assert len([path for path in looked if Path(path) != tmp_path]) == 8


def test_a_class_folder_may_be_a_link(tmp_path: Path) -> None:
    photos(tmp_path, "store/deep/cat/1.png", "dog/1.png")
    (tmp_path / "cat").symlink_to(tmp_path / "store" / "deep" / "cat")
    assert {record.image.key for record in folder_of(tmp_path).records} == {"cat/1.png", "dog/1.png"}


def test_manifest_with_all_columns(tmp_path: Path) -> None:
    photos(tmp_path, "pics/x.png", "pics/y.png", "pics/z.png")
    source = manifest_of(
        tmp_path,
        [["file", "kind", "who", "where", "part"], [" x ", "dog", "ann", "day", "train"], [],
         ["y", "cat", "", "night", "Testing"], ["z", "dog", "bob", "day", "val"]],
        image="file", image_path="pics/{}.png", label="kind", client="who", domain="where", split="part",
    )  # fmt: skip
    assert source.classnames == ("cat", "dog")
    assert rows(source) == {
        ("pics/x.png", "dog", "day", "ann", "train"),
        ("pics/y.png", "cat", "night", None, "test"),
        ("pics/z.png", "dog", "day", "bob", "val"),
    }


def test_manifest_leaves_labels_out(tmp_path: Path) -> None:
    photos(tmp_path, "x.png", "y.png", "z.png")
    lines = [["image", "label"], ["x.png", "cat"], ["y.png", "Skip"], ["z.png", ""], ["gone.png", "Skip"]]
    source = manifest_of(tmp_path, lines, exclude=["Skip"])
    assert source.classnames == ("cat",)
    assert source.warnings == ("left out: 1 row has no label: line 4",)


def test_only_some_labels_can_be_used(tmp_path: Path) -> None:
    photos(tmp_path, "ant/1.png", "bee/1.png", "cow/1.png")
    source = folder_of(tmp_path, include=["cow", "ant"])
    assert [(r.label, r.name) for r in source.records] == [(0, "ant"), (1, "cow")]
    assert source.classnames == ("ant", "cow")


def test_two_sites_with_other_folders_number_classes_alike(tmp_path: Path) -> None:
    """The list is the experiment's: a class that a site lacks keeps its number, one that is not in the list is left out."""
    one = photos(tmp_path / "one", "cat/1.png", "emu/1.png", "dog/1.png")
    other = photos(tmp_path / "other", "dog/2.png", "ant/1.png", "fox/1.png")
    classes = ["fox", "dog", "cat"]
    found = [folder_of(root, classes=classes) for root in (one, other)]
    assert [source.classnames for source in found] == [("fox", "dog", "cat")] * 2
    assert [{(r.name, r.label) for r in source.records} for source in found] == [
        {("dog", 1), ("cat", 2)}, {("fox", 0), ("dog", 1)},
    ]  # fmt: skip
    assert "1 class is not in data.classes and left out: emu" in found[0].warnings
    assert "1 class has no usable image (kept in the list of names): fox" in found[0].warnings
    assert class_lists(found[0], FolderData(source="folder", path="x", classes=classes)) == ((0, 1), (2,))
    with pytest.raises(
        FedvlmError, match=r"other has no class of data\.classes: it has ant, dog, fox.*names Dog, whale"
    ):
        folder_of(other, classes=["Dog", "whale"])


def test_coop_keeps_its_own_label_order(tmp_path: Path) -> None:
    photos(tmp_path, "jpg/a/1.jpg", "jpg/b/1.jpg", "jpg/b/2.jpg", "jpg/a/2.jpg")
    splits = {
        "train": [["a/1.jpg", 1, "ant"], ["b/1.jpg", 0, "wasp"]],
        "val": [["b/2.jpg", 0, "wasp"]],
        "test": [["a/2.jpg", 1, "ant"]],
    }
    source = coop_of(tmp_path, splits)
    assert source.name == "Tiny"
    assert source.classnames == ("wasp", "ant")
    assert rows(source) == {
        ("jpg/a/1.jpg", "ant", None, None, "train"), ("jpg/b/1.jpg", "wasp", None, None, "train"),
        ("jpg/b/2.jpg", "wasp", None, None, "val"), ("jpg/a/2.jpg", "ant", None, None, "test"),
    }  # fmt: skip
    assert coop_of(tmp_path, splits, images="jpg").records == source.records


def test_coop_images_may_lie_beside_or_two_folders_down(tmp_path: Path) -> None:
    for number, home in enumerate(["", "x/", "x/y/"]):
        root = tmp_path / str(number)
        photos(root, f"{home}a/1.jpg", "other/b.jpg")
        source = coop_of(root, {"train": [["a/1.jpg", 0, "ant"]], "val": [], "test": []})
        assert source.records[0].image.key == f"{home}a/1.jpg"


def test_coop_counts_missing_files_and_keeps_label_ids(tmp_path: Path) -> None:
    photos(tmp_path, "a/1.jpg", "c/1.jpg")
    splits = {"train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"], ["c/1.jpg", 2, "cow"]], "val": [], "test": []}
    source = coop_of(tmp_path, splits)
    assert source.classnames == ("ant", "bee", "cow")
    assert source.warnings == (
        "left out: 1 image is missing: b/1.jpg (no such file)",
        "1 class has no usable image (kept in the list of names): bee",
    )


def test_an_image_of_two_splits_is_not_trained_on(tmp_path: Path) -> None:
    photos(tmp_path, "1.jpg", "2.jpg")
    splits = {"train": [["1.jpg", 0, "ant"], ["2.jpg", 0, "ant"]], "val": [], "test": [["1.jpg", 0, "ant"]]}
    source = coop_of(tmp_path, splits)
    assert {(r.image.key, r.split) for r in source.records} == {("1.jpg", "test"), ("2.jpg", "train")}
    assert source.warnings == ("1 image is listed twice (used once): 1.jpg",)


def test_unreadable_images_are_counted_or_an_error(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    photo(tmp_path / "dog" / "2.png", size=(1001, 1000))
    settings = {"max_megapixels": 1.0}
    source = folder_of(tmp_path, **settings)
    assert len(source) == 2
    assert any("1 image is unreadable: cat/2.png" in warning for warning in source.warnings)
    assert any("1 image is too large: dog/2.png (1001 x 1000 = 1.0 megapixels" in w for w in source.warnings)
    with pytest.raises(FedvlmError, match=r"cat/2\.png.*dog/2\.png.*on_unreadable"):
        folder_of(tmp_path, on_unreadable="error", **settings)


def test_one_damaged_file_does_not_move_the_border_of_base_and_novel(tmp_path: Path) -> None:
    photos(tmp_path, "ant/1.png", "bee/1.png", "cow/1.png", "dog/1.png")
    whole = class_lists(folder_of(tmp_path), FolderData(source="folder", path=""))
    (tmp_path / "ant" / "1.png").write_bytes(b"no image")
    source = folder_of(tmp_path)
    assert source.classnames == ("ant", "bee", "cow", "dog")
    assert class_lists(source, FolderData(source="folder", path="")) == whole == ((0, 1), (2, 3))
    assert source.warnings[-1] == "1 class has no usable image (kept in the list of names): ant"


def test_names_alike_are_told(tmp_path: Path) -> None:
    source = folder_of(photos(tmp_path, "Stop Sign/1.png", "stop_sign/1.png", "dog/1.png"))
    assert source.warnings == ("1 class name occurs twice but for its spelling: 'Stop Sign' = 'stop_sign'",)


def test_the_same_files_give_the_same_source(tmp_path: Path) -> None:
    photos(tmp_path / "a" / "x", "dog/1.png", "cat/2.jpg")
    photos(tmp_path / "b" / "x", "cat/2.jpg", "dog/1.png")
    assert folder_of(tmp_path / "a" / "x").digest == folder_of(tmp_path / "b" / "x").digest


def test_scenes_are_a_source_too() -> None:
    source = load_source(ScenesData(base_classes=2, novel_classes=1, shots=2, val_per_class=1, test_per_class=1), 0)
    assert len(source.classnames) == 3
    assert {r.split for r in source.records} == {"train", "val", "test"}
