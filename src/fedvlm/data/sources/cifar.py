"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in the authors' binary version. The python version is pickled and refused.

A record is one label byte (CIFAR-10) or the super-class's and the class's (CIFAR-100, in this order), then 1,024 bytes
each of red, green and blue, row by row. Names are in text files beside, one a line, in the order of the label ids.

Some published test images are training images too (Barz and Denzler, "Do we train on test data?", J. Imaging 2020, who
count near copies). The files as they are are the benchmark, so by default every record is used, and a warning counts
the exact copies; with `data.on_duplicate = "once"` each image is used once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from fedvlm.data.build import build_source
from fedvlm.data.decode import ImageFacts
from fedvlm.data.decode_cache import DecodeCache
from fedvlm.data.files import existing_folder, read_text, resolve_inside
from fedvlm.data.record import Source, Split
from fedvlm.data.rows import ImageRow
from fedvlm.data.settings import FileData
from fedvlm.errors import FedvlmError, listed


class CifarData(FileData):
    """CIFAR-10 or CIFAR-100 in the authors' binary version."""

    source: Literal["cifar"]
    complete: bool = True
    """Whether every file must hold as many images as the published one; false to read a smaller copy."""
    on_duplicate: Literal["once", "keep"] = "keep"
    """By default all records are used, because the published files, with their duplicates, are the benchmark."""

    def load(self, seed: int, decode_cache: DecodeCache) -> Source:
        """The records of the data (`cifar_source`)."""
        return cifar_source(self)


SIDE = 32
_PIXELS = 3 * SIDE * SIDE
_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Edition:
    """One of the two data sets in its authors' layout."""

    title: str
    archive: str
    unpacked: str
    """Folder inside the archive."""
    files: tuple[tuple[str, Split, int], ...]
    """Name, split and number of images."""
    names: str
    classes: int
    coarse: tuple[str, int] | None
    """File and number of the super-class names."""
    pickled: tuple[str, ...]
    """Files that only exist in the python version."""
    pickles: str
    """Folder inside the python version's archive."""
    hub: str

    @property
    def record_bytes(self) -> int:
        """Length of a record."""
        return _PIXELS + (1 if self.coarse is None else 2)


EDITIONS = (
    Edition(
        "CIFAR-10", "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
        (*((f"data_batch_{i}.bin", "train", 10_000) for i in range(1, 6)), ("test_batch.bin", "test", 10_000)),
        "batches.meta.txt", 10, None, ("data_batch_1", "batches.meta"), "cifar-10-batches-py",
        "data.path=uoft-cs/cifar10",
    ),
    Edition(
        "CIFAR-100", "cifar-100-binary.tar.gz", "cifar-100-binary",
        (("train.bin", "train", 50_000), ("test.bin", "test", 10_000)),
        "fine_label_names.txt", 100, ("coarse_label_names.txt", 20), ("train", "meta"), "cifar-100-python",
        "data.path=uoft-cs/cifar100 data.label=fine_label data.superclass=coarse_label",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CifarImage:
    """The pixels of a record, read from the file on use."""

    root: Path
    file: str
    row: int
    offset: int
    """Offset of the first pixel in the file."""
    expected_digest: str
    """Digest of the pixels when the labels were read; `open` refuses other pixels."""

    @property
    def key(self) -> str:
        """Name of the file and number of the record."""
        return f"{self.file}/{self.row}"

    def open(self) -> PIL.Image.Image:
        """The image, 32 x 32 RGB. Raises FedvlmError naming the file if it can no longer be read, or has changed."""
        planes = np.frombuffer(self._bytes(), np.uint8).reshape(3, SIDE, SIDE)
        return PIL.Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    def digest(self) -> str:
        """Digest of the pixels."""
        return self.expected_digest

    def inspect(self, lookup: object) -> ImageFacts:
        """Facts of the image without decoding: the whole file was checked already."""
        return ImageFacts(self.expected_digest, self.expected_digest, SIDE, SIDE, 8, 0, 255)

    def with_facts(self, facts: ImageFacts, bits: int) -> CifarImage:
        """The same image, which is tied to its pixels already."""
        return self

    def _bytes(self) -> bytes:
        path = resolve_inside(self.root, self.file)
        try:
            with path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(_PIXELS)
        except OSError as error:
            raise FedvlmError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(data) != _PIXELS:
            raise FedvlmError(f"{path} has become shorter since the run began: record {self.row} is cut off")
        if _digest(data) != self.expected_digest:
            raise FedvlmError(f"{path} has changed since the run began: record {self.row} holds other pixels")
        return data


def _digest(pixels: bytes) -> str:
    return hashlib.blake2b(pixels, digest_size=20, person=b"cifar").hexdigest()


def cifar_source(config: CifarData) -> Source:
    """All records of the edition found at the path, in the order of its files, with their original split."""
    root, edition = _find_edition(existing_folder(config.path))
    names = _names(root / edition.names, edition.classes)
    coarse = _names(root / edition.coarse[0], edition.coarse[1]) if edition.coarse else None
    rows = [
        row
        for name, split, count in edition.files
        for row in _rows(root, edition, name, count if config.complete else None, (names, coarse), split)
    ]
    return build_source(edition.title, rows, config, DecodeCache(), classnames=names)


def _rows(
    root: Path, edition: Edition, name: str, count: int | None, words: tuple[list[str], list[str] | None], split: Split
) -> Iterator[ImageRow]:
    names, coarse = words
    data = _records(root, edition, name, count)
    first = edition.record_bytes - _PIXELS
    for row, ids in enumerate(data[:, :first].tolist()):
        place = row * edition.record_bytes + first
        image = CifarImage(root, name, row, place, _digest(data[row, first:].tobytes()))
        yield ImageRow(image, names[ids[-1]], split=split, superclass=coarse[ids[0]] if coarse else None)


def _find_edition(root: Path) -> tuple[Path, Edition]:
    """The folder with the files (`root`, or the unpacked archive in it), and their edition."""
    places = [(home, edition) for edition in EDITIONS for home in (root, root / edition.unpacked)]
    found = [(home, edition) for home, edition in places if (home / edition.files[0][0]).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        homes = listed(f"{edition.title} in {home}" for home, edition in found)
        raise FedvlmError(f"{root} holds several data sets ({homes}): set data.path to one of these folders")
    for edition in EDITIONS:
        if (root / edition.pickles).is_dir() or all((root / name).is_file() for name in edition.pickled):
            raise FedvlmError(
                f"{root} holds the python version of {edition.title}: its files are pickles, which can run any code "
                f"and are never read. Get {edition.archive} ({_HOME}), or take the hub's copy: data.source=huggingface "
                f"{edition.hub}"
            )
    wanted = " nor ".join(f"{edition.files[0][0]} ({edition.title})" for edition in EDITIONS)
    archives = " or ".join(edition.archive for edition in EDITIONS)
    raise FedvlmError(f"{root} holds neither {wanted}: set data.path to the unpacked {archives} ({_HOME})")


def _names(path: Path, count: int) -> list[str]:
    """One name a line, in the order of the label ids."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if len(names) != count or len(set(names)) != count:
        raise FedvlmError(f"{path} must hold {count} different names, one a line, but holds {len(set(names))}: get the "
                          "published file")  # fmt: skip
    return names


def _records(root: Path, edition: Edition, name: str, count: int | None) -> NDArray[np.uint8]:
    """Label bytes and pixels of all records `[R, 1 or 2 + 3072]`, after checks of the file's size and all labels."""
    path, length = resolve_inside(root, name), edition.record_bytes
    try:
        _check_size(path, edition, path.stat().st_size, count)
        data = np.fromfile(path, np.uint8).reshape(-1, length)
    except FileNotFoundError:
        raise FedvlmError(f"{path} is missing: {edition.title} needs {listed(f[0] for f in edition.files)}") from None
    except (OSError, ValueError) as error:
        raise FedvlmError(f"{path} cannot be read: {error}") from None
    labels = data[:, : length - _PIXELS]
    most = [edition.coarse[1], edition.classes] if edition.coarse else [edition.classes]
    wrong = np.argwhere(labels >= np.array(most))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise FedvlmError(
            f"{path}, record {row}: the label {labels[row, column]} is not in 0..{most[column] - 1}: this is no file "
            f"of {edition.title}, or it is damaged. Get {edition.archive} again ({_HOME})"
        )
    return data


def _check_size(path: Path, edition: Edition, size: int, count: int | None) -> None:
    """Raise FedvlmError unless the file has whole records, `count` of them, or at least one if `count` is None."""
    records, rest = divmod(size, edition.record_bytes)
    if rest or not records:
        raise FedvlmError(
            f"{path} has {size:,} bytes, which is no whole number of records of {edition.record_bytes} bytes: it is "
            f"cut off or no file of {edition.title}. Get {edition.archive} again ({_HOME})"
        )
    if count is not None and records != count:
        raise FedvlmError(
            f"{path} holds {records:,} images, the published file {count:,}: get {edition.archive} again ({_HOME}), or "
            "set data.complete = false to use what there is"
        )
