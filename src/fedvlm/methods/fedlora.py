"""LoRA (Hu et al., ICLR 2022) in both encoders of CLIP, and what four methods share of it.

    W' h = W h + (alpha / sqrt(R)) B A h,  h = LN1(x), for W_q, W_k, W_v of every block;  B = 0 at the start

local LoRA shares nothing. FedLoRA averages A and B, each for itself: the mean of products is not the product of means.
FFA-LoRA (Sun et al., ICLR 2024) freezes A at a common start and averages B, which averages the products exactly. Here
that A is the same for every seed of a run: seeds do not show how much results depend on it.
FedSA-LoRA (Guo et al., ICLR 2025) averages A, the general part, and keeps B. CLIP-LoRA's dropout is left out. By
default all blocks are changed; the presets on drawn scenes hold LoRA to the adapters' blocks.

| tensor (each block) | shape | local_lora | fedlora | ffa_lora | fedsa_lora | bytes |
|---|---|---|---|---|---|---|
| `text.b.a` | `[3, 2, 512]` | private | shared | - | shared | 12,288 |
| `text.b.b` | `[3, 512, 2]` | private | shared | shared | private | 12,288 |
| `vision.b.a` | `[3, 2, 768]` | private | shared | - | shared | 18,432 |
| `vision.b.b` | `[3, 768, 2]` | private | shared | shared | private | 18,432 |

Over the 12 + 12 blocks of ViT-B/16 with rank 2: 92,160 numbers in all A, as many in all B, 368,640 bytes each. What
leaves a client: the shared tensors and its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fedvlm.clip import FrozenCLIP
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.base import Rate
from fedvlm.tuners.lora import LoRA, LoRAShape


class LoraConfig(base.Config):
    """CLIP-LoRA's: rank 2, alpha 1, AdamW with rate 2e-4 and decay 0.01."""

    lr: Rate = 2e-4
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="adamw", serialization_alias="optimiser")
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    first_block: Count = 1
    """First changed block, counted from 1."""
    last_block: Count | None = None
    """Last changed block; the last one of each encoder where not given."""
    lora_rank: Count = 2
    alpha: Annotated[float, Field(gt=0)] = 1.0
    projections: Literal["q", "k", "v", "qk", "qv", "kv", "qkv"] = "qkv"

    @model_validator(mode="after")
    def _fits(self) -> LoraConfig:
        if self.last_block is not None and self.first_block > self.last_block:
            raise ValueError(f"first_block {self.first_block} comes after last_block {self.last_block}")
        return self


class LocalLoRA(base.Method):
    """LoRA that every client trains for itself: no tensor crosses."""

    name = "local_lora"
    title = "local LoRA"
    paper = "Zanella and Ben Ayed, CVPR-W 2024"
    Config = LoraConfig
    config: LoraConfig
    shared: tuple[str, ...] = ()
    frozen_a: ClassVar[int | None] = None

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> LoRA:
        """Low-rank changes of the configured blocks of both encoders."""
        c = self.config
        shape = LoRAShape(c.first_block, c.last_block, c.lora_rank, c.alpha, c.projections, self.frozen_a)
        return LoRA(clip, classnames, shape, template)


class FedLoRA(LocalLoRA):
    """LoRA whose factors A and B the server averages, each by itself."""

    name = "fedlora"
    title = "FedLoRA"
    paper = "federated averaging of Hu et al., ICLR 2022"
    shared = ("*",)


class FFALoRA(LocalLoRA):
    """LoRA with a frozen A, the same for every client and seed; the server averages B."""

    name = "ffa_lora"
    title = "FFA-LoRA"
    paper = "Sun et al., ICLR 2024"
    shared = ("*.b",)
    frozen_a = 0


class FedSALoRA(LocalLoRA):
    """LoRA whose factor A the server averages, while B stays with its client."""

    name = "fedsa_lora"
    title = "FedSA-LoRA"
    paper = "Guo et al., ICLR 2025"
    shared = ("*.a",)
