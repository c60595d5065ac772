"""The vision transformer image encoder. B images, P patches, L tokens, D width, E joint width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.clip import config
from fedvlm.clip.pooling import AttentionPooling
from fedvlm.clip.transformer import FEATURE, NOTHING, Entry, Feature, Insertions, Patches, Stack


class VisionTransformer(nn.Module):
    """Patches, after a class token where there is one, through pre-norm blocks, then pooled (`config.ViT`).

    An *entry* says where work begins: entry j in 1..depth is the input of block j, `[B, L, D]` with L = P + 1 tokens
    (P without a class token); `ParallelTo(j)` what a branch of block j needs, `[B, 2, L, D]`; `FEATURE` the finished
    feature, `[B, E]`; `Patches()` those of all patches, `[B, P, E]`. What lies below a tuner's entry depends only on
    weights and image. Parameter names are those that OpenAI published.
    """

    def __init__(self, shape: config.ViT, embed: int) -> None:
        super().__init__()
        tower, width, patches = shape.tower, shape.tower.width, (shape.image // shape.patch) ** 2
        self.shape = shape
        self.leading = int(shape.class_token)
        """Number of tokens before the patches."""
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=shape.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width)) if shape.class_token else None
        self.positional_embedding = nn.Parameter(torch.empty(self.leading + patches, width))
        self.ln_pre = nn.LayerNorm(width, eps=tower.eps) if shape.pre_norm else nn.Identity()
        self.transformer = Stack(tower, read_all=shape.pool == "attention")
        self.ln_post = nn.LayerNorm(width, eps=tower.eps)
        self.head = AttentionPooling(tower) if shape.pool == "attention" else None
        self.proj = nn.Parameter(torch.empty(width, embed)) if shape.projection else None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.transformer.depth

    @property
    def width(self) -> int:
        """Token width D."""
        return self.shape.tower.width

    def tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, S, S]` to the input of block 1, `[B, L, D]`."""
        size, batch = self.shape.patch, pixels.shape[0]
        # A strided convolution whose windows do not overlap is one matrix product over flattened patches.
        patches = F.unfold(pixels, size, stride=size).transpose(1, 2) if size > 1 else pixels.flatten(2).mT
        x = F.linear(patches, self.conv1.weight.flatten(1), self.conv1.bias)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(batch, 1, -1), x], dim=1)
        return self.norm_inputs(x + self.positional_embedding)

    def norm_inputs(self, tokens: Tensor) -> Tensor:
        """The LayerNorm before block 1, where there is one: `[..., D]` to `[..., D]`."""
        out: Tensor = self.ln_pre(tokens)
        return out

    def hidden(self, pixels: Tensor, entry: Entry) -> Tensor:
        """Pixels `[B, 3, S, S]` to the activations at `entry`."""
        if isinstance(entry, Feature):
            return self.feature(self.tokens(pixels), 1)
        if isinstance(entry, Patches):
            return self.patches(self.tokens(pixels), 1)
        return self.transformer.enter(self.tokens(pixels), entry)

    def feature(self, hidden: Tensor, entry: Entry, insertions: Insertions = NOTHING) -> Tensor:
        """From `entry` on to the image feature `[B, E]`, not normalised. Only what is pooled leaves the last block."""
        if entry == FEATURE:
            return hidden
        x = self.ln_post(self.transformer.read(hidden, start=entry, insertions=insertions))
        return self._project(x.squeeze(1) if self.head is None else self.head(x))

    def patches(self, hidden: Tensor, entry: int, insertions: Insertions = NOTHING) -> Tensor:
        """From `entry` on to the projected patch features `[B, P, E]`, not normalised (inserted tokens included)."""
        x = self.ln_post(self.transformer(hidden, start=entry, insertions=insertions)[:, self.leading :])
        return self._project(x if self.head is None else self.head.each(x))

    def _project(self, x: Tensor) -> Tensor:
        return x if self.proj is None else x @ self.proj
