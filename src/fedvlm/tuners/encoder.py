"""The base of tuners that change blocks of both encoders. K classes, B images, E joint width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import Entry, FrozenCLIP, Insertions
from fedvlm.clip.vision import VisionTransformer
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet


class EncoderTuner(ABC):
    """Enters both encoders at `entry` and goes on with its insertions; what lies below is remembered."""

    def __init__(
        self, clip: FrozenCLIP, visual: VisionTransformer, classnames: Sequence[str], template: str, entry: Entry
    ) -> None:
        self.clip, self.visual, self.entry = clip, visual, entry
        self.texts = clip.texts(classnames, template)
        # What the text encoder's entry gets is constant for a class list.
        with torch.no_grad():
            self.words = clip.text.hidden(clip.text.embed(self.texts.ids)[None], self.texts, entry)

    @abstractmethod
    def insertions(self, tensors: Named, tower: str) -> Insertions:
        """What the tensors, and constants among them, add to the `text` or the `vision` encoder."""

    @abstractmethod
    def stacked_clients(self, tensors: Named) -> int:
        """Number of clients stacked in the tensors; 0 for one alone."""

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """An empty mapping: nothing is constant but the remembered text activations."""
        return {}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]`, normalised, and the constants, which the image encoder needs too."""
        count = self.stacked_clients(tensors)
        words = self.words.expand(count or 1, *self.words.shape[1:])
        text = self.clip.text.feature(words, self.texts, self.entry, self.insertions(tensors | constants, "text"))
        text = F.normalize(text, dim=-1)
        return constants | {"text": text if count else text[0]}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Activations at `entry`, `[B, ...]`, to `[B, K]`."""
        count = self.stacked_clients(tensors)
        flat = hidden.flatten(0, 1) if count else hidden
        changes = self.insertions(tensors | classifier, "vision")
        image = F.normalize(self.visual.feature(flat, self.entry, changes), dim=-1)
        image = image.unflatten(0, (count, -1)) if count else image
        return self.clip.similarity(image, classifier["text"])
