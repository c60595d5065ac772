"""FedPer (Arivazhagan et al. 2019) on a prompt: its first tokens are averaged, the others stay.

    P = [P_shared; P_private]        P_shared <- sum_i (n_i / n) P_shared,i

| tensor | shape | fedper | bytes |
|---|---|---|---|
| `prompt.shared` | `[8, 512]` | shared | 16,384 |
| `prompt.private` | `[8, 512]` | private | 16,384 |

What leaves a client: the first half of its prompt, its number of images. With all tokens shared it is PromptFL, with
none local CoOp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, model_validator

from fedvlm.clip import FrozenCLIP
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.prompt import ClassPosition, Prompt


class PerConfig(PromptConfig):
    """PromptFL's prompt, half of which is shared."""

    shared_tokens: Annotated[int, Field(ge=0)] | None = None
    """Number of leading tokens that are shared; by default half of them."""

    @property
    def common(self) -> int:
        """The number of shared tokens."""
        return self.tokens // 2 if self.shared_tokens is None else self.shared_tokens

    @model_validator(mode="after")
    def _fits(self) -> PerConfig:
        if self.common > self.tokens:
            raise ValueError(f"shared_tokens {self.common} is more than tokens {self.tokens}")
        return self


class SplitPrompt(Prompt):
    """A prompt in two tensors, of which one without tokens is left out."""

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        config: PerConfig,
        suffix: str = "{}.",
        class_position: ClassPosition = "end",
    ) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, suffix, class_position)
        self.common = config.common

    def init(self, generator: torch.Generator) -> Named:
        """`prompt.shared [S, D]` and `prompt.private [T - S, D]`."""
        prompt = super().init(generator)["prompt"]
        parts = {"prompt.shared": prompt[: self.common].clone(), "prompt.private": prompt[self.common :].clone()}
        return {name: part for name, part in parts.items() if len(part)}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]` under both parts together."""
        parts = [tensors[name] for name in ("prompt.shared", "prompt.private") if name in tensors]
        return {"text": self.features(torch.cat(parts, dim=-2))}


class FedPer(base.Method):
    """A prompt of two parts: the server averages the first, the second stays with its client."""

    name = "fedper"
    title = "Prompt + FedPer"
    paper = "Arivazhagan et al. 2019"
    Config = PerConfig
    config: PerConfig
    shared = ("prompt.shared",)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> SplitPrompt:
        """The prompt in two tensors."""
        return SplitPrompt(clip, classnames, self.config, class_position=self.config.class_position)
