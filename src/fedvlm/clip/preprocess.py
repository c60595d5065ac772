"""Images to normalised pixels: the published test transform and the training augmentation, on Pillow and torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import strict
from fedvlm.errors import FedvlmError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
RELEASED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Means and deviations in the data loader that pFedMMA, pFedMoAP and FedOTP released (`DatasetCifar100`)."""


@dataclass(frozen=True)
class Preprocess:
    """S = `size` pixels a side; channel means and deviations of pixels in 0..1."""

    size: int
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD

    @property
    def identity(self) -> str:
        """The facts of the transform, as JSON: remembered activations depend on them."""
        return json.dumps([self.size, self.mean, self.std])

    def test(self, image: Image.Image) -> Tensor:
        """Bicubic resize of the shorter side to S and centre crop: uint8 `[3, S, S]` (CLIP's published transform)."""
        image = image.convert("RGB")
        width, height = image.size
        short = min(width, height)
        if short != self.size:
            wide, high = int(self.size * width / short), int(self.size * height / short)
            image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = round((image.width - self.size) / 2), round((image.height - self.size) / 2)
        return _bytes(image.crop((left, top, left + self.size, top + self.size)))

    def augment(self, image: Image.Image, stream: np.random.Generator) -> Tensor:
        """Random resized crop (area 0.08..1, aspect 3/4..4/3, bicubic) and horizontal flip: uint8 `[3, S, S]`."""
        image = image.convert("RGB")
        left, top, width, height = _crop(image.width, image.height, stream)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if stream.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _bytes(image)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, S, S]` to normalised float32 of the same shape, on the pixels' device."""
        mean = torch.tensor(self.mean, device=pixels.device)[:, None, None]
        std = torch.tensor(self.std, device=pixels.device)[:, None, None]
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class CifarPreprocess(Preprocess):
    """What the papers' released code does with CIFAR, training and testing alike, whatever CLIP it is for.

    ToTensor, normalise with CIFAR's own means and deviations, then resize the normalised tensor from 32 to S by
    bilinear interpolation. Corners are not aligned and nothing is antialiased, torchvision's default for tensors before
    0.17; for enlarging, the antialiased filter of later releases is the same one.
    """

    @property
    def identity(self) -> str:
        """The facts of the transform, as JSON: remembered activations depend on them."""
        return json.dumps(["normalised, then resized bilinearly", self.size, self.mean, self.std])

    def test(self, image: Image.Image) -> Tensor:
        """The pixels as they are: uint8 `[3, 32, 32]`; `normalise` resizes. Raises FedvlmError for another size."""
        if image.size != (32, 32):
            raise FedvlmError(
                "data.preprocess is that of the papers' CIFAR, which has images of 32 x 32 pixels, but one has "
                f'{image.width} x {image.height}: set data.preprocess = "clip"'
            )
        return _bytes(image.convert("RGB"))

    def augment(self, image: Image.Image, stream: np.random.Generator) -> Tensor:
        """Refused: the released transform has no augmentation."""
        raise FedvlmError('data.preprocess of the papers\' CIFAR has no augmentation: set views = "none"')

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 `[B, 3, 32, 32]` to normalised float32 `[B, 3, S, S]`, on the pixels' device."""
        size = (self.size, self.size)
        return F.interpolate(super().normalise(pixels), size, mode="bilinear", align_corners=False)


def select(own: Preprocess, kind: str) -> Preprocess:
    """The transform that `data.preprocess` names: the CLIP's `own` (`clip`), or one of `RELEASED` at its image size."""
    return own if kind == "clip" else CifarPreprocess(own.size, *RELEASED[kind])


def load(folder: Path, size: int, open_clip: dict[str, Any] | None = None) -> Preprocess:
    """Means and deviations from `preprocessor_config.json` or an open_clip `preprocess_cfg`; else CLIP's own.

    Raises `FedvlmError` where either asks for another transform than `Preprocess.test` at the model's image size.
    """
    file, where = folder / "preprocessor_config.json", f"preprocess_cfg in {folder / 'open_clip_config.json'}"
    try:
        table = _given(open_clip or {})
        _check_open_clip(table, size, where)
        found = Preprocess(size, _triple(table.get("mean", MEAN)), _triple(table.get("std", STD)))
        if file.exists():
            where = str(file)
            table = _given(json.loads(file.read_text(encoding="utf-8")))
            _check_huggingface(table, size, where)
            found = Preprocess(size, _triple(table.get("image_mean", MEAN)), _triple(table.get("image_std", STD)))
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise FedvlmError(f"{where} is not a readable preprocessor configuration: {error}") from None


def _given(table: dict[str, Any]) -> dict[str, Any]:
    """The table without keys whose value is null, at every depth."""
    return {key: _given(value) if isinstance(value, dict) else value
            for key, value in table.items() if value is not None}  # fmt: skip


def _check_huggingface(table: dict[str, Any], size: int, where: str) -> None:
    strict.check(table, strict.IMAGE_PROCESSOR, where)
    forms = {"size": (size, {"shortest_edge": size}), "crop_size": (size, {"height": size, "width": size})}
    for key, same in forms.items():
        if table.get(key, size) not in same:
            instead = f"it resizes the shorter side to the model's {size} pixels and crops the centre"
            raise strict.not_implemented(key, table[key], where, instead)
    if not math.isclose(table.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-3):
        raise strict.not_implemented("rescale_factor", table["rescale_factor"], where, "pixels are divided by 255")


def _check_open_clip(table: dict[str, Any], size: int, where: str) -> None:
    strict.check(table, strict.OPEN_CLIP_PREPROCESS, where)
    if table.get("size", size) not in (size, [size, size]):
        raise strict.not_implemented("size", table["size"], where, f"the model's image size is {size}")


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _crop(width: int, height: int, stream: np.random.Generator) -> tuple[int, int, int, int]:
    """Ten tries of a random area and log-uniform aspect; then the largest centre crop of an allowed aspect."""
    for _ in range(10):
        area = width * height * stream.uniform(0.08, 1.0)
        aspect = math.exp(stream.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = stream.integers(0, width - wide + 1), stream.integers(0, height - high + 1)
            return int(left), int(top), wide, high
    aspect = min(max(width / height, 3 / 4), 4 / 3)
    wide, high = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - wide) // 2, (height - high) // 2, wide, high
