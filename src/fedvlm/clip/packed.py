"""Texts in one row of tokens: only what can matter is computed, and the result is the one of every text alone.

A text is read at its last token. So tokens after it cannot matter. Where the encoder is causal, tokens that all texts
begin with have the same hidden states, keys and values in all of them, and stand in the row once:

    texts      [SOT] a photo of a cat . [EOT]            common    [SOT] a photo of a
               [SOT] a photo of a red fox . [EOT]   =>   row       [SOT] a photo of a | cat . [EOT] | red fox . [EOT]
                                                         position    0   1  2    3  4    5   6  7      5   6  7  8
                                                         end                                  7                  11

For attention the row is laid out in *bins*, each of several whole texts: one large product with a mask costs less than
one for every short text. With bins of 6 tokens the row above takes three (`x` is a cell left over):

    bin 0   [SOT] a photo of a x     keys: the common tokens up to the query's position
    bin 1   cat . [EOT] x x x        keys: all common tokens, and the bin's own tokens of the same text up to the query
    bin 2   red fox . [EOT] x x      the same

Where the encoder is not causal nothing is common, and a token's keys are all tokens of its text.

Shapes: K texts, G rows of the same layout, L tokens of a row, C common tokens, Z bins of W cells, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BIN = 32
"""Tokens of a bin, more where a text is longer. Smaller bins are more products, larger ones more masked work."""


@dataclass(frozen=True)
class Bins:
    """A layout of queries `[G, n, ...]` in Z bins, the same for all G."""

    grid: Tensor
    """Which query each cell holds, `[Z, W]`; what is left over repeats one."""
    cells: Tensor
    """Where each query lies in the flattened grid, `[n]`."""
    reach: Tensor
    """Which of the bin's keys each cell attends to, `[Z, 1, W, C + W]`."""

    def to(self, device: torch.device) -> Bins:
        """The same layout on a device."""
        return Bins(*(part.to(device) for part in (self.grid, self.cells, self.reach)))

    def spread(self, x: Tensor) -> Tensor:
        """Queries `[G, n, D]` as `[G Z, W, D]`. No gradient may come from cells that repeat a query."""
        out: Tensor = _Gather.apply(x, self.grid, self.cells, 0)
        return out

    def collect(self, x: Tensor) -> Tensor:
        """Cells `[G Z, W, D]` back as `[G, n, D]`."""
        return x.reshape(-1, self.grid.numel(), x.shape[-1]).index_select(1, self.cells)


@dataclass(frozen=True)
class Packed:
    """K texts as one row of L tokens. The common tokens count as a text of their own."""

    ids: Tensor
    """Token ids `[L]`; negative ones are places for learned tokens."""
    position: Tensor
    """Position of each token in its text, `[L]`."""
    common: int
    """C, how many leading tokens all texts share. Each has at least one token of its own, its end."""
    end: Tensor
    """Where in the row each text is read, `[K]`: its last token."""
    tokens: Bins
    """All L tokens as queries."""
    ends: Bins
    """The K ends of text as queries, counted from 0."""
    keys: Tensor
    """Places in the row of each bin's keys, `[Z, C + W]`: the common tokens, then the bin's own."""

    def attended(self, x: Tensor) -> Tensor:
        """Keys and values of a row, `[G, L, 2 D]`, as `[G Z, C + W, 2 D]` for the bins' queries."""
        out: Tensor = _Gather.apply(x, self.keys, self.tokens.cells, self.common)
        return out


class _Gather(torch.autograd.Function):
    """Tokens `[G, n, D]` at `places [Z, M]`, as `[G Z, M, D]`; the first `common` of each bin are the same in all.

    What repeats a token to fill a bin gets no gradient, so backward is a gathering too: unlike the scattering sum of
    an index it gives the same bits every time on a GPU, and it is faster.
    """

    # `forward` takes the context itself: a `setup_context` costs 0.1 ms at every call, a tenth of a small step.
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, cells: Tensor, common: int) -> Tensor:
        ctx.save_for_backward(cells)
        ctx.shape, ctx.common = (len(x), *places.shape, x.shape[-1]), common
        return x.index_select(1, places.flatten()).view(-1, places.shape[1], x.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (cells,) = ctx.saved_tensors
        parts = grads[0].view(ctx.shape)
        own = parts[:, :, ctx.common :].flatten(1, 2).index_select(1, cells)
        own[:, : ctx.common] += parts[:, :, : ctx.common].sum(1)
        return own, None, None, None


def pack(ids: Tensor, end: Tensor, *, causal: bool = True) -> Packed:
    """Texts `[K, L]` that are read at `end [K]`, their last tokens.

    One synchronisation with a GPU: meant for set-up, not for steps.
    """
    device, rows, last = ids.device, ids.tolist(), end.tolist()
    common, shortest = 0, min(last) if causal else 0
    while common < shortest and all(row[common] == rows[0][common] for row in rows):
        common += 1
    own = [row[common : stop + 1] for row, stop in zip(rows, last, strict=True)]
    texts = ([rows[0][:common]] if common else []) + own
    lengths = torch.tensor([len(text) for text in texts])
    ends = (lengths.cumsum(0) - 1)[-len(own) :]
    member = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    position = torch.cat([torch.arange(len(text)) for text in texts])
    position[common:] += common
    grid, held, cells = _bins(lengths.tolist())
    mine = _of_text(grid, held, member, common)
    reach = torch.cat([_common(position[grid], common), mine & _up_to(grid) if causal else mine], dim=-1)[:, None]
    keys = torch.cat([torch.arange(common).expand(len(grid), -1), grid], dim=1)
    tokens = Bins(grid, cells, reach)
    return Packed(
        ids=torch.tensor([token for text in texts for token in text], device=device),
        position=position.to(device),
        common=common,
        end=ends.to(device),
        tokens=tokens.to(device),
        ends=_ends(tokens, ends).to(device),
        keys=keys.to(device),
    )


def _bins(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Whole texts in order, as many to a bin as fit: `grid` and which cells are no repetition `[Z, W]`, `cells`."""
    size, bins = max([BIN, *lengths]), [0]
    for length in lengths:
        if bins[-1] + length > size:
            bins.append(0)
        bins[-1] += length
    filled, step = torch.tensor(bins), torch.arange(max(bins))
    held = step < filled[:, None]
    grid = (filled.cumsum(0) - filled)[:, None] + torch.minimum(step, filled[:, None] - 1)
    return grid, held, held.flatten().nonzero()[:, 0]


def _common(position: Tensor, common: int) -> Tensor:
    """Common keys up to each cell's position, `[Z, W, C]`."""
    return torch.arange(common) <= position[..., None]


def _of_text(grid: Tensor, held: Tensor, member: Tensor, common: int) -> Tensor:
    """Keys of the bin that belong to each cell's own text, `[Z, W, W]`; common ones are counted already."""
    query, key = grid[:, :, None], grid[:, None]
    return (member[query] == member[key]) & (key >= common) & held[:, None]


def _up_to(grid: Tensor) -> Tensor:
    """Keys of the bin that do not come after each cell, `[Z, W, W]`."""
    return grid[:, None] <= grid[:, :, None]


def _ends(tokens: Bins, end: Tensor) -> Bins:
    """The ends of text, in the bins where they lie."""
    which, column = tokens.cells[end] // tokens.grid.shape[1], tokens.cells[end] % tokens.grid.shape[1]
    count = torch.bincount(which, minlength=len(tokens.grid))
    slot = torch.arange(len(end)) - (count.cumsum(0) - count)[which]
    grid = torch.zeros(len(count), int(count.max()), dtype=torch.long)
    grid[which, slot] = torch.arange(len(end))
    # A cell left over asks what its bin's first cell may ask; nobody reads it.
    reach = tokens.reach[:, :, :1].repeat(1, 1, grid.shape[1], 1)
    reach[which, 0, slot] = tokens.reach[which, 0, column]
    return Bins(grid, which * grid.shape[1] + slot, reach)
