"""What both stages of pre-training share: CLIP's contrastive loss, and gradients of a batch that is cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

THREADS = ThreadPoolExecutor(2)
"""Parts of a batch run beside each other. That is faster than two threads inside every operation, and gives the same
gradients on any number of processors."""


def contrastive(logits: Tensor, true: npt.NDArray[np.bool_]) -> Tensor:
    """CLIP's symmetric loss where an image is positive for every caption of the batch that is true of it.

    The targets are uniform over the positives, as in UniCL (Yang et al. 2022): captions that leave attributes out
    fit several images, and calling those negatives would teach the wrong thing.
    """
    target = torch.from_numpy(true).float()
    by_image = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    by_caption = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (by_image + by_caption) / 2


def leaf(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a batch as one tensor that takes a gradient, cut off from what made them."""
    return torch.cat(list(parts)).detach().requires_grad_()


def add_gradients(
    trained: Sequence[Tensor], outputs: Sequence[Sequence[Tensor]], given: Sequence[Sequence[Tensor]]
) -> None:
    """Add to `.grad` of what is trained: the gradients of every part's outputs, from those given for the outputs."""

    def backward(out: Sequence[Tensor], to: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(out, trained, to, allow_unused=True)

    for gradients in THREADS.map(backward, outputs, given):
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def joined(parts: Sequence[Any]) -> Any:
    """Data classes of arrays, one behind the other."""
    arrays = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(np.concatenate(each) for each in arrays))
