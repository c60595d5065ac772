"""PromptFolio (Pan et al., NeurIPS 2024): a portfolio of one general and one own prompt.

    t_c = (1 - theta) g(P_general, c) + theta g(P_own, c), features normalised first, their sum not
    logits_c = s <f(x), t_c>                              P_general <- sum_i (n_i / n) P_general,i

| tensor | shape | promptfolio | bytes |
|---|---|---|---|
| `prompt.general` | `[16, 512]` | shared | 32,768 |
| `prompt.own` | `[16, 512]` | private | 32,768 |

What leaves a client: its general prompt, its number of images. With theta = 0 only the general prompt predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedvlm.clip import FrozenCLIP
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.prompt_pair import PromptPair


class PortfolioConfig(PromptConfig):
    """The released example's theta."""

    theta: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Weight of the own prompt."""


class Portfolio(PromptPair):
    """Two prompts whose text features are mixed."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: PortfolioConfig) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, class_position=config.class_position)
        self.theta = config.theta

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [K, E]`, not normalised after mixing."""
        general, own = self.both(tensors)
        return {"text": (1 - self.theta) * general + self.theta * own}


class PromptFolio(base.Method):
    """A general prompt, which the server averages, mixed with a private one."""

    name = "promptfolio"
    title = "PromptFolio"
    paper = "Pan et al., NeurIPS 2024"
    Config = PortfolioConfig
    config: PortfolioConfig
    shared = ("prompt.general",)

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Portfolio:
        """Both prompts, for a class list."""
        return Portfolio(clip, classnames, self.config)
