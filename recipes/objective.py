"""What pre-training minimises: CLIP's contrastive loss, and how badly attributes are read from image features."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import captions
import numpy as np
import torch
from conditions import NAMES, Flags
from pool import Numbers, Pool
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm import clip
from fedvlm.clip.config import ClipConfig, ViT
from fedvlm.data.scenes import COLOURS, FILLS, SHAPES
from fedvlm.tensors import Named

SIZES = (len(SHAPES), len(FILLS), len(COLOURS), len(NAMES))
"""Outputs on an image's feature: three classifications, and one yes or no for each condition."""


PARTS = 4
"""Parts of a batch, long captions apart from short ones, which are filled up to the longest of their part."""
THREADS = 2
OUTLINE = 10
"""Weight of the outlines beside the attributes."""


class Heads(nn.Module):
    """What reads attributes from the image encoder in training, and is thrown away with it.

    Captions alone tell the encoder slowly where to look. The attributes are read from the feature, and from every patch
    which of its pixels lie inside the object's outline.
    """

    def __init__(self, shape: ClipConfig) -> None:
        super().__init__()
        assert isinstance(shape.vision, ViT)
        width = shape.vision.tower.width
        self.attributes = nn.Linear(shape.embed, sum(SIZES))
        self.norm = nn.LayerNorm(width)
        self.outline = nn.Linear(width, shape.vision.patch**2)
        for layer in (self.attributes, self.outline):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def named(model: clip.FrozenCLIP, heads: Heads) -> Named:
    """All that is trained."""
    return {**dict(model.named_parameters()), **{f"heads.{name}": value for name, value in heads.named_parameters()}}


@dataclass(frozen=True)
class Part:
    """Forward results of a part of a batch."""

    images: Tensor
    texts: Tensor
    reading: Tensor
    """The loss of the heads."""


def step(model: clip.FrozenCLIP, heads: Heads, images: Pool, captioned: captions.Captioned, weight: float) -> float:
    """Put the gradients of the contrastive loss, and of `weight` times that of the heads, into `.grad`; the loss.

    The batch is cut into parts that run beside each other, which is faster than two threads inside every operation, and
    gives the same gradients on any number of processors. Every image meets the captions of all parts.
    """
    trained = list(named(model, heads).values())
    lengths = np.array([len(text.split()) for text in captioned.texts])
    rows = np.array_split(np.argsort(-lengths, kind="stable"), PARTS)
    order = np.argsort(np.concatenate(rows))
    with ThreadPoolExecutor(THREADS) as threads:
        parts = list(threads.map(lambda each: forward(model, heads, images.rows(each), captioned.rows(each)), rows))
        seen = torch.cat([part.images for part in parts])[order].detach().requires_grad_()
        read = torch.cat([part.texts for part in parts])[order].detach().requires_grad_()
        loss = contrastive(model.logits(seen, read), fits(images, captioned))
        loss.backward()  # type: ignore[no-untyped-call]

        def backward(part: Part, each: Numbers) -> tuple[Tensor | None, ...]:
            assert seen.grad is not None
            assert read.grad is not None
            given = [seen.grad[each], read.grad[each], torch.tensor(weight / PARTS)]
            outputs = [part.images, part.texts, part.reading]
            return torch.autograd.grad(outputs, trained, given, allow_unused=True)

        for gradients in threads.map(backward, parts, rows):
            for parameter, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return loss.item() + weight * sum(part.reading.item() for part in parts) / PARTS


def forward(model: clip.FrozenCLIP, heads: Heads, images: Pool, captioned: captions.Captioned) -> Part:
    """Features of images and captions, and the loss of the heads."""
    pixels = model.preprocess.normalise(torch.from_numpy(images.pixels).permute(0, 3, 1, 2))
    vision = model.visual
    hidden = vision.hidden(pixels, vision.depth)
    features = vision.feature(hidden, vision.depth)
    seen = reading(heads.attributes(features), images)
    seen = seen + OUTLINE * outlining(heads.outline(heads.norm(hidden[:, 1:])), images)
    return Part(features, model.encode_text(*encode(model, captioned.texts)), seen)


def contrastive(logits: Tensor, true: Flags) -> Tensor:
    """CLIP's symmetric loss where an image is positive for every caption of the batch that is true of it.

    The targets are uniform over the positives, as in UniCL (Yang et al. 2022): captions that leave attributes out
    fit several images, and calling those negatives would teach the wrong thing.
    """
    target = torch.from_numpy(true).float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_caption = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (by_image + by_caption) / 2


def fits(images: Pool, captioned: captions.Captioned) -> Flags:
    """Which captions (columns) are true of which images (rows) in all they say, `[B, B]`."""
    result = images.shape[:, None] == captioned.shape[None]
    for own, said in ((images.fill, captioned.fill), (images.colour, captioned.colour)):
        result &= (said[None] < 0) | (own[:, None] == said[None])
    missing = captioned.conditions[None] & ~images.conditions[:, None]
    return np.asarray(result & ~missing.any(axis=-1))


def reading(outputs: Tensor, images: Pool) -> Tensor:
    """Cross-entropies of shape, fill, colour (where it shows) and conditions, summed; conditions count threefold."""
    shape, fill, colour, seen = outputs.split(SIZES, dim=1)
    total = F.cross_entropy(shape, torch.from_numpy(images.shape)) + F.cross_entropy(
        fill, torch.from_numpy(images.fill)
    )
    shown = torch.from_numpy(np.flatnonzero(images.colour >= 0))
    if len(shown):
        total = total + F.cross_entropy(colour[shown], torch.from_numpy(images.colour)[shown])
    return total + 3 * F.binary_cross_entropy_with_logits(seen, torch.from_numpy(images.conditions).float())


def outlining(outputs: Tensor, images: Pool) -> Tensor:
    """Cross-entropy of every pixel, inside the outline or not; outputs `[B, P, patch * patch]`."""
    side = int(outputs.shape[2] ** 0.5)
    inside = torch.from_numpy(images.inside()).float()
    return F.binary_cross_entropy_with_logits(outputs, F.unfold(inside[:, None], side, stride=side).mT)


def encode(model: clip.FrozenCLIP, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids `[B, L]` and end positions `[B]`; captions too long for the context lose their first words."""
    words, inside = model.tokenizer, captions.CONTEXT - 2
    rows = [encoding.ids[-inside:] for encoding in words.inner.encode_batch(texts, add_special_tokens=False)]
    length = max(len(row) for row in rows)
    ids = [[words.sot, *row, *[words.eot] * (length + 1 - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor([len(row) + 1 for row in rows])
