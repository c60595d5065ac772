"""FedPGP (Cui et al., ICML 2024): a shared prompt, personalised by a private product of low rank, anchored to CLIP.

    P = sigma + U V                                        sigma <- sum_i (n_i / n) sigma_i
    loss = CE(P) + mu mean_c -log(e^{a_c / tau} / (e^{a_c / tau} + e^{b_c / tau}))
    a_c = cos(t_sigma, t_0), b_c = cos(t_sigma, t_P)

t_P, t_sigma: text features of class c under the two prompts; t_0: under the written template. The released script runs
a classifier of 2K outputs with the second half never right, and anchors at sixteen "X"; here are K and the template.

| tensor | shape | fedpgp | bytes |
|---|---|---|---|
| `sigma` | `[16, 512]` | shared | 32,768 |
| `u` | `[16, 8]` | private | 512 |
| `v` | `[8, 512]` | private | 16,384 |

What leaves a client: sigma, its number of images. With mu = 0 and no product it is PromptFL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.base import Step
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.prompt import Prompt
from fedvlm.tuners.template import Template


class LowRankConfig(PromptConfig):
    """The released script's rank, mu and temperature."""

    product_rank: Count = 8
    """Rank of U V; below the number of tokens to be one."""
    mu: Annotated[float, Field(ge=0)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 0.5
    spread: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of U and V at the start; 0 takes the product away for good."""


class LowRankPrompt(Prompt):
    """A prompt sigma + U V, with the template's text features as anchor."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: LowRankConfig, template: str) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, class_position=config.class_position)
        self.config = config
        self.anchor = Template(clip, classnames, template).text

    def init(self, generator: torch.Generator) -> Named:
        """`sigma [T, D]`, `u [T, R]`, `v [R, D]`."""
        rank, spread = self.config.product_rank, self.config.spread
        sigma = super().init(generator)["prompt"]
        u = torch.empty(len(sigma), rank).normal_(0, 1, generator=generator) * spread
        v = torch.empty(rank, sigma.shape[1]).normal_(0, 1, generator=generator) * spread
        return {"sigma": sigma, "u": u, "v": v}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text` under the sum, `general` under sigma alone, `anchor` under the template, `[K, E]`."""
        sigma, own = tensors["sigma"], tensors["u"] @ tensors["v"]
        text, general = self.features(torch.stack([sigma + own, sigma], dim=-3)).unbind(-3)
        return {"text": text, "general": general, "anchor": self.anchor.expand_as(text)}


class FedPGP(base.Method):
    """A general prompt, which the server averages, plus a private product of low rank."""

    name = "fedpgp"
    title = "FedPGP"
    paper = "Cui et al., ICML 2024"
    Config = LowRankConfig
    config: LowRankConfig
    shared = ("sigma",)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> LowRankPrompt:
        """The sum of both prompts, for a class list."""
        return LowRankPrompt(clip, classnames, self.config, template)

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and the contrast of each class's general text with its anchor and its personal text."""
        if not self.config.mu:
            return super().loss(step)
        general, own = step.classifier["general"].float(), step.classifier["text"].float()
        cosines = torch.stack([(general * step.classifier["anchor"]).sum(-1), (general * own).sum(-1)], dim=-1)
        contrast = F.cross_entropy(cosines / self.config.temperature, step.labels.new_zeros(len(cosines)))
        return super().loss(step) + self.config.mu * contrast
