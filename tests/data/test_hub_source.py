"""Hugging Face data sets, saved on disk by the library itself."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from fake_data import photo, problem_of

from fedvlm.data import Source, load_source
from fedvlm.data.pixels import read_images
from fedvlm.data.sources.huggingface import HubData, HubImage, HubTable
from fedvlm.errors import FedvlmError

datasets = pytest.importorskip("datasets")


def pixels(number: int) -> np.ndarray[Any, Any]:
    image = np.full((4, 5, 3), number, np.uint8)
    image[:, 4] = 255 - number
    return image


def encoded(number: int) -> dict[str, Any]:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels(number)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(labels: list[Any], kind: Any = None, first: int = 0, **columns: list[Any]) -> Any:
    """A data set with an image per label, of the colour of its row number after the `first`."""
    kind = kind or datasets.ClassLabel(names=["wasp", "ant"])
    features: dict[str, Any] = {"img": datasets.Image(), "label": kind}
    features |= {name: datasets.Value("string") for name in columns}
    content = {"img": [encoded(first + row) for row in range(len(labels))], "label": labels, **columns}
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


def saved(path: Path, **splits: Any) -> Path:
    found = splits["all"] if "all" in splits else datasets.DatasetDict(splits)
    found.save_to_disk(str(path))
    return path


def hub(path: Path | str, **settings: Any) -> Source:
    return load_source(HubData(source="huggingface", path=str(path), **settings), 0)


def test_splits_labels_and_pixels_stay_together(tmp_path: Path) -> None:
    source = hub(saved(tmp_path / "d", train=table([1, 0, 1]), test=table([0], first=3)))
    assert source.classnames == ("wasp", "ant")
    assert [(r.image.key, r.label, r.name, r.split) for r in source.records] == [
        ("train/0", 1, "ant", "train"),
        ("train/1", 0, "wasp", "train"),
        ("train/2", 1, "ant", "train"),
        ("test/0", 0, "wasp", "test"),
    ]
    found = read_images([record.image for record in source.records])
    assert [int(image[0, 0, 0]) for image in found] == [0, 1, 2, 3]
    assert found[2].shape == (4, 5, 3)


def test_a_single_table_has_no_split_of_its_own(tmp_path: Path) -> None:
    source = hub(saved(tmp_path / "d", all=table([0, 1])))
    assert [record.split for record in source.records] == [None, None]


def test_client_and_domain_columns_and_text_labels(tmp_path: Path) -> None:
    kind = datasets.Value("string")
    data = table(["dog", "cat", None, ""], kind, who=["ann", None, "bob", "bob"], where=["day", "night", "day", ""])
    source = hub(saved(tmp_path / "d", all=data), client="who", domain="where")
    assert source.classnames == ("cat", "dog")
    assert [(r.name, r.client, r.domain) for r in source.records] == [("dog", "ann", "day"), ("cat", None, "night")]
    assert source.warnings == ("left out: 2 rows have no label: all/2, all/3",)


def test_numbers_without_names_are_told(tmp_path: Path) -> None:
    source = hub(saved(tmp_path / "d", all=table([7, 8], datasets.Value("int64"))))
    assert source.classnames == ("7", "8")
    assert "numbers without names" in source.warnings[0]


def test_validation_split_and_no_test_split(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", train=table([1, 0]), validation=table([0], first=2))
    source = hub(path, val_split="validation", test_split=None)
    assert [record.split for record in source.records] == ["train", "train", "val"]


def test_hidden_labels_and_missing_images_are_counted(tmp_path: Path) -> None:
    data = table([0, 1, -1, 1])
    broken = datasets.Dataset.from_dict(
        {"img": [None, {"bytes": b"no image", "path": None}], "label": [0, 0]}, features=data.features
    )
    source = hub(saved(tmp_path / "d", all=datasets.concatenate_datasets([data, broken])))
    assert [record.image.key for record in source.records] == ["all/0", "all/1", "all/3"]
    assert source.warnings[0] == "left out: 1 row has no label: all/2"
    assert "1 image is missing: all/4" in source.warnings[1]
    assert "1 image is unreadable: all/5" in source.warnings[2]


def test_a_table_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    inside, outside = photo(tmp_path / "d" / "a.png"), photo(tmp_path / "secret.png")
    features = datasets.Features({"img": datasets.Image(decode=False)})
    cells = [{"bytes": None, "path": str(path)} for path in (inside, outside, "../secret.png", "a.png")]
    data = datasets.Dataset.from_dict({"img": cells}, features=features)
    table = HubTable("all", data, "img", (tmp_path / "d",), 40.0)
    problems = [problem_of(HubImage(table, row)) for row in range(4)]
    assert [problem and problem.kind for problem in problems] == [None, "missing", "missing", None]
    with pytest.raises(FedvlmError, match=r"all/1 holds no image bytes and points to .*secret\.png"):
        HubImage(table, 1).open()


def test_the_format_it_was_saved_in_does_not_matter(tmp_path: Path) -> None:
    data = table([1, 0], who=["ann", "bob"])
    plain = hub(saved(tmp_path / "plain", all=data), client="who")
    for kind in ("arrow", "numpy"):
        other = hub(saved(tmp_path / kind, all=data.with_format(kind)), client="who")
        assert [(r.name, r.client) for r in other.records] == [(r.name, r.client) for r in plain.records]


ERRORS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such split": ({"test_split": "tset"}, ["no split 'tset'", "train, test", "data.test_split", "none"]),
    "no such train split": ({"train_split": "all"}, ["no split 'all'", "data.train_split"]),
    "no such column": ({"label": "lable"}, ["no column 'lable'", "did you mean 'label'?", "img, label"]),
    "no images there": ({"image": "label"}, ["column 'label'", "holds no images", "img"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_wrong_settings(tmp_path: Path, case: str) -> None:
    settings, said = ERRORS[case]
    path = saved(tmp_path / "d", train=table([1, 0]), test=table([0], first=2))
    with pytest.raises(FedvlmError) as error:
        hub(path, **settings)
    assert [word for word in said if word not in str(error.value)] == [], str(error.value)


def test_columns_that_cannot_be_told_apart(tmp_path: Path) -> None:
    data = table([0, 1]).add_column("coarse", [0, 0]).cast_column("coarse", datasets.ClassLabel(names=["insect"]))
    path = saved(tmp_path / "two", all=data)
    with pytest.raises(FedvlmError, match=r"several label columns \(label, coarse\): set data.label"):
        hub(path)
    assert hub(path, label="coarse").classnames == ("insect",)
    with pytest.raises(FedvlmError, match=r"no image column among label: set data\.image"):
        hub(saved(tmp_path / "none", all=table([0]).remove_columns("img")))


def test_a_folder_of_images_is_another_source(tmp_path: Path) -> None:
    photo(tmp_path / "cat" / "1.png")
    with pytest.raises(FedvlmError, match=r'data\.source = "folder"'):
        hub(tmp_path)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", all=table([0, 1]))
    next(path.glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(FedvlmError, match="cannot read the data set"):
        hub(path)


def test_an_id_that_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FedvlmError, match=r"cannot read the data set nobody/nothing.*data.offline is set"):
        hub("nobody/nothing", offline=True)


@pytest.mark.parametrize("is_old", [True, False])
def test_remote_code_stays_off(monkeypatch: pytest.MonkeyPatch, is_old: bool) -> None:
    """Old releases of the library would run a script found at the id unless told not to; new ones cannot."""
    seen: dict[str, Any] = {}

    def old(
        path: str, name: str | None, *, revision: str | None, download_config: Any, trust_remote_code: Any = None
    ) -> Any:
        seen.update(path=path, trust=trust_remote_code, local=download_config.local_files_only)
        return datasets.DatasetDict(train=table([0]), test=table([1], first=1))

    def new(path: str, name: str | None, *, revision: str | None, download_config: Any) -> Any:
        return old(path, name, revision=revision, download_config=download_config, trust_remote_code="not asked")

    monkeypatch.setattr(datasets, "load_dataset", old if is_old else new)
    assert len(hub("some/thing", offline=True)) == 2
    assert seen == {"path": "some/thing", "trust": False if is_old else "not asked", "local": True}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FedvlmError, match=r"pip install 'fedvlm\[hub\]'"):
        hub("some/thing")


def test_super_classes_of_a_column(tmp_path: Path) -> None:
    data = table([0, 1, 1, 0], where=["day", "night", "day", "day"]).add_column("coarse", [3, 5, 5, 3])
    data = data.cast_column("coarse", datasets.ClassLabel(num_classes=6))
    path = saved(tmp_path / "d", all=data)
    source = hub(path, label="label", superclass="coarse")
    assert source.superclasses == ("3", "5")
    assert hub(path, label="label").superclasses == ()
    with pytest.raises(
        FedvlmError, match="puts the class 'ant' into the super-class 'day', another image into 'night'"
    ):
        hub(path, label="label", superclass="where")
    with pytest.raises(FedvlmError, match=r"no column 'fine' \(data\.superclass\)"):
        hub(path, label="label", superclass="fine")
