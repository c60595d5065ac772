"""A client's memory of its own images, from which it predicts without training (Tip-Adapter, Zhang et al. 2022).

B images, n remembered images, K classes, E joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import in_float32
from fedvlm.tensors import Named
from fedvlm.tuners.base import SupportSet


def remember(support: SupportSet | None, classes: int) -> Named:
    """Normalised `memory.features [n, E]` and one-hot `memory.labels [n, K]`; nothing without own images."""
    if support is None:
        return {}
    hidden, labels = support()
    return {
        "memory.features": F.normalize(hidden, dim=-1),
        "memory.labels": F.one_hot(labels, classes).to(hidden.dtype),
    }


def recall(memory: Named, image: Tensor, sharpness: float) -> Tensor | float:
    """exp(-sharpness (1 - cos)) summed over each class's remembered images: `[B, K]` for normalised `[B, E]`."""
    if "memory.features" not in memory:
        return 0.0
    with in_float32(image):
        affinity = torch.exp(-sharpness * (1 - image @ memory["memory.features"].mT))
        return affinity @ memory["memory.labels"]
