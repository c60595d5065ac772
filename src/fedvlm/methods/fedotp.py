"""FedOTP (Li et al., CVPR 2024): a general and an own prompt, matched to an image's patches by optimal transport.

    S = [cos(patch_p, g(P_general, c)), cos(patch_p, g(P_own, c))]  of each class c, [P, 2]
    T = argmin <T, 1 - S> - eps H(T),  rows at most 1/P, columns gamma/2;  no gradient through T
    logits_c = s <T, S>                                   P_general <- sum_i (n_i / n) P_general,i

Every patch's finished feature is used, the class token's is not. Transport is computed in logarithms and float32: the
released half-precision kernel underflows at eps = 0.01.

| tensor | shape | fedotp | bytes |
|---|---|---|---|
| `prompt.general` | `[16, 512]` | shared | 32,768 |
| `prompt.own` | `[16, 512]` | private | 32,768 |

What leaves a client: its general prompt, its number of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import Entry, FrozenCLIP, Patches, in_float32
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.prompt_pair import PromptPair
from fedvlm.tuners.transport import plan


class TransportConfig(PromptConfig):
    """The released code's mass; its smoothing is 0.01 in the few-shot script and 0.1 in the CIFAR script."""

    mass: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Gamma: how much of an image's patches is transported."""
    smoothing: Annotated[float, Field(gt=0)] = 0.1
    """Epsilon, the weight of the transport plan's entropy."""
    iterations: Count | None = None
    """Iterations of the transport; by default 2 / `smoothing`, which comes within 0.005 of the limit's logits at mass
    0.8 (a test measures it). At mass 1 hundreds are needed."""

    @property
    def steps(self) -> int:
        """The number of iterations."""
        return math.ceil(2 / self.smoothing) if self.iterations is None else self.iterations


class Transport(PromptPair):
    """Two prompts, compared with every patch of an image."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: TransportConfig) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, class_position=config.class_position)
        self.config = config

    @property
    def entry(self) -> Entry:
        """Finished features of all patches."""
        return Patches()

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [2, K, E]`, normalised."""
        return {"text": torch.stack(self.both(tensors), dim=-3)}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Patch features `[B, P, E]` to `[B, K]`."""
        text, patches = classifier["text"], F.normalize(hidden, dim=-1)
        with in_float32(hidden):
            similarity = torch.einsum("...bpe,...nke->...bkpn", patches, text.float())
            moved = plan(similarity, self.config.mass, self.config.smoothing, self.config.steps)
            return self.clip.scaled((moved * similarity).sum((-1, -2)))


class FedOTP(base.Method):
    """A general and a private prompt, matched to patches by optimal transport; the server averages the general one."""

    name = "fedotp"
    title = "FedOTP"
    paper = "Li et al., CVPR 2024"
    Config = TransportConfig
    config: TransportConfig
    shared = ("prompt.general",)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Transport:
        """Both prompts, for a class list."""
        return Transport(clip, classnames, self.config)
