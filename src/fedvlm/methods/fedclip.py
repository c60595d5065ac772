"""FedCLIP (Lu et al. 2023): a gate on the image feature, averaged.

    f'(x) = softmax(W_2 tanh(W_1 f(x) + b_1) + b_2) * f(x)       logits_c = s cos(f'(x), g("a picture of a c"))
    loss = (CE(image -> caption) + CE(caption -> image)) / 2 within the batch, as released; or CE over all classes
    every tensor <- sum_i (n_i / n) tensor_i                      (the released code weights clients equally)

Two images of one class in a batch are each other's false negatives in the released loss.

| tensor (b = 1, 2) | shape | fedclip |
|---|---|---|
| `gate.b.weight`, `.bias` | `[512, 512]`, `[512]` | shared, 1,050,624 bytes |

What leaves a client: these 525,312 numbers and its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, templates
from fedvlm.methods import base
from fedvlm.methods.base import Rate, Step
from fedvlm.tensors import Named
from fedvlm.tuners.base import apply_linear, linear_init, stacked_clients
from fedvlm.tuners.template import Template

Fraction = Annotated[float, Field(ge=0, lt=1)]


class GateConfig(base.Config):
    """The released code's: Adam with rate 5e-5, betas 0.9 and 0.98, decay 0.2."""

    lr: Rate = 5e-5
    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="adam", serialization_alias="optimiser")
    second_momentum: Fraction = 0.98
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    template: templates.Template = "a picture of a {}"
    objective: Literal["contrastive", "classes"] = "contrastive"
    """Within the batch as released, or cross-entropy over all classes as every other method here."""


class Gated(Template):
    """A gate over image features before the template's classifier."""

    def init(self, generator: torch.Generator) -> Named:
        """`gate.1.*` and `gate.2.*`, square."""
        width = self.clip.config.embed
        return linear_init("gate.1", width, width, generator) | linear_init("gate.2", width, width, generator)

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """The template's text features, `[K, E]`."""
        count = stacked_clients(tensors["gate.1.bias"], 1)
        return {"text": self.text.expand(count, -1, -1) if count else self.text}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        gate = torch.softmax(
            apply_linear(tensors, "gate.2", torch.tanh(apply_linear(tensors, "gate.1", hidden))), dim=-1
        )
        return super().logits(tensors, classifier, gate * hidden)


class FedCLIP(base.Method):
    """A gate over image features, which the server averages."""

    name = "fedclip"
    title = "FedCLIP"
    paper = "Lu et al. 2023"
    Config = GateConfig
    config: GateConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Gated:
        """The gate over image features, with the template's text features."""
        return Gated(clip, classnames, self.config.template)

    def loss(self, step: Step) -> Tensor:
        """Symmetric contrast within the batch: image i against the caption of image j's class."""
        if self.config.objective == "classes":
            return super().loss(step)
        pairs, right = step.logits[:, step.labels], torch.arange(len(step.labels), device=step.labels.device)
        return (F.cross_entropy(pairs, right) + F.cross_entropy(pairs.T, right)) / 2
