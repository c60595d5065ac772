"""Remembered activations: what enters a tuner's first image block depends only on weights, image and transform."""

from __future__ import annotations

from collections.abc import Sequence

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


class Activations:
    """Activations of a source's images at any entry of the image encoder, computed when first asked for.

    Up to `limit_bytes` are remembered (first come, first kept: a cyclic scan over more than fits would empty a
    least-recently-used store); what does not fit is computed again. Rows are float32 on the CLIP's device.
    """

    def __init__(self, clip: FrozenCLIP, records: Sequence[Record], device: Device, limit_bytes: int) -> None:
        self.clip = clip
        self.records = records
        self.device = device
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.rows: dict[tuple[int, int], Tensor] = {}

    def get(self, indices: Sequence[int], entry: int) -> Tensor:
        """Activations `[B, ...]` of these records under the test transform at `entry`."""
        missing = [index for index in dict.fromkeys(indices) if (index, entry) not in self.rows]
        fresh: dict[int, Tensor] = {}
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            images = self._read(chunk)
            hidden = self._encode([self.clip.preprocess.test(image) for image in images], entry)
            fresh |= dict(zip(chunk, hidden, strict=True))
        self._remember(fresh, entry)
        return torch.stack([fresh[i] if i in fresh else self.rows[i, entry] for i in indices])

    def augmented(self, indices: Sequence[int], entry: int, *names: int | str) -> Tensor:
        """Activations `[B, ...]` of fresh random views; image i's view comes from the stream (names, i)."""
        seed, *rest = names
        images = self._read(indices)
        views = [
            self.clip.preprocess.augment(image, stream(int(seed), *rest, index))
            for index, image in zip(indices, images, strict=True)
        ]
        return self._encode(views, entry)

    def keep_only(self, entry: int) -> None:
        """Forget other entries' activations (another method begins elsewhere)."""
        for key in [key for key in self.rows if key[1] != entry]:
            tensor = self.rows.pop(key)
            self.used_bytes -= tensor.numel() * tensor.element_size()

    def _read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(array) for array in read_images([self.records[index].image for index in indices])]

    @torch.no_grad()
    def _encode(self, pixels: list[Tensor], entry: int) -> Tensor:
        batch = self.clip.preprocess.normalise(torch.stack(pixels).to(self.device.device))
        with self.device.autocast():
            return self.clip.visual.hidden(batch, entry).float()

    def _remember(self, fresh: dict[int, Tensor], entry: int) -> None:
        for index, tensor in fresh.items():
            size = tensor.numel() * tensor.element_size()
            if self.used_bytes + size <= self.limit_bytes:
                # A row of its own: a view would keep its whole chunk alive.
                self.rows[index, entry] = tensor.clone()
                self.used_bytes += size
