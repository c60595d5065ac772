"""Hugging Face data sets: a hub id, or a folder written by `save_to_disk`. Needs the extra `hub`.

No code of a data set is executed: scripts are refused, only images and columns are read.
"""

from __future__ import annotations

import inspect as signatures
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import PIL.Image

from fedvlm.data.build import build_source
from fedvlm.data.decode import GREY_BITS, ImageFacts, Problem, digest, inspect_bytes
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import image_identity, open_image, resolve_inside
from fedvlm.data.notes import counted_note
from fedvlm.data.record import Source, Split
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed, nearest


class HubData(FileData):
    """A Hugging Face dataset: a hub id or a directory written by `save_to_disk` (extra `hub`)."""

    source: Literal["huggingface"]
    config: str | None = None
    revision: str | None = None
    image: str | None = None
    label: str | None = None
    client: str | None = None
    domain: str | None = None
    superclass: str | None = None
    """Column with the super-class (`coarse_label` of CIFAR-100)."""
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = "test"
    """Name of the test split; `none`: hold out `test_fraction` of the training images."""
    offline: bool = False

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of the data (`hub_source`)."""
        return hub_source(self, decode_cache)


_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
"""Files, one of which is in every folder written by `save_to_disk`."""
_OTHERS = ("domain", "client", "superclass")
"""Settings that may name further columns."""


@dataclass(frozen=True, slots=True)
class HubImage:
    """An image in a row of a data set; its bytes are read from the memory-mapped table when they are needed."""

    table: HubTable
    row: int
    expected_digest: str = ""
    """Digest of the inspected bytes; `open` refuses others."""
    bits: int = GREY_BITS
    """Range of grey values of more than 8 bits."""

    @property
    def key(self) -> str:
        """Name of the split and row number."""
        return f"{self.table.name}/{self.row}"

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming the row if it cannot be decoded, or has changed."""
        return open_image(
            self.table.encoded(self.row), self.key, self.table.max_megapixels, self.expected_digest, self.bits
        )

    def digest(self) -> str:
        """Digest of the inspected bytes, or of the present ones. Raises FedvlmError naming a row without bytes."""
        return image_identity(self.expected_digest or digest(self.table.encoded(self.row)), self.bits)

    def inspect(self, lookup: Callable[[str], ImageFacts | None]) -> ImageFacts | Problem:
        """Facts of the image, from `lookup` by digest or from a full decode; or the problem that makes it unusable."""
        try:
            data = self.table.encoded(self.row)
        except FedvlmError as error:
            return Problem("missing", str(error))
        return inspect_bytes(data, self.table.max_megapixels, lookup)

    def with_facts(self, facts: ImageFacts, bits: int) -> HubImage:
        """The same image, tied to the inspected bytes, with this range of grey values."""
        return replace(self, expected_digest=facts.digest, bits=bits)


@dataclass(frozen=True)
class HubTable:
    """One split of a data set, its image column not decoded."""

    name: str
    data: Any
    image: str
    homes: tuple[Path, ...]
    """Folders in which images may be, if the table holds paths instead of bytes."""
    max_megapixels: float

    @cached_property
    def _cells(self) -> Any:
        """The image column as an Arrow array, which stays on disk and is faster than rows of the data set."""
        return self.data.select_columns([self.image]).with_format("arrow")[:].column(0)

    def encoded(self, row: int) -> bytes:
        """The encoded bytes of the image in `row`. Raises FedvlmError if there are none."""
        cell = self._cells[row].as_py() or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        path = str(cell.get("path") or "")
        home = next((home for home in self.homes if path and _is_inside(home, path)), None)
        if home is None:
            raise FedvlmError(f"{self.name}/{row} holds no image bytes" + (f" and points to {path}" if path else ""))
        try:
            return (home / path).read_bytes()
        except OSError as error:
            raise FedvlmError(f"{self.name}/{row}: {path}: {error.strerror}") from None


def hub_source(config: HubData, decode_cache: DecodeCache) -> Source:
    """The images of the train, validation and test splits that the configuration names."""
    datasets = _library()
    splits, homes = _open(datasets, config)
    chosen = _select_splits(splits, config)
    features = next(iter(chosen.values()))[1].features
    image, label = _columns(datasets, features, config)
    names = getattr(features[label], "names", None)
    rows: list[ImageRow] = []
    unlabelled: list[str] = []
    for split, (name, data) in chosen.items():
        data = data.with_format(None).cast_column(image, datasets.Image(decode=False))
        rows += _rows(
            HubTable(name, data, image, homes, config.max_megapixels), split or None, label, config, unlabelled
        )
    notes = (
        [counted_note(unlabelled, "row has no label", "rows have no label", before="left out: ")] if unlabelled else []
    )
    if not names and all(row.name.lstrip("-").isdigit() for row in rows):
        notes.append(f"the column '{label}' holds numbers without names: zero-shot prompts will read '{rows[0].name}'")
    return build_source(config.path, rows, config, decode_cache, classnames=names, warnings=notes)


def _rows(table: HubTable, split: Any, label: str, config: HubData, unlabelled: list[str]) -> Iterator[ImageRow]:
    """One row per image; rows without a label (None, or -1 as in hidden test sets) are added to `unlabelled`."""
    names = getattr(table.data.features[label], "names", None)
    columns = {key: table.data[column][:] for key, column in _roles(label, config).items()}
    for row, value in enumerate(columns["label"]):
        if value is None or value == "" or (names and not 0 <= value < len(names)):
            unlabelled.append(f"{table.name}/{row}")
            continue
        domain, client, above = (_optional_text(columns[key][row]) if key in columns else None for key in _OTHERS)
        yield ImageRow(HubImage(table, row), names[value] if names else str(value), domain, client, split, above)


def _roles(label: str, config: HubData) -> dict[str, str]:
    roles = {"label": label} | {key: getattr(config, key) for key in _OTHERS}
    return {key: column for key, column in roles.items() if column is not None}


def _optional_text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _library() -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise FedvlmError("data.source = \"huggingface\" needs the extra 'hub': pip install 'fedvlm[hub]'") from None
    return datasets  # type: ignore[no-any-return]


def _open(datasets: ModuleType, config: HubData) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """All splits by name (a single saved table has the name "") and the folders its images may lie in."""
    local = Path(config.path).expanduser()
    homes = (local.resolve(),) if local.exists() else _caches(datasets)
    try:
        found = _load_saved(datasets, local) if local.exists() else _download(datasets, config)
    except FedvlmError:
        raise
    except Exception as error:  # the library raises errors of its own, of the hub, of HTTP and of Arrow
        first = (str(error).strip() or "no reason given").splitlines()[0]
        how = "data.offline is set: is it in the cache?" if config.offline else "look at the id, the network, the token"
        how = "was it written by save_to_disk?" if local.exists() else how
        raise FedvlmError(f"cannot read the data set {config.path}: {type(error).__name__}: {first} ({how})") from error
    return (dict(found) if isinstance(found, dict) else {"": found}), homes


def _load_saved(datasets: ModuleType, local: Path) -> Any:
    if not any((local / name).is_file() for name in _SAVED):
        raise FedvlmError(f"{local} was not written by save_to_disk (no {' or '.join(_SAVED)}): for a folder of images "
                          'set data.source = "folder"')  # fmt: skip
    return datasets.load_from_disk(str(local))


def _download(datasets: ModuleType, config: HubData) -> Any:
    options: dict[str, Any] = {"download_config": datasets.DownloadConfig(local_files_only=config.offline)}
    if "trust_remote_code" in signatures.signature(datasets.load_dataset).parameters:
        options["trust_remote_code"] = False  # releases before 4 would run a script found at the id
    return datasets.load_dataset(config.path, config.config, revision=config.revision, **options)


def _caches(datasets: ModuleType) -> tuple[Path, ...]:
    names = ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH", "HF_HUB_CACHE")
    return tuple(Path(getattr(datasets.config, name)).resolve() for name in names if hasattr(datasets.config, name))


def _is_inside(home: Path, path: str) -> bool:
    try:
        resolve_inside(home, path)
    except FedvlmError:
        return False
    return True


def _select_splits(splits: dict[str, Any], config: HubData) -> dict[Split | None, tuple[str, Any]]:
    """The configured splits with their names; a single table is one unnamed split, from which images are held out."""
    if list(splits) == [""]:
        return {None: ("all", splits[""])}
    wanted: dict[Split | None, str | None] = {
        "train": config.train_split, "val": config.val_split, "test": config.test_split,
    }  # fmt: skip
    for split, name in wanted.items():
        if name is not None and name not in splits:
            hint = ", or to none to hold out a share of the training images" if split != "train" else ""
            raise FedvlmError(f"{config.path} has no split '{name}' (it has {listed(splits)}): "
                              f"set data.{split}_split to one of them{hint}")  # fmt: skip
    return {split: (name, splits[name]) for split, name in wanted.items() if name is not None}


def _columns(datasets: ModuleType, features: Any, config: HubData) -> tuple[str, str]:
    """Names of the image and label columns: as configured, or the only ones of their kind."""
    for key in ("image", "label", *_OTHERS):
        column = getattr(config, key)
        if column is not None and column not in features:
            raise FedvlmError(f"{config.path} has no column '{column}' (data.{key}){nearest(column, features)}; "
                              f"its columns are {listed(features)}")  # fmt: skip
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [name for name in features if name in ("label", "labels")]
    image = config.image or _single(images, "image", features, config)
    if not isinstance(features[image], datasets.Image):
        raise FedvlmError(f"the column '{image}' of {config.path} holds no images; set data.image ({listed(images)})")
    return image, config.label or _single(labels, "label", features, config)


def _single(found: Sequence[str], key: str, features: Any, config: HubData) -> str:
    if len(found) == 1:
        return found[0]
    what = f"several {key} columns ({listed(found)})" if found else f"no {key} column among {listed(features)}"
    raise FedvlmError(f"{config.path} has {what}: set data.{key}")
