"""MaPLe (Khattak et al., CVPR 2023), federated: prompts in the first blocks of both encoders, the image's made from the
text's.

    text:   [SOT] t_1 (T tokens) "of a class." [EOT];  at the input of blocks 2..J the T tokens become t_2 .. t_J
    image:  [CLS] patches  F_1(t_1);                   at the input of blocks 2..J they become F_j(t_j),  F_j linear
    every tensor <- sum_i (n_i / n) tensor_i

Means of prompts and of projections are taken apart, which is not the mean of their products.

| tensor (each of blocks 1..9) | shape | maple |
|---|---|---|
| `text.b` | `[2, 512]` | shared, 4,096 bytes |
| `projection.b.weight`, `.bias` | `[768, 512]`, `[768]` | shared, 1,575,936 bytes |

What leaves a client: 3,555,072 numbers and its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedvlm.clip import FrozenCLIP, templates
from fedvlm.config import Count
from fedvlm.errors import FedvlmError
from fedvlm.methods import base
from fedvlm.methods.base import Rate
from fedvlm.tensors import Named
from fedvlm.tuners.base import apply_linear, linear_init
from fedvlm.tuners.deep_prompt import DeepPrompt


class DeepConfig(base.Config):
    """MaPLe's: two tokens started from "a photo", nine blocks."""

    lr: Rate = 0.0035
    length: Count = 2
    """Tokens T of each prompt."""
    start: str | None = "a photo"
    """Start the first prompt at these words (exactly T tokens) instead of at N(0, 0.02^2)."""
    suffix: templates.Template = "of a {}."
    """What follows the prompt, with `{}` for the class name."""
    depth: Count = 9
    """J: prompts enter blocks 1..J of both encoders."""


class CoupledPrompts(DeepPrompt):
    """Text prompts, and linear maps from them to the image's."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: DeepConfig) -> None:
        super().__init__(clip, classnames, config.length, config.start, config.suffix)
        deepest = min(self.visual.depth, clip.text.depth)
        if config.depth > deepest:
            raise FedvlmError(f"maple: depth {config.depth}, but both encoders have blocks 1..{deepest} only")
        self.blocks = range(1, config.depth + 1)

    def init(self, generator: torch.Generator) -> Named:
        """`text.j [T, D]`, `projection.j.*`; the projections of blocks 2..J start equal, as released."""
        width = self.clip.text.width
        result = {"text.1": super().init(generator)["prompt"]}
        result |= linear_init("projection.1", width, self.visual.width, generator)
        later = linear_init("", width, self.visual.width, generator)
        for block in self.blocks[1:]:
            result[f"text.{block}"] = torch.empty(self.tokens, width).normal_(0, 0.02, generator=generator)
            result |= {f"projection.{block}{name}": tensor.clone() for name, tensor in later.items()}
        return result

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]` and the image's prompts `vision.j [T, D]`."""
        prompts = [tensors[f"text.{block}"] for block in self.blocks]
        vision = {f"vision.{b}": apply_linear(tensors, f"projection.{b}", prompts[b - 1]) for b in self.blocks}
        return {"text": self.features(prompts[0], prompts[1:])} | vision

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Tokens at block 1, `[B, L, D]`, to `[B, K]`."""
        image = self.image(hidden, [classifier[f"vision.{block}"] for block in self.blocks])
        return self.clip.similarity(image, classifier["text"])


class MaPLe(base.Method):
    """Prompts of both encoders and the maps between them; the server averages every tensor."""

    name = "maple"
    title = "MaPLe (federated)"
    paper = "Khattak et al., CVPR 2023"
    Config = DeepConfig
    config: DeepConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> CoupledPrompts:
        """Text prompts with the maps to image prompts, for a class list."""
        return CoupledPrompts(clip, classnames, self.config)
