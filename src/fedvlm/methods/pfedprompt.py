"""pFedPrompt-style (after Guo et al., WWW 2023): one global prompt, and a private memory of the client's images.

    P <- sum_i (n_i / n) P_i, trained by CE on the text branch alone, as PromptFL
    logits_c = s cos(f(x), g(P, c)) + weight sum_{i of class c} exp(-sharpness (1 - cos(f(x), f(x_i))))

The paper's code is not public and its attention formula was not to be had: this is its idea (a prompt for what all have
in common, attention without parameters over the client's own features) in Tip-Adapter's form, not a reproduction. Over
class lists that are not the client's it is PromptFL.

| tensor | shape | pfedprompt |
|---|---|---|
| `prompt` | `[16, 512]` | shared, 32,768 bytes |

What leaves a client: its prompt, its number of images. The remembered features (made again from the images whenever
needed, never trained) do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.memory import recall, remember
from fedvlm.tuners.prompt import Prompt


class MemoryConfig(PromptConfig):
    """Tip-Adapter's weight and sharpness."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    sharpness: Annotated[float, Field(gt=0)] = 5.5


class PromptWithMemory(Prompt):
    """A prompt, and a memory where the client's own images are given."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: MemoryConfig) -> None:
        super().__init__(clip, classnames, config.tokens, config.init_text, class_position=config.class_position)
        self.config = config

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """Features and labels of the client's images, where they are given (`memory.remember`)."""
        return remember(support, len(self.texts.end))

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """Text features and memory."""
        return super().classifier(tensors, constants) | constants

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`."""
        own = recall(classifier, F.normalize(hidden, dim=-1), self.config.sharpness)
        return super().logits(tensors, classifier, hidden) + self.config.weight * own


class PFedPrompt(base.Method):
    """A global prompt, with a private memory of each client's images."""

    name = "pfedprompt"
    title = "pFedPrompt-style"
    paper = "after Guo et al., WWW 2023"
    Config = MemoryConfig
    config: MemoryConfig

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> PromptWithMemory:
        """The prompt, with room for a memory, for a class list."""
        return PromptWithMemory(clip, classnames, self.config)
