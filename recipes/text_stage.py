"""The second stage: the text encoder learns to read captions beside the finished image encoder.

As in locked-image tuning (LiT, Zhai et al., CVPR 2022) the image encoder does not move, so that what it makes of every
picture is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import captions
import numpy as np
import objective
import torch
from captions import Habits
from pool import Pool, batch
from torch import Tensor
from torch.nn import functional as F

from fedvlm import clip
from fedvlm.streams import stream
from fedvlm.tensors import Named

PARTS = 4
"""Parts of a batch, long captions apart from short ones, which are filled up to the longest of their part."""


@dataclass(frozen=True)
class Remembered:
    """Images without their pixels, and their normalised features `[N, E]`."""

    images: Pool
    features: Tensor


def trained(model: clip.FrozenCLIP) -> Named:
    """What this stage trains."""
    return {n: value for n, value in model.named_parameters() if n.startswith("text.") or n == "logit_scale"}


def remember(model: clip.FrozenCLIP, pool: Pool, seed: int) -> Remembered:
    """As many images as the pool has, drawn from it, moved and filtered, with their features."""

    @torch.no_grad()
    def part(number: int) -> Remembered:
        images = batch(pool, 250, stream(seed, "remembered images", number))
        pixels = model.preprocess.normalise(torch.from_numpy(images.pixels).permute(0, 3, 1, 2))
        features = F.normalize(model.encode_image(pixels), dim=-1)
        return Remembered(replace(images, pixels=images.pixels[:, :0]), features)

    parts = list(objective.THREADS.map(part, range(max(1, len(pool.shape) // 250))))
    return Remembered(objective.joined([one.images for one in parts]), torch.cat([one.features for one in parts]))


def step(model: clip.FrozenCLIP, remembered: Remembered, size: int, draw: np.random.Generator) -> float:
    """Put the gradients of a batch into `.grad`; the loss."""
    rows = draw.integers(len(remembered.features), size=size)
    images, habits = remembered.images.rows(rows), Habits()
    said = captions.choose(images, draw, habits)
    texts = captions.worded(said, draw, habits)
    lengths = np.array([len(text.split()) for text in texts])
    cuts = np.array_split(np.argsort(-lengths, kind="stable"), PARTS)
    back = np.argsort(np.concatenate(cuts))
    parts = list(objective.THREADS.map(lambda cut: model.encode_text(*encode(model, [texts[i] for i in cut])), cuts))
    features = objective.leaf(parts)
    loss = objective.contrastive(model.logits(remembered.features[rows], features[back]), said.fits(images))
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    given = [[gradient] for gradient in features.grad.split([len(cut) for cut in cuts])]
    own = [value for name, value in trained(model).items() if name != "logit_scale"]
    objective.add_gradients(own, [[part] for part in parts], given)
    return loss.item()


def encode(model: clip.FrozenCLIP, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids `[B, L]` and end positions `[B]`; captions too long for the context lose their first words."""
    words, inside = model.tokenizer, captions.CONTEXT - 2
    rows = [encoding.ids[-inside:] for encoding in words.inner.encode_batch(texts, add_special_tokens=False)]
    length = max(len(row) for row in rows)
    ids = [[words.sot, *row, *[words.eot] * (length + 1 - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor([len(row) + 1 for row in rows])
