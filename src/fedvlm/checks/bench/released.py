"""The released procedure: the slow side of `fedvlm bench`, and a reference for the fast side.

Every training step and every test batch of every round decodes and transforms its images, and runs the whole image
encoder and all 77 text positions of every class; a client encodes each of its experts itself. Only the adapter branch
and the gate's tensors come from the tuners. Training and evaluation use the same loop as all other methods, so that
results are comparable number by number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm import tensors
from fedvlm.checks import verify
from fedvlm.clip import Entry, FrozenCLIP
from fedvlm.clip.transformer import Block, QuickGELU, Stack
from fedvlm.clip.vision import VisionTransformer
from fedvlm.errors import FedvlmError
from fedvlm.methods.base import Method
from fedvlm.methods.pfedmma import PFedMMA
from fedvlm.methods.pfedmoap import EXPERT, MixtureConfig, PFedMoAP
from fedvlm.methods.promptfl import CoOp, PromptConfig, PromptFL
from fedvlm.methods.zero_shot import ZeroShot
from fedvlm.tensors import Named
from fedvlm.training.activations import Activations
from fedvlm.tuners.adapter import branch
from fedvlm.tuners.base import SupportSet, Tuner

PIXELS = 0
"""The entry of a tuner that reads normalised pixels."""
Branches = dict[int, Callable[[Tensor], Tensor]]


class UncachedPixels(Activations):
    """Activations without a cache: normalised pixels `[B, 3, S, S]`, decoded and transformed on every request."""

    def _batch(self, pixels: Tensor, entry: Entry) -> Tensor:
        return self.clip.preprocess.normalise(pixels.to(self.device.device))


class ReleasedEncoders:
    """Both encoders in full: all tokens pass all blocks, and texts are padded to the whole context."""

    def __init__(self, clip: FrozenCLIP) -> None:
        self.clip = clip
        length = clip.text.shape.context
        self.mask = torch.full((length, length), float("-inf"), device=clip.device).triu(1)

    def image(self, pixels: Tensor, branches: Branches | None = None) -> Tensor:
        """Normalised features `[B, E]` of normalised pixels `[B, 3, S, S]`."""
        visual = self.clip.visual
        if not isinstance(visual, VisionTransformer):
            return F.normalize(self.clip.encode_image(pixels), dim=-1)
        patches = F.conv2d(pixels, visual.conv1.weight, stride=visual.shape.patch).flatten(2).transpose(1, 2)
        assert visual.class_embedding is not None, "the released code knows CLIP only"
        x = torch.cat([visual.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = _stack(visual.transformer, visual.ln_pre(x + visual.positional_embedding), None, branches or {})
        return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)

    def text(self, embeddings: Tensor, eot: Tensor, branches: Branches | None = None) -> Tensor:
        """Normalised features `[K, E]` of embeddings `[K, context, D]`, at the end positions `eot [K]`."""
        text = self.clip.text
        x = _stack(text.transformer, embeddings + text.positional_embedding, self.mask, branches or {})
        x = text.ln_final(x)
        return F.normalize(x[torch.arange(len(x)), eot] @ text.text_projection, dim=-1)

    def embed_texts(self, texts: Sequence[str], room: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings `[K, context - room, D]` and end positions of whole rows, padded as published."""
        ids, eot = self.clip.tokenizer(texts)
        full = torch.zeros(len(ids), self.clip.text.shape.context - room, dtype=torch.long)
        full[:, : ids.shape[1]] = ids
        return self.clip.text.token_embedding(full.to(self.clip.device)), eot.to(self.clip.device)

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines `[B, K]` of normalised features."""
        return self.clip.logit_scale.exp() * image @ text.T


def _stack(stack: Stack, x: Tensor, mask: Tensor | None, branches: Branches) -> Tensor:
    for number, block in enumerate(stack.resblocks, 1):
        assert isinstance(block, Block)
        h = block.ln_1(x)
        u = x + _attention(block, h, mask)
        x = u + block.mlp.c_proj(_gelu(block.mlp.act, block.mlp.c_fc(block.ln_2(u))))
        if number in branches:
            x = x + branches[number](h)
    return x


def _attention(block: Block, h: Tensor, mask: Tensor | None) -> Tensor:
    attn = block.attn
    packed = F.linear(h, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, attn.heads, -1))
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    out: Tensor = attn.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
    return out


def _gelu(act: nn.Module, x: Tensor) -> Tensor:
    """The published QuickGELU, as separate products."""
    out: Tensor = x * torch.sigmoid(1.702 * x) if isinstance(act, QuickGELU) else act(x)
    return out


class ReleasedTuner(ABC):
    """A tuner in the released way; only initial tensors come from the tuner `exact`."""

    entry = PIXELS

    def __init__(self, clip: FrozenCLIP, exact: Tuner) -> None:
        self.clip, self.exact, self.encoders = clip, exact, ReleasedEncoders(clip)

    def init(self, generator: torch.Generator) -> Named:
        """The initial tensors of the tuner."""
        return self.exact.init(generator)

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """No constants."""
        return {}

    def classifier(self, trained: Named, constants: Named) -> Named:
        """The constants: nothing is computed before the images, the text encoder runs for every batch."""
        return constants

    @abstractmethod
    def logits(self, trained: Named, classifier: Named, pixels: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised pixels `[B, 3, S, S]`."""


class ReleasedTemplate(ReleasedTuner):
    """Zero-shot: fixed texts, encoded once (as released)."""

    def __init__(self, clip: FrozenCLIP, exact: Tuner, names: Sequence[str], template: str) -> None:
        super().__init__(clip, exact)
        with torch.no_grad():
            self.fixed = self.encoders.text(
                *self.encoders.embed_texts([template.format(_with_spaces(name)) for name in names])
            )

    def logits(self, trained: Named, classifier: Named, pixels: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised pixels."""
        return self.encoders.logits(self.encoders.image(pixels), self.fixed)


class ReleasedPrompt(ReleasedTuner):
    """A prompt before the class name."""

    def __init__(
        self, clip: FrozenCLIP, exact: Tuner, names: Sequence[str], config: PromptConfig, suffix: str = "{}."
    ) -> None:
        super().__init__(clip, exact)
        if config.class_position != "end":
            raise FedvlmError("the released procedure is written out for prompts before the class name only")
        self.rows, eot = self.encoders.embed_texts(
            [suffix.format(_with_spaces(name)) for name in names], room=config.tokens
        )
        self.eot = eot + config.tokens

    def logits(self, trained: Named, classifier: Named, pixels: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised pixels."""
        return self.encoders.logits(self.encoders.image(pixels), self.text(trained["prompt"]))

    def text(self, prompt: Tensor) -> Tensor:
        """Normalised features `[K, E]` through all positions."""
        shared = prompt.expand(len(self.rows), -1, -1)
        return self.encoders.text(torch.cat([self.rows[:, :1], shared, self.rows[:, 1:]], dim=1), self.eot)


class ReleasedMixture(ReleasedPrompt):
    """Prompt, experts and gate."""

    def __init__(
        self, clip: FrozenCLIP, exact: Tuner, names: Sequence[str], config: MixtureConfig, suffix: str = "{}."
    ) -> None:
        super().__init__(clip, exact, names, config, suffix)
        self.config = config
        self.stride = clip.config.embed // config.gate_width

    @torch.no_grad()
    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """`experts [K, M-1, R]`: every client encodes every prompt that it received."""
        prompts = tensors.select(received, [f"{EXPERT}*"])
        if not prompts and not self.config.alone:
            return {}
        found = [self.text(prompt)[:, None, :: self.stride] for prompt in prompts.values()]
        empty = self.rows.new_empty(len(self.rows), 0, self.config.gate_width)
        return {"experts": torch.cat([empty, *found], dim=1)}

    def logits(self, trained: Named, classifier: Named, pixels: Tensor) -> Tensor:
        """Logits `[B, K]`: equation 10 of the paper, or plain logits without experts."""
        image, text = self.encoders.image(pixels), self.text(trained["prompt"])
        own = self.encoders.logits(image, text)
        if "experts" not in classifier:
            return own
        pooled = image[:, :: self.stride]
        experts = torch.cat([text[:, None, :: self.stride], classifier["experts"]], dim=1)
        mixed = self._gate(trained, pooled, experts)
        return self.clip.logit_scale.exp() * (pooled[:, None] * mixed).sum(-1) + self.config.local_weight * own

    def _gate(self, trained: Named, image: Tensor, experts: Tensor) -> Tensor:
        """Multi-head attention of every image over the experts of every class, `[B, K, R]`."""
        q, k, v = (F.linear(x, *_weight_and_bias(trained, f"gating.{part}")).unflatten(-1, (self.config.heads, -1))
                   for part, x in (("q", image), ("k", experts), ("v", experts)))  # fmt: skip
        weights = torch.softmax(torch.einsum("bhd,kmhd->bkhm", q, k) * self.config.scaling, dim=-1)
        mixed = torch.einsum("bkhm,kmhd->bkhd", weights, v).flatten(2)
        return F.linear(mixed, *_weight_and_bias(trained, "gating.o"))


class ReleasedAdapter(ReleasedTuner):
    """Multi-modal adapters; texts pass all blocks in every step too."""

    def __init__(self, clip: FrozenCLIP, exact: Tuner, names: Sequence[str], method: PFedMMA, template: str) -> None:
        super().__init__(clip, exact)
        self.config = method.config
        self.rows, self.eot = self.encoders.embed_texts([template.format(_with_spaces(name)) for name in names])

    def logits(self, trained: Named, classifier: Named, pixels: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised pixels."""
        image = self.encoders.image(pixels, self._branches(trained, "vision"))
        return self.encoders.logits(image, self.encoders.text(self.rows, self.eot, self._branches(trained, "text")))

    def _branches(self, trained: Named, tower: str) -> Branches:
        blocks = range(self.config.first_block, self.config.last_block + 1)
        return {
            block: partial(
                branch,
                down=_weight_and_bias(trained, f"{tower}.{block}.down"),
                scale=self.config.scale,
                shared=_weight_and_bias(trained, f"shared.{block}"),
                up=_weight_and_bias(trained, f"{tower}.{block}.up"),
            )
            for block in blocks
        }


def released_tuner(method: Method, clip: FrozenCLIP, names: Sequence[str], template: str) -> ReleasedTuner:
    """The released procedure of a method. Raises FedvlmError if it is not implemented."""
    exact = method.tuner(clip, names, template)
    if isinstance(method, PFedMoAP):
        return ReleasedMixture(clip, exact, names, method.config)
    if type(method) in (PromptFL, CoOp):
        return ReleasedPrompt(clip, exact, names, method.config)
    if isinstance(method, PFedMMA):
        return ReleasedAdapter(clip, exact, names, method, template)
    if type(method) is ZeroShot:
        return ReleasedTemplate(clip, exact, names, template)
    raise FedvlmError(f"the released procedure of '{method.name}' is not written out")


class ReleasedPath(verify.ExecutionPath):
    """The execution path of the released procedure."""

    def tuner(self, exact: Tuner, method: Method, clip: FrozenCLIP, names: Sequence[str], template: str) -> Tuner:
        """The released tuner; for a prompt, `template` is the text after the prompt."""
        if isinstance(method, PFedMoAP):
            return ReleasedMixture(clip, exact, names, method.config, template)
        return released_tuner(method, clip, names, template)

    def hidden(self, clip: FrozenCLIP, images: Tensor, entry: Entry) -> Tensor:
        """The pixels, unchanged."""
        return images


def _weight_and_bias(trained: Named, name: str) -> tuple[Tensor, Tensor]:
    return trained[f"{name}.weight"], trained[f"{name}.bias"]


def _with_spaces(name: str) -> str:
    return name.replace("_", " ")
