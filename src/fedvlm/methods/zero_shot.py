"""Zero-shot CLIP (Radford et al. 2021): no training, nothing crosses.

    logits = exp(logit_scale) cos(image, text("a photo of a {}."))

Tensors: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedvlm.clip import FrozenCLIP
from fedvlm.clip.templates import Template as Words
from fedvlm.config import Section
from fedvlm.methods import base
from fedvlm.tuners.template import Template


class TemplateConfig(Section):
    """CoOp's evaluator takes a template for each data set; the papers compared here take one for all."""

    templates: Annotated[list[Words], Field(default_factory=list)]
    """Texts with `{}` for the class name, their features averaged, or names of CoOp's data sets for theirs
    (`["OxfordPets"]`); empty: `evaluation.template`."""

    def texts(self, default: str) -> list[str]:
        """The templates to average."""
        return self.templates or [default]


class ZeroShot(base.Method):
    """The frozen CLIP itself."""

    name = "zero_shot"
    title = "zero-shot CLIP"
    paper = "Radford et al., ICML 2021"
    Config = TemplateConfig  # type: ignore[assignment]
    config: TemplateConfig
    shared = ()
    trains = False

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Template:
        """The text features of the templates, for a class list."""
        return Template(clip, classnames, *self.config.texts(template))
