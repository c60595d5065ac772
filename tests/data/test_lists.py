"""Published split lists: image, label, class and domain together in every record, every contradiction told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_datasets
import pytest

from fedvlm.data import Source, load_source
from fedvlm.data.sources.folder import FolderData
from fedvlm.errors import FedvlmError

DOMAINS = ["clipart", "real", "sketch"]
LABELS = {"bird": 291, "teapot": 23, "apple": 7, "zebra": 344}
"""Not in the order of the alphabet, with gaps: as in DomainNet, of which most classes are left out."""


def load(root: Path, **settings: Any) -> Source:
    usual = {"layout": "domain", "train_list": "{domain}_train.txt", "test_list": "{domain}_test.txt"}
    config = FolderData(source="folder", path=str(root), **(usual | settings))
    return load_source(config, 0)


def made(root: Path, images: str = ".", lists: str = ".") -> Path:
    """Six pictures of each class and domain; four are in the training list."""
    for domain in DOMAINS:
        pictures = {
            name: [
                fake_datasets.flat(DOMAINS.index(domain) * 80, place * 60, 20 + number * 40, side=8)
                for number in range(6)
            ]
            for place, name in enumerate(LABELS)
        }
        fake_datasets.by_domain(root / images, [domain], pictures)
    (root / lists).mkdir(exist_ok=True)
    fake_datasets.write_lists(root / lists, "{domain}_train.txt", LABELS, range(4), DOMAINS)
    fake_datasets.write_lists(root / lists, "{domain}_test.txt", LABELS, range(4, 6), DOMAINS)
    return root


def check(source: Source) -> None:
    """Every record's picture is that of its class, domain and number."""
    for one in source.records:
        red, green, blue = one.image.open().getpixel((0, 0))  # type: ignore[misc]
        assert DOMAINS[red // 80] == one.domain
        assert list(LABELS)[green // 60] == one.name == source.classnames[one.label]
        assert one.split == ("train" if blue // 40 < 4 else "test")


def test_every_image_keeps_its_label_class_domain_and_split(tmp_path: Path) -> None:
    source = load(made(tmp_path))
    assert source.classnames == ("apple", "teapot", "bird", "zebra"), "in the order of the label numbers"
    assert Counter((r.domain, r.split) for r in source.records) == {
        (domain, split): count for domain in DOMAINS for split, count in (("train", 16), ("test", 8))
    }
    assert source.warnings == ()
    check(source)


def test_include_chooses_classes_and_the_others_need_no_files(tmp_path: Path) -> None:
    made(tmp_path)
    for domain in DOMAINS:
        for name in ("apple", "teapot"):
            (tmp_path / domain / name).rename(tmp_path / domain / f".{name}")
    source = load(tmp_path, include=["zebra", "bird"])
    assert source.classnames == ("bird", "zebra")
    assert len(source) == 36
    assert source.warnings == ()
    check(source)


def test_lists_and_images_in_folders_of_their_own(tmp_path: Path) -> None:
    made(tmp_path, images="pictures", lists="splits")
    lists = {"train_list": "./splits/{domain}_train.txt", "test_list": "splits//{domain}_test.txt"}
    source = load(tmp_path, images="pictures", **lists)
    assert source.records[0].image.key == "pictures/clipart/bird/pic_000.png"
    check(source)


def test_a_list_in_each_domain_s_folder(tmp_path: Path) -> None:
    made(tmp_path)
    for domain in DOMAINS:
        for split in ("train", "test"):
            (tmp_path / f"{domain}_{split}.txt").rename(tmp_path / domain / f"{split}.txt")
    check(load(tmp_path, train_list="{domain}/train.txt", test_list="{domain}/test.txt"))


def test_one_list_for_all_domains_and_a_validation_list(tmp_path: Path) -> None:
    made(tmp_path)
    for split, numbers in (("train", [0, 1]), ("val", [2, 3]), ("test", [4, 5])):
        lines = [f"{d}/{n}/pic_{i:03d}.png\t{LABELS[n] + 1} \r\n" for d in DOMAINS for n in LABELS for i in numbers]
        (tmp_path / f"{split}.txt").write_text("\r\n".join(lines))
    source = load(tmp_path, train_list="train.txt", val_list="val.txt", test_list="test.txt")
    assert Counter(r.split for r in source.records) == {"train": 24, "val": 24, "test": 24}
    assert source.domains() == tuple(DOMAINS)


def test_other_layouts_have_lists_too(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "all.txt").write_text("clipart/bird/pic_000.png 1\nreal/zebra/pic_000.png 2\n")
    source = load(tmp_path, layout="client", train_list="all.txt", test_list=None)
    assert source.clients() == ("clipart", "real")
    (tmp_path / "clipart/all.txt").write_text("bird/pic_000.png 1\nzebra/pic_000.png 2\n")
    source = load(tmp_path / "clipart", layout="class", train_list="all.txt", test_list=None)
    assert [(r.name, r.domain, r.client) for r in source.records] == [("bird", None, None), ("zebra", None, None)]


def test_missing_files_are_counted_or_an_error(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "real/bird/pic_001.png").unlink()
    assert load(tmp_path).warnings == ("left out: 1 image is missing: real/bird/pic_001.png (no such file)",)
    told(lambda: load(tmp_path, on_unreadable="error"), ["real/bird/pic_001.png", "Fix them"])


def append(name: str, line: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / name).open("a") as file:
            file.write(line + "\n")

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


TRAIN, TEST = "clipart_train.txt", "clipart_test.txt"
MISTAKES: dict[str, tuple[Callable[[Path], None], dict[str, Any], list[str]]] = {
    "a label of another class": (append(TRAIN, "clipart/bird/pic_009.png 23"), {}, ["clipart_train.txt, line 17", "label 23 belongs to 'bird' here", "'teapot' in", "line 5"]),
    "a class with two labels": (append(TEST, "clipart/bird/pic_009.png 292"), {}, ["clipart_test.txt, line 9", "'bird' has the label 292 here, but 291 in"]),
    "an image of two splits": (append(TEST, "clipart/bird/pic_000.png 291"), {}, ["clipart/bird/pic_000.png is a train image", "a test image", "line 9", "must not overlap", "crossval"]),
    "an image of another domain": (append(TRAIN, "real/bird/pic_009.png 291"), {}, ["line 17", "no image of the domain 'clipart'"]),
    "no label": (append(TRAIN, "clipart/bird/pic_009.png"), {}, ["line 17", "expected a path and a label number"]),
    "a label that is no number": (append(TRAIN, "clipart/bird/pic_009.png bird"), {}, ["line 17", "not 'clipart/bird/pic_009.png bird'"]),
    "a negative label": (append(TRAIN, "clipart/bird/pic_009.png -1"), {}, ["line 17", "label number"]),
    "a huge label": (append(TRAIN, "clipart/bird/pic_009.png 99999999999"), {}, ["line 17", "label number"]),
    "another depth": (append(TRAIN, "bird/pic_009.png 23"), {}, ["line 17", "bird/pic_009.png is not of the form domain/class/img", 'data.layout = "domain"']),
    "out of the folder": (append(TRAIN, "../bird/pic_009.png 23"), {}, ["line 17", "not of the form"]),
    "absolute": (append(TRAIN, "/etc/passwd 23"), {}, ["line 17", "not of the form"]),
    "no list of a domain": (remove("real_test.txt"), {}, ["no {domain}_test.txt for real"]),
    "no lists": (lambda root: None, {"train_list": "{domain}_kfold.txt"}, ["holds no list named {domain}_kfold.txt", "data.train_list"]),
    "no such list": (lambda root: None, {"train_list": "all.txt"}, ["no such file", "all.txt"]),
    "lists elsewhere": (lambda root: None, {"train_list": "../{domain}_train.txt"}, ["leads out of the data folder"]),
    "a list elsewhere": (lambda root: None, {"train_list": "/etc/passwd"}, ["leads out of the data folder"]),
    "no training list": (lambda root: None, {"train_list": None}, ["data.test_list needs data.train_list"]),
    "images without lists": (lambda root: None, {"train_list": None, "test_list": None, "images": "x"}, ["data.images needs data.train_list"]),
    "no such image folder": (lambda root: None, {"images": "x"}, ["x does not exist", "data.images"]),
    "domains in another layout": (lambda root: None, {"layout": "client"}, ['data.train_list = "{domain}_train.txt" names domains', "data.layout"]),
    "an unknown class": (lambda root: None, {"include": ["bidr"]}, ["data.include names 'bidr'", "did you mean 'bird'?"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(tmp_path: Path, case: str) -> None:
    change, settings, said = MISTAKES[case]
    change(made(tmp_path))
    told(lambda: load(tmp_path, **settings), said)


def told(use: Callable[[], Any], said: list[str]) -> None:
    with pytest.raises(FedvlmError) as error:
        use()
    assert [word for word in said if word not in str(error.value)] == [], str(error.value)
