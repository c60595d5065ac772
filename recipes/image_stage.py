"""The first stage: the image encoder learns from sets of attributes, the same that captions will name in words.

A caption is read as the sum of one vector for each attribute it names. That is far cheaper than a text encoder, and
places image features where the second stage wants them. Attributes are read from the feature too, and from every patch
which of its pixels lie inside the object's outline, which shows the encoder early where to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import captions
import numpy as np
import objective
import torch
from captions import Habits, Said
from conditions import NAMES, Draw
from pool import Pool, batch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvlm import clip
from fedvlm.clip.config import ClipConfig, ViT
from fedvlm.data.scenes import COLOURS, FILLS, SHAPES
from fedvlm.tensors import Named

SIZES = (len(SHAPES), len(FILLS), len(COLOURS), len(NAMES))
"""Numbers of attributes: three kinds of which an image has one, and conditions."""
OUTLINE = 10
"""Weight of the outlines beside the attributes."""


class Scaffold(nn.Module):
    """What stands around the image encoder in this stage and is thrown away."""

    def __init__(self, shape: ClipConfig) -> None:
        super().__init__()
        assert isinstance(shape.vision, ViT)
        width = shape.vision.tower.width
        self.words = nn.Linear(sum(SIZES), shape.embed)
        self.attributes = nn.Linear(shape.embed, sum(SIZES))
        self.norm = nn.LayerNorm(width)
        self.outline = nn.Linear(width, shape.vision.patch**2)
        for layer in (self.attributes, self.outline):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the vectors of attributes; all else is zero at first."""
        nn.init.normal_(self.words.weight, generator=generator)
        nn.init.zeros_(self.words.bias)


def trained(model: clip.FrozenCLIP, scaffold: Scaffold) -> Named:
    """What this stage trains."""
    own: Named = {name: value for name, value in model.named_parameters() if not name.startswith("text.")}
    return own | {f"scaffold.{name}": value for name, value in scaffold.named_parameters()}


@dataclass(frozen=True)
class Part:
    """Forward results of a part of a batch."""

    images: Pool
    said: Said
    features: Tensor
    reading: Tensor
    """The loss of what is read from features and patches."""


def step(
    model: clip.FrozenCLIP,
    scaffold: Scaffold,
    pool: Pool,
    size: int,
    draws: Sequence[np.random.Generator],
    filters: float,
) -> float:
    """Put the gradients of a batch into `.grad`, one part of it for each of `draws`; the loss."""
    each = size // len(draws)
    parts = list(objective.THREADS.map(lambda draw: forward(model, scaffold, pool, each, draw, filters), draws))
    images, said = objective.joined([part.images for part in parts]), objective.joined([part.said for part in parts])
    features = objective.leaf([part.features for part in parts])
    loss = objective.contrastive(model.logits(features, scaffold.words(attributes(said))), said.fits(images))
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    share = torch.tensor(1 / len(parts))
    objective.add_gradients(
        list(trained(model, scaffold).values()),
        [[part.features, part.reading] for part in parts],
        [[gradient, share] for gradient in features.grad.split(each)],
    )
    return loss.item() + sum(part.reading.item() for part in parts) / len(parts)


def forward(model: clip.FrozenCLIP, scaffold: Scaffold, pool: Pool, size: int, draw: Draw, filters: float) -> Part:
    """Images with what their captions name, their features, and the loss of what is read from them."""
    images = batch(pool, size, draw, filters)
    pixels = model.preprocess.normalise(torch.from_numpy(images.pixels).permute(0, 3, 1, 2))
    vision = model.visual
    hidden = vision.hidden(pixels, vision.depth)
    features = vision.feature(hidden, vision.depth)
    outlines = outlining(scaffold.outline(scaffold.norm(hidden[:, 1:])), images)
    loss = reading(scaffold.attributes(features), images) + OUTLINE * outlines
    return Part(images, captions.choose(images, draw, Habits()), features, loss)


def attributes(said: Said) -> Tensor:
    """What captions name, as ones among zeros, `[B, sum(SIZES)]`."""
    kinds = ((said.shape, SIZES[0]), (said.fill, SIZES[1]), (said.colour, SIZES[2]))
    hot = [numbers[:, None] == np.arange(size) for numbers, size in kinds]
    return torch.from_numpy(np.concatenate([*hot, said.conditions], axis=1)).float()


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
