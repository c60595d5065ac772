"""Token sequences in one row: what all begin with once, then what each has of its own up to its end.

The text encoder is causal and only the end-of-text token is read. So tokens after it cannot matter, and tokens that
all sequences begin with have the same hidden states, keys and values in all of them: both are left out of the work,
exactly. Shapes: K sequences, P common tokens, S own tokens of the longest, N = P + sum of own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """K sequences as one row of N tokens."""

    ids: Tensor
    """Token ids `[N]`; negative ones are places for learned tokens."""
    position: Tensor
    """Position of each token in its sequence, `[N]`."""
    common: int
    """P, how many leading tokens are common to all sequences. Each has at least one token of its own, its end."""
    end: Tensor
    """Where each sequence's end-of-text token lies in the row, `[K]`."""
    grid: Tensor
    """Own tokens `[K, S]`, as places in the row's last N - P; past its end a sequence repeats its last token."""
    cells: Tensor | None
    """Where the row's last N - P tokens lie in the flattened grid, `[N - P]`; None where the grid has no gap."""
    causal: Tensor
    """Which keys (common, then own, `P + S`) own token s may attend to, `[S, P + S]`."""
    reach: Tensor
    """Which keys the end-of-text token of each sequence attends to, `[K, 1, 1, P + S]`."""

    def spread(self, x: Tensor) -> Tensor:
        """Own tokens of a row `[G, N, ...]` as a grid `[G, K, S, ...]`."""
        own = x[:, self.common :]
        if self.cells is not None:
            own = own.index_select(1, self.grid.flatten())
        return own.unflatten(1, self.grid.shape)

    def collect(self, x: Tensor) -> Tensor:
        """A grid `[G, K, S, ...]` back as own tokens of a row, `[G, N - P, ...]`."""
        flat = x.flatten(1, 2)
        return flat if self.cells is None else flat.index_select(1, self.cells)


def pack(ids: Tensor, eot: Tensor) -> Packed:
    """Sequences `[K, L]` that end at `eot [K]`. One synchronisation with a GPU: meant for set-up, not for steps."""
    device, rows = ids.device, ids.tolist()
    ends = eot.tolist()
    common, shortest = 0, min(ends)
    while common < shortest and all(row[common] == rows[0][common] for row in rows):
        common += 1
    lengths = torch.tensor([end + 1 - common for end in ends])
    longest, first = int(lengths.max()), lengths.cumsum(0) - lengths
    step = torch.arange(longest)
    inside = step < lengths[:, None]
    grid = first[:, None] + torch.minimum(step, lengths[:, None] - 1)
    before = torch.ones(len(rows), common, dtype=torch.bool)
    row_ids = rows[0][:common] + [token for row, end in zip(rows, ends, strict=True) for token in row[common : end + 1]]
    own_position = (common + step).expand_as(inside)[inside]
    return Packed(
        ids=torch.tensor(row_ids, device=device),
        position=torch.cat([torch.arange(common), own_position]).to(device),
        common=common,
        end=(common + first + lengths - 1).to(device),
        grid=grid.to(device),
        cells=None if bool(inside.all()) else inside.flatten().nonzero()[:, 0].to(device),
        causal=torch.cat([before[:1].expand(longest, -1), step <= step[:, None]], dim=1).to(device),
        reach=torch.cat([before, inside], dim=1)[:, None, None].to(device),
    )
