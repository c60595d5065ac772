"""Two prompts per client, one general and one its own, encoded in one pass. T tokens, D width, K classes."""

from __future__ import annotations

import torch
from torch import Tensor

from fedvlm.tensors import Named
from fedvlm.tuners.prompt import Prompt


class PromptPair(Prompt):
    """Tensors `prompt.general` and `prompt.own`, `[T, D]` each; words are the start of the general one only.

    Two equal prompts would get equal gradients and stay one.
    """

    def init(self, generator: torch.Generator) -> Named:
        """The general prompt as `Prompt` starts, the own one from N(0, 0.02^2)."""
        general = super().init(generator)["prompt"]
        own = torch.empty(general.shape).normal_(0, 0.02, generator=generator)
        return {"prompt.general": general, "prompt.own": own}

    def both(self, tensors: Named) -> tuple[Tensor, Tensor]:
        """Normalised text features `[K, E]` under the general and under the own prompt."""
        general, own = self.features(torch.stack([tensors["prompt.general"], tensors["prompt.own"]], dim=-3)).unbind(-3)
        return general, own
