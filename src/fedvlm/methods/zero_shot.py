"""Zero-shot CLIP (Radford et al. 2021): no training, nothing crosses.

    logits = exp(logit_scale) cos(image, text("a photo of a {class}."))

Tensors: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.experiment import Section
from fedvlm.methods import base
from fedvlm.tensors import Named


class Template:
    """CLIP's own classifier of a class list under a template; holds its text features `[K, E]`."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> None:
        self.clip = clip
        self.text = F.normalize(clip.classifier(classnames, template), dim=-1)

    @property
    def entry(self) -> int:
        """The finished feature."""
        return self.clip.visual.depth + 1

    def init(self, generator: torch.Generator) -> Named:
        """Nothing is trained."""
        return {}

    def prepare(self, received: Named) -> Named:
        """Nothing is received."""
        return {}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """The remembered text features."""
        return {"text": self.text}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        return self.clip.logit_scale.exp() * F.normalize(hidden, dim=-1) @ classifier["text"].T


class ZeroShot(base.Method):
    """The frozen CLIP itself."""

    name = "zero_shot"
    title = "zero-shot CLIP"
    paper = "Radford et al., ICML 2021"
    Config = Section  # type: ignore[assignment]
    shared = ()
    trains = False

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Template:
        """The template's text features."""
        return Template(clip, classnames, template)
