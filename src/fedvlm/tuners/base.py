"""What a tuner is: pure functions over named tensors that turn remembered activations into logits.

Several clients may go through at once: every tensor then has one more dimension in front, of N clients, and so have
classifier, activations and logits. Their frozen parts become one larger batch.

A tuner is a functional module, as `torch.func.functional_call` makes one: it holds frozen things only (the CLIP, token
ids, class names). What is trained travels as a dictionary of tensors through its functions, so one tuner serves all
clients and none can see another's tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedvlm.clip import FEATURE, Entry, FrozenCLIP
from fedvlm.clip.vision import VisionTransformer
from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named

SupportSet = Callable[[], tuple[Tensor, Tensor]]
"""A client's own training images under the test transform: activations at the tuner's entry `[B, ...]`, labels `[B]`.
They are fetched when it is called."""


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`, where `weight [..., O, I]` and `bias [..., O]` may be one for each of the first dimensions of x."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    flat = x.reshape(*weight.shape[:-2], -1, weight.shape[-1])
    out: Tensor = torch.baddbmm(bias[:, None], flat, weight.mT)
    return out.view(*x.shape[:-1], -1)


def linear_init(name: str, inputs: int, outputs: int, generator: torch.Generator) -> Named:
    """`name.weight [O, I]` and `name.bias [O]` as torch starts a linear layer: uniform in +-1/sqrt(I)."""
    bound = inputs**-0.5
    return {
        f"{name}.weight": torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator),
        f"{name}.bias": torch.empty(outputs).uniform_(-bound, bound, generator=generator),
    }


def apply_linear(tensors: Named, name: str, x: Tensor) -> Tensor:
    """`linear` with `name.weight` and `name.bias`."""
    return linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def stacked_clients(tensor: Tensor, dimensions: int) -> int:
    """Number of clients stacked in a tensor that has `dimensions` for one client; 0 for one alone."""
    return len(tensor) if tensor.ndim > dimensions else 0


def vision_transformer(clip: FrozenCLIP, what: str) -> VisionTransformer:
    """The image encoder of a tuner that works inside of it. Raises `FedvlmError` for a ResNet."""
    if not isinstance(clip.visual, VisionTransformer):
        raise FedvlmError(f"{what} need transformer blocks in both encoders; this CLIP's image encoder is a ResNet")
    return clip.visual


class Tuner(Protocol):
    """B images, K classes. `entry` is the image encoder's entry (see `clip.vision`) below which nothing is trained."""

    @property
    def entry(self) -> Entry:
        """The first image block that the tuner touches: its number, `ParallelTo` it, or `FEATURE` for none."""

    def init(self, generator: torch.Generator) -> Named:
        """The trainable tensors at the start, on the CPU, float32."""

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """Constants of one local training, computed once from what the client received (no gradient).

        `support` is given for predictions over the class list that the client's labels belong to, not for training.
        """

    def classifier(self, tensors: Named, constants: Named) -> Named:
        """What depends on the tensors but not on the images; computed once per step or per evaluation."""

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor | tuple[Tensor, Named]:
        """Activations at `entry`, `[B, ...]`, to logits `[B, K]`; `[B, G, K]` of G groups whose mean predicts.

        Beside them it may give other tensors that it made of the images and that its method's loss needs.
        """


def predict(tuner: Tuner, tensors: Named, classifier: Named, hidden: Tensor) -> tuple[Tensor, Named]:
    """A tuner's logits, in float32, and what it gives beside them."""
    found = tuner.logits(tensors, classifier, hidden)
    logits, extras = found if isinstance(found, tuple) else (found, {})
    return logits.float(), extras


class FeatureTuner:
    """The base of tuners that leave the image encoder alone: cosines of finished features to text features."""

    clip: FrozenCLIP

    @property
    def entry(self) -> Entry:
        """The finished feature."""
        return FEATURE

    def prepare(self, received: Named, support: SupportSet | None = None) -> Named:
        """An empty mapping: nothing is constant."""
        return {}

    def logits(self, tensors: Named, classifier: Named, hidden: Tensor) -> Tensor:
        """Image features `[B, E]` to `[B, K]`: exp(logit_scale) times cosines to the normalised `text [K, E]`."""
        return self.clip.similarity(F.normalize(hidden, dim=-1), classifier["text"])
