"""The residual block of both CLIP encoders, and a stack of them that a tuner can reach into.

Blocks are counted from 1, as in the papers. Shapes: B sequences (images or classes), L tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.clip import config
from fedvlm.errors import FedvlmError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Insertions:
    """What a tuner adds to a stack of blocks, by block number (from 1).

    `inputs[j]` maps the token stream `[B, L, D]` that enters block j to the one used instead (insert or replace
    prompt tokens). `branches[j]` maps LN1 of that input, `[B, L, D]`, to what is added to the block's output; it
    works token by token, and in the last block it gets only the token that is read, `[B, 1, D]`.
    """

    inputs: Mapping[int, Edit] = field(default_factory=dict)
    branches: Mapping[int, Edit] = field(default_factory=dict)


NOTHING = Insertions()


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), written as SiLU(1.702 x) / 1.702: the same function in one fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        return F.silu(x * 1.702) * (1 / 1.702)


def activation(name: str) -> nn.Module:
    """The MLP's non-linearity by its Hugging Face name."""
    known: dict[str, Callable[[], nn.Module]] = {
        "quick_gelu": QuickGELU,
        "gelu": nn.GELU,
        "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    }
    if name not in known:
        raise FedvlmError(f"the model's activation '{name}' is not supported; known: {', '.join(known)}")
    return known[name]()


class Attention(nn.Module):
    """Multi-head self-attention with packed query, key and value projections (OpenAI's names)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """Every token attends (`causal`: to itself and what precedes it). `[B, L, D]` to `[B, L, D]`."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self._join(self._split(q), self._split(k), self._split(v), causal=causal)

    def read(self, x: Tensor, token: Tensor, at: Tensor | None) -> Tensor:
        """One token attends: `token [B, 1, D]` to `x [B, L, D]`, up to position `at [B]` where given."""
        width = x.shape[-1]
        q = F.linear(token, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        mask = None
        if at is not None:
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None]
        return self._join(self._split(q), self._split(k), self._split(v), mask=mask)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def _join(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Linear, non-linearity, Linear (OpenAI's names)."""

    def __init__(self, tower: config.Transformer) -> None:
        super().__init__()
        self.c_fc = nn.Linear(tower.width, tower.mlp)
        self.act = activation(tower.activation)
        self.c_proj = nn.Linear(tower.mlp, tower.width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class Block(nn.Module):
    """u = x + Attn(LN1 x);  out = u + MLP(LN2 u) + branch(LN1 x)."""

    def __init__(self, tower: config.Transformer) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.attn = Attention(tower.width, tower.heads)
        self.ln_2 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.mlp = MLP(tower)

    def forward(self, x: Tensor, *, causal: bool, branch: Edit | None = None) -> Tensor:
        """All tokens: `[B, L, D]` to `[B, L, D]`."""
        h = self.ln_1(x)
        return self._finish(x + self.attn(h, causal=causal), h, branch)

    def read(self, x: Tensor, at: Tensor, *, causal: bool, branch: Edit | None = None) -> Tensor:
        """Only the token at position `at [B]`: `[B, L, D]` to `[B, D]`; the others give keys and values."""
        h = self.ln_1(x)
        token, state = _take(h, at), _take(x, at)
        attended = self.attn.read(h, token, at if causal else None)
        return self._finish(state + attended, token, branch).squeeze(1)

    def _finish(self, u: Tensor, h: Tensor, branch: Edit | None) -> Tensor:
        out: Tensor = u + self.mlp(self.ln_2(u))
        return out if branch is None else out + branch(h)


class Stack(nn.Module):
    """Blocks 1..n. An encoder enters at any block and leaves with all tokens or with one."""

    def __init__(self, tower: config.Transformer, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.resblocks = nn.ModuleList(Block(tower) for _ in range(tower.layers))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.resblocks)

    def forward(
        self, x: Tensor, *, start: int = 1, stop: int | None = None, insertions: Insertions = NOTHING
    ) -> Tensor:
        """From the input of block `start` to the input of block `stop` (default: the last block's output)."""
        for number in range(start, stop or self.depth + 1):
            x = self._enter(x, number, insertions)
            x = self.resblocks[number - 1](x, causal=self.causal, branch=insertions.branches.get(number))
        return x

    def read(self, x: Tensor, at: Tensor, *, start: int = 1, insertions: Insertions = NOTHING) -> Tensor:
        """The last block's output at position `at [B]` only: `[B, L, D]` to `[B, D]`. The last block does no more."""
        last = self.depth
        x = self(x, start=start, stop=last, insertions=insertions)
        x = self._enter(x, last, insertions)
        block = self.resblocks[last - 1]
        assert isinstance(block, Block)
        return block.read(x, at, causal=self.causal, branch=insertions.branches.get(last))

    @staticmethod
    def _enter(x: Tensor, number: int, insertions: Insertions) -> Tensor:
        edit = insertions.inputs.get(number)
        return x if edit is None else edit(x)


def _take(x: Tensor, at: Tensor) -> Tensor:
    """Token `at [B]` of `x [B, L, D]`, as `[B, 1, D]`."""
    return x.gather(1, at[:, None, None].expand(-1, 1, x.shape[-1]))
