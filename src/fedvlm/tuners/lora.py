"""Low-rank changes of the attention projections in both encoders (LoRA, Hu et al., ICLR 2022; CLIP-LoRA, Zanella and
Ben Ayed, CVPR-W 2024).

    W' h = W h + (alpha / sqrt(R)) B A h,  h = LN1(x), for each chosen one of W_q, W_k, W_v of a block

K classes, B images, P patches, L tokens, D width, R rank, J chosen projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP, Insertions
from fedvlm.clip.transformer import Edit
from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named, select
from fedvlm.tuners.base import SupportSet, linear, stacked_clients, vision_transformer
from fedvlm.tuners.encoder import EncoderTuner

EXTRA = "extra."
"""Names of received changes that nobody trains begin with it."""


@dataclass(frozen=True)
class LoRAShape:
    """Blocks `first..last` of both encoders (None: the last one of each), rank R, alpha, which of "qkv"."""

    first: int = 1
    last: int | None = None
    rank: int = 2
    alpha: float = 1.0
    projections: str = "qkv"
    frozen_a: int | None = None
    """Seed of an A that is never trained (FFA-LoRA): the same for all clients and all of a run's seeds, so that nobody
    has to send it."""

    @property
    def scale(self) -> float:
        """CLIP-LoRA's alpha / sqrt(R)."""
        return self.alpha / self.rank**0.5


class LoRA(EncoderTuner):
    """Low-rank changes of the projections of both encoders, and frozen changes besides.

    Tensors for every block b: `text.b.a`, `vision.b.a` `[J, R, D]` and `text.b.b`, `vision.b.b` `[J, D, R]`.

    A client may receive, for any of these blocks, changes that nobody trains: a pair of any rank Q,
    `extra.text.b.a [J, Q, D]` and `extra.text.b.b [J, D, Q]` (FLoRA's stacked factors), or `extra.text.b [J, D, D]`
    (FedEx-LoRA's residual); the same for `vision`. They are scaled as the trained pair.
    """

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], shape: LoRAShape, template: str) -> None:
        self.shape, visual = shape, vision_transformer(clip, "LoRA")
        self.towers = {"text": (clip.text.depth, clip.text.width), "vision": (visual.depth, visual.width)}
        self.blocks = {tower: _blocks(shape, depth) for tower, (depth, _) in self.towers.items()}
        super().__init__(clip, visual, classnames, template, shape.first)
        self.fixed = {} if shape.frozen_a is None else self._a(torch_stream(shape.frozen_a, "frozen LoRA A"))
        self.fixed = {name: tensor.to(clip.device) for name, tensor in self.fixed.items()}

    def init(self, generator: torch.Generator) -> Named:
        """A uniform in +-1/sqrt(D) (Kaiming, a = sqrt 5), B zero: the function starts as CLIP's."""
        a = self._a(generator) if self.shape.frozen_a is None else {}
        count, rank, result = len(self.shape.projections), self.shape.rank, Named()
        for tower, (_, width) in self.towers.items():
            for block in self.blocks[tower]:
                result |= {name: a[name] for name in (f"{tower}.{block}.a",) if name in a}
                result[f"{tower}.{block}.b"] = torch.zeros(count, width, rank)
        return result

    def _a(self, generator: torch.Generator) -> Named:
        count, rank = len(self.shape.projections), self.shape.rank
        return {
            f"{tower}.{block}.a": torch.empty(count, rank, width).uniform_(
                -(width**-0.5), width**-0.5, generator=generator
            )
            for tower, (_, width) in self.towers.items()
            for block in self.blocks[tower]
        }

    def stacked_clients(self, tensors: Named) -> int:
        """Number of clients stacked in the first B; 0 for one alone."""
        return stacked_clients(tensors[f"text.{self.shape.first}.b"], 3)

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """The frozen changes among what the client received."""
        return select(received, [f"{EXTRA}*"])

    def insertions(self, tensors: Named, tower: str) -> Insertions:
        """A change of every block's projections."""
        every = self.fixed | tensors

        def edit(block: int) -> Edit:
            name = f"{tower}.{block}"
            pairs = [(every[f"{prefix}{name}.a"], every[f"{prefix}{name}.b"])
                     for prefix in ("", EXTRA) if f"{prefix}{name}.b" in every]  # fmt: skip
            return partial(change, pairs=pairs, dense=every.get(f"{EXTRA}{name}"), shape=self.shape)

        return Insertions(projections={block: edit(block) for block in self.blocks[tower]})

    def merged(self, tensors: Named, constants: Named) -> Named:
        """The CLIP's weights that change, by name, with all changes added to them: the same function without a tuner.

        W + (alpha / sqrt(R)) B A, summed in float64.
        """
        every, own = self.fixed | tensors | constants, self.clip.state_dict()
        found: Named = {}
        for tower, (_, width) in self.towers.items():
            for block in self.blocks[tower]:
                weight = f"{_TOWER[tower]}.transformer.resblocks.{block - 1}.attn.in_proj_weight"
                added = sum(_products(every, f"{prefix}{tower}.{block}") for prefix in ("", EXTRA))
                whole = torch.zeros(3, width, width, dtype=torch.float64, device=own[weight].device)
                whole[["qkv".index(part) for part in self.shape.projections]] = self.shape.scale * added
                found[weight] = (own[weight].double() + whole.flatten(0, 1)).to(own[weight].dtype)
        return found


_TOWER = {"text": "text", "vision": "visual"}


def _products(every: Named, name: str) -> Tensor | int:
    """B A of one pair and the dense change of the same name, `[J, D, D]`; 0 without both."""
    pair = every[f"{name}.b"].double() @ every[f"{name}.a"].double() if f"{name}.b" in every else 0
    return pair + (every[name].double() if name in every else 0)


def change(
    h: Tensor, *, pairs: Sequence[tuple[Tensor, Tensor]], shape: LoRAShape, dense: Tensor | None = None
) -> Tensor:
    """What is added to queries, keys and values, `[..., L, D]` to `[..., L, 3 D]`, zero for those not chosen.

    `pairs` of A and B, `[J, R, D]` and `[J, D, R]`, and `dense [J, D, D]` add up. With projections "qv" (J = 2), all J
    products A h are one product, then each has its own B:

        h [L, D] --A [2 R, D]--> [L, 2, R] --B_q [D, R]--> [L, D]  queries
                                           --B_v [D, R]--> [L, D]  values       keys: zeros

    Clients that train together have N in front of all of them; h holds their sequences one after another.
    """
    parts = [_low_rank(h, a, b, shape.scale) for a, b in pairs]
    if dense is not None:
        full = linear(h, dense.flatten(-3, -2), dense.new_zeros(*dense.shape[:-3], dense.shape[-3] * dense.shape[-2]))
        parts.append(full.reshape(*dense.shape[:-3], -1, *dense.shape[-3:-1]) * shape.scale)
    added = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)  # [(N), tokens, J, D]
    each = dict(zip(shape.projections, added.unbind(-2), strict=True))
    nothing = added.new_zeros(()).expand(*added.shape[:-2], h.shape[-1])
    return torch.cat([each.get(part, nothing) for part in "qkv"], dim=-1).reshape(*h.shape[:-1], -1)


def _low_rank(h: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """B A h: `[(N), tokens, J, D]`."""
    if a.ndim < b.ndim:  # one frozen A for all clients
        a = a.expand(len(b), -1, -1, -1)
    count, rank = a.shape[-3:-1]
    low = linear(h, a.flatten(-3, -2), a.new_zeros(*a.shape[:-3], count * rank))  # [..., L, J R]
    low = low.reshape(*b.shape[:-3], -1, count, rank).transpose(-3, -2)  # [(N), J, tokens, R]
    return (low @ b.mT * scale).transpose(-3, -2)


def _blocks(shape: LoRAShape, depth: int) -> range:
    last = depth if shape.last is None else shape.last
    if not 1 <= shape.first <= last <= depth:
        raise FedvlmError(f"LoRA blocks {shape.first}..{last} do not fit an encoder with blocks 1..{depth}")
    return range(shape.first, last + 1)
