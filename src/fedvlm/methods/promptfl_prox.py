"""PromptFL with FedProx (Li et al., MLSys 2020): a client's prompt is held near the one it received.

    loss = CE + (mu / 2) |P - P_global|^2        with a gradient: mu (P - P_global)

In the released code of this family the term is made from detached tensors, so its gradient is zero; its published CIFAR
rows coincide with PromptFL's.

| tensor | shape | promptfl_prox |
|---|---|---|
| `prompt` | `[16, 512]` | shared, 32,768 bytes |

What leaves a client: its prompt, its number of images.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedvlm.methods.base import Step
from fedvlm.methods.promptfl import PromptConfig, PromptFL


class ProxConfig(PromptConfig):
    """The released code's mu."""

    mu: Annotated[float, Field(ge=0)] = 0.5


class PromptFLProx(PromptFL):
    """PromptFL with FedProx's term: the loss pulls the prompt to the received one."""

    name = "promptfl_prox"
    title = "PromptFL + FedProx"
    paper = "Li et al., MLSys 2020"
    Config = ProxConfig
    config: ProxConfig

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and the proximal term of every tensor that was received."""
        anchored = step.trained.keys() & step.received.keys()
        far = sum((step.trained[name] - step.received[name]).square().sum() for name in sorted(anchored))
        return super().loss(step) + 0.5 * self.config.mu * far
