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
from fedvlm.errors import FedvlmError
from fedvlm.streams import torch_stream
from fedvlm.tensors import Named
from fedvlm.tuners.base import linear, stacked_clients, vision_transformer
from fedvlm.tuners.encoder import EncoderTuner


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
    """Tensors for every block b: `text.b.a`, `vision.b.a` `[J, R, D]` and `text.b.b`, `vision.b.b` `[J, D, R]`."""

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

    def insertions(self, tensors: Named, tower: str) -> Insertions:
        """A change of every block's projections."""
        every = self.fixed | tensors
        return Insertions(
            projections={
                block: partial(change, a=every[f"{tower}.{block}.a"], b=every[f"{tower}.{block}.b"], shape=self.shape)
                for block in self.blocks[tower]
            }
        )


def change(h: Tensor, *, a: Tensor, b: Tensor, shape: LoRAShape) -> Tensor:
    """What is added to queries, keys and values, `[..., L, D]` to `[..., L, 3 D]`, zero for those not chosen.

    With projections "qv" (J = 2), all J products A h are one product, then each has its own B:

        h [L, D] --A [2 R, D]--> [L, 2, R] --B_q [D, R]--> [L, D]  queries
                                           --B_v [D, R]--> [L, D]  values       keys: zeros

    Clients that train together have `a [N, J, R, D]` and `b [N, J, D, R]`; h holds their sequences one after another.
    """
    if a.ndim < b.ndim:  # one frozen A for all clients
        a = a.expand(len(b), -1, -1, -1)
    low = linear(h, a.flatten(-3, -2), a.new_zeros(*a.shape[:-3], a.shape[-3] * shape.rank))  # [..., L, J R]
    low = low.reshape(*b.shape[:-3], -1, len(shape.projections), shape.rank).transpose(-3, -2)  # [(N), J, tokens, R]
    high = (low @ b.mT * shape.scale).transpose(-3, -2)  # [(N), tokens, J, D]
    parts = dict(zip(shape.projections, high.unbind(-2), strict=True))
    nothing = high.new_zeros(()).expand(*high.shape[:-2], h.shape[-1])
    return torch.cat([parts.get(part, nothing) for part in "qkv"], dim=-1).reshape(*h.shape[:-1], -1)


def _blocks(shape: LoRAShape, depth: int) -> range:
    last = depth if shape.last is None else shape.last
    if not 1 <= shape.first <= last <= depth:
        raise FedvlmError(f"LoRA blocks {shape.first}..{last} do not fit an encoder with blocks 1..{depth}")
    return range(shape.first, last + 1)
