"""Prompts in both encoders (MaPLe, Khattak et al., CVPR 2023). T tokens, B images, L tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import Entry, FrozenCLIP, Insertions
from fedvlm.tuners.base import vision_transformer
from fedvlm.tuners.prompt import ClassPosition, Prompt


class DeepPrompt(Prompt):
    """A text prompt, and tokens appended to the image's: both may be replaced at the input of later blocks."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], tokens: int, init_text: str | None, suffix: str = "{}.",
        class_position: ClassPosition = "end",
    ) -> None:  # fmt: skip
        super().__init__(clip, classnames, tokens, init_text, suffix, class_position)
        self.visual = vision_transformer(clip, "image prompts")

    @property
    def entry(self) -> Entry:
        """The input of the first image block: appended tokens are read by every block."""
        return 1

    def image(self, hidden: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        """Normalised features `[..., B, E]` of tokens `[..., B, L, D]` with prompts `[..., T, D]` after them.

        The first passes the encoder's first LayerNorm, as published; the following take the place of its hidden
        states at the input of block 2, 3, ...
        """
        flat = hidden.flatten(0, -3)
        each = len(flat) // prompts[0][..., 0, 0].numel()
        wide = [prompt.reshape(-1, *prompt.shape[-2:]).repeat_interleave(each, 0) for prompt in prompts]
        edits = {1: partial(_append, prompt=self.visual.norm_inputs(wide[0]))}
        edits |= {block: partial(_replace, prompt=prompt) for block, prompt in enumerate(wide[1:], 2)}
        features = F.normalize(self.visual.feature(flat, 1, Insertions(inputs=edits)), dim=-1)
        return features.view(*hidden.shape[:-2], -1)


def _append(x: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([x, prompt.to(x.dtype)], dim=1)


def _replace(x: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([x[:, : -prompt.shape[1]], prompt.to(x.dtype)], dim=1)
