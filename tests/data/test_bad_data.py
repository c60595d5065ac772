"""A user's mistakes: each ends in one sentence that names the file or setting and says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_data import photos

from fedvlm.data import load_source
from fedvlm.data.sources.coop import CoopData
from fedvlm.data.sources.folder import FolderData
from fedvlm.data.sources.manifest import ManifestData
from fedvlm.errors import FedvlmError


def load_folder(root: Path, **settings: Any) -> None:
    load_source(FolderData(source="folder", path=str(root), **settings), 0)


def load_manifest(root: Path, text: str, **settings: Any) -> None:
    (root / "list.csv").write_text(text)
    photos(root, "a.png", "b.png")
    load_source(ManifestData(source="manifest", path=str(root), manifest="list.csv", **settings), 0)


def load_coop(root: Path, content: Any, **settings: Any) -> None:
    photos(root, "a.png", "b.png")
    (root / "split_zhou_X.json").write_text(content if isinstance(content, str) else json.dumps(content))
    load_source(CoopData(source="coop", path=str(root), **settings), 0)


def coop(*train: Any) -> dict[str, Any]:
    return {"train": list(train), "val": [], "test": []}


FOLDERS: dict[str, tuple[list[str], dict[str, Any], list[str]]] = {
    "nothing there": ([], {}, ["holds no image", "class/img"]),
    "a level too deep": (["x/cat/1.png"], {}, ["no image at class/img", "x/cat/1.png", '"client" or "domain"']),
    "a level too high": (["cat/1.png"], {"layout": "client"}, ["client/class/img", "cat/1.png", 'layout = "class"']),
    "much too deep": (["a/b/c/1.png"], {}, ["a/b/c/1.png", "data.path"]),
    "no classes": (["1.png"], {}, ["1.png", "data.path"]),
    "train beside classes": (["train/cat/1.png", "cat/1.png"], {}, ["'train' beside folders that are no split", "cat"]),
    "two test folders": (["train/cat/1.png", "test/cat/1.png", "testing/cat/1.png"], {}, ["testing"]),
    "unknown exclusion": (["cat/1.png"], {"exclude": ["cta"]}, ["data.exclude", "'cta'", "did you mean 'cat'?"]),
    "unknown inclusion": (["cat/1.png"], {"include": ["dog"]}, ["data.include names 'dog'"]),
    "all excluded": (["cat/1.png"], {"exclude": ["cat"]}, ["leaves no label"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(tmp_path: Path, case: str) -> None:
    paths, settings, said = FOLDERS[case]
    photos(tmp_path, *paths)
    told(lambda: load_folder(tmp_path, **settings), said)


MANIFESTS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "empty file": ("", {}, ["list.csv is empty", "columns"]),
    "header only": ("image,label\n", {}, ["list.csv lists no image", "no row"]),
    "wrong header": ("file,label\na.png,cat\n", {}, ["no column 'image' (data.image)", "file, label"]),
    "near miss": ("images,label\na.png,cat\n", {}, ["did you mean 'images'?"]),
    "no client column": ("image,label\na.png,cat\n", {"client": "who"}, ["no column 'who' (data.client)"]),
    "semicolons": ("image;label\na.png;cat\n", {}, ["not separated by commas", "image;label"]),
    "column twice": ("image,label,label\na.png,cat,dog\n", {}, ["names a column twice: label"]),
    "short row": ("image,label\na.png,cat\nb.png\n", {}, ["list.csv, line 3: 1 cells, but the header has 2"]),
    "open quote": ('image,label\n"a.png,cat\n', {}, ["list.csv, line", "not valid CSV"]),
    "empty image": ("image,label\n,cat\n", {}, ["line 2", "'image' is empty"]),
    "out of the folder": ("image,label\n../a.png,cat\n", {}, ["../a.png leads out of the data folder", "data.path"]),
    "absolute": ("image,label\n/etc/passwd,cat\n", {}, ["/etc/passwd leads out of the data folder"]),
    "unknown split": ("image,label,part\na.png,cat,trian\n", {"split": "part"}, ["line 2", "'trian'", "train"]),
    "two labels": ("image,label\na.png,cat\na.png,dog\n", {}, ["a.png has two labels, 'cat' and 'dog'"]),
    "all missing": ("image,label\nx,cat\n", {"image_path": "p/{}.png"}, ["no image of", "p/x.png", "no such file"]),
    "no place": ("image,label\na.png,cat\n", {"image_path": "p.png"}, ["data.image_path = 'p.png'", "{}"]),
    "all unlabelled": ("image,label\na.png,\n", {}, ["list.csv lists no image", "has a label"]),
    "NUL in a path": ("image,label\na\0.png,cat\n", {}, ["no path"]),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_manifests(tmp_path: Path, case: str) -> None:
    text, settings, said = MANIFESTS[case]
    told(lambda: load_manifest(tmp_path, text, **settings), said)


COOPS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "not JSON": ("{", {}, ["split_zhou_X.json is not valid JSON"]),
    "deep JSON": ("[" * 100000, {}, ["split_zhou_X.json is not valid JSON"]),
    "no lists": ({"train": []}, {}, ["split_zhou_X.json", "'train', 'val' and 'test'"]),
    "no list": ({"train": 3, "test": []}, {}, ["'train' must be a list"]),
    "short entry": (coop(["a.png", 0]), {}, ["'train' entry 0", "[path, label, class name]"]),
    "label as text": (coop(["a.png", "0", "ant"]), {}, ["'train' entry 0"]),
    "two names": (coop(["a.png", 0, "ant"], ["b.png", 0, "bee"]), {}, ["label 0 two names, 'ant' and 'bee'", "b.png"]),
    "one name twice": (coop(["a.png", 0, "ant"], ["b.png", 1, "ant"]), {}, ["two labels, 0 and 1, the name 'ant'"]),
    "a gap": (coop(["a.png", 0, "ant"], ["b.png", 2, "cow"]), {}, ["without gaps", "no image has label 1"]),
    "negative label": (coop(["a.png", -1, "ant"]), {}, ["must run from 0"]),
    "huge label": (coop(["a.png", 10**12, "ant"]), {}, ["must run from 0"]),
    "images elsewhere": (coop(["jpg/1.jpg", 0, "ant"]), {}, ["no folder", "jpg/1.jpg", "data.images"]),
    "no such image folder": (coop(["a.png", 0, "ant"]), {"images": "x"}, ["does not exist", "data.images"]),
    "no such split file": (coop(["a.png", 0, "ant"]), {"split_file": "s.json"}, ["no such file", "s.json"]),
    "out of the folder": (coop(["a.png", 0, "ant"], ["../x.png", 0, "ant"]), {}, ["../x.png leads out"]),
    "no text in a path": (coop(["a.png", 0, "ant"], ["\ud800.png", 0, "ant"]), {}, ["no path"]),
    "no text in a name": (coop(["a.png", 0, "\ud800"]), {}, ["class name", "no valid text"]),
    "no name": (coop(["a.png", 0, " "]), {}, ["class name", "empty"]),
    "empty": (coop(), {}, ["split_zhou_X.json lists no image"]),
}  # fmt: skip


@pytest.mark.parametrize("case", COOPS)
def test_coop_layouts(tmp_path: Path, case: str) -> None:
    content, settings, said = COOPS[case]
    told(lambda: load_coop(tmp_path, content, **settings), said)


def test_split_files_missing_or_several(tmp_path: Path) -> None:
    photos(tmp_path, "a.png")
    config = CoopData(source="coop", path=str(tmp_path))
    told(lambda: load_source(config, 0), ["split_zhou_*.json", "data.path"])
    for name in "AB":
        (tmp_path / f"split_zhou_{name}.json").write_text("{}")
    told(lambda: load_source(config, 0), ["several split files", "data.split_file"])


def test_paths(tmp_path: Path) -> None:
    told(lambda: load_folder(tmp_path / "nowhere"), ["nowhere does not exist", "data.path"])
    (tmp_path / "file").write_text("")
    told(lambda: load_folder(tmp_path / "file"), ["is a file, not a folder"])


def test_a_link_to_another_folder_is_not_followed(tmp_path: Path) -> None:
    photos(tmp_path, "root/cat/1.png", "elsewhere/2.png")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere")
    told(lambda: load_folder(tmp_path / "root"), ["dog/2.png leads out of the data folder", "elsewhere/2.png"])


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    photos(tmp_path, "cat/1.png")
    try:
        (tmp_path / b"d\xff".decode("utf-8", "surrogateescape")).mkdir()
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    told(lambda: load_folder(tmp_path), ["not valid UTF-8", "rename"])


def told(use: Callable[[], None], said: list[str]) -> None:
    with pytest.raises(FedvlmError) as error:
        use()
    assert [word for word in said if word not in str(error.value)] == [], str(error.value)
