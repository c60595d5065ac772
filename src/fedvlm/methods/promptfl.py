"""PromptFL (Guo et al. 2023): federated averaging of one CoOp prompt (Zhou et al. 2022); and CoOp itself, local.

    P <- P - lr grad CE(softmax(s cos(f(x), g([SOT] P class "." [EOT]))), y)        P <- sum_i (n_i / n) P_i

PromptFL + FT: after the last round every client trains the final prompt once more for itself (Cheng et al. 2021).

| tensor | shape | promptfl | promptfl_ft | coop |
|---|---|---|---|---|
| `prompt` | `[16, 512]` | shared, 32,768 bytes | shared, 32,768 bytes | private |

The shapes are those of ViT-B/16 with 16 tokens; the loss runs over all base classes. What leaves a PromptFL client:
its prompt, its number of images. What leaves a CoOp client: nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedvlm.clip import FrozenCLIP
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.base import Rate
from fedvlm.tuners.prompt import ClassPosition, Prompt


class PromptConfig(base.Config):
    """pFedMoAP's comparison: 16 random tokens, 5 local epochs, rate 0.002, batch 16 (the number of shots)."""

    lr: Rate = 0.002
    epochs: Count = 5
    batch: Count = 16
    tokens: Count = 16
    """Prompt tokens T."""
    init_text: str | None = Field(default=None, serialization_alias="words")
    """Start the prompt at these words (exactly T tokens) instead of at N(0, 0.02^2)."""
    class_position: ClassPosition = Field(default="end", serialization_alias="place")
    """Where the class name stands: after the prompt, between its halves, or before it (CoOp's ablation)."""


class FineTuneConfig(PromptConfig):
    """One visit more: as many epochs as in a round."""

    fine_tune: Annotated[int, Field(ge=0)] = 1


class PromptFL(base.Method):
    """One prompt for all clients, which the server averages."""

    name = "promptfl"
    title = "PromptFL"
    paper = "Guo et al., IEEE TMC 2023"
    Config = PromptConfig
    config: PromptConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Prompt:
        """A prompt before the class names."""
        return Prompt(
            clip, classnames, self.config.tokens, self.config.init_text, class_position=self.config.class_position
        )


class PromptFLFT(PromptFL):
    """The global prompt, trained once more by every client for itself."""

    name = "promptfl_ft"
    title = "PromptFL + FT"
    paper = "Cheng et al. 2021"
    Config = FineTuneConfig


class CoOp(PromptFL):
    """Every client trains its own prompt; nothing is shared, so a run of R rounds is R x epochs of local training."""

    name = "coop"
    title = "CoOp (local)"
    paper = "Zhou et al., IJCV 2022"
    shared = ()
