"""Images in files: read only inside the data folder, checked before decoding, and refused if changed later."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import PIL.Image

from fedvlm.data.decode import GREY_BITS, ImageFacts, Problem, decode, describe_error, digest, inspect_bytes
from fedvlm.data.record import Record
from fedvlm.errors import FedvlmError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes of image files."""
MAX_IMAGE_BYTES = 512 * 2**20
"""Largest image file that is read: 40 uncompressed megapixels of 16-bit colour take half of it."""
MAX_TEXT_BYTES = 256 * 2**20
"""Largest list (CSV, JSON) that is read; no data set of photographs comes near."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file below a folder. Paths and symlinks that lead out of the folder are refused."""

    root: Path
    path: str
    """Relative to `root`, with forward slashes."""
    max_megapixels: float = 40.0
    expected_digest: str = ""
    """Digest of the inspected bytes; `open` refuses others."""
    bits: int = GREY_BITS
    """Range of grey values of more than 8 bits."""

    @property
    def key(self) -> str:
        """The relative path."""
        return self.path

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming a file that cannot be decoded, or has changed."""
        with _naming_errors(str(self.root / self.path)):
            return open_image(
                self._bytes(), str(self.root / self.path), self.max_megapixels, self.expected_digest, self.bits
            )

    def digest(self) -> str:
        """Digest of the inspected bytes, or of the present ones. Raises FedvlmError naming an unreadable file."""
        with _naming_errors(str(self.root / self.path)):
            return image_identity(self.expected_digest or digest(self._bytes()), self.bits)

    def inspect(self, lookup: Callable[[str], ImageFacts | None]) -> ImageFacts | Problem:
        """Facts of the image, from `lookup` by digest or from a full decode; or the problem that makes it unusable.

        Raises FedvlmError if the path leaves the folder.
        """
        try:
            path = resolve_inside(self.root, self.path)
            if not path.is_file():  # this excludes named pipes, which would block
                return Problem("missing", "no such file")
            data = _bytes(path)
        except OSError as error:
            return Problem("unreadable", error.strerror or str(error))
        except ValueError as error:
            return Problem("too large", str(error))
        return inspect_bytes(data, self.max_megapixels, lookup)

    def with_facts(self, facts: ImageFacts, bits: int) -> FileImage:
        """The same image, tied to the inspected bytes, with this range of grey values."""
        return replace(self, expected_digest=facts.digest, bits=bits)

    def _bytes(self) -> bytes:
        return _bytes(resolve_inside(self.root, self.path))


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image whose encoded bytes are in memory."""

    key: str
    data: bytes
    max_megapixels: float = 40.0
    bits: int = GREY_BITS

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming the key if it cannot be decoded."""
        return open_image(self.data, self.key, self.max_megapixels, bits=self.bits)

    def digest(self) -> str:
        """Digest of the encoded bytes."""
        return image_identity(digest(self.data), self.bits)

    def inspect(self, lookup: Callable[[str], ImageFacts | None]) -> ImageFacts | Problem:
        """Facts of the image, or the problem that makes it unusable."""
        return inspect_bytes(self.data, self.max_megapixels, lookup)

    def with_facts(self, facts: ImageFacts, bits: int) -> EncodedImage:
        """The same image with this range of grey values."""
        return replace(self, bits=bits)


def open_image(
    data: bytes, where: str, max_megapixels: float, expected_digest: str = "", bits: int = GREY_BITS
) -> PIL.Image.Image:
    """The image in these bytes, upright RGB. FedvlmError naming `where` if their digest is not `expected_digest`.

    The bytes that are digested are the bytes that are decoded: a file may be replaced at any moment.
    """
    if expected_digest and digest(data) != expected_digest:
        raise FedvlmError(f"{where} has changed since the run began: put the file back as it was, or start a new run")
    with _naming_errors(where):
        return decode(data, max_megapixels, bits)


def image_identity(seen: str, bits: int) -> str:
    """An image's digest: that of its bytes, and the range of wide grey values if it is not 16 bits."""
    return seen if bits == GREY_BITS else f"{seen}/grey{bits}"


def resolve_inside(root: Path, path: str) -> Path:
    """The file `root/path`. Raises FedvlmError for a path that leads out of `root` (`..`, symlink), or is invalid."""
    try:
        real, home = os.path.realpath(root / path), os.path.realpath(root)
    except ValueError:
        raise FedvlmError(f"{path!a} is no path: it holds characters that no file name has") from None
    if real != home and not real.startswith(home.rstrip(os.sep) + os.sep):
        raise FedvlmError(
            f"{path} leads out of the data folder {root} (to {real}): only images inside it are read; "
            "move the image there, or set data.path to a folder that holds both"
        )
    return root / path


def existing_folder(path: str | Path, key: str = "data.path") -> Path:
    """An existing folder, `~` expanded. Raises FedvlmError naming the setting if it does not exist."""
    found = Path(path).expanduser()
    if found.is_dir():
        return found.resolve()
    why = "is a file, not a folder" if found.exists() else "does not exist"
    raise FedvlmError(f"{found} {why}: set {key} to the folder that holds the images")


def subfolders(outer: Path) -> list[Path]:
    """The folders in `outer`, sorted, without hidden ones (`is_shown`)."""
    try:
        return sorted(entry for entry in outer.iterdir() if is_shown(entry.name) and entry.is_dir())
    except OSError as error:
        raise FedvlmError(f"the folder {outer} cannot be read: {error.strerror or error}") from None


def is_shown(name: str) -> bool:
    """Whether a name is neither hidden nor a folder that macOS adds to archives."""
    return not name.startswith((".", "__MACOSX"))


def read_text(path: Path) -> str:
    """The text of a list (UTF-8, byte-order mark optional). Raises FedvlmError if it is too large or unreadable."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FedvlmError(f"{path} is larger than {MAX_TEXT_BYTES} bytes: no list of images needs that")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FedvlmError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FedvlmError(f"{path} is not a readable UTF-8 text file: {error}") from None


def write_images(records: Sequence[Record], place: Callable[[Record], Path], folder: Path) -> None:
    """Write each record's image as `PLACE/NUMBER.png`, numbered in its place from 0. Raises `FedvlmError`.

    `folder`: what the error names.
    """
    numbers: Counter[Path] = Counter()
    try:
        for record in records:
            there = place(record)
            there.mkdir(parents=True, exist_ok=True)
            record.image.open().save(there / f"{numbers[there]:04d}.png")
            numbers[there] += 1
    except OSError as error:
        raise FedvlmError(f"the images of {folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def _naming_errors(where: str) -> Iterator[None]:
    """Turn any error of a decoder into a FedvlmError that names the file."""
    try:
        yield
    except FedvlmError:
        raise
    except Exception as error:
        raise FedvlmError(f"the image {where} cannot be read: {describe_error(error)}") from error


def _bytes(path: Path) -> bytes:
    """All bytes of a file. Raises ValueError if it is larger than MAX_IMAGE_BYTES."""
    with path.open("rb") as file:
        is_huge = os.fstat(file.fileno()).st_size > MAX_IMAGE_BYTES
        data = b"" if is_huge else file.read(MAX_IMAGE_BYTES + 1)
    if is_huge or len(data) > MAX_IMAGE_BYTES:  # the file may have grown
        raise ValueError(f"over {MAX_IMAGE_BYTES // 2**20} MiB")
    return data
