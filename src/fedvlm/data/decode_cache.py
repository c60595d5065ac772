"""Facts of images that were decoded without error, cached for the user by the digest of their bytes.

There is one text file for each version of Pillow and of our decoder, in `images` of the cache folder. It grows by whole
lines, so processes need no lock. A damaged line is ignored, and its image is decoded again.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import PIL

from fedvlm import cache
from fedvlm.data.decode import DECODER, ImageFacts

MAX_BYTES = 128 * 2**20
"""Largest size of the file, about a million images; a larger file is deleted."""
_LINE = re.compile(rb"([0-9a-f]{40}) ([0-9a-f]{40}) (\d{1,9}) (\d{1,9}) (8|16) (\d{1,5}) (\d{1,5}) ([0-9a-f]{8})")
_DIGEST = 40


class DecodeCache:
    """Facts from earlier decodes. Without a file nothing is read or stored."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.lines = _read(file) if file else {}

    def get(self, digest: str) -> ImageFacts | None:
        """Facts of the bytes with this digest, or None. Thread-safe."""
        line = self.lines.get(digest.encode())
        facts = _parse(line) if line is not None else None
        if facts is None:
            self.lines.pop(digest.encode(), None)  # so that a damaged line is written again
        return facts

    def add(self, images: Iterable[ImageFacts]) -> None:
        """Store new facts. A cache that cannot be written is disabled without an error."""
        new = {facts.digest.encode(): _line(facts) for facts in images if facts.digest.encode() not in self.lines}
        if not new or self.file is None:
            return
        self.lines |= new
        try:
            cache.make(self.file.parent)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            handle = os.open(self.file, flags, 0o600)
            try:
                # The first line break ends a line that a killed process may have left incomplete.
                os.write(handle, b"\n" + b"\n".join(new.values()) + b"\n")
            finally:
                os.close(handle)
        except OSError:
            self.file = None


def open_cache() -> DecodeCache:
    """The user's cache for the installed Pillow."""
    try:
        return DecodeCache(folder() / f"pillow-{PIL.__version__}-decoder-{DECODER}.txt")
    except RuntimeError:  # the user has no home
        return DecodeCache()


def folder() -> Path:
    """The folder of the cache files."""
    return cache.folder("images")


def used_bytes() -> int:
    """Bytes of all cache files, including those of other versions."""
    return sum(size for _, size in _files())


def clear() -> int:
    """Delete all cache files; returns the freed bytes."""
    freed = 0
    for file, size in _files():
        with contextlib.suppress(OSError):
            file.unlink()
            freed += size
    return freed


def _files() -> Iterator[tuple[Path, int]]:
    for file in folder().glob("pillow-*.txt"):
        with contextlib.suppress(OSError):  # another process may have deleted it
            yield file, file.stat().st_size


def _read(file: Path) -> dict[bytes, bytes]:
    """Lines by their first word, the digest; they are parsed on use."""
    try:
        if file.stat().st_size > MAX_BYTES:
            file.unlink()
            return {}
        return {line[:_DIGEST]: line for line in file.read_bytes().split(b"\n")}
    except OSError:
        return {}


def _line(facts: ImageFacts) -> bytes:
    words = (facts.digest, facts.pixels, facts.width, facts.height, facts.depth, facts.low, facts.high)
    text = " ".join(map(str, words)).encode()
    return text + b" %08x" % zlib.crc32(text)


def _parse(line: bytes) -> ImageFacts | None:
    found = _LINE.fullmatch(line)
    if found is None or int(found[8], 16) != zlib.crc32(line[:-9]):
        return None
    depth: Literal[8, 16] = 8 if found[5] == b"8" else 16
    return ImageFacts(
        found[1].decode(), found[2].decode(), int(found[3]), int(found[4]), depth, int(found[6]), int(found[7])
    )
