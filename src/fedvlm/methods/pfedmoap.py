"""pFedMoAP (Luo et al., ICLR 2025, arXiv 2410.10114): other clients' prompts as frozen experts behind a private gate.

    P_i <- P_g                                          every visit starts from the averaged prompt
    Q_i <- K other clients' prompts from the pool       nearest to i's own last prompt (Euclidean), or random, or fixed
    logit_c = s <pool(I), gate(pool(I), experts_c)> + lambda s <I, T_c>       (eq. 10; experts_c includes i's own)
    pool[i] <- P_i at the end of the round;  P_g <- sum_i (n_i / n) P_i

A client not yet in the pool trains its prompt alone, s <I, T_c>, and its gate stays as initialised. Measured between
its first and second visit it has experts already, mixed by that untrained gate, as in the paper's algorithm.

| tensor | shape | pfedmoap | bytes |
|---|---|---|---|
| `prompt` | `[16, 512]` | shared | 32,768 |
| `gating.{q,k,v,o}.weight` | `[128, 128]` each | private | 262,144 |
| `gating.{q,k,v,o}.bias` | `[128]` each | private | 2,048 |

Up: 32,768 bytes. Down: (1 + K) times that. **The server and the clients it is dealt to see each client's prompt.** The
gate never leaves. Inference uses the client's own last prompt, so accuracy is reported after local training.

Variants of the paper's table 7: `share = ["*"]` averages the gate too (it then leaves the client, but joins no pool);
`gate = "linear"` is our reading of one sentence, see `tuners.gate`: its tensors are `gating.linear.weight` `[10, 128]`
and `.bias` `[10]`, one row for each place among the experts (own first, the others in the order of their names).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.clip import Entry, FrozenCLIP, in_float32
from fedvlm.methods import base
from fedvlm.methods.promptfl import PromptConfig
from fedvlm.tensors import Named
from fedvlm.tuners import gate
from fedvlm.tuners.base import SupportSet
from fedvlm.tuners.gate import Pooling
from fedvlm.tuners.prompt import Prompt

POOL, EXPERT = "pool.", "experts."


class MixtureConfig(PromptConfig):
    """The paper's: 10 experts, gate of width 128 with 8 heads and rate 0.01, lambda 0.5."""

    gate_lr: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    experts: Annotated[int, Field(ge=1)] = 10
    """Experts M, the client's own included: K = M - 1 are downloaded (fewer where the pool is smaller)."""
    select: Literal["nearest", "random", "fixed", "none"] = "nearest"
    """Which experts: the nearest, drawn anew each round, the first K other clients by name, or none (gate alone)."""
    gate: Literal["attention", "linear"] = "attention"
    """What mixes the experts: the method's attention layer, or a linear layer from the image to experts' weights."""
    gate_width: Annotated[int, Field(ge=1)] = 128
    pooling: Pooling = "stride"
    """How features are brought to the gate's width: every n-th channel, as released, or means of blocks."""
    heads: Annotated[int, Field(ge=1)] = 8
    """Attention heads (the linear gate has none)."""
    scaling: Annotated[float, Field(gt=0)] = 10.0
    """Factor on attention scores instead of 1/sqrt(channels of a head), as released."""
    local_weight: Annotated[float, Field(ge=0)] = 0.5
    """Lambda: weight of the client's own plain logits."""

    @property
    def alone(self) -> bool:
        """No experts by choice: the gate works on the client's own text features from the first round on."""
        return self.select == "none" or self.experts == 1

    @model_validator(mode="after")
    def _fits(self) -> MixtureConfig:
        if self.gate == "attention" and self.gate_width % self.heads:
            raise ValueError(f"gate_width {self.gate_width} is not a multiple of heads {self.heads}")
        if self.share is not None and not self.alone and not tensors.matches("prompt", self.share):
            raise ValueError("share must name 'prompt': experts are other clients' prompts (or set select = \"none\")")
        return self

    def start(self, generator: torch.Generator) -> Named:
        """The gate's tensors, `gating.*`."""
        if self.gate == "attention":
            return gate.init(self.gate_width, generator)
        return gate.init_linear(self.gate_width, 1 if self.alone else self.experts, generator)


class PromptMixture:
    """The tuner: a prompt, and a gate over its text features and those of the received prompts."""

    def __init__(self, clip: FrozenCLIP, classnames: Sequence[str], config: MixtureConfig, suffix: str = "{}.") -> None:
        self.clip, self.config = clip, config
        self.prompt = Prompt(clip, classnames, config.tokens, config.init_text, suffix, config.class_position)
        self.stride = gate.stride(clip.config.embed, config.gate_width)
        self.encoded: dict[str, Tensor] = {}

    @property
    def entry(self) -> Entry:
        """The finished feature."""
        return self.prompt.entry

    def init(self, generator: torch.Generator) -> Named:
        """`prompt` and `gating.*`."""
        return self.prompt.init(generator) | self.config.start(generator)

    @torch.no_grad()
    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """`experts [K, M-1, R]`: pooled text features of the received prompts, once per visit and without autocast."""
        prompts = tensors.select(received, [f"{EXPERT}*"])
        if not prompts and not self.config.alone:
            return {}
        empty = self.prompt.fixed.new_empty(len(self.prompt.texts.end), 0, self.config.gate_width)
        return {"experts": torch.cat([empty, *(self._expert(prompt)[:, None] for prompt in prompts.values())], dim=1)}

    def _expert(self, prompt: Tensor) -> Tensor:
        """Pooled features `[K, R]`, remembered by the prompt's bytes: clients of a round receive the same prompts."""
        key = tensors.digest({"prompt": prompt})
        if key not in self.encoded:
            while len(self.encoded) >= 256:
                self.encoded.pop(next(iter(self.encoded)))
            with torch.autocast(prompt.device.type, enabled=False):
                self.encoded[key] = self._pool(self.prompt.features(prompt)).contiguous()
        return self.encoded[key]

    def _pool(self, features: Tensor) -> Tensor:
        return gate.pool(features, self.stride, self.config.pooling)

    def classifier(self, trained: Named, constants: Named) -> Named:
        """`text [K, E]`; with experts also the gate's `keys` and `values [K, M, H, R/H]`, the local expert first.

        The linear gate reads the `experts [K, M, R]` themselves.
        """
        text = self.prompt.features(trained["prompt"])
        if "experts" not in constants:
            return {"text": text}
        experts = torch.cat([self._pool(text)[..., None, :], constants["experts"]], dim=-2)
        if self.config.gate == "linear":
            return {"text": text, "experts": experts}
        keys, values = gate.keys_values(trained, experts, self.config.heads)
        return {"text": text, "keys": keys, "values": values}

    def logits(self, trained: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`: equation 10, or plain CLIP logits without experts."""
        own = self.prompt.logits(trained, classifier, hidden)
        if classifier.keys() == {"text"}:
            return own
        with in_float32(hidden):
            mixed = self._mixed(trained, classifier, self._pool(F.normalize(hidden, dim=-1)))
            return self.clip.scaled(mixed) + self.config.local_weight * own

    def weights(self, trained: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """The gate's weights of the experts, the own one first, for image features `[B, E]`: `[B, M]`, sums of 1.

        Means over classes and heads; without experts the own prompt has all the weight.
        """
        if classifier.keys() == {"text"}:
            return hidden.new_ones(len(hidden), 1)
        with in_float32(hidden):
            pooled = self._pool(F.normalize(hidden, dim=-1))
            if self.config.gate == "linear":
                return gate.linear_weights(trained, pooled, classifier["experts"].shape[-2])
            return gate.attention(trained, pooled, classifier["keys"].float(), self.config.scaling).mean((1, 2))

    def _mixed(self, trained: Named, classifier: Named, pooled: Tensor) -> Tensor:
        """The gate's logits for pooled images `[B, R]`, `[B, K]`, before the logit scale."""
        if self.config.gate == "linear":
            return gate.linear_logits(trained, pooled, classifier["experts"].float())
        keys, values = classifier["keys"].float(), classifier["values"].float()
        return gate.mixture_logits(trained, pooled, keys, values, self.config.scaling)


class PFedMoAP(base.Method):
    """A mixture of prompts: other clients' as frozen experts, mixed by a private gate.

    The server's state: the averaged `prompt` and `pool.CLIENT`, every client's last prompt."""

    name = "pfedmoap"
    title = "pFedMoAP"
    paper = "arXiv 2410.10114"
    Config = MixtureConfig
    config: MixtureConfig
    shared = ("prompt",)
    rates = {"gating.*": "gate_lr", "*": "lr"}  # noqa: RUF012
    state = "after_training"

    def tuner(self, clip: FrozenCLIP, classnames: Sequence[str], template: str) -> PromptMixture:
        """A prompt with its gate over experts, for a class list."""
        return PromptMixture(clip, classnames, self.config)

    def downlink(self, server: Named, client: str, draw: np.random.Generator) -> Named:
        """What is averaged and, if this client is in the pool, the chosen prompts, numbered: no names of others."""
        chosen = [server[f"{POOL}{other}"] for other in self.experts(server, client, draw)]
        averaged = {name: tensor for name, tensor in server.items() if not name.startswith(POOL)}
        return averaged | {f"{EXPERT}{i:04d}": prompt for i, prompt in enumerate(chosen)}

    def downlink_bytes(self, shared_bytes: int, clients: int) -> tuple[int, int]:
        """The averaged prompt in the first round, and one prompt for every expert later."""
        experts = 0 if self.config.alone else min(self.config.experts, clients) - 1
        prompt = shared_bytes - tensors.nbytes(tensors.select(self.config.start(torch.Generator()), self.shared))
        return shared_bytes, shared_bytes + prompt * experts

    @property
    def exposes(self) -> str:
        """Whole prompts of single clients, where there are experts."""
        whole = "whole prompts of single clients, unnamed but in the order of names"
        return base.MEAN if self.config.alone else f"{base.MEAN}, and {whole}"

    def experts(self, server: Named, client: str, draw: np.random.Generator) -> list[str]:
        """Names of the experts for a client, from the pool as it was before this round."""
        own = server.get(f"{POOL}{client}")
        others = sorted(name[len(POOL) :] for name in server if name.startswith(POOL) and name != f"{POOL}{client}")
        count = min(self.config.experts - 1, len(others))
        if own is None or self.config.alone:
            return []
        if self.config.select == "nearest":
            others.sort(key=lambda other: float((server[f"{POOL}{other}"] - own).double().norm()))
        elif self.config.select == "random":
            return sorted(draw.choice(others, count, replace=False).tolist()) if count else []
        return sorted(others[:count])

    def aggregate(self, server: Named, uplinks: Sequence[base.Uplink]) -> Named:
        """The weighted means; the pool takes this round's prompts, and nothing else of what was sent."""
        sent = {up.client: up.tensors["prompt"] for up in uplinks if up.weight and "prompt" in up.tensors}
        if self.config.alone:
            sent = {}  # nobody will ask for them
        pool = {f"{POOL}{client}": prompt.clone() for client, prompt in sent.items()}
        return super().aggregate(server, uplinks) | pool
