"""CLIP's modified ResNet image encoder; parameter names as published by OpenAI. Batch norm uses running statistics."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.clip import config
from fedvlm.clip.transformer import NOTHING, Entry, Insertions, Patches


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; a stride is an average pool before the last, and before the shortcut's 1x1."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, 4 width, H/stride, W/stride]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self._pool(F.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(self._pool(x))
        return F.relu(out + shortcut)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """The mean token attends to itself and all positions; `read_all` lets every position query (patch features)."""

    def __init__(self, cells: int, width: int, heads: int, embed: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(cells + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed)

    def forward(self, x: Tensor, *, read_all: bool = False) -> Tensor:
        """`[B, D, H, W]` to `[B, E]`, or to `[B, H W, E]` with `read_all`."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding
        queries = tokens if read_all else tokens[:, :1]
        q, k, v = (self._split(f) for f in (self.q_proj(queries), self.k_proj(tokens), self.v_proj(tokens)))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.c_proj(mixed)
        return out[:, 1:] if read_all else out[:, 0]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ModifiedResNet(nn.Module):
    """Stem, four stages, attention pool. It has no blocks to enter: entries are `FEATURE` and `Patches()`."""

    def __init__(self, shape: config.ResNet, embed: int) -> None:
        super().__init__()
        width = shape.width
        self.shape = shape
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for stage, blocks in enumerate(shape.layers):
            self.add_module(f"layer{stage + 1}", _stage(inputs, width << stage, blocks, 1 if stage == 0 else 2))
            inputs = 4 * (width << stage)
        self.attnpool = AttentionPool((shape.image // 32) ** 2, inputs, shape.heads, embed)

    @property
    def depth(self) -> int:
        """0: the encoder has no transformer blocks."""
        return 0

    def hidden(self, pixels: Tensor, entry: Entry) -> Tensor:
        """Pixels `[B, 3, S, S]` to the feature `[B, E]` (`FEATURE`), or to those of all positions (`Patches()`)."""
        out: Tensor = self.attnpool(self._grid(pixels), read_all=isinstance(entry, Patches))
        return out

    def feature(self, hidden: Tensor, entry: Entry, insertions: Insertions = NOTHING) -> Tensor:
        """The feature itself: nothing can be inserted into a ResNet."""
        return hidden

    def _grid(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for stage in range(1, 5):
            x = cast(Tensor, getattr(self, f"layer{stage}")(x))
        return x


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Bottleneck(4 * width, width, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)
