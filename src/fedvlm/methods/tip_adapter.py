"""Tip-Adapter (Zhang et al., ECCV 2022) without training: a memory of the client's images beside the text classifier.

    logits_c = z_c + weight sum_{i of class c} exp(-sharpness (1 - cos(f(x), f(x_i)))),  z the zero-shot logits

Over class lists that are not the client's it is zero-shot. Nothing crosses; the remembered features stay there.

Tensors: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.methods.zero_shot import TemplateConfig, ZeroShot
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.memory import recall, remember
from fedvlm.tuners.template import Template


class TipConfig(TemplateConfig):
    """Tip-Adapter's defaults."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    sharpness: Annotated[float, Field(gt=0)] = 5.5


class Tip(Template):
    """Zero-shot logits plus what a client's memory recalls."""

    def __init__(
        self, clip: FrozenCLIP, classnames: Sequence[str], templates: Sequence[str], config: TipConfig
    ) -> None:
        super().__init__(clip, classnames, *templates)
        self.config = config

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """Features and labels of the client's images, where they are given (`memory.remember`)."""
        return remember(support, len(self.text))

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        own = recall(classifier, F.normalize(hidden, dim=-1), self.config.sharpness)
        return super().logits(tensors, classifier, hidden) + self.config.weight * own


class TipAdapter(ZeroShot):
    """A memory of the client's images beside the text classifier."""

    name = "tip_adapter"
    title = "Tip-Adapter, training-free"
    paper = "Zhang et al., ECCV 2022"
    Config = TipConfig  # type: ignore[assignment]
    config: TipConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Tip:
        """The template's text features, with room for a memory, for a class list."""
        return Tip(clip, classnames, self.config.texts(template), self.config)
