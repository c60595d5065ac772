"""CoCoOp (Zhou et al., CVPR 2022), federated: a prompt that a small network shifts for every image.

    P(x) = P + 1 h(x)',  h(x) = W_up relu(W_down f(x) + b_down) + b_up,  f(x) normalised
    logits_c = s cos(f(x), g(P(x), c))                     every tensor <- sum_i (n_i / n) tensor_i

The text encoder runs for every image: a step costs as much as B steps of PromptFL.

| tensor | shape | cocoop |
|---|---|---|
| `prompt` | `[4, 512]` | shared, 8,192 bytes |
| `meta.down.weight`, `.bias` | `[32, 512]`, `[32]` | shared, 65,664 bytes |
| `meta.up.weight`, `.bias` | `[512, 32]`, `[512]` | shared, 67,584 bytes |

What leaves a client: these 35,360 numbers and its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, in_float32
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.base import apply_linear, linear_init
from fedvlm.tuners.prompt import Prompt

CHUNK = 32
"""Images whose texts are encoded at once where no gradient is needed: bounds memory."""


class ConditionalConfig(PromptConfig):
    """CoCoOp's prompt."""

    tokens: Count = 4
    init_text: str | None = Field(default="a photo of a", serialization_alias="words")


class ConditionalPrompt(Prompt):
    """A prompt and the network that shifts it."""

    def init(self, generator: torch.Generator) -> Named:
        """`prompt [T, D]`, `meta.{down,up}.*`; the hidden layer has a sixteenth of the joint width."""
        joint = self.clip.config.embed
        inner = max(1, joint // 16)
        return (
            super().init(generator)
            | linear_init("meta.down", joint, inner, generator)
            | linear_init("meta.up", inner, self.clip.text.width, generator)
        )

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """An empty mapping: every text depends on the image."""
        return {}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        if torch.is_grad_enabled():
            return self._some(tensors, hidden)
        return torch.cat([self._some(tensors, part) for part in hidden.split(CHUNK, dim=-2)], dim=-2)

    def _some(self, tensors: Named, hidden: Tensor) -> Tensor:
        image = F.normalize(hidden, dim=-1)
        shift = apply_linear(tensors, "meta.up", F.relu(apply_linear(tensors, "meta.down", image)))
        text = self.features(tensors["prompt"].unsqueeze(-3) + shift.unsqueeze(-2))
        with in_float32(hidden):
            return self.clip.scaled((text.float() @ image[..., None]).squeeze(-1))


class CoCoOp(base.Method):
    """A prompt that depends on the image; the server averages every tensor."""

    name = "cocoop"
    title = "CoCoOp (federated)"
    paper = "Zhou et al., CVPR 2022"
    Config = ConditionalConfig
    config: ConditionalConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> ConditionalPrompt:
        """Prompt and network."""
        return ConditionalPrompt(
            clip, classnames, self.config.tokens, self.config.init_text, class_position=self.config.class_position
        )
