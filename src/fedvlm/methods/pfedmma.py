"""pFedMMA (Ghiasvand, Alizadeh, Pedarsani; arXiv 2507.05394): multi-modal adapters with one shared bridge per block.

Beside block b of both encoders, o in {text, vision}, x the block's input:

    h = relu(W_down h0 + b_down),  h0 = LN1(x)          private, one per encoder
    h = relu(W_shared h + b_shared)                     averaged by the server, common to both encoders
    y = scale (W_up h + b_up)                           private, one per encoder;  x_next = block(x) + y

| tensor (each of blocks 5..12) | shape | pfedmma | bytes |
|---|---|---|---|
| `text.b.down.weight`, `.bias` | `[32, 512]`, `[32]` | private | 65,664 |
| `text.b.up.weight`, `.bias` | `[512, 32]`, `[512]` | private | 67,584 |
| `vision.b.down.weight`, `.bias` | `[32, 768]`, `[32]` | private | 98,432 |
| `vision.b.up.weight`, `.bias` | `[768, 32]`, `[768]` | private | 101,376 |
| `shared.b.weight`, `.bias` | `[32, 32]`, `[32]` | shared | 4,224 |

Over 8 blocks of ViT-B/16: 674,560 numbers trained, 8,448 shared, 33,792 bytes up per round. What leaves a client: the
shared tensors and its number of images. FedMMA shares everything, local MMA nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from fedvlm.clip import FrozenCLIP
from fedvlm.methods import base
from fedvlm.tuners.adapter import Adapter, AdapterShape


class AdapterConfig(base.Config):
    """The paper's: blocks 5..12, rank 32, scale and rate 0.001, 2 local epochs, batch 32."""

    lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.001
    epochs: Annotated[int, Field(ge=1)] = 2
    batch: Annotated[int, Field(ge=1)] = 32
    first_block: Annotated[int, Field(ge=1)] = 5
    """First adapted block, counted from 1."""
    last_block: Annotated[int, Field(ge=1)] = 12
    """Last adapted block, itself included."""
    rank: Annotated[int, Field(ge=1)] = 32
    scale: Annotated[float, Field(gt=0)] = 0.001
    """Factor on the branch. Gradients are rescaled, so it also scales what a step does to the function."""

    @model_validator(mode="after")
    def _fits(self) -> AdapterConfig:
        if self.first_block > self.last_block:
            raise ValueError(f"first_block {self.first_block} comes after last_block {self.last_block}")
        return self


class PFedMMA(base.Method):
    """Adapters in both encoders: down- and up-projections are private, the server averages the shared projection."""

    name = "pfedmma"
    title = "pFedMMA"
    paper = "arXiv 2507.05394"
    Config = AdapterConfig
    config: AdapterConfig
    shared: tuple[str, ...] = ("shared.*",)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Adapter:
        """Adapters beside the configured blocks."""
        c = self.config
        return Adapter(clip, classnames, AdapterShape(c.first_block, c.last_block, c.rank, c.scale), template)


class FedMMA(PFedMMA):
    """The same adapters; the server averages every tensor."""

    name = "fedmma"
    title = "FedMMA"
    paper = "control of arXiv 2507.05394"
    shared = ("*",)


class LocalMMA(PFedMMA):
    """The same adapters, trained by every client for itself: no tensor crosses."""

    name = "local_mma"
    title = "local MMA"
    paper = "Yang et al., CVPR 2024"
    shared: tuple[str, ...] = ()
