r"""The residual block of both CLIP encoders, and a stack of them that a tuner can reach into.

Blocks are counted from 1, as in the papers. Shapes: B sequences, L tokens, D width, H heads, K texts. A sequence is an
image's tokens, each attending to all, or a packed row of texts (see `packed`), whose K end-of-text tokens are read.

    entry          1        2   ParallelTo(2)      FEATURE, Patches()
                   |        |      |                |
    tokens -----> block 1 --> block 2 --> ... --> pooled, projected          work below an entry depends on the
                               \--branch--/                                  image alone and is remembered
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedvlm.clip import config
from fedvlm.clip.packed import Bins, Packed
from fedvlm.errors import FedvlmError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Insertions:
    """What a tuner adds to a stack of blocks, by block number (from 1).

    `inputs[j]` maps the token stream `[B, L, D]` that enters block j to the one used instead (insert or replace
    prompt tokens). `branches[j]` maps LN1 of that input, `[B, L, D]`, to what is added to the block's output; it
    works token by token, and in the last block it gets only the tokens that are read. `projections[j]` maps the same
    LN1, `[B, L, D]`, to what is added to its queries, keys and values, `[B, L, 3 D]`, token by token too.
    """

    inputs: Mapping[int, Edit] = field(default_factory=dict)
    branches: Mapping[int, Edit] = field(default_factory=dict)
    projections: Mapping[int, Edit] = field(default_factory=dict)


NOTHING = Insertions()


@dataclass(frozen=True)
class ParallelTo:
    """The entry of a tuner that adds a branch to block `block` and changes nothing below it.

    Activations are two, `[B, 2, L, D]`: LN1 of the block's input, for the branch, and the output of the frozen block,
    which is remembered too. Of the last block they are those of the tokens that are read.
    """

    block: int

    def __str__(self) -> str:
        return f"beside {self.block}"


@dataclass(frozen=True)
class Patches:
    """The entry of a tuner that reads finished features of all patches: `[B, P, E]`, not normalised."""

    def __str__(self) -> str:
        return "patches"


@dataclass(frozen=True)
class Feature:
    """The entry of a tuner that leaves the image encoder alone: the finished feature `[B, E]`, not normalised."""

    def __str__(self) -> str:
        return "feature"


FEATURE = Feature()
Entry = int | ParallelTo | Patches | Feature
"""Where work begins: before a block (its input), beside it, at the patches' features, or at the finished feature."""


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

    def forward(self, x: Tensor, packed: Packed | None, projection: Edit | None = None) -> Tensor:
        """Every token attends to all of its image, or to what precedes it in its text. `[B, L, D]` to `[B, L, D]`."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv if projection is None else qkv + projection(x)
        q, kv = qkv.split([x.shape[-1], 2 * x.shape[-1]], dim=-1)
        return self._attend(q, packed.attended(kv), packed.tokens) if packed else self._attend(q, kv)

    def read(self, x: Tensor, packed: Packed | None, projection: Edit | None = None) -> Tensor:
        """The read tokens only, one of each image or the ends of texts: `[B, L, D]` to `[B, 1, D]` or `[B, K, D]`."""
        width = x.shape[-1]
        q = F.linear(_read(x, packed), self.in_proj_weight[:width], self.in_proj_bias[:width])
        kv = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        if projection is not None:
            added = projection(x)
            q, kv = q + _read(added, packed)[..., :width], kv + added[..., width:]
        return self._attend(q, packed.attended(kv), packed.ends) if packed else self._attend(q, kv)

    def ask(self, query: Tensor, x: Tensor) -> Tensor:
        """Tokens `[B, n, D]` that are not among `x [B, L, D]` attend to all of it: `[B, n, D]`."""
        width = x.shape[-1]
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        return self._attend(q, F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]))

    def _attend(self, q: Tensor, kv: Tensor, bins: Bins | None = None) -> Tensor:
        """Queries `[B, n, D]` over keys and values `[B, L, 2 D]`, or in bins over `[B Z, C + W, 2 D]`; `[B, n, D]`."""
        mask = None
        if bins:
            mask, q = bins.reach.repeat(len(q), 1, 1, 1), bins.spread(q)  # [B Z, 1, W, C + W], [B Z, W, D]
        k, v = kv.chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # [B, H, n, D / H]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)  # [B, n, D]
        out: Tensor = self.out_proj(bins.collect(x) if bins else x)
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
        frozen = not (self.c_fc.weight.requires_grad or torch.is_autocast_enabled(x.device.type))
        if frozen and isinstance(self.act, QuickGELU):
            w1, b1, w2, b2 = self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias
            out: Tensor = _FrozenMLP.apply(x, w1, b1, w2, b2)
        else:
            out = self.c_proj(self.act(self.c_fc(x)))
        return out


class _FrozenMLP(torch.autograd.Function):
    """`MLP` with QuickGELU and weights that get no gradient, without a pass over memory for the factor 1.702.

    With z = 1.702 (W1 x + b1): out = W2 silu(z) / 1.702 + b2 and dx = W1^T (silu'(z) * (W2^T dout)). The products
    take the factors along, and backward has none.
    """

    # No `setup_context`, as in `packed`.
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        z = torch.addmm(b1, x.flatten(0, -2), w1.T, beta=1.702, alpha=1.702)
        ctx.save_for_backward(z, w1, w2)
        return torch.addmm(b2, F.silu(z), w2.T, alpha=1 / 1.702).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, w1, w2 = ctx.saved_tensors
        inner = torch.ops.aten.silu_backward(grads[0].flatten(0, -2) @ w2, z)
        return (inner @ w1).view_as(grads[0]), None, None, None, None


class Block(nn.Module):
    """u = x + Attn(LN1 x);  out = u + MLP(LN2 u) + branch(LN1 x)."""

    def __init__(self, tower: config.Transformer) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.attn = Attention(tower.width, tower.heads)
        self.ln_2 = nn.LayerNorm(tower.width, eps=tower.eps)
        self.mlp = MLP(tower)

    def forward(
        self, x: Tensor, packed: Packed | None = None, branch: Edit | None = None, projection: Edit | None = None
    ) -> Tensor:
        """All tokens: `[B, L, D]` to `[B, L, D]`."""
        h = self.ln_1(x)
        return self._finish(x + self.attn(h, packed, projection), h, branch)

    def read(
        self, x: Tensor, packed: Packed | None = None, branch: Edit | None = None, projection: Edit | None = None
    ) -> Tensor:
        """An image's first token `[B, 1, D]`, or a row's ends of text `[B, K, D]`; the rest gives keys and values."""
        h = self.ln_1(x)
        return self._finish(_read(x, packed) + self.attn.read(h, packed, projection), _read(h, packed), branch)

    def _finish(self, u: Tensor, h: Tensor, branch: Edit | None) -> Tensor:
        out: Tensor = u + self.mlp(self.ln_2(u))
        return out if branch is None else out + branch(h)


class Stack(nn.Module):
    """Blocks 1..n. An encoder enters at any block and leaves with all tokens or with those that are read.

    With `read_all` every token of the last block is read, because all of them are pooled.
    """

    def __init__(self, tower: config.Transformer, *, read_all: bool = False) -> None:
        super().__init__()
        self.read_all = read_all
        self.resblocks = nn.ModuleList(Block(tower) for _ in range(tower.layers))

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.resblocks)

    def forward(
        self,
        x: Tensor,
        packed: Packed | None = None,
        *,
        start: int = 1,
        stop: int | None = None,
        insertions: Insertions = NOTHING,
    ) -> Tensor:
        """From the input of block `start` to the input of block `stop` (default: the last block's output)."""
        for number in range(start, stop or self.depth + 1):
            x = self._enter(x, number, insertions)
            x = self.resblocks[number - 1](
                x, packed, insertions.branches.get(number), insertions.projections.get(number)
            )
        return x

    def enter(self, x: Tensor, entry: Entry, packed: Packed | None = None, insertions: Insertions = NOTHING) -> Tensor:
        """From the input of block 1, `[B, L, D]`, to the activations at `entry`."""
        if not isinstance(entry, ParallelTo):
            assert isinstance(entry, int), "finished features are made by the image encoder"
            assert 1 <= entry <= self.depth, f"there is no block {entry}"
            return self(x, packed, stop=entry, insertions=insertions)
        x, block = self(x, packed, stop=entry.block, insertions=insertions), self.resblocks[entry.block - 1]
        assert isinstance(block, Block)
        if entry.block == self.depth and not self.read_all:
            return torch.stack([block.ln_1(_read(x, packed)), block.read(x, packed)], dim=1)
        return torch.stack([block.ln_1(x), block(x, packed)], dim=1)

    def read(
        self, x: Tensor, packed: Packed | None = None, *, start: Entry = 1, insertions: Insertions = NOTHING
    ) -> Tensor:
        """The last block's output where it is read, from activations at `start`.

        `[B, 1, D]`, of texts `[B, K, D]`, with `read_all` `[B, L, D]`. The last block does no more than that.
        """
        if isinstance(start, ParallelTo):
            changed = start.block in insertions.inputs or start.block in insertions.projections
            assert not changed, "the remembered output is that of the unchanged block"
            h, x = x.unbind(1)
            branch, start = insertions.branches.get(start.block), start.block + 1
            x = x if branch is None else x + branch(h)
        last = self.depth
        assert isinstance(start, int)
        if start > last:
            return x
        x = self(x, packed, start=start, stop=last, insertions=insertions)
        x = self._enter(x, last, insertions)
        block = self.resblocks[last - 1]
        assert isinstance(block, Block)
        leave = block if self.read_all else block.read
        out: Tensor = leave(x, packed, insertions.branches.get(last), insertions.projections.get(last))
        return out

    @staticmethod
    def _enter(x: Tensor, number: int, insertions: Insertions) -> Tensor:
        edit = insertions.inputs.get(number)
        return x if edit is None else edit(x)


def _read(x: Tensor, packed: Packed | None) -> Tensor:
    return x[:, :1] if packed is None else x.index_select(1, packed.end)
