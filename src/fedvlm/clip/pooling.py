"""Attention pooling of an image's tokens, as SigLIP's image encoder ends (arXiv 2303.15343; open code).

    u = Attn(q = probe, k = v = tokens)          feature = u + MLP(LN(u))

One learned probe asks all tokens. Shapes: B images, L tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedvlm.clip import config
from fedvlm.clip.transformer import MLP, Attention


class AttentionPooling(nn.Module):
    """Tokens `[B, L, D]` to one vector `[B, D]`, by a learned probe `[D]`."""

    def __init__(self, tower: config.Transformer) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(tower.width))
        self.attn = Attention(tower.width, tower.heads)
        self.ln = nn.LayerNorm(tower.width, eps=tower.eps)
        self.mlp = MLP(tower)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, D]`."""
        u = self.attn.ask(self.probe.to(x.dtype).expand(len(x), 1, -1), x)
        out: Tensor = (u + self.mlp(self.ln(u)))[:, 0]
        return out

    def each(self, x: Tensor) -> Tensor:
        """Every token pooled as if it were alone, `[B, L, D]` to `[B, L, D]`: its features in the joint space."""
        return self(x.reshape(-1, 1, x.shape[-1])).view_as(x)
