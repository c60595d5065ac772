"""The text encoder. K classes (texts), L tokens of a packed row, G rows, D width, E joint width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedvlm.clip import config
from fedvlm.clip.packed import Packed, pack
from fedvlm.clip.transformer import NOTHING, Entry, Insertions, Stack


class TextEncoder(nn.Module):
    """Token embeddings through blocks, causal or not; read where a text ends. OpenAI's parameter names.

    Works on packed rows: several rows of the same layout are several versions of the same texts, such as one for
    each of G prompts.
    """

    def __init__(self, shape: config.Text, embed: int) -> None:
        super().__init__()
        width = shape.tower.width
        self.shape = shape
        # Not drawn, as it is filled from a file: to draw without memory, torch would import its compiler (a second).
        self.token_embedding = nn.Embedding.from_pretrained(torch.empty(shape.vocabulary, width), freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(shape.context, width))
        self.transformer = Stack(shape.tower)
        self.ln_final = nn.LayerNorm(width, eps=shape.tower.eps)
        self.text_projection = nn.Parameter(torch.empty(width, embed))
        self.text_projection_bias = nn.Parameter(torch.empty(embed)) if shape.projection_bias else None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.transformer.depth

    @property
    def width(self) -> int:
        """Token width D."""
        return self.shape.tower.width

    def pack(self, ids: Tensor, end: Tensor) -> Packed:
        """Texts `[K, L]` that end at `end [K]` as one row, packed as this encoder's attention allows."""
        return pack(ids, end, causal=self.shape.causal)

    def encode(self, packed: Packed) -> Tensor:
        """Packed texts to features `[K, E]`, not normalised."""
        return self.feature(self.hidden(self.embed(packed.ids)[None], packed, 1), packed)[0]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids to embeddings, `[..., D]`, without positions."""
        out: Tensor = self.token_embedding(ids)
        return out

    def hidden(self, embeddings: Tensor, packed: Packed, entry: Entry, insertions: Insertions = NOTHING) -> Tensor:
        """Embeddings `[G, L, D]` to the activations at `entry`, positions added."""
        x = embeddings + self.positional_embedding[packed.position]
        return self.transformer.enter(x, entry, packed, insertions)

    def feature(self, hidden: Tensor, packed: Packed, entry: Entry = 1, insertions: Insertions = NOTHING) -> Tensor:
        """From activations at `entry` to features `[G, K, E]` at the ends of text, not normalised."""
        token = self.transformer.read(hidden, packed, start=entry, insertions=insertions)
        out: Tensor = self.ln_final(token) @ self.text_projection
        return out if self.text_projection_bias is None else out + self.text_projection_bias
