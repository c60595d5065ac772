"""Cached activations: the input of a tuner's first image block depends only on weights, image and transform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import PIL
import torch
from PIL import Image
from torch import Tensor

from fedvlm.clip import FEATURE, Entry, FrozenCLIP
from fedvlm.clip.config import facts
from fedvlm.data.pixels import read_images
from fedvlm.data.record import Record, Stored
from fedvlm.streams import stream
from fedvlm.training.device import Device
from fedvlm.training.disk_cache import CacheTable, DiskCache

ENCODING = 1
"""Version of the rows on disk. It is raised when the image encoder, a transform or the decoding of files changes the
rows for the same facts; rows of an earlier version are not read."""
CHUNK = 128
"""Number of images decoded and encoded at a time; this bounds memory for any number of images."""
MIN_BATCH = 8
"""Smallest batch of fresh views: matrix products of very few rows round differently."""
TEST = -1
"""View number of the test transform; 0, 1, ... are augmented views of the bank, drawn once per image."""

Key = tuple[int, int]
"""A record's position and a view of it."""


class Memory:
    """Rows of one entry in memory, in a few large tensors."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.blocks: list[Tensor] = []
        self.places: dict[Key, tuple[int, int]] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.numel() * block.element_size() for block in self.blocks)

    def add(self, keys: Sequence[Key], block: Tensor) -> None:
        """Store the rows `[n, ...]` of these keys; the tensor is not copied."""
        self.places |= {key: (len(self.blocks), row) for row, key in enumerate(keys)}
        self.blocks.append(block)

    def get(self, keys: Sequence[Key]) -> Tensor:
        """Copies of rows `[B, ...]`; every key must be stored."""
        places = [self.places[key] for key in keys]
        numbers = {block for block, _ in places}
        if len(numbers) == 1:
            block = self.blocks[numbers.pop()]
            return block.index_select(0, self.device.send(torch.tensor([row for _, row in places])))
        return torch.stack([self.blocks[block][row] for block, row in places])

    def subset(self, keys: Iterable[Key]) -> Memory:
        """A new memory with those of these keys that are stored here."""
        kept, new = [key for key in keys if key in self.places], Memory(self.device)
        if kept:
            new.add(kept, self.get(kept))
        return new


class Activations:
    """Activations of a source's images at any entry of the image encoder, up to `limit_bytes` of them in memory.

    `prepare` encodes all rows of a run in one fixed order, so that rounding depends neither on the order of requests
    nor on the round from which an interrupted run continues. With a `disk_cache`, rows of image files are also read
    from and written to disk. A row that is in neither cache is computed on request. Rows are float32 on the CLIP's
    device; cached and computed rows are equal bit for bit, with any number of threads.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        records: Sequence[Record],
        device: Device,
        limit_bytes: int,
        disk_cache: DiskCache | None = None,
        cache_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.clip = clip
        self.records = records
        self.device = device
        self.limit_bytes = limit_bytes
        # Images without bytes of their own, such as drawn ones, have no digest to be cached by.
        self.disk_cache = (
            disk_cache if records and all(isinstance(record.image, Stored) for record in records) else None
        )
        self.cache_dtype = cache_dtype
        self.memory: dict[Entry, Memory] = {}
        self.tables: dict[Entry, CacheTable] = {}
        self.identities: dict[int, str] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all rows in memory."""
        return sum(memory.used_bytes for memory in self.memory.values())

    def prepare(self, keys: Iterable[Key], entry: Entry) -> None:
        """Cache these views at `entry`, in rising order, as far as the bounds of memory and disk allow.

        Rows that are not requested are dropped when memory is short, so the cached rows depend on the request alone.
        """
        wanted = sorted(set(keys))
        missing = [key for key in wanted if key not in self.memory.setdefault(entry, Memory(self.device)).places]
        block, filled = None, 0
        for start in range(0, len(missing), CHUNK):
            rows = self._rows(missing[start : start + CHUNK], entry)
            if block is None:
                block = rows.new_empty(self._count_fitting(entry, wanted, len(missing), rows[0]), *rows.shape[1:])
            part = rows[: len(block) - filled]
            block[filled : filled + len(part)] = part
            filled += len(part)
            if filled == len(block) and self._table(entry) is None:
                break
        if filled:
            assert block is not None
            self.memory[entry].add(missing[:filled], block)

    def get(self, indices: Sequence[int], entry: Entry, views: Sequence[int] | None = None) -> Tensor:
        """Activations `[B, ...]` of these records at `entry`, under the test transform or in these views."""
        keys = list(zip(indices, views or [TEST] * len(indices), strict=True))
        held = self.memory.get(entry) or Memory(self.device)
        missing = [key for key in dict.fromkeys(keys) if key not in held.places]
        if not missing:
            return held.get(keys)
        fresh: dict[Key, Tensor] = {}
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            fresh |= dict(zip(chunk, self._rows(chunk, entry), strict=True))
        rest = [key for key in keys if key not in fresh]
        fresh |= dict(zip(rest, held.get(rest), strict=True)) if rest else {}
        return torch.stack([fresh[key] for key in keys])

    def get_online(self, indices: Sequence[int], entry: Entry, seed: int, *names: int | str) -> Tensor:
        """Activations `[B, ...]` of fresh random views; image i's view comes from the stream (seed, names, i).

        These rows are not cached, so one batch of the request is encoded as a whole, by all threads.
        """
        views = [
            self.clip.preprocess.augment(image, stream(seed, *names, index))
            for index, image in zip(indices, self._read(indices), strict=True)
        ]
        filled = views + views[-1:] * (MIN_BATCH - len(views))
        return self._batch(torch.stack(filled), entry)[: len(views)]

    def _count_fitting(self, entry: Entry, wanted: Iterable[Key], count: int, row: Tensor) -> int:
        """How many of `count` more rows fit; rows that are not wanted are dropped first if memory is short."""
        size = row.numel() * row.element_size()
        if self.used_bytes + size * count > self.limit_bytes:
            self.memory = {entry: self.memory[entry]}
        if self.used_bytes + size * count > self.limit_bytes:
            self.memory[entry] = self.memory[entry].subset(wanted)
        return min(count, max(0, self.limit_bytes - self.used_bytes) // size)

    def _rows(self, keys: Sequence[Key], entry: Entry) -> Tensor:
        """Rows `[B, ...]` of at most CHUNK distinct keys, from disk or from the encoder."""
        table = self._table(entry)
        if table is None:
            return self._encode(self._views(keys), entry)
        names = [self._name(key) for key in keys]
        stored = table.read(sorted(table.find(names)))
        missing = [place for place, name in enumerate(names) if name not in stored]
        rows = {place: stored[name] for place, name in enumerate(names) if name in stored}
        if missing:
            fresh = self._encode(self._views([keys[place] for place in missing]), entry).to(self.cache_dtype)
            rows |= dict(zip(missing, fresh, strict=True))
            table.add([names[place] for place in missing], fresh)
        if missing:
            rows = {place: row.to(self.device.device) for place, row in rows.items()}
        return self.device.send(torch.stack([rows[place] for place in range(len(keys))])).float()

    def _table(self, entry: Entry) -> CacheTable | None:
        if self.disk_cache is None:
            return None
        if entry not in self.tables:
            # The finished feature was once known as the entry after the last block: rows on disk keep that name.
            name = self.clip.visual.depth + 1 if entry == FEATURE else entry if isinstance(entry, int) else str(entry)
            identity: dict[str, Any] = {
                "model": self.clip.name, "weights": self.clip.weights, "encoding": ENCODING,
                # Not the whole CLIP's digest: no row depends on texts.
                "image encoder": facts(self.clip.config.vision) | {"embed": self.clip.config.embed},
                "entry": name, "kept as": str(self.cache_dtype),
                "computed in": self.device.precision, "on": self.device.device.type,
                "transform": self.clip.preprocess.identity, "torch": torch.__version__, "pillow": PIL.__version__,
            }  # fmt: skip
            self.tables[entry] = self.disk_cache.table(identity)
        return self.tables[entry]

    def _name(self, key: Key) -> str:
        """The key of a row on disk."""
        return f"{self._identity(key[0])}:{key[1]}"

    def _identity(self, index: int) -> str:
        """Digest of the image's bytes, or its key where an image has no bytes."""
        if index not in self.identities:
            image = self.records[index].image
            self.identities[index] = image.digest() if isinstance(image, Stored) else image.key
        return self.identities[index]

    def _views(self, keys: Sequence[Key]) -> list[Tensor]:
        indices = list(dict.fromkeys(index for index, _ in keys))
        images = dict(zip(indices, self._read(indices), strict=True))
        return [self._view(images[index], index, view) for index, view in keys]

    def _view(self, image: Image.Image, index: int, view: int) -> Tensor:
        if view == TEST:
            return self.clip.preprocess.test(image)
        # A view of the bank depends on the image alone, so that runs of all seeds share it.
        return self.clip.preprocess.augment(image, stream(view, "bank", self._identity(index)))

    def _read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(array) for array in read_images([self.records[index].image for index in indices])]

    def _encode(self, pixels: list[Tensor], entry: Entry) -> Tensor:
        """Rows `[B, ...]`, each of which depends on its own image alone: see `Device.batch_rows` and `Device.map`."""
        size = self.device.batch_rows
        filled = pixels + pixels[-1:] * (-len(pixels) % size)
        batches = [torch.stack(filled[start : start + size]) for start in range(0, len(filled), size)]
        return torch.cat(self.device.map(partial(self._batch, entry=entry), batches))[: len(pixels)]

    @torch.no_grad()
    def _batch(self, pixels: Tensor, entry: Entry) -> Tensor:
        """uint8 `[B, 3, S, S]` to rows `[B, ...]`."""
        batch = self.clip.preprocess.normalise(self.device.send(pixels))
        with self.device.autocast():
            return self.clip.visual.hidden(batch, entry).float()
