"""Images in files: read only inside the data folder, checked before they are decoded, never a surprise later."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from fedvlm.errors import FedvlmError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image in a folder."""
MAX_ASPECT = 64
"""Longest side over shortest: resizing the short side of a narrower image to 224 would fill the memory."""
MAX_TEXT_BYTES = 256 * 2**20
"""Larger lists (CSV, JSON) are refused: no data set of photographs comes near."""

_blake = partial(hashlib.blake2b, digest_size=20)

Kind = Literal["missing", "unreadable", "too large", "too narrow"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an image cannot be used."""

    kind: Kind
    detail: str


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image file below a folder; what its path may reach is bounded by that folder, symlinks included."""

    root: Path
    path: str
    """Relative to `root`, with forward slashes."""
    max_megapixels: float = 40.0

    @property
    def key(self) -> str:
        """The relative path."""
        return self.path

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming the file if it cannot be decoded."""
        with _told(str(self.root / self.path)), inside(self.root, self.path).open("rb") as file:
            return decode(file, self.max_megapixels)

    def digest(self) -> str:
        """Of the file's bytes. Raises FedvlmError naming the file if it cannot be read."""
        with _told(str(self.root / self.path)), inside(self.root, self.path).open("rb") as file:
            return hashlib.file_digest(file, _blake).hexdigest()

    def problem(self) -> Problem | None:
        """What is wrong with the file, from its header and checksums; None for a usable image.

        Raises FedvlmError if the path leaves the folder.
        """
        try:
            path = inside(self.root, self.path)
            if not path.is_file():  # nor a named pipe, which would be waited for
                return Problem("missing", "no such file")
            with path.open("rb") as file:
                return inspect(file, self.max_megapixels)
        except OSError as error:
            return Problem("unreadable", error.strerror or str(error))


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image whose encoded bytes are in memory."""

    key: str
    data: bytes
    max_megapixels: float = 40.0

    def open(self) -> PIL.Image.Image:
        """The decoded RGB image, upright. Raises FedvlmError naming the key if it cannot be decoded."""
        with _told(self.key):
            return decode(io.BytesIO(self.data), self.max_megapixels)

    def digest(self) -> str:
        """Of the encoded bytes."""
        return _blake(self.data).hexdigest()

    def problem(self) -> Problem | None:
        """What is wrong with the bytes; None for a usable image."""
        return inspect(io.BytesIO(self.data), self.max_megapixels)


def inside(root: Path, path: str) -> Path:
    """The file `root/path`; FedvlmError if `..`, an absolute path or a symlink leads out of `root`, or for no path."""
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


def folder(path: str | Path, key: str = "data.path") -> Path:
    """An existing folder, `~` expanded; FedvlmError naming the setting otherwise."""
    found = Path(path).expanduser()
    if found.is_dir():
        return found.resolve()
    why = "is a file, not a folder" if found.exists() else "does not exist"
    raise FedvlmError(f"{found} {why}: set {key} to the folder that holds the images")


def subfolders(outer: Path) -> list[Path]:
    """The folders in `outer`, sorted, without hidden ones and those that systems strew about."""
    try:
        return sorted(entry for entry in outer.iterdir() if shown(entry.name) and entry.is_dir())
    except OSError as error:
        raise FedvlmError(f"the folder {outer} cannot be read: {error.strerror or error}") from None


def shown(name: str) -> bool:
    """Whether a name is neither hidden nor what macOS adds to archives."""
    return not name.startswith((".", "__MACOSX"))


def read_text(path: Path) -> str:
    """The text of a list that others made (UTF-8, with or without a byte-order mark), bounded in size."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FedvlmError(f"{path} is larger than {MAX_TEXT_BYTES} bytes: no list of images needs that")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FedvlmError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FedvlmError(f"{path} is not a readable UTF-8 text file: {error}") from None


def decode(file: BinaryIO, max_megapixels: float) -> PIL.Image.Image:
    """The first frame as an upright RGB image, 8 bits a channel. Raises ValueError and whatever Pillow raises."""
    with PIL.Image.open(file) as image:
        problem = _shape_problem(image.size, max_megapixels)
        if problem is not None:
            raise ValueError(problem.detail)
        PIL.ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def inspect(file: BinaryIO, max_megapixels: float) -> Problem | None:
    """What is wrong with an encoded image, without decoding the pixels where the format allows it."""
    try:
        with PIL.Image.open(file) as image:
            problem = _shape_problem(image.size, max_megapixels)
            if problem is None:
                _verify(image, file)
            return problem
    except PIL.Image.DecompressionBombError as error:
        return Problem("too large", str(error))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them raise
        return Problem("unreadable", _said(error))


def _verify(image: PIL.Image.Image, file: BinaryIO) -> None:
    """Raise if the file is damaged: PNG by its checksums, JPEG by its end marker, anything else by decoding it."""
    if image.format == "PNG":
        image.verify()
        return
    if image.format in ("JPEG", "MPO"):
        image.getexif()
        file.seek(-2, os.SEEK_END)
        if file.read() == b"\xff\xd9":
            return
    file.seek(0)
    with PIL.Image.open(file) as again:
        _rgb(again)


def _shape_problem(size: tuple[int, int], max_megapixels: float) -> Problem | None:
    width, height = size
    if width * height > max_megapixels * 1e6:
        found = f"{width} x {height} = {width * height / 1e6:.1f} megapixels"
        return Problem("too large", f"{found}, over data.max_megapixels = {max_megapixels:g}")
    if max(size) > MAX_ASPECT * min(size):
        return Problem("too narrow", f"{width} x {height}, over {MAX_ASPECT} times as long as wide")
    return None


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """RGB; 16-bit grey is scaled (Pillow would clip it to white), transparency is dropped."""
    if image.mode == "F":
        raise ValueError("it has floating-point pixels: convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("it has 32-bit pixels: convert it to 8 or 16 bits")
        return PIL.Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence naming the file."""
    try:
        yield
    except FedvlmError:
        raise
    except Exception as error:
        raise FedvlmError(f"the image {where} cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = str(error).split(" <_io", 1)[0].split("\n", 1)[0]
    return f"{type(error).__name__}: {text}" if not isinstance(error, ValueError) else text
