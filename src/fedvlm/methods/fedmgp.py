"""FedMGP (Bo et al., NeurIPS 2025, arXiv 2511.00480): several pairs of a text and an image prompt, of which a client
sends some.

    z_j = s cos(f(x; V_j), g(T_j "of a class."))           group j = 1..G;  prediction: the mean of z_j
    loss = mean_j CE(z_j) + diversity mean_{j < k} (cos(t_j, t_k) + cos(f_j, f_k)) / 2       over classes and images
    sent: S groups drawn without replacement with p_j ~ exp(max_i cos(group_j, global_i)), at first at random
    global_i <- sum_c (n_c / n) sent_i,c;  at its next visit a client's i-th drawn group becomes global_i

T_j, V_j stand for both prompts of a group, flattened in the similarity. The released code draws text and image groups
apart, which tears pairs, its diversity term pulls groups together, and it weights clients equally.

| tensor (b = 0..4) | shape | fedmgp |
|---|---|---|
| `text.b` | `[2, 512]` | shared when drawn, 4,096 bytes |
| `vision.b` | `[2, 768]` | shared when drawn, 6,144 bytes |

What leaves a client: two groups a round, 20,480 bytes, not which ones, and its number of images. In time any group may
leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FrozenCLIP, templates
from fedvlm.config import Count
from fedvlm.methods import base
from fedvlm.methods.base import Rate, Step
from fedvlm.tensors import Named
from fedvlm.tuners.deep_prompt import DeepPrompt

KINDS = ("text", "vision")
GLOBAL, CHOSEN = "global.", "chosen"


class GroupsConfig(base.Config):
    """The paper's: five groups of two tokens, two sent, rate 0.001, 2 epochs, batch 8."""

    lr: Rate = 0.001
    epochs: Count = 2
    batch: Count = 8
    groups: Count = 5
    sent: Count = 2
    length: Count = 2
    """Tokens T of each prompt."""
    start: str | None = "a photo"
    """Start text prompts near these words (exactly T tokens) instead of at N(0, 0.02^2)."""
    suffix: templates.Template = "of a {}."
    """What follows the prompt, with `{}` for the class name."""
    noise: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of what sets the groups' text prompts apart at the start."""
    diversity: Annotated[float, Field(ge=0)] = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the softmax from which the sent groups are drawn."""

    @model_validator(mode="after")
    def _fits(self) -> GroupsConfig:
        if self.sent > self.groups:
            raise ValueError(f"sent {self.sent} is more than groups {self.groups}")
        return self


class PromptGroups(DeepPrompt):
    """G pairs of a text and an image prompt, encoded in one pass."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: GroupsConfig) -> None:
        super().__init__(clip, classnames, config.length, config.start, config.suffix)
        self.config = config

    def init(self, generator: torch.Generator) -> Named:
        """`text.j [T, D]` around the words, `vision.j [T, D]` from N(0, 0.02^2)."""
        result = Named()
        for j in range(self.config.groups):
            prompt, width = super().init(generator)["prompt"], self.visual.width
            result[f"text.{j}"] = prompt + self.config.noise * torch.empty_like(prompt).normal_(generator=generator)
            result[f"vision.{j}"] = torch.empty(self.tokens, width).normal_(0, 0.02, generator=generator)
        return result

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """`text [G, K, E]` and the image's prompts `vision [G, T, D]`."""
        text, vision = (torch.stack([tensors[f"{kind}.{j}"] for j in range(self.config.groups)], dim=-3)
                        for kind in KINDS)  # fmt: skip
        return {"text": self.features(text), "vision": vision}

    def images(self, classifier: Named, hidden: Tensor) -> Tensor:
        """Normalised features `[G, B, E]` of tokens `[B, L, D]` under every group's prompts."""
        vision = classifier["vision"]
        wide = hidden.unsqueeze(-4).expand(*vision.shape[:-2], *hidden.shape[-3:])
        return self.image(wide, [vision])

    def logits(  # type: ignore[override]
        self, tensors: Named, classifier: Named, hidden: Tensor
    ) -> tuple[Tensor, Named]:
        """Tokens at block 1, `[B, L, D]`, to `[B, G, K]`, and the image features `images [G, B, E]`."""
        image = self.images(classifier, hidden)
        return self.clip.similarity(image, classifier["text"]).transpose(-3, -2), {"images": image}


class FedMGP(base.Method):
    """Several prompt pairs for each client, of which it sends some.

    The server's state: S global groups, `global.text.i` and `global.vision.i`, from the first round on.
    """

    name = "fedmgp"
    title = "FedMGP"
    paper = "arXiv 2511.00480"
    Config = GroupsConfig
    config: GroupsConfig
    shareable = False

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> PromptGroups:
        """All G prompt pairs, for a class list."""
        return PromptGroups(clip, classnames, self.config)

    def loss(self, step: Step) -> Tensor:
        """Mean cross-entropy of the groups, and how alike they are."""
        labels = step.labels.repeat_interleave(self.config.groups)
        alike = (_alike(step.classifier["text"].float()) + _alike(step.extras["images"].float())) / 2
        return F.cross_entropy(step.logits.flatten(0, 1), labels) + self.config.diversity * alike

    def server(self, initial: Named) -> Named:
        """An empty state: no group is global before the first round."""
        return {}

    def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
        """All global groups, the same for every client."""
        return dict(server)

    @property
    def exposes(self) -> str:
        """Means: the server averages groups over clients."""
        return base.MEAN

    def downlink_bytes(self, shared_bytes: int, clients: int) -> tuple[int, int]:
        """No byte in the first round, then the global groups."""
        return 0, shared_bytes

    def assemble(self, personal: Named, received: Named) -> Named:
        """The client's groups, with the global ones in the place of those that it sent last."""
        result = {name: tensor for name, tensor in personal.items() if name != CHOSEN}
        for i, slot in enumerate(_slots(personal) if CHOSEN in personal and received else []):
            result |= {f"{kind}.{slot}": received[f"{GLOBAL}{kind}.{i}"] for kind in KINDS}
        return result

    def keep(self, trained: Named, received: Named, draw: np.random.Generator) -> Named:
        """The numbers of the groups that are sent, `chosen [S]`."""
        logits = np.zeros(self.config.groups)
        if received:
            common = [_flat(received, GLOBAL, i) for i in range(self.config.sent)]
            own = [_flat(trained, "", j) for j in range(self.config.groups)]
            logits = np.array([max(float(a @ b) for b in common) for a in own])
        # The largest of Gumbel variables around logarithms: such a draw, in its order, even where exp underflows.
        noisy = logits / self.config.temperature + draw.gumbel(size=self.config.groups)
        return {CHOSEN: torch.from_numpy(np.argsort(-noisy)[: self.config.sent])}

    def uplink(self, personal: Named, received: Named) -> Named:
        """The drawn groups, numbered in the order they were drawn."""
        return {f"{GLOBAL}{kind}.{i}": personal[f"{kind}.{slot}"]
                for i, slot in enumerate(_slots(personal)) for kind in KINDS}  # fmt: skip


def _slots(personal: Named) -> list[int]:
    return [int(slot) for slot in personal[CHOSEN].numpy()]


def _flat(named: Named, prefix: str, group: int) -> NDArray[np.float64]:
    """Both prompts of a group as one vector of length 1."""
    parts = [named[f"{prefix}{kind}.{group}"].cpu().numpy().ravel() for kind in KINDS]
    vector = np.concatenate(parts).astype(np.float64)
    unit: NDArray[np.float64] = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return unit


def _alike(features: Tensor) -> Tensor:
    """Mean cosine of all pairs of groups, of normalised `[G, N, E]`; 0 for one group."""
    pairs = [(features[j] * features[k]).sum(-1).mean() for j, k in combinations(range(len(features)), 2)]
    return torch.stack(pairs).mean() if pairs else features.new_zeros(())
