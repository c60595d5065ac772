"""The causal text encoder. K classes (sequences), L tokens, D width, E joint width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedvlm.clip import config
from fedvlm.clip.transformer import NOTHING, Insertions, Stack


class TextEncoder(nn.Module):
    """Token embeddings through causal blocks; read at the end-of-text token. OpenAI's parameter names.

    Attention is causal and only the end-of-text position is read, so sequences need not be padded to the context
    length: L may be the longest end-of-text of the batch plus one, with the same result.
    """

    def __init__(self, shape: config.Text, embed: int) -> None:
        super().__init__()
        width = shape.tower.width
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context, width))
        self.transformer = Stack(shape.tower, causal=True)
        self.ln_final = nn.LayerNorm(width, eps=shape.tower.eps)
        self.text_projection = nn.Parameter(torch.empty(width, embed))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.transformer.depth

    @property
    def width(self) -> int:
        """Token width D."""
        return self.shape.tower.width

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids `[K, L]` to embeddings `[K, L, D]`, without positions."""
        out: Tensor = self.token_embedding(ids)
        return out

    def hidden(self, embeddings: Tensor, entry: int, insertions: Insertions = NOTHING) -> Tensor:
        """Embeddings `[K, L, D]` to the input of block `entry`, positions added."""
        x = embeddings + self.positional_embedding[: embeddings.shape[1]]
        return self.transformer(x, stop=entry, insertions=insertions)

    def feature(self, hidden: Tensor, eot: Tensor, entry: int = 1, insertions: Insertions = NOTHING) -> Tensor:
        """From the input of block `entry`, `[K, L, D]`, to features `[K, E]` at positions `eot [K]`, not normalised."""
        token = self.transformer.read(hidden, eot, start=entry, insertions=insertions)
        out: Tensor = self.ln_final(token) @ self.text_projection
        return out
