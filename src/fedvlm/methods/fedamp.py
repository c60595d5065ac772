"""FedAMP (Huang et al., AAAI 2021) on prompts: the server draws clients with similar prompts together.

    u_i = sum_j xi_ij P_j,  xi_ij = a A'(|P_i - P_j|^2) for j != i,  xi_ii = 1 - sum_{j != i} xi_ij
    A'(x) = exp(-x / sigma) / sigma                        sigma: the mean squared distance of two clients' prompts
    P_i <- argmin CE(P) + (decay / 2) |P - u_i|^2          from the client's own prompt

The paper's step size a must keep xi_ii from turning negative; here it is `attraction` sigma / (N - 1), so that
0 <= xi_ii whatever the distances, and lambda / a is one setting, `decay`. A client the server has not heard of gets the
mean prompt. In the released code of this family the term has no gradient (see `promptfl_prox`).

| tensor | shape | fedamp |
|---|---|---|
| `prompt` | `[16, 512]` | shared, 32,768 bytes |

What leaves a client: its prompt, its number of images. What it gets is a mixture of the clients' prompts: nobody but
the server sees another's, unless the pool holds two clients, each of which can work out the other's from its mixture.
Predictions are made with the client's own prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

import numpy as np
from pydantic import Field
from torch import Tensor

from fedvlm import tensors
from fedvlm.clip import FrozenCLIP
from fedvlm.methods import base
from fedvlm.methods.base import Step, Uplink
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners.prompt import Prompt

POOL, ANCHOR = "pool.", "anchor"


class AttentiveConfig(PromptConfig):
    """How strongly clients attract each other."""

    attraction: Annotated[float, Field(ge=0, le=1)] = 0.9
    """1: clients with equal prompts keep nothing of their own in the mixture."""
    decay: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance to the mixture (lambda over the server's step size)."""


class FedAMP(base.Method):
    """The server's state: the mean prompt, and every client's last prompt `pool.CLIENT`."""

    name = "fedamp"
    title = "Prompt + FedAMP"
    paper = "Huang et al., AAAI 2021"
    Config = AttentiveConfig
    config: AttentiveConfig
    shareable = False

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> Prompt:
        """A prompt before the class names."""
        return Prompt(
            clip, classnames, self.config.tokens, self.config.init_text, class_position=self.config.class_position
        )

    def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
        """This client's mixture of prompts, under a name of its own: it does not replace the client's prompt."""
        return {ANCHOR: self.mixture(server, client)}

    @property
    def exposes(self) -> str:
        """Mixtures; with two clients a mixture tells one the other's prompt."""
        return f"mixtures of all clients' tensors (of two clients: each other's); the first time {base.MEAN}"

    def mixture(self, server: Named, client: str) -> Tensor:
        """u_i from the pool as it was before this round."""
        pool = {name: prompt for name, prompt in sorted(server.items()) if name.startswith(POOL)}
        own = pool.pop(f"{POOL}{client}", None)
        if own is None or not pool:
            return server["prompt"] if own is None else own
        sigma = float(server["sigma"])
        far = [float((own - other).double().square().sum()) for other in pool.values()]
        weights = [self.config.attraction / len(pool) * math.exp(-distance / sigma) for distance in far]
        parts = [{ANCHOR: own}, *({ANCHOR: other} for other in pool.values())]
        return tensors.weighted_mean(parts, [1 - math.fsum(weights), *weights])[ANCHOR]

    def aggregate(self, server: Named, uplinks: Sequence[Uplink]) -> Named:
        """The pool takes this round's prompts; the mean serves those who come later."""
        after = super().aggregate(server, uplinks)
        after |= {f"{POOL}{up.client}": up.tensors["prompt"].clone() for up in uplinks if up.weight}
        pool = [after[name].double() for name in sorted(after) if name.startswith(POOL)]
        distances = [float((one - other).square().sum()) for one, other in combinations(pool, 2)]
        mean = math.fsum(distances) / len(distances) if distances else 0.0
        return after | {"sigma": after["prompt"].new_tensor(mean or 1.0)}

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and the distance to the mixture."""
        far = (step.trained["prompt"] - step.received[ANCHOR]).square().sum()
        return super().loss(step) + 0.5 * self.config.decay * far
