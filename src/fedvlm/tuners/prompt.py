"""A learned prompt around the class name: `[start] prompt(T) class-name "." [end]` (CoOp, Zhou et al. 2022).

T prompt tokens, K classes, D text width, E joint width, B images, G prompts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, Insertions
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named
from fedvlm.tuners.base import FeatureTuner

ClassPosition = Literal["end", "middle", "front"]
"""Where the class name stands: after the prompt, between its halves, or before it."""


class Prompt(FeatureTuner):
    """One context common to all classes. Its tensor: `prompt [T, D]`.

    `init_text` (such as "a photo of a") starts the prompt at the embeddings of exactly T tokens; without it every entry
    is drawn from N(0, 0.02^2). `suffix` is what follows the prompt, `class_position` where in it the class name stands.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        classnames: Sequence[str],
        tokens: int,
        init_text: str | None = None,
        suffix: str = "{}.",
        class_position: ClassPosition = "end",
    ) -> None:
        self.clip = clip
        self.tokens = tokens
        self.initial = self._embed(init_text) if init_text else None
        before = {"end": tokens, "middle": tokens // 2, "front": 0}[class_position]
        self.texts = clip.texts(classnames, suffix, before, tokens - before)
        # Learned tokens have the ids -1..-T.
        self.slots = (self.texts.ids < 0).nonzero()[:, 0]
        self.which = -1 - self.texts.ids[self.slots]
        self.fixed = clip.text.embed(self.texts.ids.clamp(min=0))[None]

    def init(self, generator: torch.Generator) -> Named:
        """`prompt [T, D]`."""
        if self.initial is not None:
            return {"prompt": self.initial.clone()}
        width = self.clip.text.width
        return {"prompt": torch.empty(self.tokens, width).normal_(0, 0.02, generator=generator)}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]`, normalised."""
        return {"text": self.features(tensors["prompt"])}

    def features(self, prompts: Tensor, deeper: Sequence[Tensor] = ()) -> Tensor:
        """Normalised text features `[..., K, E]` of all classes under prompts `[..., T, D]`.

        `deeper` are prompts of the same shape that take the place of the prompt's hidden states at the input of block
        2, 3, ... (MaPLe).
        """
        row = self._set(self.fixed.expand(prompts[..., 0, 0].numel(), -1, -1), prompts)
        edits = {block: partial(self._set, prompts=prompt) for block, prompt in enumerate(deeper, 2)}
        hidden = self.clip.text.hidden(row, self.texts, 1)
        features = F.normalize(self.clip.text.feature(hidden, self.texts, 1, Insertions(inputs=edits)), dim=-1)
        return features.view(*prompts.shape[:-2], *features.shape[1:])

    def _set(self, row: Tensor, prompts: Tensor) -> Tensor:
        """Rows `[G, L, D]` with the learned tokens in their places."""
        learned = prompts.reshape(-1, *prompts.shape[-2:]).to(row.dtype)
        return row.index_copy(1, self.slots, learned.index_select(1, self.which))

    def _embed(self, text: str) -> Tensor:
        ids = self.clip.tokenizer.words(text)
        if len(ids) != self.tokens:
            raise FedvlmError(f"the prompt starts from '{text}', which is {len(ids)} tokens, but has {self.tokens}")
        return self.clip.text.embed(torch.tensor(ids, device=self.clip.device)).float().cpu()
