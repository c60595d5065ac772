"""KgCoOp (Yao et al., CVPR 2023), federated: a prompt whose text features are held near those of a written template.

    loss = CE + weight (1 - mean_c cos(g(P class_c), g(template class_c)))        P <- sum_i (n_i / n) P_i

| tensor | shape | kgcoop |
|---|---|---|
| `prompt` | `[4, 512]` | shared, 8,192 bytes |

What leaves a client: its prompt, its number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, templates
from fedvlm.config import Count
from fedvlm.methods.base import Step
from fedvlm.methods.promptfl import PromptConfig, PromptFL
from fedvlm.tensors import Named
from fedvlm.tuners.prompt import Prompt
from fedvlm.tuners.template import Template


class KnowledgeConfig(PromptConfig):
    """The released code's: four tokens from "a photo of a", weight 8."""

    tokens: Count = 4
    init_text: str | None = Field(default="a photo of a", serialization_alias="words")
    weight: Annotated[float, Field(ge=0)] = 8.0
    anchor: templates.Template | None = None
    """The template to stay near, or the name of a CoOp data set for its own, as KgCoOp takes; `evaluation.template`
    where not given."""


class Anchored(Prompt):
    """A prompt, with the template's normalised text features as anchor."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: KnowledgeConfig, template: str) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, class_position=config.class_position)
        self.anchor = Template(clip, classnames, config.anchor or template).text

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text` under the prompt and `anchor` under the template, `[K, E]`."""
        made = super().classifier(tensors, constants)
        return made | {"anchor": self.anchor.expand_as(made["text"])}


class KgCoOp(PromptFL):
    """A global prompt whose text features are held near the template's."""

    name = "kgcoop"
    title = "KgCoOp (federated)"
    paper = "Yao et al., CVPR 2023"
    Config = KnowledgeConfig
    config: KnowledgeConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Anchored:
        """The prompt and its anchor, for a class list."""
        return Anchored(clip, classnames, self.config, template)

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and the distance to the template."""
        near = F.cosine_similarity(step.classifier["text"].float(), step.classifier["anchor"], dim=-1).mean()
        return super().loss(step) + self.config.weight * (1 - near)
