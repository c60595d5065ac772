"""Token sequences in one row: what all begin with once, then what each has of its own up to its end.

The text encoder is causal and only the end-of-text token is read. So tokens after it cannot matter, and tokens that
all sequences begin with have the same hidden states, keys and values in all of them: both are left out of the work,
exactly. For attention the row is laid out in *bins*, each of several whole sequences: one large product with a mask
costs less than one for every short sequence. Shapes: K sequences, P common tokens, N tokens of the row, R bins of S
tokens, E ends of text in a bin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BIN = 32
"""Tokens of a bin, more where a sequence is longer. Smaller bins are more products, larger ones more masked work."""


@dataclass(frozen=True)
class Bins:
    """A layout of queries `[G, n, ...]` in R bins, the same for all G."""

    grid: Tensor
    """Which query each cell holds, `[R, S]`; what is left over repeats one."""
    cells: Tensor
    """Where each query lies in the flattened grid, `[n]`."""
    reach: Tensor
    """Which of the bin's keys each cell attends to, `[R, 1, S, P + S]`."""

    def to(self, device: torch.device) -> Bins:
        """The same there."""
        return Bins(*(part.to(device) for part in (self.grid, self.cells, self.reach)))

    def spread(self, x: Tensor) -> Tensor:
        """Queries `[G, n, C]` as `[G R, S, C]`. No gradient may come from cells that repeat a query."""
        out: Tensor = _Gather.apply(x, self.grid, self.cells, 0)
        return out

    def collect(self, x: Tensor) -> Tensor:
        """Cells `[G R, S, C]` back as `[G, n, C]`."""
        return x.reshape(-1, self.grid.numel(), x.shape[-1]).index_select(1, self.cells)


@dataclass(frozen=True)
class Packed:
    """K sequences as one row of N tokens. The common tokens count as a sequence of their own."""

    ids: Tensor
    """Token ids `[N]`; negative ones are places for learned tokens."""
    position: Tensor
    """Position of each token in its sequence, `[N]`."""
    common: int
    """P, how many leading tokens are common to all sequences. Each has at least one token of its own, its end."""
    end: Tensor
    """Where each sequence's end-of-text token lies in the row, `[K]`."""
    tokens: Bins
    """All N tokens as queries."""
    ends: Bins
    """The K ends of text as queries, counted from 0."""
    keys: Tensor
    """Places in the row of each bin's keys, `[R, P + S]`: the common tokens, then the bin's own."""

    def attended(self, x: Tensor) -> Tensor:
        """Keys and values of a row, `[G, N, C]`, as `[G R, P + S, C]` for the bins' queries."""
        out: Tensor = _Gather.apply(x, self.keys, self.tokens.cells, self.common)
        return out


class _Gather(torch.autograd.Function):
    """Tokens `[G, n, C]` at `places [R, M]`, as `[G R, M, C]`; the first `common` of each bin are the same in all.

    What repeats a token to fill a bin gets no gradient, so backward is a gathering too: unlike the scattering sum of
    an index it gives the same bits every time on a GPU, and it is faster.
    """

    @staticmethod
    def forward(x: Tensor, places: Tensor, cells: Tensor, common: int) -> Tensor:
        return x.index_select(1, places.flatten()).view(-1, places.shape[1], x.shape[-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        x, places, cells, common = inputs
        ctx.save_for_backward(cells)
        ctx.shape, ctx.common = (len(x), *places.shape, x.shape[-1]), common

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (cells,) = ctx.saved_tensors
        parts = grads[0].view(ctx.shape)
        own = parts[:, :, ctx.common :].flatten(1, 2).index_select(1, cells)
        own[:, : ctx.common] += parts[:, :, : ctx.common].sum(1)
        return own, None, None, None


def pack(ids: Tensor, eot: Tensor) -> Packed:
    """Sequences `[K, L]` that end at `eot [K]`. One synchronisation with a GPU: meant for set-up, not for steps."""
    device, rows, last = ids.device, ids.tolist(), eot.tolist()
    common, shortest = 0, min(last)
    while common < shortest and all(row[common] == rows[0][common] for row in rows):
        common += 1
    own = [row[common : end + 1] for row, end in zip(rows, last, strict=True)]
    sequences = ([rows[0][:common]] if common else []) + own
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    end = (lengths.cumsum(0) - 1)[-len(own) :]
    member = torch.repeat_interleave(torch.arange(len(sequences)), lengths)
    position = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    position[common:] += common
    grid, held, cells = _bins(lengths.tolist())
    reach = torch.cat([_common(position[grid], common), _own(grid, held, member, common)], dim=-1)[:, None]
    keys = torch.cat([torch.arange(common).expand(len(grid), -1), grid], dim=1)
    tokens = Bins(grid, cells, reach)
    return Packed(
        ids=torch.tensor([token for sequence in sequences for token in sequence], device=device),
        position=position.to(device),
        common=common,
        end=end.to(device),
        tokens=tokens.to(device),
        ends=_ends(tokens, end).to(device),
        keys=keys.to(device),
    )


def _bins(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Whole sequences in order, as many to a bin as fit: `grid` and which cells are no repetition `[R, S]`, `cells`."""
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
    """Common keys up to each cell's position, `[R, S, P]`."""
    return torch.arange(common) <= position[..., None]


def _own(grid: Tensor, held: Tensor, member: Tensor, common: int) -> Tensor:
    """Keys of the bin that come before each cell in its own sequence, `[R, S, S]`; common ones are counted already."""
    query, key = grid[:, :, None], grid[:, None]
    return (member[query] == member[key]) & (key <= query) & (key >= common) & held[:, None]


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
