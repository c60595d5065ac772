"""CLIP's own classifier of a class list under one or several templates (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.tensors import Named
from fedvlm.tuners.base import FeatureTuner


class Template(FeatureTuner):
    """Holds the class list's text features `text [K, E]`: the mean of the templates' normalised ones, normalised."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], *templates: str) -> None:
        self.clip = clip
        each = [F.normalize(clip.classifier(classnames, template), dim=-1) for template in templates]
        self.text = each[0] if len(each) == 1 else F.normalize(torch.stack(each).mean(0), dim=-1)

    def init(self, generator: torch.Generator) -> Named:
        """An empty mapping: nothing is trained."""
        return {}

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """The remembered text features, and what was made of the client's own images."""
        return {"text": self.text} | constants
