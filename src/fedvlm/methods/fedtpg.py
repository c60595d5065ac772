"""FedTPG (Qiu et al., ICLR 2024): a network that makes the prompt from the class names, averaged.

    N: normalised text features of the bare class names [K, E];  Q: learned queries [4, D]
    A = MultiHead(LN(Q), LN(N), LN(N)), 4 heads, nothing added back
    (a, b) = halves of W_in LN(A) + b_in [4, 2 x 4D];  P = A + W_out (a * gelu(b)) + b_out
    logits_c = s cos(f(x), g(P, c))
    every tensor <- sum_i (n_i / n) tensor_i                      (the paper weights clients equally)

Written from the paper's description. The paper trains and measures with the softmax over a client's own classes; here
it runs over all base classes, as for every other method.

| tensor | shape | fedtpg |
|---|---|---|
| `query` | `[4, 512]` | shared, 8,192 bytes |
| `norm.{query,names,hidden}.weight`, `.bias` | `[512]`, `[512]` | shared, 12,288 bytes |
| `attention.{q,k,v,o}.weight`, `.bias` | `[512, 512]`, `[512]` each | shared, 4,202,496 bytes |
| `hidden.in.weight`, `.bias` | `[4096, 512]`, `[4096]` | shared, 8,404,992 bytes |
| `hidden.out.weight`, `.bias` | `[512, 2048]`, `[512]` | shared, 4,196,352 bytes |

What leaves a client: 4,206,080 numbers and its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.config import Count
from fedvlm.errors import FedvlmError
from fedvlm.methods import base
from fedvlm.methods.base import Rate
from fedvlm.tensors import Named
from fedvlm.tuners.base import apply_linear, linear_init
from fedvlm.tuners.prompt import Prompt


class GeneratorConfig(base.Config):
    """The released code's: four tokens, four heads, rate 0.003 with a cosine over rounds, decay 1e-5."""

    lr: Rate = 0.003
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    tokens: Count = 4
    heads: Count = 4


class PromptGenerator(Prompt):
    """The prompt is made from `names [K, E]`, the classes' own text features."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: GeneratorConfig) -> None:
        super().__init__(clip, classnames, config.tokens)
        self.names = F.normalize(clip.classifier(classnames, "{}"), dim=-1)
        self.heads = config.heads
        if clip.text.width % self.heads:
            raise FedvlmError(f"fedtpg: {self.heads} heads do not divide the text width {clip.text.width}")

    def init(self, generator: torch.Generator) -> Named:
        """`query`, `norm.*`, `attention.*`, `hidden.*`, as torch starts such layers."""
        width, joint = self.clip.text.width, self.clip.config.embed
        result = {"query": torch.empty(self.tokens, width).normal_(0, 0.02, generator=generator)}
        for name, size in (("query", width), ("names", joint), ("hidden", width)):
            result |= {f"norm.{name}.weight": torch.ones(size), f"norm.{name}.bias": torch.zeros(size)}
        for part, size in (("q", width), ("k", joint), ("v", joint), ("o", width)):
            # torch draws equal widths as one matrix of 3 D rows, others apart.
            rows = 3 * width if size == joint == width else width
            bound = width**-0.5 if part == "o" else (6 / (size + rows)) ** 0.5
            weight = torch.empty(width, size).uniform_(-bound, bound, generator=generator)
            result |= {f"attention.{part}.weight": weight, f"attention.{part}.bias": torch.zeros(width)}
        result |= linear_init("hidden.in", width, 8 * width, generator)
        return result | linear_init("hidden.out", 4 * width, width, generator)

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]` under the generated prompt."""
        return {"text": self.features(self.prompt(tensors))}

    def prompt(self, tensors: Named) -> Tensor:
        """The generated prompt `[T, D]`."""
        mixed = self._attend(tensors)
        value, gate = apply_linear(tensors, "hidden.in", _norm(tensors, "hidden", mixed)).chunk(2, dim=-1)
        return mixed + apply_linear(tensors, "hidden.out", value * F.gelu(gate))

    def _attend(self, tensors: Named) -> Tensor:
        """Queries over the class names, `[T, D]`."""
        query = _norm(tensors, "query", tensors["query"])
        names = _norm(tensors, "names", self.names.expand(*query.shape[:-2], -1, -1))
        q, k, v = (
            apply_linear(tensors, f"attention.{part}", x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part, x in (("q", query), ("k", names), ("v", names))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
        return apply_linear(tensors, "attention.o", mixed)


class FedTPG(base.Method):
    """A network that makes the prompt from class names; the server averages its tensors."""

    name = "fedtpg"
    title = "FedTPG"
    paper = "Qiu et al., ICLR 2024"
    Config = GeneratorConfig
    config: GeneratorConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> PromptGenerator:
        """The prompt generator, for a class list."""
        return PromptGenerator(clip, classnames, self.config)


def _norm(tensors: Named, name: str, x: Tensor) -> Tensor:
    """LayerNorm over the last dimension of `[L, D]`."""
    weight, bias = tensors[f"norm.{name}.weight"], tensors[f"norm.{name}.bias"]
    return F.layer_norm(x, x.shape[-1:]) * weight.unsqueeze(-2) + bias.unsqueeze(-2)
