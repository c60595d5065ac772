"""The multi-modal adapter of MMA (Yang et al., CVPR 2024) as pFedMMA trains it (arXiv 2507.05394, section 3).

Beside every adapted block, in both encoders, with x the block's input and h = LN1(x):

    y = scale * up(relu(shared(relu(down(h)))))        block output = block(x) + y

`down` and `up` belong to one encoder, `shared` (R x R) is one module used by both. K classes, B images, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, Insertions, ParallelTo
from fedvlm.clip.vision import VisionTransformer
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named
from fedvlm.tuners.base import linear, stacked_clients, vision_transformer
from fedvlm.tuners.encoder import EncoderTuner


@dataclass(frozen=True)
class AdapterShape:
    """Which blocks (counted from 1, both ends included, the same in both encoders), rank R, scale."""

    first: int = 5
    last: int = 12
    rank: int = 32
    scale: float = 1e-3


class Adapter(EncoderTuner):
    """Tensors for every adapted block b: `text.b.{down,up}.*`, `vision.b.{down,up}.*`, `shared.b.*`."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], shape: AdapterShape, template: str) -> None:
        self.shape = shape
        super().__init__(clip, _checked(clip, shape), classnames, template, ParallelTo(shape.first))

    @property
    def blocks(self) -> range:
        """Numbers of the adapted blocks."""
        return range(self.shape.first, self.shape.last + 1)

    def init(self, generator: torch.Generator) -> Named:
        """Kaiming normal over fan-out (std = sqrt(2 / outputs)) for all three weights, zero biases, as released."""
        rank, result = self.shape.rank, Named()
        for block in self.blocks:
            for tower, width in (("text", self.clip.text.width), ("vision", self.visual.width)):
                result |= _linear(f"{tower}.{block}.down", width, rank, generator)
                result |= _linear(f"{tower}.{block}.up", rank, width, generator)
            result |= _linear(f"shared.{block}", rank, rank, generator)
        return result

    def stacked_clients(self, tensors: Named) -> int:
        """Number of clients stacked in the first shared projection; 0 for one alone."""
        return stacked_clients(tensors[f"shared.{self.shape.first}.weight"], 2)

    def insertions(self, tensors: Named, tower: str) -> Insertions:
        """A branch beside every adapted block."""
        return Insertions(
            branches={
                block: partial(
                    branch,
                    down=_pair(tensors, f"{tower}.{block}.down"),
                    shared=_pair(tensors, f"shared.{block}"),
                    up=_pair(tensors, f"{tower}.{block}.up"),
                    scale=self.shape.scale,
                )
                for block in self.blocks
            }
        )


WeightAndBias = tuple[Tensor, Tensor]


def branch(h: Tensor, *, down: WeightAndBias, shared: WeightAndBias, up: WeightAndBias, scale: float) -> Tensor:
    """The adapter's output for h = LN1(x), `[..., D]` to `[..., D]`.

    The released implementations rescale gradients: the parameters receive theirs as if scale were 1, while what
    flows on into x stays exact. Without it a scale of 1e-3 learns a thousand times slower than published.
    """
    h = _scale_gradient(h, scale)
    h = F.relu(linear(h, *down))
    h = F.relu(linear(h, *shared))
    return _scale_value(linear(h, *up), scale)


class _ScaleGradient(torch.autograd.Function):
    """Identity forward; the gradient is multiplied by a factor."""

    # No `setup_context`, as in `clip.packed`.
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class _ScaleValue(torch.autograd.Function):
    """Multiplied by a factor forward; the gradient passes unscaled (scale and 1/scale folded into nothing)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    out: Tensor = _ScaleGradient.apply(x, factor)
    return out


def _scale_value(x: Tensor, factor: float) -> Tensor:
    out: Tensor = _ScaleValue.apply(x, factor)
    return out


def _pair(tensors: Named, name: str) -> WeightAndBias:
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _linear(name: str, inputs: int, outputs: int, generator: torch.Generator) -> Named:
    weight = torch.empty(outputs, inputs).normal_(0, (2 / outputs) ** 0.5, generator=generator)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}


def _checked(clip: FrozenCLIP, shape: AdapterShape) -> VisionTransformer:
    visual = vision_transformer(clip, "adapters")
    depth = min(clip.visual.depth, clip.text.depth)
    if not 1 <= shape.first <= shape.last <= depth:
        raise FedvlmError(
            f"adapter blocks {shape.first}..{shape.last} do not fit: both encoders have blocks 1..{depth}; "
            "set method.all.first_block and method.all.last_block"
        )
    return visual
