"""The dual encoder: image and text features in one joint space, and the logits between them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm.clip import templates
from fedvlm.clip.config import ClipConfig, ViT, facts
from fedvlm.clip.packed import Packed
from fedvlm.clip.preprocess import Preprocess
from fedvlm.clip.resnet import ModifiedResNet
from fedvlm.clip.text import TextEncoder
from fedvlm.clip.tokenizer import Tokenizer
from fedvlm.clip.transformer import FEATURE
from fedvlm.clip.vision import VisionTransformer
from fedvlm.errors import FedvlmError


class CLIP(nn.Module):
    """Image encoder, text encoder and logit scale, in plain PyTorch: a dual encoder with this face.

        visual.hidden(pixels, entry) -> visual.feature(hidden, entry, insertions)     images, in two halves at an entry
        text.pack(ids, end) -> text.hidden(embeddings, packed, entry) -> text.feature(hidden, packed, entry, insertions)
        similarity(image, text)                                                       normalised features to logits

    What differs between families (class token, pooling, causality, biases) is in the configuration and behind these;
    a tuner calls the encoders with its insertions and asks for none of it. There are no hooks.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual: VisionTransformer | ModifiedResNet = (
            VisionTransformer(config.vision, config.embed)
            if isinstance(config.vision, ViT)
            else ModifiedResNet(config.vision, config.embed)
        )
        self.text = TextEncoder(config.text, config.embed)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels `[B, 3, S, S]` to features `[B, E]`, not normalised."""
        return self.visual.hidden(pixels, FEATURE)

    def encode_text(self, ids: Tensor, end: Tensor) -> Tensor:
        """Token ids `[K, L]` with the positions `[K]` of their last tokens to features `[K, E]`, not normalised."""
        return self.text.encode(self.text.pack(ids, end))

    def logits(self, image: Tensor, text: Tensor) -> Tensor:
        """exp(logit_scale) cos(image, text): features `[B, E]` and `[K, E]` to `[B, K]`."""
        return self.similarity(F.normalize(image, dim=-1), F.normalize(text, dim=-1))

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """exp(logit_scale) times products of normalised features `[..., B, E]` and `[..., K, E]`: `[..., B, K]`.

        In float32 whatever the encoders were computed in: see `in_float32`. The bias of a model trained with sigmoids
        is one number for all classes, which neither a softmax nor the largest logit depends on, and is left out.
        """
        with in_float32(image):
            return self.logit_scale.exp() * image.float() @ text.float().mT

    def scaled(self, cosines: Tensor) -> Tensor:
        """Logits from cosines, or from what replaces them, such as a mean of cosines: times exp(logit_scale)."""
        return self.logit_scale.exp() * cosines


def in_float32(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context without autocast on the tensor's device, for the last products before the softmax.

    They are multiplied by exp(logit_scale), up to 100. In bfloat16 logits of 16..32 stand on a grid of 0.125: classes
    tie, and one minus the probability of a confident answer, which is its gradient, is rounded away.
    """
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


class FrozenCLIP(CLIP):
    """A CLIP as loaded: evaluation mode, no gradients, with its tokenizer and preprocessing.

    `weights` is the SHA-256 of the weight files. It does not know a model: the same weights under another activation,
    number of heads or transform are another function. `digest` does.
    """

    def __init__(
        self, config: ClipConfig, tokenizer: Tokenizer, preprocess: Preprocess, name: str, weights: str
    ) -> None:
        # On the meta device nothing is drawn: weights come from a file or from `initialise`, never from a global state.
        with torch.device("meta"):
            super().__init__(config)
        # `to_empty` would import torch's compiler for this, which takes a second of every start.
        for module in self.modules():
            for key, one in module.named_parameters(recurse=False):
                setattr(module, key, nn.Parameter(torch.empty(one.shape, dtype=one.dtype, device="cpu")))
            for key, buffer in module.named_buffers(recurse=False):
                setattr(module, key, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.name = name
        self.weights = weights
        self.eval().requires_grad_(False)

    @property
    def digest(self) -> str:
        """SHA-256 of all that its outputs depend on: weights, configuration, tokenizer and transform."""
        parts = [self.weights, facts(self.config), self.tokenizer.identity, self.preprocess.identity]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def texts(self, classnames: Sequence[str], template: str, before: int = 0, after: int = 0) -> Packed:
        """The texts of class names in a template (`clip.templates`), `_` as space, ready for the text encoder.

        All texts of classes come from here. Learned tokens, which have the ids -1, -2, ..., may stand among the words:
        `before` of them in front, then `after` of them behind the class name, with which the template then begins.
        Raises `FedvlmError` for a bad template, for a text without room, and where two classes have the same tokens: no
        classifier could tell them apart.
        """
        words = templates.template(template)
        if after and not words.startswith("{}"):
            raise FedvlmError(f"learned tokens after the class name need a template that begins with it, not '{words}'")
        names = [name.replace("_", " ") for name in classnames]
        texts = [words.format(name) for name in names]
        rows = [self.tokenizer.words(text) for text in texts]
        first: dict[tuple[int, ...], str] = {}
        for name, row in zip(classnames, rows, strict=True):
            if (other := first.get(tuple(row))) is not None:
                raise FedvlmError(
                    f"classes '{other}' and '{name}' have the same tokens in the template '{words}', so no text tells "
                    "them apart: rename one, or put their images into one class"
                )
            first[tuple(row)] = name
        learned = [-1 - token for token in range(before + after)]
        spans = [len(self.tokenizer.words(name)) if after else 0 for name in names]
        rows = [[*learned[:before], *row[:span], *learned[before:], *row[span:]]
                for row, span in zip(rows, spans, strict=True)]  # fmt: skip
        ids, end = self.tokenizer.rows(rows, texts)
        return self.text.pack(ids.to(self.device), end)

    @torch.no_grad()
    def classifier(self, classnames: Sequence[str], template: str = "a photo of a {}.") -> Tensor:
        """Zero-shot text features `[K, E]` of the class names in order, not normalised."""
        return self.text.encode(self.texts(classnames, template))


def initialise(clip: CLIP, generator: torch.Generator) -> None:
    """Draw every weight from one generator, with the scales of CLIP's text encoder for both transformers."""
    _reset(clip)
    for name, parameter in clip.named_parameters():
        if name == "logit_scale":
            parameter.data.fill_(math.log(1 / 0.07))
        elif parameter.ndim < 2 and not name.endswith(("class_embedding", "probe")):
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.data.normal_(0.0, _std(clip, name, parameter), generator=generator)


def _reset(clip: CLIP) -> None:
    """Running statistics of batch norm: mean 0, variance 1."""
    for name, buffer in clip.named_buffers():
        buffer.fill_(1 if name.endswith("running_var") else 0)


def _std(clip: CLIP, name: str, parameter: Tensor) -> float:
    in_text = name.startswith("text.")
    if in_text and "embedding" in name:
        return 0.02 if "token" in name else 0.01
    if "transformer" not in name:
        fan_in = (
            parameter.shape[0] if "embedding" in name or name.endswith(("proj", "projection")) else parameter[0].numel()
        )
        width = parameter.shape[-1] if "embedding" in name else fan_in
        return float(width**-0.5)
    tower = clip.config.text.tower if in_text else clip.config.vision.tower  # type: ignore[union-attr]
    if "c_fc" in name:
        return float((2 * tower.width) ** -0.5)
    if "in_proj" in name:
        return float(tower.width**-0.5)
    return float(tower.width**-0.5 * (2 * tower.layers) ** -0.5)
