"""A learned prompt before the class name: `[SOT] prompt(T) class-name "." [EOT]` (CoOp, Zhou et al. 2022).

T prompt tokens, K classes, D text width, E joint width, B images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named


class Prompt:
    """One context common to all classes, class name at the end. Its tensor: `prompt [T, D]`.

    `words` (such as "a photo of a") starts the prompt at the embeddings of exactly T tokens; without it every entry
    is drawn from N(0, 0.02^2). `suffix` is what follows the prompt.
    """

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], tokens: int, words: str | None = None, suffix: str = "{}."
    ) -> None:
        self.clip = clip
        self.tokens = tokens
        self.initial = self._words(words) if words else None
        texts = [suffix.format(name.replace("_", " ")) for name in classnames]
        ids, eot = clip.tokenizer(texts, room=tokens)
        embedded = clip.text.embed(ids.to(clip.device))
        self.start, self.rest = embedded[:, :1], embedded[:, 1:]
        self.eot = eot.to(clip.device) + tokens

    @property
    def entry(self) -> int:
        """The finished feature: a prompt leaves the image encoder alone."""
        return self.clip.visual.depth + 1

    def init(self, generator: torch.Generator) -> Named:
        """`prompt [T, D]`."""
        if self.initial is not None:
            return {"prompt": self.initial.clone()}
        width = self.clip.text.width
        return {"prompt": torch.empty(self.tokens, width).normal_(0, 0.02, generator=generator)}

    def prepare(self, received: Named) -> Named:
        """Nothing is constant for a visit."""
        return {}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]`, normalised."""
        return {"text": self.features(tensors["prompt"])}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        image = F.normalize(hidden, dim=-1)
        return self.clip.logit_scale.exp() * image @ classifier["text"].T

    def features(self, prompt: Tensor) -> Tensor:
        """Normalised text features `[K, E]` of all classes under a prompt `[T, D]`."""
        shared = prompt.to(self.start.dtype).expand(len(self.start), -1, -1)
        hidden = self.clip.text.hidden(torch.cat([self.start, shared, self.rest], dim=1), 1)
        return F.normalize(self.clip.text.feature(hidden, self.eot), dim=-1)

    def _words(self, words: str) -> Tensor:
        ids = self.clip.tokenizer.words(words)
        if len(ids) != self.tokens:
            raise FedvlmError(f"the prompt starts from '{words}', which is {len(ids)} tokens, but has {self.tokens}")
        return self.clip.text.embed(torch.tensor(ids, device=self.clip.device)).float().cpu()
