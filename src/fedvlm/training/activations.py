"""Remembered activations: what enters a tuner's first image block depends only on weights, image and transform."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor

from fedvlm.clip import FrozenCLIP
from fedvlm.data.pixels import read_images
from fedvlm.data.record import Record
from fedvlm.streams import stream
from fedvlm.training.device import Device

CHUNK = 64
"""Images decoded and encoded at a time: bounds memory for any number of images."""
FEWEST = 8
"""Rows of the smallest batch that is encoded."""


class Activations:
    """Activations of a source's images at any entry of the image encoder, up to `limit_bytes` of them remembered.

    `prepare` encodes everything a run will ask for, in one fixed order and fixed chunks, so that rounding does not
    depend on who asks first or on where an interrupted run is taken up. What does not fit is computed when asked
    for. Rows are float32 on the CLIP's device.
    """

    def __init__(self, clip: FrozenCLIP, records: Sequence[Record], device: Device, limit_bytes: int) -> None:
        self.clip = clip
        self.records = records
        self.device = device
        self.limit_bytes = limit_bytes
        self.rows: dict[int, dict[int, Tensor]] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all remembered rows."""
        return sum(len(rows) * _size(next(iter(rows.values()))) for rows in self.rows.values() if rows)

    def prepare(self, indices: Iterable[int], entry: int) -> None:
        """Remember these records at `entry`, in rising order, as far as the bound allows.

        What is not asked for gives way when room is needed, so what is kept depends on the request alone.
        """
        wanted = sorted(set(indices))
        rows = self.rows.setdefault(entry, {})
        missing = [index for index in wanted if index not in rows]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            hidden = self._test_views(chunk, entry)
            if not self._fits(hidden, entry, wanted):
                return
            rows = self.rows[entry]
            # Rows of their own: views would keep whole chunks alive.
            rows |= {index: row.clone() for index, row in zip(chunk, hidden, strict=True)}

    def get(self, indices: Sequence[int], entry: int) -> Tensor:
        """Activations `[B, ...]` of these records under the test transform at `entry`."""
        rows = self.rows.get(entry, {})
        missing = [index for index in dict.fromkeys(indices) if index not in rows]
        fresh: dict[int, Tensor] = {}
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            fresh |= dict(zip(chunk, self._test_views(chunk, entry), strict=True))
        return torch.stack([fresh[index] if index in fresh else rows[index] for index in indices])

    def augmented(self, indices: Sequence[int], entry: int, seed: int, *names: int | str) -> Tensor:
        """Activations `[B, ...]` of fresh random views; image i's view comes from the stream (seed, names, i)."""
        views = [
            self.clip.preprocess.augment(image, stream(seed, *names, index))
            for index, image in zip(indices, self._read(indices), strict=True)
        ]
        return self._encode(views, entry)

    def _test_views(self, indices: Sequence[int], entry: int) -> Tensor:
        return self._encode([self.clip.preprocess.test(image) for image in self._read(indices)], entry)

    def _fits(self, hidden: Tensor, entry: int, wanted: Iterable[int]) -> bool:
        size = len(hidden) * _size(hidden[0])
        if self.used_bytes + size > self.limit_bytes:
            self.rows = {entry: self.rows[entry]}
        if self.used_bytes + size > self.limit_bytes:
            held = self.rows[entry]
            self.rows[entry] = {index: held[index] for index in wanted if index in held}
        return self.used_bytes + size <= self.limit_bytes

    def _read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(array) for array in read_images([self.records[index].image for index in indices])]

    @torch.no_grad()
    def _encode(self, pixels: list[Tensor], entry: int) -> Tensor:
        # Matrix kernels for very few rows round differently: a short batch is filled up, so that an image's row does
        # not depend on how many others are encoded with it.
        filled = pixels + pixels[-1:] * (FEWEST - len(pixels))
        batch = self.clip.preprocess.normalise(torch.stack(filled).to(self.device.device))
        with self.device.autocast():
            return self.clip.visual.hidden(batch, entry).float()[: len(pixels)]


def _size(row: Tensor) -> int:
    return row.numel() * row.element_size()
