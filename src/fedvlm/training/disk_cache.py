"""Cached activations on disk, shared by runs and processes. Any file may be deleted at any time.

A table holds the rows of one kind: same weights, transform, entry and precision. Its files are safetensors with a
checksum for every row; they appear whole or not at all and are never changed, so processes need no lock. A damaged
file is noticed, deleted and written again; a file that cannot be read at the moment (too many open files, another
owner) is left alone. Only the owner can read the files, because activations reveal much of an image.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedvlm import cache, durable
from fedvlm.errors import FedvlmError

FACTS = "facts.json"
_DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, IndexError)
"""Errors that reading a damaged file may raise."""
_UNREADABLE = (OSError, RuntimeError)
"""Errors that reading may raise if the system refuses; torch, which maps files, raises its own."""
_STALE_S = 3600
"""Temporary files older than this were left by a process that was killed."""


def folder() -> Path:
    """The folder of activations in the user's cache."""
    return cache.folder("activations")


@dataclass(frozen=True)
class CacheInfo:
    """A table on disk: the facts that its rows depend on, number of files, bytes, time of last use (seconds)."""

    path: Path
    facts: dict[str, Any]
    files: int
    size: int
    used: float

    def mentions(self, words: str) -> bool:
        """Whether the facts contain these words, in any case."""
        return words.lower() in json.dumps(self.facts).lower()


class DiskCache:
    """All tables below a folder, together at most `limit_bytes`: the least recently used files are deleted."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root, self.limit_bytes = root, limit_bytes
        self.is_writable = True

    def table(self, facts: Mapping[str, Any]) -> CacheTable:
        """The table of the rows that depend on exactly these facts."""
        return CacheTable(self, self.root / durable.json_digest(dict(facts))[:24], dict(facts))

    def tables(self) -> list[CacheInfo]:
        """All tables on disk, the most recently used first."""
        found = []
        for path in self.root.glob(f"*/{FACTS}"):
            files = [stat for _, stat in _files(path.parent)]
            with contextlib.suppress(OSError, ValueError):
                facts = json.loads(path.read_text())
                used = max((stat.st_mtime for stat in files), default=path.stat().st_mtime)
                found.append(CacheInfo(path.parent, facts, len(files), sum(stat.st_size for stat in files), used))
        return sorted(found, key=lambda held: -held.used)

    def clear(self, words: str = "") -> int:
        """Delete the tables whose facts contain `words` (all by default); returns the freed bytes."""
        freed = 0
        for held in self.tables():
            if held.mentions(words):
                freed += held.size
                for file in held.path.iterdir():
                    _delete(file)
                with contextlib.suppress(OSError):
                    held.path.rmdir()
        return freed

    def disable(self, error: Exception) -> None:
        """Stop writing to disk, with a warning: a cache that cannot be written must not end a run."""
        self.is_writable = False
        warnings.warn(f"activations are not kept on disk: {error}", stacklevel=3)

    def make_room(self, size: int) -> bool:
        """Delete the least recently used files until `size` more bytes fit; False if `size` exceeds the limit."""
        if size > self.limit_bytes:
            return False
        files = sorted((stat.st_mtime, stat.st_size, path) for path, stat in _files(self.root))
        total = sum(size for _, size, _ in files)
        for _, length, path in files:
            if total + size <= self.limit_bytes:
                break
            _delete(path)
            total -= length
        return True


class CacheTable:
    """Rows of one kind by key, such as an image's digest and the number of its view."""

    def __init__(self, disk_cache: DiskCache, path: Path, facts: dict[str, Any]) -> None:
        self.disk_cache, self.path, self.facts = disk_cache, path, facts
        self.places: dict[str, tuple[Path, int]] = {}
        self.seen: set[Path] = set()
        self.damaged: set[Path] = set()
        """Damaged files, some of which could not be deleted."""

    def find(self, keys: Iterable[str]) -> set[str]:
        """The keys that this or any other process has stored until now."""
        for file, _ in _files(self.path):
            if file not in self.seen and file not in self.damaged:
                self._index(file)
        return {key for key in keys if key in self.places}

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The stored rows, in the precision of the file. Damaged files are deleted, unreadable ones are tried later."""
        files: dict[Path, list[tuple[str, int]]] = {}
        for key in keys:
            if key in self.places:
                file, row = self.places[key]
                files.setdefault(file, []).append((key, row))
        found: dict[str, Tensor] = {}
        for file, wanted in files.items():
            try:
                found |= dict(_rows(file, wanted))
            except _DAMAGE:
                _delete(file)
                self.damaged.add(file)
                self._forget(file)
            except _UNREADABLE:
                self._forget(file)
            else:
                with contextlib.suppress(OSError):  # a read-only cache records no time of use
                    os.utime(file)
        return found

    def add(self, keys: Sequence[str], rows: Tensor) -> None:
        """Store rows `[n, ...]`. If the disk is full or read-only, the cache is disabled and the run goes on."""
        if not self.disk_cache.is_writable:
            return
        rows = rows.contiguous().cpu()
        if not self.disk_cache.make_room(rows.numel() * rows.element_size()):
            self.disk_cache.disable(FedvlmError("a single file is larger than compute.disk_gib"))
            return
        sums = torch.tensor([_sum(row) for row in rows], dtype=torch.int64)
        try:
            self._start()
            handle, temporary = tempfile.mkstemp(dir=self.path, suffix=".part")
            os.close(handle)
            try:
                save_file({"rows": rows, "sums": sums}, temporary, {"keys": json.dumps(list(keys))})
                file = self.path / f"{durable.json_digest([list(keys), time.time_ns(), os.getpid()])[:24]}.safetensors"
                os.replace(temporary, file)
            finally:
                _delete(Path(temporary))
        except (OSError, SafetensorError, FedvlmError) as error:
            self.disk_cache.disable(error)
            return
        self.seen.add(file)
        self.places |= {key: (file, row) for row, key in enumerate(keys)}

    def _start(self) -> None:
        if not (self.path / FACTS).exists():
            cache.make(self.path)
            durable.write_json(self.path / FACTS, self.facts, private=True)
        for file in self.path.glob("*.part"):
            with contextlib.suppress(OSError):
                if time.time() - file.stat().st_mtime > _STALE_S:
                    _delete(file)

    def _index(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as opened:
                keys = json.loads(opened.metadata()["keys"])
                if len(keys) != opened.get_slice("rows").get_shape()[0]:
                    raise ValueError
                new = {str(key): (file, row) for row, key in enumerate(keys)}
        except _DAMAGE:
            _delete(file)
            self.damaged.add(file)
            return
        except _UNREADABLE:
            return
        self.seen.add(file)
        self.places = new | self.places

    def _forget(self, file: Path) -> None:
        """Forget a file's rows. The next `find` looks for them again, in this file and in others."""
        self.seen.clear()
        self.places = {key: place for key, place in self.places.items() if place[0] != file}


def _rows(file: Path, wanted: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        rows, sums = opened.get_slice("rows"), opened.get_tensor("sums").tolist()
        for key, number in wanted:
            row = rows[number : number + 1][0]
            if _sum(row) != sums[number]:
                raise ValueError(f"{file}: row {number} is damaged")
            yield key, row


def _sum(row: Tensor) -> int:
    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    paths: list[Path] = []
    with contextlib.suppress(OSError):  # a folder that cannot be listed counts as empty
        paths = list(folder.rglob("*.safetensors"))
    for path in paths:
        with contextlib.suppress(OSError):  # another process may have deleted it
            yield path, path.stat()


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
