"""CoOp's layout: an image folder and `split_zhou_*.json` with `train`, `val`, `test` lists of `[path, label, name]`.

Caltech101, OxfordPets, Flowers102, DTD, Food101, UCF101, SUN397 and EuroSAT are published this way
(Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022).
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fedvlm.data.build import build_source
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import FileImage, existing_folder, read_text, subfolders
from fedvlm.data.record import Source, Split
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed


class CoopData(FileData):
    """CoOp's layout: an image folder and `split_zhou_*.json`."""

    source: Literal["coop"]
    split_file: str | None = None
    """Split file; by default the only `split_zhou_*.json` in `path`."""
    images: str | None = None
    """Image folder inside `path`; by default found by the paths in the split file."""
    on_duplicate: Literal["once", "keep"] = "keep"
    """By default all entries are used, because the published lists, with their duplicates, are the protocol."""

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of the data (`coop_source`)."""
        return coop_source(self, decode_cache)


_SAMPLES = 50
"""Number of listed paths that are tried to find the image folder."""

Entry = tuple[str, int, str]


def coop_source(config: CoopData, decode_cache: DecodeCache) -> Source:
    """The images of a split file, class names in the order of its label ids; missing files are counted in warnings."""
    root = existing_folder(config.path)
    path = _split_file(root, config.split_file)
    splits = _read(path)
    if not any(splits.values()):
        raise FedvlmError(f"{path} lists no image")
    names = _classnames(path, splits)
    home = _image_folder(root, path, splits, config)
    rows = [
        ImageRow(
            FileImage(root, posixpath.normpath(posixpath.join(home, image)), config.max_megapixels), name, split=split
        )
        for split, entries in splits.items()
        for image, _, name in entries
    ]
    return build_source(path.stem.removeprefix("split_zhou_"), rows, config, decode_cache, classnames=names)


def _split_file(root: Path, named: str | None) -> Path:
    if named is not None:
        return root / named
    found = sorted(root.glob("split_zhou_*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        raise FedvlmError(f"{root} holds several split files ({listed(p.name for p in found)}): set data.split_file")
    raise FedvlmError(f"{root} holds no split_zhou_*.json: set data.path to the folder that does, or data.split_file")


def _read(path: Path) -> dict[Split, list[Entry]]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise FedvlmError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not {"train", "test"} <= content.keys():
        raise FedvlmError(f"{path} is no split file: expected an object with the lists 'train', 'val' and 'test'")
    splits: tuple[Split, ...] = ("train", "val", "test")
    return {split: _entries(path, split, content.get(split, [])) for split in splits}


def _entries(path: Path, split: str, entries: Any) -> list[Entry]:
    if not isinstance(entries, list):
        raise FedvlmError(f"{path}: '{split}' must be a list of [path, label, class name]")
    for place, entry in enumerate(entries):
        if not (isinstance(entry, list) and [type(part) for part in entry] == [str, int, str]):
            raise FedvlmError(f"{path}: '{split}' entry {place} must be [path, label, class name], not {entry!r:.120}")
    return [(image, label, name) for image, label, name in entries]


def _classnames(path: Path, splits: dict[Split, list[Entry]]) -> list[str]:
    """Names by label id. Raises FedvlmError unless ids are 0..C-1 and correspond to names one to one."""
    name_of: dict[int, str] = {}
    label_of: dict[str, int] = {}
    for image, label, name in (entry for entries in splits.values() for entry in entries):
        if name_of.setdefault(label, name) != name:
            raise FedvlmError(f"{path} gives label {label} two names, '{name_of[label]}' and '{name}' (at {image})")
        if label_of.setdefault(name, label) != label:
            raise FedvlmError(f"{path} gives two labels, {label_of[name]} and {label}, the name '{name}' (at {image})")
    missing = [label for label in range(len(name_of)) if label not in name_of]
    if missing:
        raise FedvlmError(f"{path}: labels must run from 0 without gaps, but no image has label {listed(missing)}")
    return [name_of[label] for label in range(len(name_of))]


def _image_folder(root: Path, path: Path, splits: dict[Split, list[Entry]], config: CoopData) -> str:
    """The folder, relative to `root`, under which most of a sample of the listed images lie."""
    if config.images is not None:
        existing_folder(root / config.images, "data.images")
        return config.images
    images = [image for entries in splits.values() for image, _, _ in entries]
    sample = images[:: max(1, len(images) // _SAMPLES)]
    candidates = [root, *subfolders(root)]
    candidates += [inner for outer in candidates[1:] for inner in subfolders(outer)]
    best = max(candidates, key=lambda candidate: _count_found(candidate, sample))
    if not _count_found(best, sample):
        raise FedvlmError(f"no folder in {root} holds {images[0]} (the first of {path.name}): set data.images to the "
                          "folder that does")  # fmt: skip
    return best.relative_to(root).as_posix()


def _count_found(candidate: Path, sample: Sequence[str]) -> int:
    return sum((candidate / image).is_file() for image in sample)
