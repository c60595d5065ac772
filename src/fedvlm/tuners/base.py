"""What a tuner is: pure functions over named tensors that turn remembered activations into logits.

Several clients may go through at once: every tensor then has one more dimension in front, of C clients, and so have
classifier, activations and logits. Their frozen parts become one larger batch.

A tuner holds frozen things only (the CLIP, token ids, class names). What is trained travels as a dictionary of
tensors through its functions, so one tuner serves all clients and none can see another's tensors.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import Entry
from fedvlm.tensors import Named


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`, where `weight [..., O, I]` and `bias [..., O]` may be one for each of the first dimensions of x."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    flat = x.reshape(*weight.shape[:-2], -1, weight.shape[-1])
    out: Tensor = torch.baddbmm(bias[:, None], flat, weight.mT)
    return out.view(*x.shape[:-1], -1)


class Tuner(Protocol):
    """B images, K classes. `entry` is the image encoder's entry (see `clip.vision`) below which nothing is trained."""

    @property
    def entry(self) -> Entry:
        """The first image block that the tuner touches: its number, or `Beside` it; depth+1 for finished features."""

    def init(self, generator: torch.Generator) -> Named:
        """The trainable tensors at the start, on the CPU, float32."""

    def prepare(self, received: Named) -> Named:
        """Constants of one visit, computed once from what the client received (no gradient)."""

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """What depends on the tensors but not on the images; computed once per step or per evaluation."""

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Activations at `entry`, `[B, ...]`, to logits `[B, K]`."""
