"""pFedMoAP's gate: one multi-head attention layer that mixes experts' text features (arXiv 2410.10114, section 3.2).

The linear gate stands in its place in the paper's table 7, of which it gives no formula. Ours: one linear layer from
the image to a weight for each expert,

    w = softmax(W pool(I) + b)  over the experts present;    T_MoE^(c) = sum_j w_j pool(T_j^(c))

B images, K classes, M experts (the local one first), R gate width, H heads of R/H channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedvlm.errors import FedvlmError
from fedvlm.tensors import Named
from fedvlm.tuners.base import apply_linear, linear_init

Pooling = Literal["stride", "average"]


def init(width: int, generator: torch.Generator) -> Named:
    """`gating.{q,k,v,o}.{weight,bias}`, each uniform in +-1/sqrt(R) (PyTorch's default for a linear layer)."""
    result = Named()
    for part in "qkvo":
        result |= linear_init(f"gating.{part}", width, width, generator)
    return result


def init_linear(width: int, experts: int, generator: torch.Generator) -> Named:
    """`gating.linear.weight [M, R]` and `.bias [M]`, as torch starts a linear layer."""
    return linear_init("gating.linear", width, experts, generator)


def stride(features: int, width: int) -> int:
    """The step n at which every n-th channel brings features to the gate's width."""
    if width > features or features % width:
        raise FedvlmError(f"gate width {width} does not divide the {features} channels of this CLIP's features")
    return features // width


def pool(features: Tensor, step: int, how: Pooling) -> Tensor:
    """Features `[..., E]` to the gate's width `[..., E/step]`: every `step`-th channel, or means of blocks."""
    return features[..., ::step] if how == "stride" else features.unflatten(-1, (-1, step)).mean(-1)


def keys_values(tensors: Named, experts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Projected experts `[K, M, R]` as keys and values `[K, M, H, R/H]`; they do not depend on images."""
    if experts.shape[-1] % heads:
        raise FedvlmError(f"{heads} heads do not divide the gate's width {experts.shape[-1]}")
    k, v = (apply_linear(tensors, f"gating.{part}", experts).unflatten(-1, (heads, -1)) for part in "kv")
    return k, v


def mixture_logits(tensors: Named, image: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """<image, gate(image, experts)> for pooled images `[B, R]`: `[B, K]`, before the logit scale.

    The gate's output is only ever read through its product with the image, so the output projection is applied to
    the image instead: <W_o x + b, i> = <x, W_o^T i> + <b, i>. Scores are (q k) x `scaling`, with no 1/sqrt(R/H).
    """
    read = (image @ tensors["gating.o.weight"]).unflatten(-1, (keys.shape[-2], -1))
    weights = attention(tensors, image, keys, scaling)
    mixed = (weights * torch.einsum("...bhd,...kmhd->...bkhm", read, values)).sum((-1, -2))
    return mixed + image @ tensors["gating.o.bias"][..., None]


def attention(tensors: Named, image: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Weights of the experts for pooled images `[B, R]` and keys `[K, M, H, R/H]`: `[B, K, H, M]`, sums of 1 over M."""
    query = apply_linear(tensors, "gating.q", image).unflatten(-1, (keys.shape[-2], -1))
    return torch.softmax(torch.einsum("...bhd,...kmhd->...bkhm", query, keys) * scaling, dim=-1)


def linear_weights(tensors: Named, image: Tensor, experts: int) -> Tensor:
    """The linear gate's weights of the first `experts` places for pooled images `[B, R]`: `[B, M']`."""
    return torch.softmax(apply_linear(tensors, "gating.linear", image)[..., :experts], dim=-1)


def linear_logits(tensors: Named, image: Tensor, experts: Tensor) -> Tensor:
    """<image, sum_j w_j(image) expert_j> for pooled images `[B, R]` and experts `[K, M', R]`: `[B, K]`.

    Where fewer than M experts are present (M'), the weights of the last ones are left out of the softmax.
    """
    weights = linear_weights(tensors, image, experts.shape[-2])
    return (torch.einsum("...bd,...kmd->...bkm", image, experts) * weights[..., None, :]).sum(-1)
