"""Image folders: `class/img`, `client/class/img` or `domain/class/img`, with or without `train`/`test` above."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from fedvlm.data.build import build_source, parse_split
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import SUFFIXES, FileImage, existing_folder, is_shown, subfolders
from fedvlm.data.lists import has_lists, listed_source
from fedvlm.data.notes import counted_note
from fedvlm.data.record import Source
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError


class FolderData(FileData):
    """Image folders: `class/img`, `client/class/img` or `domain/class/img`, with or without `train`/`test` above."""

    source: Literal["folder"]
    layout: Literal["class", "client", "domain"] = "class"
    train_list: str | None = None
    """Text file below `path` with a line `domain/class/img.jpg 23` for each training image, as DomainNet and PACS are
    published; `{domain}` in its name (`{domain}_train.txt`) stands for every domain that has one."""
    val_list: str | None = None
    test_list: str | None = None
    """List of the test images; without it `test_fraction` of the listed training images is held out."""
    images: str | None = None
    """Folder below `path` to which the paths in the lists are relative."""

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of the data (`folder_source`)."""
        return folder_source(self, decode_cache)


_DEEPEST = 5
"""Maximum depth of scanned folders, enough to tell how deep the images are."""


def folder_source(config: FolderData, decode_cache: DecodeCache) -> Source:
    """All images at the depth of the layout; their folders name class, domain or client.

    With `train_list`, only images of the lists, in the split of their list.
    """
    root = existing_folder(config.path)
    if has_lists(config):
        return listed_source(root, config, decode_cache)
    has_splits = _has_splits(root)
    depth = (1 if config.layout == "class" else 2) + has_splits
    files, empty = _walk(root, depth)
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    fitting = [path for path in images if len(path.parts) == depth + 1]
    if not fitting:
        raise FedvlmError(_misfit(root, config, images, has_splits))
    notes = _describe_left_out(files, images, fitting, [path for path in empty if len(path.parts) == depth])
    rows = [_row(root, path, config, has_splits) for path in fitting]
    return build_source(root.name, rows, config, decode_cache, warnings=notes)


def _row(root: Path, path: PurePosixPath, config: FolderData, has_splits: bool) -> ImageRow:
    above = path.parts[has_splits] if config.layout != "class" else None
    return ImageRow(
        FileImage(root, str(path), config.max_megapixels),
        name=path.parts[-2],
        domain=above if config.layout == "domain" else None,
        client=above if config.layout == "client" else None,
        split=parse_split(path.parts[0]) if has_splits else None,
    )


def _has_splits(root: Path) -> bool:
    """Whether the top folders are the splits, including `train`. Raises FedvlmError for a mixture."""
    names = [entry.name for entry in subfolders(root)]
    splits = [parse_split(name) for name in names]
    if "train" not in splits:
        return False
    if None in splits or len(set(splits)) < len(splits):
        raise FedvlmError(f"{root} holds 'train' beside folders that are no split ({', '.join(names)}): keep "
                          "only train, val and test at the top, or rename 'train' if it is a class")  # fmt: skip
    return True


def _walk(root: Path, depth: int) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """All files below `root` that are not hidden, and the empty folders, as sorted relative paths.

    Links to folders are followed down to the class folders, at depth `depth`, but not inside class folders, and never
    to a parent folder: a link to the top in every class folder would multiply the work.
    """
    files: list[PurePosixPath] = []
    empty: list[PurePosixPath] = []
    for where, folders, names in _visit(root, PurePosixPath(), depth, ()):
        files += [where / name for name in names]
        if not folders and not names:
            empty.append(where)
    return sorted(files), sorted(empty)


def _visit(
    root: Path, where: PurePosixPath, depth: int, above: tuple[str, ...]
) -> Iterator[tuple[PurePosixPath, list[str], list[str]]]:
    """Every folder with its folders and files; `above`: real paths of its parent folders."""
    try:
        with os.scandir(root / where) as listing:
            entries = [entry for entry in listing if is_shown(entry.name)]
            kinds = [(_text(root, entry.name), entry.is_dir(), entry.is_symlink()) for entry in entries]
    except OSError as error:
        raise FedvlmError(f"the folder {root / where} cannot be read: {error.strerror or error}") from None
    folders = [name for name, is_folder, _ in kinds if is_folder]
    yield where, folders, [name for name, is_folder, _ in kinds if not is_folder]
    if len(where.parts) == _DEEPEST:
        return
    way = (*above, os.path.realpath(root / where))
    for name, is_folder, is_link in kinds:
        inner = where / name
        is_open = not is_link or (len(inner.parts) <= depth and os.path.realpath(root / inner) not in way)
        if is_folder and is_open:
            yield from _visit(root, inner, depth, way)


def _text(root: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FedvlmError(f"a name in {root} is not valid UTF-8: {name!a}; rename it") from None
    return name


def _describe_left_out(
    files: list[PurePosixPath], images: list[PurePosixPath], fitting: list[PurePosixPath], empty: list[PurePosixPath]
) -> list[str]:
    notes = []
    others = sorted(set(files) - set(images))
    stray = sorted(set(images) - set(fitting))
    if others:
        one, many = "file is named like no image", "files are named like no image"
        notes.append(counted_note(others, one, many, before="left out: "))
    if stray:
        one, many = "image lies at another depth", "images lie at another depth"
        notes.append(counted_note(stray, one, many, before="left out: "))
    if empty:
        notes.append(counted_note(empty, "class folder is empty", "class folders are empty"))
    return notes


def _misfit(root: Path, config: FolderData, images: list[PurePosixPath], has_splits: bool) -> str:
    above = "train/" if has_splits else ""
    wanted = above + ("class/img" if config.layout == "class" else f"{config.layout}/class/img")
    if not images:
        return f"{root} holds no image ({', '.join(sorted(SUFFIXES))}); layout '{config.layout}' expects {wanted}"
    folders = len(images[0].parts) - 1 - has_splits
    advice = {1: 'set data.layout = "class"', 2: 'set data.layout = "client" or "domain"'}
    return (f"{root} holds no image at {wanted} (data.layout = \"{config.layout}\"), but for example {images[0]}: "
            + advice.get(folders, "move the images, or set data.path to the folder above the classes"))  # fmt: skip
