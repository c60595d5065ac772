"""Image folders with published split lists: a text file for each split (and domain) with lines `domain/class/img 23`.

DomainNet (Peng et al., ICCV 2019): `clipart_train.txt`, `clipart_test.txt`, labels counted from 0. PACS (Li et al.,
ICCV 2017): `sketch_train_kfold.txt`, `sketch_crossval_kfold.txt`, labels counted from 1; its `sketch_test_kfold.txt`
names every image of the domain, those of the other two lists too, so that it is no test set for training there.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedvlm.data.build import build_source
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import FileImage, existing_folder, is_shown, read_text, resolve_inside
from fedvlm.data.record import Source, Split
from fedvlm.data.rows import ImageRow
from fedvlm.errors import FedvlmError, listed

if TYPE_CHECKING:
    from fedvlm.data.sources.folder import FolderData

_DOMAIN = "{domain}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a split list."""

    path: str
    """The path of the line, without `.` and doubled slashes."""
    label: int
    where: str
    """File and line, for error messages."""

    @property
    def name(self) -> str:
        """The class: the folder that holds the image."""
        return self.path.split("/")[-2]

    @property
    def above(self) -> str:
        """The first folder of the path: the domain or client, if the layout has one."""
        return self.path.split("/")[0]


def has_lists(config: FolderData) -> bool:
    """Whether the split comes from lists. Raises FedvlmError for settings that need `train_list` without it."""
    lists = {key: getattr(config, key) for key in ("train_list", "val_list", "test_list", "images")}
    given = [f"data.{key}" for key, value in lists.items() if value is not None]
    if given and config.train_list is None:
        raise FedvlmError(f"{listed(given)} needs data.train_list, the list of the training images")
    return config.train_list is not None


def listed_source(root: Path, config: FolderData, decode_cache: DecodeCache) -> Source:
    """The listed images, classes in the order of their label numbers.

    Raises FedvlmError if a folder has two label numbers or a number two folders, if a path has not the depth of the
    layout or the domain of its list, and if two lists name one image. Missing files are counted in warnings.
    """
    if config.images is not None:
        existing_folder(root / config.images, "data.images")
    splits: dict[Split, list[Entry]] = {}
    lists: tuple[tuple[Split, str | None], ...] = (
        ("train", config.train_list), ("val", config.val_list), ("test", config.test_list),
    )  # fmt: skip
    domains: dict[str, list[str]] = {}
    for split, pattern in lists:
        if pattern is not None:
            files = _files(root, pattern, split, config)
            domains[pattern] = list(files)
            splits[split] = [entry for domain, path in files.items() for entry in _entries(path, domain, config)]
    _check_domains(domains)
    _check_apart(splits)
    names = _classnames([entry for entries in splits.values() for entry in entries])
    rows = list(_rows(root, splits, config))
    return build_source(root.name, rows, config, decode_cache, classnames=names)


def _rows(root: Path, splits: dict[Split, list[Entry]], config: FolderData) -> Iterator[ImageRow]:
    """Rows of the classes to use; files of other classes are not opened and may be missing."""
    known = {entry.name for entries in splits.values() for entry in entries}
    wanted = known & set(config.include) or known
    for split, entries in splits.items():
        for entry in entries:
            if entry.name in wanted:
                path = posixpath.normpath(posixpath.join(config.images or "", entry.path))
                domain = entry.above if config.layout == "domain" else None
                client = entry.above if config.layout == "client" else None
                yield ImageRow(FileImage(root, path, config.max_megapixels), entry.name, domain, client, split)


def _files(root: Path, pattern: str, split: str, config: FolderData) -> dict[str, Path]:
    """The files of a pattern by domain; by "" if the pattern names one file for all domains."""
    if _DOMAIN not in pattern:
        return {"": resolve_inside(root, pattern)}
    if config.layout != "domain":
        raise FedvlmError(f'data.{split}_list = "{pattern}" names domains: set data.layout = "domain"')
    before, _, after = posixpath.normpath(pattern).partition(_DOMAIN)
    resolve_inside(root, f"{before}domain{after}")
    found = {
        path.relative_to(root).as_posix().removeprefix(before).removesuffix(after): path
        for path in sorted(root.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
        if is_shown(path.name)
    }
    if not found:
        raise FedvlmError(f"{root} holds no list named {pattern}: put the published lists there, or set data."
                          f"{split}_list to where they are below it")  # fmt: skip
    return found


def _entries(path: Path, domain: str, config: FolderData) -> Iterator[Entry]:
    """The entries of one list. Raises FedvlmError naming a line that is malformed or of another domain."""
    depth = 2 if config.layout == "class" else 3
    wanted = "class/img" if config.layout == "class" else f"{config.layout}/class/img"
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        image, *rest = line.rsplit(maxsplit=1)
        label = rest[0] if rest else ""
        if not label.isdecimal() or len(label) > 9:
            raise FedvlmError(f"{where}: expected a path and a label number ('{wanted}.jpg 23'), not {line!r:.120}")
        entry = Entry(posixpath.normpath(image.strip()), int(label), where)
        if entry.path.count("/") + 1 != depth or entry.path.startswith(("/", "../")):
            raise FedvlmError(f'{where}: {entry.path} is not of the form {wanted} (data.layout = "{config.layout}")')
        if domain and entry.above != domain:
            raise FedvlmError(
                f"{where}: {entry.path} is no image of the domain '{domain}' that the list is named after"
            )
        yield entry


def _check_domains(domains: dict[str, list[str]]) -> None:
    """Raise FedvlmError if splits with lists by domain have different domains."""
    named = {pattern: found for pattern, found in domains.items() if _DOMAIN in pattern}
    everyone = sorted({domain for found in named.values() for domain in found})
    for pattern, found in named.items():
        missing = [domain for domain in everyone if domain not in found]
        if missing:
            raise FedvlmError(f"there is no {pattern} for {listed(missing)}, though another list names it: add it")


def _check_apart(splits: dict[Split, list[Entry]]) -> None:
    """Raise FedvlmError if an image belongs to two splits."""
    first: dict[str, tuple[Split, Entry]] = {}
    for split, entries in splits.items():
        for entry in entries:
            other, before = first.setdefault(entry.path, (split, entry))
            if other != split:
                raise FedvlmError(
                    f"{entry.path} is a {other} image ({before.where}) and a {split} image ({entry.where}): lists must "
                    "not overlap (PACS: *_test_kfold.txt names every image; test on *_crossval_kfold.txt)"
                )


def _classnames(entries: Sequence[Entry]) -> list[str]:
    """Class names in the order of their numbers. Raises FedvlmError unless each folder has exactly one number."""
    by_label: dict[int, Entry] = {}
    by_name: dict[str, Entry] = {}
    for entry in entries:
        same, first = by_label.setdefault(entry.label, entry), by_name.setdefault(entry.name, entry)
        if same.name != entry.name:
            raise FedvlmError(f"{entry.where}: label {entry.label} belongs to '{entry.name}' here, but to "
                              f"'{same.name}' in {same.where}")  # fmt: skip
        if first.label != entry.label:
            raise FedvlmError(f"{entry.where}: the class '{entry.name}' has the label {entry.label} here, but "
                              f"{first.label} in {first.where}")  # fmt: skip
    return [by_label[label].name for label in sorted(by_label)]
